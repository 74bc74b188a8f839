"""A deployment on the test broker, and lanes of it run in this process."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer, TopicPartition

from app.config import Gate, Kafka, Settings, Telemetry
from app.stream import administration
from app.stream.inspection import connect
from app.stream.lane import Lane, State
from app.stream.worker import Worker
from tests.support.altering import alter
from tests.support.emitting import Raw, emit, home_key, read_lane, receipts, trigger, until
from tests.support.invariants import Read
from tests.support.issuer import ISSUER, JOB, ORG, OtherIssuer

QUIET_S = 0.6  # several times as long as a lane needs for a decision


class Deployment:
    """Topics with one job and one trusted issuer. Lanes are independent: each test takes some for itself."""

    def __init__(self, bootstrap: str, prefix: str, lanes: int, directory: Path) -> None:
        self.bootstrap, self.prefix, self.lanes, self.directory = bootstrap, prefix, lanes, directory
        self.issuer = OtherIssuer(prefix)
        self.jwks_file = directory / "jwks.json"
        self.jwks_file.write_text(json.dumps(self.issuer.jwks()))
        self._free = iter(range(lanes))
        self._directories = itertools.count()
        created = administration.create_topics(self.settings(), lanes)
        assert created.checked.deployment is not None, created.checked.findings
        self.found = created.checked.deployment
        self.trust(ISSUER, self.jwks_file)
        self.register(f"job/{JOB}", {"name": JOB, "version": 1})

    def settings(self, bootstrap: str | None = None, request_timeout_ms: int = 5_000, **gate: Any) -> Settings:
        address = bootstrap or self.bootstrap
        kafka = Kafka(bootstrap=address, prefix=self.prefix, request_timeout_ms=request_timeout_ms)
        gate = {"state_dir": self.directory / "state"} | gate
        return Settings(kafka=kafka, gate=Gate(**gate), telemetry=Telemetry(port=0))

    def topic(self, name: str) -> str:
        return self.prefix + name

    def lane(self) -> int:
        """A lane no test has used."""
        return next(self._free)

    def new_directory(self) -> Path:
        return self.directory / f"state-{next(self._directories)}"

    def key(self, lane: int) -> str:
        return home_key(lane, self.lanes)

    def trust(self, issuer: str, jwks: Path) -> None:
        rule = {
            "issuer": issuer, "version": 1, "jwks": str(jwks), "algorithms": ["ES256"], "orgs": [ORG],
            "classes": ["trigger"], "subjects": ["service:*"], "jobs": ["*"], "max_lifetime_s": 86_400,
        }  # fmt: skip
        self.register(f"trust/{issuer}", rule)

    def register(self, name: str, record: dict[str, Any]) -> None:
        self.write("registry", 0, name.encode(), json.dumps(record).encode())

    def write(self, topic: str, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Write as ops or a stranger would, outside any lane."""
        producer = Producer({"bootstrap.servers": self.bootstrap})
        producer.produce(self.topic(topic), value, key, partition=partition)
        assert producer.flush(10) == 0

    def good(self, lane: int) -> bytes:
        """A trigger that is good, new, and at home in a lane."""
        return trigger(self.issuer, self.key(lane))

    async def send(self, lane: int, *records: Raw | bytes, **options: Any) -> list[str]:
        return await asyncio.to_thread(emit, self.bootstrap, self.topic("triggers"), lane, records, **options)

    async def read(self, topic: str, lane: int) -> list[Read]:
        return await read_lane(self.bootstrap, self.topic(topic), lane)

    async def receipts(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        return await receipts(self.bootstrap, self.prefix, ids)

    async def answers(self, ids: Sequence[str]) -> list[str]:
        """Of each trigger its outcome, or the reason it was refused."""
        found = await self.receipts(ids)
        return [found[each]["reason"] or found[each]["outcome"] for each in ids]

    async def receipts_of(self, lane: int, count: int) -> list[Read]:
        """The receipts a lane has written, once there are so many: also those of triggers that stand elsewhere."""
        async with asyncio.timeout(60):
            while True:
                found = await self.read("receipts", lane)
                if len(found) >= count:
                    return found

    async def alter(self, topic: str, **config: str) -> None:
        await asyncio.to_thread(alter, connect(Kafka(bootstrap=self.bootstrap)), self.topic(topic), **config)

    async def delete_all(self, topic: str, lane: int) -> None:
        admin = connect(Kafka(bootstrap=self.bootstrap))
        for future in admin.delete_records([TopicPartition(self.topic(topic), lane, -1)]).values():
            await asyncio.to_thread(future.result, 30)

    @asynccontextmanager
    async def worker(self, *lanes: int, bootstrap: str | None = None, **gate: Any) -> AsyncIterator[Worker]:
        """A worker with just these lanes, without a consumer group; released in order at the end."""
        worker = Worker(self.settings(bootstrap, **gate), self.found, 0)
        await worker._cluster.start()
        try:
            await worker._tables.start()
            await worker.assigned(set(lanes))
            yield worker
        finally:
            await worker._leave()

    @asynccontextmanager
    async def running(self, lane: int, bootstrap: str | None = None, **gate: Any) -> AsyncIterator[Lane]:
        """One lane, running."""
        async with self.worker(lane, bootstrap=bootstrap, **gate) as worker:
            await is_running(worker.lanes[lane])
            yield worker.lanes[lane]


async def is_running(lane: Lane) -> None:
    await until(f"lane {lane.number} runs, it is {lane.state}", lambda: lane.state is State.RUNNING)
