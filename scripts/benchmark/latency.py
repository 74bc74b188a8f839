"""From a trigger's sending to its receipt, at a steady pace: what an emitter that waits sees.

Emitter and reader are one process with aiokafka (acks=all, no linger; read_committed), apart from the gate's. The clock
starts before `send` is called and stops when the reader hands over the receipt. Home and away take turns, block by
block, on one gate; each trigger has a new one-shot token.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from statistics import quantiles
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from app.stream.topics import Topic
from scripts.benchmark import traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed
from scripts.benchmark.figures import GOALS, Figure
from scripts.benchmark.run import Run
from scripts.benchmark.traffic import Request

LANES: Final = 4
PER_SECOND: Final = 100
BLOCKS: Final = 5
WARM_UP: Final = 100
ANSWER_TIMEOUT_S: Final = 30.0
AWAY: Final = {"latency-home": 0, "latency-away": 1}


def measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    size = max(run.latency_triggers // BLOCKS, 1)
    requests = traffic.one_shot(run.issuer, WARM_UP + size * BLOCKS * len(names))
    with deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment, Gate(deployment) as gate:
        gate.wait_ready()
        seen = asyncio.run(_blocks(run, deployment, names, requests, size))
    figures, samples = [], []
    for name in names:
        cuts = quantiles(seen[name], n=100, method="inclusive")
        where = "away from home" if AWAY[name] else "home"
        what = f"latency of {len(seen[name]):,} triggers at {PER_SECOND}/s, {where}"
        figures += [
            Figure(f"{what}: p50", [cuts[49]], "ms", GOALS[f"{name} p50"]),
            Figure(f"{what}: p99", [cuts[98]], "ms", GOALS[f"{name} p99"]),
        ]
        samples.append({"row": name, "latency_ms": [round(value, 3) for value in seen[name]]})
        run.say(f"{name}: p50 {cuts[49]:.1f} ms, p90 {cuts[89]:.1f}, p99 {cuts[98]:.1f}, most {max(seen[name]):.1f}")
    return figures, samples


async def _blocks(
    run: Run, deployment: Deployment, names: Sequence[str], requests: list[Request], size: int
) -> dict[str, list[float]]:
    seen: dict[str, list[float]] = {name: [] for name in names}
    async with Wire(deployment) as wire:
        await wire.latencies_ms(requests[:WARM_UP], away=0)
        at = WARM_UP
        for block in range(BLOCKS):
            for name in names:
                seen[name] += await wire.latencies_ms(requests[at : at + size], away=AWAY[name])
                at += size
            run.say(f"latency: block {block + 1} of {BLOCKS}")
    return seen


class Wire:
    """A producer, and a reader of all receipts."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._triggers = deployment.topic(Topic.TRIGGERS)
        self._receipts = [TopicPartition(deployment.topic(Topic.RECEIPTS), lane) for lane in range(LANES)]
        self.producer = AIOKafkaProducer(bootstrap_servers=deployment.bootstrap, acks="all", linger_ms=0)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=deployment.bootstrap, group_id=None, isolation_level="read_committed",
            enable_auto_commit=False, auto_offset_reset="earliest", fetch_min_bytes=1,
        )  # fmt: skip
        self.answers: dict[bytes, tuple[float, bytes]] = {}  # by trigger id: when it was read, and the receipt

    async def __aenter__(self) -> Self:
        await self.producer.start()
        await self._consumer.start()
        self._consumer.assign(self._receipts)
        await self._consumer.seek_to_beginning(*self._receipts)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self.producer.stop()

    async def _read(self) -> None:
        while True:
            found = await self._consumer.getmany(timeout_ms=1_000)
            now_s = time.perf_counter()
            for records in found.values():
                for record in records:
                    self.answers[record.key] = now_s, record.value

    async def send(self, request: Request, partition: int) -> asyncio.Future[Any]:
        """What tells, once the broker has it, where it stands."""
        sent: asyncio.Future[Any] = await self.producer.send(
            self._triggers, request.value, key=request.key.encode(), partition=partition
        )
        return sent

    async def latencies_ms(self, requests: Sequence[Request], away: int) -> list[float]:
        """Send at the pace, whatever is still unanswered; wait for every receipt."""
        sent: list[tuple[float, asyncio.Future[Any]]] = []
        gc.collect()
        gc.freeze()
        began_s = time.perf_counter()
        for number, (partition, request) in enumerate(traffic.placed(requests, LANES, away)):
            await asyncio.sleep(max(began_s + number / PER_SECOND - time.perf_counter(), 0))
            now_s = time.perf_counter()
            sent.append((now_s, await self.send(request, partition)))
        ids = []
        for now_s, acknowledged in sent:
            metadata = await acknowledged
            ids.append((b"%d-%d" % (metadata.partition, metadata.offset), now_s))
        deadline_s = time.perf_counter() + ANSWER_TIMEOUT_S
        while not all(trigger_id in self.answers for trigger_id, _ in ids):
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"not every trigger had its receipt within {ANSWER_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.01)
        return [(self.answers[trigger_id][0] - sent_s) * 1_000 for trigger_id, sent_s in ids]
