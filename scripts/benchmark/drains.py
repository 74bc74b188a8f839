"""The rows that drain a backlog: the gate in several situations, and its peers, interleaved with raw verification."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from scripts.benchmark import raw, traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed, environment
from scripts.benchmark.figures import GOALS, Figure, Goal
from scripts.benchmark.peers import PROGRAMS, READY, Setup
from scripts.benchmark.processes import Child
from scripts.benchmark.run import Run
from scripts.benchmark.throughput import QUIET_S, Drained, drain
from scripts.benchmark.traffic import Request

LANES: Final = 4
FAUST_QUIET_S: Final = 5.0  # it commits on a timer
FAUST_SHARE: Final = 10  # Faust gets a tenth of the triggers, or its rows would take minutes


class Situation(NamedTuple):
    """What is drained, by whom."""

    use: str  # webhook, oneshot
    away: int = 0
    engine: str = "gate"
    workers: int = 1


SITUATIONS: Final = {
    "webhook-home": Situation("webhook"),
    "webhook-away": Situation("webhook", away=1),
    "oneshot-home": Situation("oneshot"),
    "oneshot-away": Situation("oneshot", away=1),
    "two-processes": Situation("oneshot", workers=2),
    "confluent-webhook": Situation("webhook", engine="confluent"),
    "confluent-oneshot": Situation("oneshot", engine="confluent"),
    "faust-webhook": Situation("webhook", engine="faust"),
    "faust-oneshot": Situation("oneshot", engine="faust"),
}
# What a row is compared with.
NEEDS: Final = {
    "webhook-away": "webhook-home", "oneshot-away": "oneshot-home", "two-processes": "oneshot-home",
    "confluent-webhook": "webhook-home", "confluent-oneshot": "oneshot-home",
    "faust-webhook": "webhook-home", "faust-oneshot": "oneshot-home",
}  # fmt: skip


class Sample(NamedTuple):
    """One drained backlog, and raw verification in the same seconds."""

    drained: Drained
    raw_us: float

    @property
    def ratio(self) -> float:
        return self.drained.cpu_us / self.raw_us


def measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    """All rows in turn, then all again, so that a noisy minute does not meet one row alone."""
    backlogs = {
        "webhook": traffic.webhook(run.issuer, run.webhook_triggers),
        "oneshot": traffic.one_shot(run.issuer, run.oneshot_triggers),
    }
    sizes = sorted(len(request.value) for request in backlogs["oneshot"] + backlogs["webhook"])
    run.say(f"triggers of {sizes[0]} to {sizes[-1]} bytes, a tenth of the keys repeated, {LANES} lanes")
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    raws: list[float] = []
    if run.warm_up:
        _sample(run, SITUATIONS[names[0]], backlogs, [], share=5)  # of the broker; not counted
    for repeat in range(run.repeats):
        for name in names:
            sample = _sample(run, SITUATIONS[name], backlogs, raws)
            samples[name].append(sample)
            run.say(f"[{repeat + 1}/{run.repeats}] {name}: {_told(sample)}")
    rows = [
        {"row": name, "repeat": number, "raw_us": sample.raw_us, "ratio": sample.ratio, **sample.drained._asdict()}
        for name, several in samples.items()
        for number, sample in enumerate(several)
    ]
    return [*raw_figures(run, raws), *_figures(samples)], rows


def raw_values(run: Run) -> list[float]:
    return [raw.verify_us(run.raw_s) for _ in range(run.repeats * 2)]


def raw_figures(run: Run, values: list[float]) -> list[Figure]:
    beside = [raw.verify_beside_others_us(run.raw_s) for _ in range(run.repeats)]
    return [
        Figure("raw ES256 verification, one thread, CPU", values, "µs"),
        Figure("the same while the other CPUs verify too", beside, "µs"),
    ]


def _sample(
    run: Run, situation: Situation, backlogs: dict[str, list[Request]], raws: list[float], share: int = 1
) -> Sample:
    requests = backlogs[situation.use]
    if situation.engine == "faust":
        share *= FAUST_SHARE
    requests = requests[: len(requests) // share]
    quiet_s = FAUST_QUIET_S if situation.engine == "faust" else QUIET_S
    with deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment, engine(situation, deployment) as child:
        raws.append(raw.verify_us(run.raw_s))
        drained, raw_us = drain(deployment, child, requests, away=situation.away, quiet_s=quiet_s)
    raws.append(raw.verify_us(run.raw_s))
    return Sample(drained, raw_us)


@contextmanager
def engine(situation: Situation, deployment: Deployment) -> Iterator[Child]:
    """The gate or a peer, ready and idle."""
    if situation.engine == "gate":
        with Gate(deployment, situation.workers) as gate:
            gate.wait_ready()
            yield gate
        return
    with _peer(situation.engine, deployment) as peer:
        peer.wait_for_line(READY)
        yield peer


def _peer(name: str, deployment: Deployment) -> Child:
    module, python = PROGRAMS[name]
    setup = Setup(
        deployment.bootstrap, deployment.settings.kafka.prefix, traffic.AUDIENCE, deployment.lanes,
        deployment.cluster_id, deployment.birth_id, str(deployment.directory), str(deployment.trust_file),
        str(deployment.jobs_file), deployment.settings.gate.compression,
    )  # fmt: skip
    command = [str(python), "-m", module, json.dumps(setup._asdict())]
    return Child(command, deployment.directory / f"{name}.log", environment(deployment), deployment.directory)


def _told(sample: Sample) -> str:
    drained = sample.drained
    return (
        f"{drained.triggers:,} triggers in {drained.seconds:.2f} s, {drained.per_second:,.0f}/s, "
        f"{drained.cpu_us:.1f} µs CPU each, {sample.ratio:.2f} of a raw verify ({sample.raw_us:.1f} µs); "
        f"{drained.receipts:,} receipts, {drained.jobs:,} jobs, {drained.duplicates:,} duplicates; "
        f"{drained.peak_mb:.0f} MB"
    )


def _figures(samples: dict[str, list[Sample]]) -> Iterator[Figure]:
    """Ratios are taken within one repeat, between runs that stood side by side."""

    def paired(name: str, ratio: Callable[[Sample, Sample], float]) -> list[float]:
        return [ratio(own, other) for own, other in zip(samples[name], samples[NEEDS[name]], strict=True)]

    for name, several in samples.items():
        situation = SITUATIONS[name]
        rates, jobs = [s.drained.per_second for s in several], [float(s.drained.jobs) for s in several]
        where = "away from home" if situation.away else "arriving home"
        who = {"gate": "", "confluent": "confluent-kafka loop, ", "faust": "Faust exactly_once, "}[situation.engine]
        what = f"{who}{USE[situation.use]}, {where}" + (", two processes" if situation.workers == 2 else "")
        yield Figure(f"{what}: triggers per second", rates)
        yield Figure(f"{what}: CPU per trigger", [s.drained.cpu_us for s in several], "µs")
        yield Figure(f"{what}: CPU / CPU of one raw verify", [s.ratio for s in several], "", _own_goal(name))
        if situation.engine != "gate":
            triggers = several[0].drained.triggers
            yield Figure(f"{what}: read-committed jobs of {triggers:,} triggers", jobs)
        match situation:
            case Situation(away=1):
                extra = paired(name, _extra)
                yield Figure(f"{what}: extra CPU / CPU of one raw verify", extra, "", GOALS[name])
            case Situation(workers=2):
                faster = paired(name, lambda two, one: two.drained.per_second / one.drained.per_second)
                yield Figure("two gate processes / one, one-shot, speed", faster, "", GOALS[name])
            case Situation(engine="confluent" | "faust" as peer):
                faster = paired(name, lambda theirs, ours: ours.drained.per_second / theirs.drained.per_second)
                goal = GOALS.get(f"{peer} {situation.use}") or (GOALS[peer] if name == "confluent-webhook" else None)
                yield Figure(f"gate / {who}{USE[situation.use]}, speed", faster, "x", goal)


def _extra(away: Sample, home: Sample) -> float:
    """Over one raw figure for both: the noise between two would be multiplied by all that a trigger costs."""
    return (away.drained.cpu_us - home.drained.cpu_us) / ((away.raw_us + home.raw_us) / 2)


USE: Final = {"webhook": "webhook", "oneshot": "one-shot"}


def _own_goal(name: str) -> Goal | None:
    return GOALS[name] if name in {"oneshot-home", "webhook-home"} else None
