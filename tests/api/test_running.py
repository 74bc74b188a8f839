"""The door as a process: told to stop, bereft of Kafka, beside another on one port; and what it never says."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Producer

from app.local.kafka import LocalKafka
from tests.api.conftest import Deployment
from tests.cli.program import tollgate
from tests.support import reader
from tests.support.doors import DoorProcess, Emitter
from tests.support.founding import found
from tests.support.gates import GateProcess, environment
from tests.support.issuer import JOB, OtherIssuer
from tests.support.odd_batches import ODD, produce

pytestmark = pytest.mark.broker
Make = Callable[..., Emitter]


def test_one_told_to_stop_answers_what_is_under_way_and_ends_streams(deployment: Deployment) -> None:
    deployment.gate.signal(signal.SIGSTOP)  # so that receipts do not come
    try:
        door = DoorProcess("stopping", deployment.directory, deployment.env)
        door.start()
        door.wait_ready()
        token = deployment.issuer.token()
        answers: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(Emitter(door.url, token).trigger(JOB, prefer="wait=25"))
        )
        with httpx.stream(
            "GET", f"{door.url}/v1/receipts/stream", headers={"authorization": f"Bearer {token}"}
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            waiting.start()
            time.sleep(1)
            door.signal(signal.SIGTERM)
            list(lines)
        waiting.join()
        assert door.wait() == 0
        assert [answer.status_code for answer in answers] == [202]
        assert [event["event"] for event in door.events()][-1] == "serve_stopped"
    finally:
        deployment.gate.signal(signal.SIGCONT)


def test_a_door_starts_whatever_an_open_transaction_holds_back(deployment: Deployment) -> None:
    """An end that the broker lost is never told, and whoever waited for it would wait for good."""
    producer = Producer({"bootstrap.servers": deployment.bootstrap, "transactional.id": f"{deployment.prefix}open"})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(deployment.prefix + "receipts", b"{}", b"0-0", partition=0)
    assert producer.flush(20) == 0
    door = DoorProcess("beside-an-open-one", deployment.directory, deployment.env)
    door.start()
    try:
        door.wait_ready()
    finally:
        producer.abort_transaction(20)
        door.signal(signal.SIGTERM)
        assert door.wait() == 0


def test_two_instances_behind_one_port_answer_alike(deployment: Deployment) -> None:
    settings = deployment.settings_for(serve__reuse_port="true")
    first = DoorProcess("first", deployment.directory, settings)
    first.start()
    try:
        first.wait_ready()
        port = first.url.rpartition(":")[2]
        second = DoorProcess("second", deployment.directory, settings | {"TOLLGATE_SERVE__PORT": port})
        second.start()
        try:
            second.wait_ready()
            token = deployment.issuer.token()
            ids = []
            for number in range(30):  # each on a connection of its own: the kernel says whose
                client = Emitter(first.url, token)
                ids.append(client.decided(JOB, {"n": number})["trigger_id"])
                client.close()
            for trigger_id in ids:
                client = Emitter(first.url, token)
                assert client.receipt(trigger_id)["outcome"] == "accepted"
                client.close()
            for door in (first, second):
                told = httpx.get(f"{door.internal_url}/metrics").text
                assert re.search(r'method="POST",route="/v1/triggers/\{job[^"]*",status="200"', told), door.name
        finally:
            assert second.stop() == 0
    finally:
        assert first.stop() == 0


def test_a_port_that_is_taken_is_told_with_the_setting_to_change(deployment: Deployment) -> None:
    said = tollgate(deployment.env, "serve", "--port", deployment.doors[0].url.rpartition(":")[2])
    assert said.code == 2
    assert "serve.port" in said.err


@pytest.mark.parametrize("topic", ["receipts", "issuance"])
def test_a_door_that_cannot_read_what_it_follows_ends_and_says_where(
    broker: str, prefix: str, tmp_path: Path, topic: str
) -> None:
    found(broker, prefix, 1, OtherIssuer(prefix), tmp_path)
    door = DoorProcess("door", tmp_path, environment(broker, prefix))
    door.start()
    try:
        door.wait_ready()
        raw = ODD["two at one offset"]([b"{}", b"{}"])
        assert asyncio.run(produce(broker, prefix + topic, 0, raw)) == 0
        assert door.wait() == 1
    finally:
        door.stop()
    said = door.log_file.read_text()
    assert f"{prefix}{topic} at 0: batch_unreadable" in said
    # Nor does another begin, as long as the batch is there, with what it cannot have read.
    again = DoorProcess("again", tmp_path, environment(broker, prefix))
    again.start()
    try:
        assert again.wait() == 1
    finally:
        again.stop()


def test_keys_are_on_the_internal_listener_and_on_the_public_one_only_where_they_belong(deployment: Deployment) -> None:
    for door in deployment.doors:
        inside = httpx.get(f"{door.internal_url}/internal/jwks/task")
        assert inside.status_code == 200
        (key,) = inside.json()["keys"]
        assert key.keys() == {"kty", "crv", "alg", "use", "kid", "x", "y"}
        assert "max-age" in inside.headers["cache-control"]
        assert httpx.get(f"{door.url}/internal/jwks/task").status_code == 404
        assert httpx.get(f"{door.url}/.well-known/jwks.json").json() == inside.json()


def _full(kafka: LocalKafka) -> None:
    """No file of the broker grows from now on, as on a disk that is full."""
    (pid,) = kafka.pids.values()
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))


@pytest.mark.slow
@pytest.mark.parametrize("lose", [lambda kafka: kafka.kill(1), _full], ids=["killed", "full"])
def test_without_kafka_triggers_are_refused_and_none_that_was_acknowledged_is_lost(
    tmp_path: Path, lose: Callable[[LocalKafka], None]
) -> None:
    prefix, issuer = "lone.", OtherIssuer("lone.")
    with LocalKafka(tmp_path / "kafka") as kafka:
        port = int(kafka.bootstrap.rpartition(":")[2])
        found(kafka.bootstrap, prefix, 2, issuer, tmp_path)
        env = environment(kafka.bootstrap, prefix, serve__publish_timeout_s="1", kafka__request_timeout_ms="2000")
        door, gate = DoorProcess("door", tmp_path, env), GateProcess("gate", tmp_path, env)
        door.start()
        gate.start()
        door.wait_ready()
        client, acknowledged = Emitter(door.url, issuer.token()), set()
        statuses: list[int] = []

        def send(number: int) -> None:
            answer = client.trigger(JOB, idempotency_key=f"k-{number}")
            statuses.append(answer.status_code)
            if answer.status_code == 202:
                acknowledged.add(answer.json()["trigger_id"])
            else:
                assert answer.status_code == 503, answer.text
                assert answer.json()["reason"] in {"kafka_unavailable", "outcome_unknown", "overloaded"}
                assert int(answer.headers["retry-after"]) >= 1

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(send, range(100)))
            # Not with transactions under way: a lone broker that goes then may tear them (KAFKA-20734).
            assert gate.stop() == 0
            sending = [threads.submit(send, number) for number in range(100, 200)]
            lose(kafka)
            for each in sending:
                each.result()
        send(200)
        assert statuses[-1] == 503
        assert httpx.get(f"{door.internal_url}/livez").status_code == 200
    with LocalKafka(tmp_path / "kafka", port=port) as kafka:
        gate.start()
        deadline = time.monotonic() + 90
        while client.trigger(JOB, idempotency_key="k-again").status_code != 202:
            assert door.alive, door.log_file.read_text()
            assert time.monotonic() < deadline, door.log_file.read_text()
            time.sleep(0.5)
        with ThreadPoolExecutor(8) as threads:  # what was refused is sent again with its key
            list(threads.map(send, range(201)))
        assert statuses[-201:] == [202] * 201
        there = {
            f"{read.partition}-{read.offset}" for read in reader.read_topic(kafka.bootstrap, "lone.triggers").records
        }
        assert acknowledged <= there
        for trigger_id in acknowledged:
            client.receipt(trigger_id, 60)
        jobs = reader.read_topic(kafka.bootstrap, "lone.jobs").records
        assert len(jobs) == 202  # one for each key
        client.close()
        assert (door.stop(), gate.stop()) == (0, 0)
