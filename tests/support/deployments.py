"""A deployment on the test broker, and lanes of it run in this process."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from app.config import Gate, Kafka, Settings, Telemetry
from app.stream import administration
from app.stream.lane import Lane, State
from app.stream.worker import Worker
from tests.support.emitting import home_key, until
from tests.support.issuer import ISSUER, JOB, ORG, OtherIssuer


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

    def settings(self, bootstrap: str | None = None, **gate: Any) -> Settings:
        kafka = Kafka(bootstrap=bootstrap or self.bootstrap, prefix=self.prefix, request_timeout_ms=5_000)
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
