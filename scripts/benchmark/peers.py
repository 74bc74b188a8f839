"""The gate's peers: the same decision and the same records on other engines, each a process of its own.

Both build their records by `app.stream.turn`, so they are the gate's byte for byte. Neither hands triggers off,
follows the registry and revocations, restores, or holds: a peer is given less to do than the gate.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from app import __version__, registry
from app.gate import decide
from app.gate.decide import Admitted, Held, Refused, World
from app.gate.definitions import job_from_record, trust_from_record
from app.gate.keyset import KeySet
from app.gate.limits import GRACE_S, QUEUE_AGE_CAP_S
from app.gate.outputs import Out, Place
from app.gate.policy import Revocations
from app.gate.trigger import Record
from app.stream.sealing import unsealed
from app.stream.topics import Topic
from app.stream.turn import Judged, Turn

READY: Final = "peer ready"
ROOT: Final = Path(__file__).resolve().parents[2]
WEEK_MS: Final = 7 * 86_400_000
# The peer's module, and the environment it needs.
PROGRAMS: Final = {
    "confluent": ("scripts.benchmark.peer_confluent", Path(sys.executable)),
    "faust": ("scripts.benchmark.peer_faust", ROOT / ".venv-bench" / "bin" / "python"),
}


class Setup(NamedTuple):
    """What a peer is told, as JSON in its first argument."""

    bootstrap: str
    prefix: str
    audience: str
    lanes: int
    cluster_id: str
    birth_id: str
    directory: str
    trust_file: str
    jobs_file: str
    compression: str  # of what is written, as the gate's settings have it

    @classmethod
    def from_arguments(cls) -> Setup:
        return cls(**json.loads(sys.argv[1]))

    def topic(self, topic: Topic) -> str:
        return topic.named(self.prefix)


class Decider:
    """Stages 1 to 4 and the outputs, for whatever engine calls it."""

    def __init__(self, setup: Setup) -> None:
        self._topics = {topic: setup.topic(topic) for topic in Topic}
        self._place = Place(self._topics[Topic.TRIGGERS], f"tollgate:{setup.prefix}", __version__)
        self._world = _world(setup)
        self._memo = decide.Memo()

    def turn(self, lane: int, store: Any, records: Sequence[Record]) -> Turn:
        """All records of one lane, decided. `store` needs `get_many` alone."""
        now_ms = time.time_ns() // 1_000_000
        turn = Turn(lane, self._topics, self._place, unsealed, self._world, store, now_ms, now_ms)
        turn.settle([], [Judged(record, self._judge(record)) for record in records])
        return turn

    def _judge(self, record: Record) -> Admitted | Refused | Held:
        return decide.admit(record, self._world, self._memo, wait_for_keys=False)


def headers(out: Out) -> list[tuple[str, bytes]]:
    """An event has its key as one header more."""
    if out.event and out.key is not None:
        return [*out.headers, ("ce_id", out.key)]
    return list(out.headers)


def _world(setup: Setup) -> World:
    """One issuer and one job, read from the files the registry was filled with."""
    (trust,) = registry.read_definitions(Path(setup.trust_file), "trust")
    (job,) = registry.read_definitions(Path(setup.jobs_file), "jobs")
    rule = trust_from_record(trust.registry_key, trust.record(1))
    definition = job_from_record(job.registry_key, job.record(1))
    assert not isinstance(rule, str)
    assert not isinstance(definition, str)
    keys = KeySet.from_jwks(Path(rule.jwks).read_bytes(), rule.algorithms)
    return World(
        audience=setup.audience, lanes=setup.lanes, grace_s=GRACE_S, queue_age_cap_ms=QUEUE_AGE_CAP_S * 1_000,
        max_window_ms=WEEK_MS, run_seed=decide.run_seed(setup.cluster_id, setup.topic(Topic.TRIGGERS)),
        ring={rule.issuer: keys}, rules={rule.issuer: rule}, jobs={definition.name: definition},
        revocations=Revocations(),
    )  # fmt: skip
