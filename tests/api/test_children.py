"""A job that starts others with what its worker was handed: the example that authors of jobs are shown, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.api.authorities import Authority, error
from tests.api.conftest import LANES
from tests.api.test_authority import authority
from tests.api.test_delegation import Family, claims_of
from tests.support import reader
from tests.support.doors import Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
__all__ = ["authority"]
CHECKOUT = Path(__file__).parents[2]
QUIET_S = "3"
CHILD = "reports/other"


class Worker:
    """The example, as an identity that may start the child job for whom it serves, and nothing else."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self._deployment, self._group = authority.deployment, f"{authority.deployment.prefix}worker.children"
        family = Family(authority, 0)
        self.owner, (self.name, secret) = family.owner, authority.identity(CHILD)
        allow = f'[{{ jobs = ["{CHILD}"], exchanged_subjects = ["{self.owner[0]}"], uses = ["once"], max_lifetime_s = 60 }}]'
        authority.apply("policy", f"[roles.{self.name.replace('svc:', 'r')}]\nallow = {allow}\n")
        self.handed, self.started = family.handed(scope=f"job:{CHILD}"), family.handed(scope=f"job:{JOB}")
        family.child((self.name, secret), self.handed, uses="once", lifetime_s="60")  # its rights are known now
        self.client = self.name, secret
        file = directory / "handed"
        file.write_text(self.handed)
        self._env = os.environ | {
            "TOLLGATE_PREFIX": self._deployment.prefix, "TOLLGATE_URL": authority.url, "TOLLGATE_CLIENT": self.name,
            "TOLLGATE_CLIENT_SECRET": secret, "TOLLGATE_HANDED": str(file),
        }  # fmt: skip

    def work(self) -> dict[str, tuple[str, str]]:
        """What it says of each region: outcome and run id. It hears of every job that it has not told the group of."""
        words = [CHECKOUT / "scripts" / "examples" / "children.py", self._deployment.bootstrap, JOB, CHILD, QUIET_S]
        for _ in range(5):  # one that is too slow to join in its quiet seconds has heard nothing
            done = subprocess.run([sys.executable, *words], env=self._env, capture_output=True, text=True, timeout=120,
                                  check=True)  # fmt: skip
            told = [line.split() for line in done.stdout.splitlines()]
            assert self.handed not in done.stdout + done.stderr
            if told:
                return {region: (outcome, said) for outcome, said, region in told}
        raise AssertionError

    def forgets(self) -> None:
        """It died before it told the group."""
        group = Consumer({"bootstrap.servers": self._deployment.bootstrap, "group.id": self._group})
        lanes = [TopicPartition(f"{self._deployment.prefix}jobs", lane, 0) for lane in range(LANES)]
        group.commit(offsets=lanes, asynchronous=False)
        group.close()

    def children(self) -> list[dict[str, str]]:
        there = reader.read_topic(self._deployment.bootstrap, f"{self._deployment.prefix}jobs").records
        jobs = [json.loads(record.value or b"") for record in there]
        return [each for each in jobs if each["job"] == CHILD and each["identity"]["subject"] == self.owner[0]]


def test_a_job_starts_each_of_its_children_once_by_a_token_that_can_do_no_more(
    authority: Authority, tmp_path: Path
) -> None:
    worker = Worker(authority, tmp_path)
    emitter = Emitter(authority.url, worker.started)
    assert emitter.decided(JOB, {"regions": ["eu", "us"]})["outcome"] == "accepted"
    first = worker.work()
    assert {region: outcome for region, (outcome, _) in first.items()} == {"eu": "accepted", "us": "accepted"}
    runs = {each["run_id"]: each["params"] for each in worker.children()}
    assert runs == {run_id: {"region": region} for region, (_, run_id) in first.items()}

    # Given the job again, it starts nothing again.
    worker.forgets()
    assert worker.work() == {region: ("duplicate", run_id) for region, (_, run_id) in first.items()}
    assert len(worker.children()) == 2

    # Who acted for whom is told, and what a child was started with is less than what the worker has.
    story = json.loads(authority.tollgate("audit", "--run", first["eu"][1], "-o", "json"))
    assert (story["emitter"]["subject"], story["emitter"]["actors"]) == (worker.owner[0], [worker.name])
    issued = [each for each in authority.issuance(worker.name) if each["event"] == "issued"]
    handed = claims_of(worker.handed)
    assert {(each["uses"], *each["jobs"]) for each in issued} == {("once", CHILD)}
    assert {each["parents"][0]["jti"] for each in issued} == {handed["jti"]}
    assert max(each["expires_at_s"] for each in issued) < handed["exp"]

    # Without a token that it was handed, the worker's own credential gets none for whom it serves.
    alone = authority.ask(
        worker.client, scope=f"job:{CHILD}", subject=worker.owner[0], uses="once", lifetime_s="60", idempotency_key="k"
    )
    assert error(alone) == (400, "invalid_scope", "subject_not_granted")

    # What was handed over is taken back: the worker starts nothing more.
    assert authority.ask(worker.owner, "/oauth/revoke", token=worker.handed).status_code == 200
    assert emitter.decided(JOB, {"regions": ["asia"]})["outcome"] == "accepted"
    assert worker.work() == {"asia": ("refused", "token_revoked")}
    assert len(worker.children()) == 2
