"""What goes wrong in a simulated world: the kinds of faults, and how the network treats a request meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.transaction import EndTxnRequest

from tests.simulation.scheduler import Process
from tests.simulation.wire import Fate, Verdict

# Kinds of faults a seed may have, with weights.
KINDS: Final = {
    "kill": 4, "stop short": 2, "stop past the session": 3, "leave": 1, "hijack": 2, "rebalance": 3,
    "two owners": 3, "broker down": 2, "leaders move": 1, "slow network": 1, "clock off": 1, "disk full": 1,
    "disk lost": 1, "compaction": 2, "retention": 1, "emitter's transaction": 2, "coordinator loads": 1,
}  # fmt: skip
# And what may happen to a request of a writer, at random.
LOSSES: Final = ("request lost", "answer lost", "end held", "black hole")
HELD_MAX_S: Final = 2.5
# Where transactions are torn, these, and one gate alone: who wrote one can complete it, and no other that has the lane. And no retention, which here deletes
# at once what was torn before anybody could ask for it.
KINDS_OF_TORN: Final = (
    "broker down", "leaders move", "slow network", "clock off", "disk full", "compaction",
    "emitter's transaction", "coordinator loads", "hijack",
)  # fmt: skip
TORN_EVERY: Final = 16  # worlds


@dataclass
class Plan:
    """What one seed's world is like."""

    seed: int
    random: random.Random
    lanes: int
    gates: int
    nodes: int
    fifo: bool
    latency_s: float
    marker_max_s: float
    batch_max_records: int
    transaction_timeout_ms: int
    max_staleness_ms: int
    session_s: float
    triggers: int
    traffic_s: float
    one_host: bool
    kinds: tuple[str, ...]
    losses: dict[str, float]
    fault_every_s: float
    step_s: float


def plan(seed: int) -> Plan:
    """One in eight worlds has no faults at all; the others a random subset of kinds (a swarm)."""
    dice = random.Random(f"plan {seed}")
    quiet = dice.random() < 0.125
    kinds = tuple(kind for kind in KINDS if dice.random() < 0.45)
    losses = {kind: dice.choice((0.0, 0.01, 0.03)) for kind in LOSSES}
    is_torn = seed % TORN_EVERY == TORN_EVERY - 1
    if is_torn:
        kinds = tuple(kind for kind in kinds if kind in KINDS_OF_TORN)
        losses["torn"] = 0.05
    lanes, gates = dice.randint(2, 4), dice.choice((2, 2, 3))
    return Plan(
        seed=seed, random=dice, lanes=lanes, gates=1 if is_torn else gates, nodes=dice.choice((1, 2, 3)),
        fifo=dice.random() < 0.6, latency_s=dice.choice((0.0005, 0.002, 0.01)),
        marker_max_s=dice.choice((0.001, 0.01, 0.1)), batch_max_records=dice.choice((2, 8, 50)),
        transaction_timeout_ms=dice.choice((1_000, 2_000)), max_staleness_ms=dice.choice((400, 1_000)), session_s=1.0,
        triggers=dice.randint(80, 240), traffic_s=dice.uniform(2.0, 4.5), one_host=dice.random() < 0.5,
        kinds=() if quiet else kinds, losses={} if quiet else losses, fault_every_s=dice.choice((0.12, 0.25, 0.5)),
        step_s=dice.choice((10e-6, 50e-6, 500e-6)),
    )  # fmt: skip


@dataclass
class Weather:
    """Judges every request: how long it takes, and whether it is lost."""

    plan: Plan
    injected: Counter[str] = field(default_factory=Counter)
    calm: bool = False
    slow: float = 1.0

    def __call__(self, _: Process, node: int, request: Any) -> Verdict:
        dice = self.plan.random
        scale = self.plan.latency_s * self.slow
        verdict = Verdict(scale * (0.2 + dice.random()), scale * (0.2 + dice.random()))
        if self.calm or node < 0 or not self.plan.losses:
            return verdict
        kind = type(request)
        if kind is FetchRequest:
            if dice.random() < 0.002:
                verdict.fate = Fate.LOSE_ANSWER
            return verdict
        losses = self.plan.losses
        is_end = kind is EndTxnRequest
        if dice.random() < losses["request lost"]:
            verdict.fate = Fate.LOSE
            self.injected["request lost"] += 1
        elif dice.random() < losses["answer lost"] * (2 if is_end else 1):
            verdict.fate = Fate.LOSE_ANSWER
            self.injected["answer lost"] += 1
        elif is_end and dice.random() < losses["end held"] * 3:
            verdict.fate, verdict.held_s = Fate.HOLD, dice.random() ** 2 * HELD_MAX_S
            self.injected["end held"] += 1
        elif is_end and (often := losses.get("torn")) and dice.random() < often:
            verdict.fate = Fate.TEAR
            self.injected["torn"] += 1
        elif dice.random() < losses["black hole"] / 3:
            verdict.fate = Fate.BLACK_HOLE
            self.injected["black hole"] += 1
        return verdict
