"""Draining a backlog: CPU and time from the moment it becomes visible to the last receipt.

The gate (or a peer) is ready and idle when a backlog of triggers, written into one open transaction, is committed.
CPU is user + system over all threads of its processes, between that moment and the sample at which the receipts
topic's committed end stops moving; afterwards an independent read_committed reader counts receipts and jobs.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from app.stream.topics import Topic
from scripts.benchmark import raw
from scripts.benchmark.deployment import Deployment
from scripts.benchmark.processes import Child, memory_mb
from scripts.benchmark.traffic import Backlog, Request

SAMPLE_S: Final = 0.05
QUIET_S: Final = 0.5  # without a new receipt, before they are counted
SETTLE_S: Final = 0.5  # between writing the backlog and releasing it
DRAIN_TIMEOUT_S: Final = 600.0
STALL_TIMEOUT_S: Final = 30.0  # without a new receipt


class Drained(NamedTuple):
    """One measurement."""

    triggers: int
    seconds: float
    cpu_s: float
    receipts: int  # that a read_committed reader finds; as many as triggers, or something is wrong
    jobs: int
    duplicates: int
    peak_mb: float

    @property
    def per_second(self) -> float:
        return self.triggers / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.triggers * 1e6


def drain(
    deployment: Deployment, child: Child, requests: Sequence[Request], *, away: int = 0, quiet_s: float = QUIET_S
) -> tuple[Drained, float]:
    """Let a program that is ready decide a backlog, and measure it; and CPU µs of a raw verification meanwhile."""
    count = len(requests)
    receipts_before, outcomes_before = deployment.committed_ends(Topic.RECEIPTS), _outcomes(deployment)
    jobs_before = count_committed(deployment, Topic.JOBS)
    backlog = Backlog(deployment.bootstrap, deployment.topic(Topic.TRIGGERS), requests, deployment.lanes, away)
    time.sleep(SETTLE_S)
    cpu_before_s, began_s = child.cpu_s(), time.monotonic()
    with raw.During() as meanwhile:
        backlog.release()
        ended_s, cpu_after_s = _await_receipts(deployment, child, receipts_before, count, began_s, quiet_s)
    outcomes = _outcomes(deployment) - outcomes_before
    refused = outcomes.keys() - {"accepted", "duplicate"}
    if refused:
        raise RuntimeError(f"good triggers were refused, so nothing was measured: {dict(outcomes)}")
    jobs = count_committed(deployment, Topic.JOBS) - jobs_before
    drained = Drained(
        count, ended_s - began_s, cpu_after_s - cpu_before_s, outcomes.total(), jobs, outcomes["duplicate"],
        memory_mb(child.pid, "VmHWM"),
    )  # fmt: skip
    return drained, meanwhile.verify_us


def _await_receipts(
    deployment: Deployment, child: Child, ends_before: int, count: int, began_s: float, quiet_s: float
) -> tuple[float, float]:
    """When the last receipt could be read, and the CPU used until then."""
    seen, ended_s, cpu_s = -1, began_s, 0.0
    while True:
        time.sleep(SAMPLE_S)
        now_s, cpu_now_s, ends = time.monotonic(), child.cpu_s(), deployment.committed_ends(Topic.RECEIPTS)
        if ends != seen:
            seen, ended_s, cpu_s = ends, now_s, cpu_now_s
        elif seen - ends_before >= count and now_s - ended_s > quiet_s:  # markers count too: so many and quiet
            return ended_s, cpu_s
        child.raise_if_dead()
        if now_s - ended_s > STALL_TIMEOUT_S or now_s - began_s > DRAIN_TIMEOUT_S:
            raise TimeoutError(
                f"{seen - ends_before:,} of {count:,} receipts {now_s - began_s:.0f} s after the backlog was released; "
                f"{child.log_file.stem} says last:\n" + child.last_words()
            )


def count_committed(deployment: Deployment, topic: Topic) -> int:
    total = 0

    def add(_: bytes) -> None:
        nonlocal total
        total += 1

    _read_committed(deployment, topic, add)
    return total


def _outcomes(deployment: Deployment) -> Counter[str]:
    counts: Counter[str] = Counter()

    def add(value: bytes) -> None:
        receipt = json.loads(value)
        counts[receipt["reason"] or receipt["outcome"]] += 1

    _read_committed(deployment, Topic.RECEIPTS, add)
    return counts


def _read_committed(deployment: Deployment, topic: Topic, each: Callable[[bytes], None]) -> None:
    """Every committed record of a topic, by a client that is not ours."""
    consumer = Consumer(
        {
            "bootstrap.servers": deployment.bootstrap, "group.id": "bench-reader", "enable.auto.commit": False,
            "isolation.level": "read_committed", "auto.offset.reset": "earliest", "enable.partition.eof": True,
            "log_level": 2,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(deployment.topic(topic), lane, 0) for lane in range(deployment.lanes)])
    try:
        ended: set[int] = set()
        while len(ended) < deployment.lanes:
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                if error is None:
                    each(message.value())
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                    ended.add(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
