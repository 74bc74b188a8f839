"""What a log says of an outage: a line when it begins, one every so often, one when it is over, and all that is new."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import logs, outage
from app.local.kafka import LocalKafka
from tests.support.doors import DoorProcess, Emitter
from tests.support.founding import found
from tests.support.gates import GateProcess, environment
from tests.support.issuer import JOB, OtherIssuer

# Of no tree: commands that were run in this process silence the other.
LIBRARY = logging.Logger("aiokafka")  # noqa: LOG001
REFUSED = "Unable connect to node with id %s: %s"


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logs.Entry]]:
    """What this process logs, its libraries' included; an outage is looked at more often than it would be."""
    monkeypatch.setattr(outage, "LOOK_S", 0.01)
    monkeypatch.setattr(outage, "SETTLED_S", 0.1)
    monkeypatch.setattr(outage, "EVERY_S", 0.3)
    made, told = logs.Log(), list[logs.Entry]()
    monkeypatch.setattr(logs, "log", made)
    handler = logs._FromLibraries()
    LIBRARY.addHandler(handler)
    with made.into(told):
        yield told
    LIBRARY.removeHandler(handler)


def events(entries: list[logs.Entry]) -> list[str]:
    return [entry["event"] for entry in entries]


def refused(node: int = 1) -> None:
    LIBRARY.error(REFUSED, node, "Connect call failed")


async def failing(for_s: float) -> None:
    for _ in range(int(for_s * 200)):
        refused()
        logs.log.failed(logs.Event.FETCH_FAILED, ConnectionError(), node=1)
        await asyncio.sleep(0.005)


async def test_an_outage_is_a_line_when_it_begins_one_every_so_often_and_one_when_it_is_over(
    entries: list[logs.Entry],
) -> None:
    await failing(1.0)
    assert events(entries)[:2] == ["kafka_unreachable", "fetch_failed"]
    assert set(events(entries)[2:]) == {"kafka_unreachable"}
    assert len(entries) <= 6
    goes_on = entries[2]
    assert goes_on["since_the_last_line"].keys() == {
        "Unable connect to node with id 1: Connect call failed", "fetch_failed ConnectionError",
    }  # fmt: skip
    assert sum(goes_on["since_the_last_line"].values()) == goes_on["failures"] > 10
    logs.log.outage.answered()
    await asyncio.sleep(0.3)
    assert entries[-1]["event"] == "kafka_reached"
    assert entries[-1]["failures"] == 400
    told = len(entries)
    await asyncio.sleep(0.4)
    assert len(entries) == told  # and nothing more
    refused()
    assert entries[-1]["event"] == "kafka_unreachable"  # until the next one


async def test_silence_is_no_answer(entries: list[logs.Entry]) -> None:
    """A client that waits for an answer, as long as it may, says nothing."""
    refused()
    await asyncio.sleep(0.5)
    assert "kafka_reached" not in events(entries)
    logs.log.outage.answered()
    await asyncio.sleep(0.2)
    assert events(entries)[-1] == "kafka_reached"


async def test_what_an_outage_had_not_before_is_told(entries: list[logs.Entry]) -> None:
    refused()
    for lane in (0, 1, 0, 1):
        logs.log.failed(logs.Event.LANE_RETRY, ConnectionError(), lane=lane)
    for number in range(3):
        LIBRARY.error("Heartbeat failed: %s", number)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        LIBRARY.exception("Unexpected error in sender routine")
    logs.log.error(logs.Event.LANE_STOPPED, lane=0)
    assert [(entry["event"], entry.get("lane")) for entry in entries] == [
        ("kafka_unreachable", None), ("lane_retry", 0), ("lane_retry", 1), ("library", None), ("library", None),
        ("lane_stopped", 0),
    ]  # fmt: skip


async def test_without_an_outage_everything_is_told(entries: list[logs.Entry]) -> None:
    for _ in range(3):
        logs.log.failed(logs.Event.FETCH_FAILED, ConnectionError(), node=1)
        LIBRARY.error("Topic %s not found in cluster metadata", "x")
    assert len(entries) == 6


async def test_what_is_said_is_told_within_bounds(entries: list[logs.Entry]) -> None:
    for node in range(100):
        refused(node)
    await asyncio.sleep(0.4)
    said = entries[-1]["since_the_last_line"]
    assert len(said) == outage.TEXTS_MAX + 1
    assert sum(said.values()) == 100


@pytest.mark.broker
@pytest.mark.slow
def test_while_kafka_is_away_a_gate_and_a_door_say_what_a_person_can_read(tmp_path: Path) -> None:
    prefix, issuer = "away.", OtherIssuer("away.")
    with LocalKafka(tmp_path / "kafka") as kafka:
        port = int(kafka.bootstrap.rpartition(":")[2])
        found(kafka.bootstrap, prefix, 3, issuer, tmp_path)
        env = environment(kafka.bootstrap, prefix, serve__publish_timeout_s="1", kafka__request_timeout_ms="2000")
        door = DoorProcess("door", tmp_path, env)
        processes = (door, GateProcess("gate", tmp_path, env))
        for process in processes:
            process.start()
        door.wait_ready()
        client = Emitter(door.url, issuer.token())
        assert client.decided(JOB)["outcome"] == "accepted"
        time.sleep(2)  # a lone broker that goes while transactions are under way may tear them (KAFKA-20734)
        before = {process.name: len(process.events()) for process in processes}
        kafka.kill(1)
        for _ in range(10):
            assert client.trigger(JOB).status_code == 503
        time.sleep(outage.EVERY_S + 5)
    with LocalKafka(tmp_path / "kafka", port=port):
        deadline = time.monotonic() + 90
        while client.trigger(JOB).status_code != 202:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert client.decided(JOB)["outcome"] == "accepted"
        time.sleep(3 * outage.SETTLED_S)
        client.close()
        said = {process.name: process.events()[before[process.name] :] for process in processes}
        assert [process.stop() for process in processes] == [0, 0]
    for entries in said.values():
        told = [entry for entry in entries if entry["event"] in {"kafka_unreachable", "kafka_reached"}]
        assert events(told)[0] == "kafka_unreachable"
        assert events(told)[-1] == "kafka_reached"
        assert told[-1]["failures"] > 100
        assert len(told) <= 2 + told[-1]["lasted_s"] / outage.EVERY_S
        assert len(entries) <= 40, events(entries)
