"""How soon a gate is back: with its stores lost (restore from the changelog), and with them in place (restart).

The changelog is written beforehand by a transactional confluent-kafka producer, entries of `app.gate.idempotency`
spread evenly over the lanes, as many in a transaction and lane as a full turn has.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition

from app.gate.idempotency import IDENTITY_BYTES, pack
from app.stream.topics import Topic
from scripts.benchmark import traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed
from scripts.benchmark.figures import GOALS, Figure
from scripts.benchmark.run import Run
from scripts.benchmark.traffic import Request

LANES: Final = 4
A_TURN: Final = 2_000  # entries of one lane in one transaction
RESTORES_MAX: Final = 3
WINDOW_MS: Final = 86_400_000
FIRST_DECISION_TIMEOUT_S: Final = 60.0


def measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    with deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment:
        run.say(f"restore: writing {run.restore_entries:,} entries over {LANES} lanes of the changelog")
        write_changelog(deployment, run.restore_entries)
        samples = [_restore(run, deployment) for _ in range(min(run.repeats, RESTORES_MAX))]
        what = f"restore of {run.restore_entries:,} entries, {LANES} lanes"
        figures = [
            Figure(f"{what}: entries per second", [s["entries_per_second"] for s in samples], "", GOALS["restore"])
        ]
        if "restart" in names:
            waiting = traffic.webhook(run.issuer, run.repeats)
            restarts = [_restart(run, deployment, request) for request in waiting]
            what = f"restart on local stores of {run.restore_entries:,} entries"
            figures += [
                Figure(f"{what}: from joining the group to the first receipt", [s["from_joined_s"] for s in restarts],
                       "s", GOALS["restart"]),
                Figure(f"{what}: from the process's start", [s["from_start_s"] for s in restarts],
                       "s", GOALS["restart"]),
            ]  # fmt: skip
            samples += restarts
    return figures, samples


def write_changelog(deployment: Deployment, count: int) -> None:
    topic, lanes = deployment.topic(Topic.IDEMPOTENCY), deployment.lanes
    producer = Producer(
        {
            "bootstrap.servers": deployment.bootstrap, "transactional.id": f"changelog-{topic}", "linger.ms": 20,
            "batch.size": 1_000_000, "queue.buffering.max.messages": 100_000, "log_level": 2,
        }
    )  # fmt: skip
    producer.init_transactions(60)
    now_ms = time.time_ns() // 1_000_000
    for start in range(0, count, A_TURN * lanes):
        producer.begin_transaction()
        for number in range(start, min(start + A_TURN * lanes, count)):
            random = os.urandom(IDENTITY_BYTES + 40)
            lane, until_ms = number % lanes, now_ms + WINDOW_MS
            entry = pack(random[16:32], random[32:48], random[48:56], lane, number, now_ms, until_ms)
            producer.produce(topic, entry, random[:IDENTITY_BYTES], partition=lane)
        producer.commit_transaction(60)


def _restore(run: Run, deployment: Deployment) -> dict[str, Any]:
    """Start a gate without stores, and stop it when all lanes have told that they are restored."""
    shutil.rmtree(deployment.settings.gate.state_dir, ignore_errors=True)
    with Gate(deployment) as gate:
        gate.wait_ready()
        ended = [event for event in gate.events("restored") if event["done"]]
    first_s = min(_at_s(event) - event["seconds"] for event in ended)
    seconds = max(_at_s(event) for event in ended) - first_s
    entries = sum(event["entries"] for event in ended)
    if entries != run.restore_entries:
        raise RuntimeError(f"{entries:,} entries were restored of {run.restore_entries:,}")
    run.say(f"restore: {entries:,} entries in {seconds:.2f} s, {entries / seconds:,.0f}/s")
    return {"row": "restore", "entries": entries, "seconds": seconds, "entries_per_second": entries / seconds}


def _restart(run: Run, deployment: Deployment, request: Request) -> dict[str, Any]:
    """Start a gate while a trigger waits; its receipt is the first decision."""
    ((partition, _),) = traffic.placed([request], deployment.lanes)
    reader = Consumer(
        {
            "bootstrap.servers": deployment.bootstrap, "group.id": "bench-restart", "enable.auto.commit": False,
            "isolation.level": "read_committed", "auto.offset.reset": "latest", "log_level": 2,
        }
    )  # fmt: skip
    receipts = TopicPartition(deployment.topic(Topic.RECEIPTS), partition)
    receipts.offset = reader.get_watermark_offsets(receipts, timeout=30)[1]
    reader.assign([receipts])
    emitter = Producer({"bootstrap.servers": deployment.bootstrap, "log_level": 2})
    emitter.produce(deployment.topic(Topic.TRIGGERS), request.value, request.key.encode(), partition=partition)
    emitter.flush(30)
    with Gate(deployment) as gate:
        deadline_s = time.time() + FIRST_DECISION_TIMEOUT_S
        while (message := reader.poll(0.1)) is None or message.error() is not None:
            gate.raise_if_dead()
            if time.time() > deadline_s:
                raise TimeoutError(f"no decision within {FIRST_DECISION_TIMEOUT_S:.0f} s:\n{gate.last_words()}")
        decided_s = time.time()
        gate.wait_ready()
        joined_s = _at_s(gate.events("gate_started")[0])
        started_s = gate.started_at_s
    reader.close()
    from_start_s, from_joined_s = decided_s - started_s, decided_s - joined_s
    run.say(f"restart: first receipt {from_start_s:.2f} s after the start, {from_joined_s:.2f} s after joining")
    return {"row": "restart", "from_start_s": from_start_s, "from_joined_s": from_joined_s}


def _at_s(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
