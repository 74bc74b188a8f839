"""A deployment of its own for each measurement: topics, one trust rule, one job, a directory; and a gate on it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from app import config, registry
from app.local.ports import free_ports, is_free
from app.stream import administration
from app.stream.topics import Topic
from scripts.benchmark.processes import Child
from scripts.benchmark.traffic import AUDIENCE, Issuer

ROOT: Final = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S: Final = 60.0
ADMIN_TIMEOUT_S: Final = 30.0


class Deployment(NamedTuple):
    """Topics that exist, with what it takes to run something on them."""

    settings: config.Settings
    lanes: int
    cluster_id: str
    birth_id: str
    directory: Path
    trust_file: Path
    jobs_file: Path

    @property
    def bootstrap(self) -> str:
        return self.settings.kafka.bootstrap

    def topic(self, topic: Topic) -> str:
        return topic.named(self.settings.kafka.prefix)

    def committed_ends(self, topic: Topic) -> int:
        """Sum over partitions of the offset up to which a read_committed reader may read (markers count)."""
        asked = {TopicPartition(self.topic(topic), lane): OffsetSpec.latest() for lane in range(self.lanes)}
        answers = _admin(self.bootstrap).list_offsets(
            asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ADMIN_TIMEOUT_S
        )
        return sum(answer.result(ADMIN_TIMEOUT_S).offset for answer in answers.values())


_admins: dict[str, AdminClient] = {}


def _admin(bootstrap: str) -> AdminClient:
    if bootstrap not in _admins:
        _admins[bootstrap] = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    return _admins[bootstrap]


@contextmanager
def deployed(bootstrap: str, workdir: Path, issuer: Issuer, lanes: int) -> Iterator[Deployment]:
    """A new deployment, gone afterwards."""
    name = f"b{random.SystemRandom().getrandbits(40):010x}"
    directory = workdir / name
    directory.mkdir(parents=True)
    settings = config.load(
        kafka__bootstrap=bootstrap, kafka__prefix=f"{name}.", gate__audience=AUDIENCE,
        gate__state_dir=directory / "state",
    )  # fmt: skip
    created = administration.create_topics(settings, lanes, 1)
    if created.checked.deployment is None:
        raise RuntimeError("; ".join(finding.sentence() for finding in created.checked.fatal))
    found = created.checked.deployment
    trust, jobs = issuer.definitions(directory)
    definitions = registry.read_definitions(trust, "trust") + registry.read_definitions(jobs, "jobs")
    asyncio.run(registry.apply(settings, definitions, dry_run=False))
    try:
        yield Deployment(settings, lanes, found.cluster_id, found.birth_id, directory, trust, jobs)
    finally:
        admin = _admin(bootstrap)
        # Those of a peer as well, which carry the same prefix.
        prefix = settings.kafka.prefix
        names = [topic for topic in admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics if topic.startswith(prefix)]
        for future in admin.delete_topics(names, operation_timeout=ADMIN_TIMEOUT_S).values():
            future.result(ADMIN_TIMEOUT_S)
        shutil.rmtree(directory, ignore_errors=True)


def environment(deployment: Deployment, **more: str) -> dict[str, str]:
    """Of a program under measurement: nothing of ours from outside, and this deployment's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "TOLLGATE_KAFKA__BOOTSTRAP": deployment.bootstrap,
        "TOLLGATE_KAFKA__PREFIX": deployment.settings.kafka.prefix,
        "TOLLGATE_GATE__AUDIENCE": AUDIENCE,
        "TOLLGATE_GATE__STATE_DIR": str(deployment.settings.gate.state_dir),
        "TOLLGATE_TELEMETRY__LOG_FORMAT": "json",
    } | more  # fmt: skip


class Gate(Child):
    """`tollgate gate` with its default settings."""

    def __init__(
        self, deployment: Deployment, workers: int = 1, *, through: Sequence[str] = (), launcher: Sequence[str] = ()
    ) -> None:
        self._deployment = deployment
        self._ports = _neighbouring_ports(workers)
        command = [*launcher, sys.executable, *through, "-m", "app.cli.main", "gate", "--workers", str(workers)]
        env = environment(deployment, TOLLGATE_TELEMETRY__PORT=str(self._ports[0]))
        super().__init__(command, deployment.directory / "gate.log", env, deployment.directory)

    def wait_ready(self) -> None:
        """Until every worker has lanes, all lanes are restored, and no rebalance is under way."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        steady = 0
        while steady < 3:
            self.raise_if_dead()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gate was not ready within {READY_TIMEOUT_S:.0f} s:\n{self.last_words()}")
            counts = [self._lanes(port) for port in self._ports]
            steady = steady + 1 if all(counts) and sum(counts) == self._deployment.lanes else 0
            time.sleep(0.1)

    def _lanes(self, port: int) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return int(answer.read().split()[0])
        except (urllib.error.URLError, OSError, ValueError, IndexError):
            return 0

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the gate has logged under this name."""
        found = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            if line.startswith("{") and f'"{name}"' in line:
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found


def _neighbouring_ports(count: int) -> list[int]:
    choice = random.SystemRandom()
    while True:
        first = free_ports(1, choice)[0]
        if all(is_free(first + number) for number in range(1, count)):
            return [first + number for number in range(count)]
