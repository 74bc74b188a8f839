"""A lane with very many live entries against an empty one: memory, and webhook throughput. One lane each.

The store is filled by `app.stream.store` itself, without a changelog: a gate finds it as a gate left it.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from app.gate.idempotency import ENTRY_BYTES, ENTRY_VERSION, IDENTITY_BYTES
from app.stream import store as stores
from scripts.benchmark import traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed
from scripts.benchmark.figures import GOALS, Figure
from scripts.benchmark.run import Run
from scripts.benchmark.throughput import Drained, drain

A_WRITE: Final = 20_000
WINDOW_MS: Final = 86_400_000
COMPACTION_TIMEOUT_S: Final = 300.0
REPEATS_MAX: Final = 3
UNFINISHED: Final = ("rocksdb.num-running-compactions", "rocksdb.compaction-pending", "rocksdb.num-running-flushes")


def measure(run: Run, names: list[str]) -> tuple[list[Figure], list[dict[str, Any]]]:  # noqa: ARG001
    repeats = min(run.repeats, REPEATS_MAX)
    empty: list[Drained] = []
    big: list[Drained] = []
    with deployed(run.bootstrap, run.workdir, run.issuer, 1) as filled:
        fill(run, filled)
        for number in range(repeats):
            with deployed(run.bootstrap, run.workdir, run.issuer, 1) as fresh:
                empty.append(_drain(run, fresh, number, "empty lane"))
            big.append(_drain(run, filled, number, f"lane with {run.big_entries:,} entries"))
    memory = [drained.peak_mb for drained in big]
    speed = [ours.per_second / theirs.per_second for ours, theirs in zip(big, empty, strict=True)]
    what = f"a lane with {run.big_entries:,} entries"
    figures = [
        Figure(f"{what}: most resident memory", memory, "MB", GOALS["big memory"]),
        Figure(f"{what} / an empty lane, webhook, speed", speed, "", GOALS["big speed"]),
    ]
    samples = [{"row": "big", "lane": kind, **d._asdict()} for kind, ds in (("empty", empty), ("big", big)) for d in ds]
    return figures, samples


def _drain(run: Run, deployment: Deployment, number: int, what: str) -> Drained:
    requests = traffic.webhook(run.issuer, run.webhook_triggers, salt=f"{number}-")
    with Gate(deployment) as gate:
        gate.wait_ready()
        drained, _ = drain(deployment, gate, requests)
    run.say(f"big: {what}: {drained.per_second:,.0f}/s, {drained.cpu_us:.1f} µs CPU each, {drained.peak_mb:.0f} MB")
    return drained


def fill(run: Run, deployment: Deployment) -> None:
    """Write live entries under random identities, and wait until the store has nothing left to compact."""
    run.say(f"big: filling a store with {run.big_entries:,} entries")
    path = deployment.settings.gate.state_dir / "lane-0"
    store, _ = stores.open_store(path, deployment.cluster_id, deployment.birth_id, 0)
    now_ms = time.time_ns() // 1_000_000
    head = bytes([ENTRY_VERSION])
    tail = bytes(12) + now_ms.to_bytes(8, "big") + (now_ms + WINDOW_MS).to_bytes(8, "big")
    middle = ENTRY_BYTES - len(head) - len(tail)
    step = IDENTITY_BYTES + middle
    for start in range(0, run.big_entries, A_WRITE):
        random = os.urandom(step * min(A_WRITE, run.big_entries - start))
        rows = [
            (random[at : at + IDENTITY_BYTES], head + random[at + IDENTITY_BYTES : at + step] + tail)
            for at in range(0, len(random), step)
        ]
        store.apply(rows, 0)
    db = store._db  # noqa: SLF001
    deadline_s = time.monotonic() + COMPACTION_TIMEOUT_S
    while any(map(db.property_int_value, UNFINISHED)):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the store was still compacting after {COMPACTION_TIMEOUT_S:.0f} s")
        time.sleep(0.5)
    store.close()
