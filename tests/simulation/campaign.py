"""Many seeds: run, counted and told. A world of a failing seed is lived again by `--replay`."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.planted.bugs import BUGS, planted
from tests.simulation import history
from tests.simulation.replaced import simulated
from tests.simulation.world import Outcome, simulate

CHUNK: Final = 10  # seeds a process takes at once
CHUNKS_PER_PROCESS: Final = 10  # none collects garbage, which is a seventh of a seed; each ends with half a GB of it
BUG_SEEDS: Final = 200  # within which each planted bug must be found
TOLD_S: Final = 2.0
SHOWN: Final = 20


@dataclass
class Totals:
    seeds: int = 0
    transactions: int = 0
    aborted: int = 0
    triggers: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    failed: dict[int, list[str]] = field(default_factory=dict)
    began_s: float = field(default_factory=time.perf_counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.transactions += outcome.transactions
        self.aborted += outcome.aborted
        self.triggers += outcome.triggers
        self.virtual_s += outcome.virtual_s
        self.faults += outcome.faults
        if outcome.violations:
            self.failed[outcome.seed] = outcome.violations

    @property
    def summary(self) -> str:
        seconds = time.perf_counter() - self.began_s
        faults = "\n".join(f"  {kind:22} {count:>9,}" for kind, count in self.faults.most_common())
        return (
            f"{self.seeds:,} seeds in {seconds:.0f} s ({self.seeds / seconds:.1f}/s), {self.virtual_s / 3600:.1f} hours of "
            f"simulated time\n{self.triggers:,} triggers, {self.transactions:,} transactions committed, "
            f"{self.aborted:,} aborted\n{self.faults.total():,} faults:\n{faults}\n"
            f"seeds with violations: {len(self.failed)}"
        )


def run_chunk(seeds: range) -> list[Outcome]:
    with simulated():
        return [simulate(seed)[1] for seed in seeds]


def _outcomes(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    chunks = [range(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield from run_chunk(chunk)
            gc.collect()
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, _begin, maxtasksperchild=CHUNKS_PER_PROCESS) as pool:
        for outcomes in pool.imap_unordered(run_chunk, chunks):
            yield from outcomes


def _begin() -> None:
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent stops, and tells what there is
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def run_seeds(first: int, count: int, jobs: int) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # even where the shell that began it has them ignored
        signal.signal(number, signal.default_int_handler)
    totals, told_s = Totals(), 0.0
    interrupted = False
    try:
        for outcome in _outcomes(first, count, jobs):
            totals.add(outcome)
            if outcome.violations:
                _say(f"\rseed {outcome.seed}: {outcome.violations[0][:300]}")
            if time.perf_counter() - told_s > TOLD_S and sys.stderr.isatty():
                told_s = time.perf_counter()
                rate = totals.seeds / (told_s - totals.began_s)
                _say(
                    f"\r{totals.seeds:,} of {count:,} seeds, {rate:.0f}/s, {totals.transactions:,} transactions, "
                    f"{len(totals.failed)} failed ", end="",
                )  # fmt: skip
    except KeyboardInterrupt:
        interrupted = True
    _say("\r", end="")
    print(totals.summary)
    for seed, found in sorted(totals.failed.items())[:SHOWN]:
        print(f"seed {seed}: {len(found)} violations, first: {found[0][:300]}\n  scripts/simulate --replay {seed}")
    if interrupted:
        _say("interrupted: these are the seeds that were finished")
        return 130
    return 1 if totals.failed else 0


def find_bug(name: str, seeds: int, first: int = 0) -> tuple[int, list[str]] | None:
    """The first seed where a check that is there for it shows a planted bug, and all that do. Within `simulated()`."""
    with planted(name):
        for seed in range(first, first + seeds):
            _, outcome = simulate(seed)
            checks = sorted({violation.partition(":")[0] for violation in outcome.violations})
            if not set(checks).isdisjoint(BUGS[name].caught_by):
                return seed, checks
    return None


def run_bugs(names: list[str], first: int, seeds: int) -> int:
    """Each bug must be found by a check that was said to find it, and the same seeds be clean without it."""
    found_all, last = True, first
    with simulated():
        for name in names:
            began_s = time.perf_counter()
            found = find_bug(name, seeds, first)
            gc.collect()
            if found is None:
                print(f"{name:38} NOT FOUND in {seeds} seeds", flush=True)
                found_all = False
                continue
            seed, checks = found
            last = max(last, seed)
            own = ", ".join(check for check in checks if check in BUGS[name].caught_by)
            print(f"{name:38} seed {seed:3} in {time.perf_counter() - began_s:4.1f} s by {own}", flush=True)
        dirty = [seed for seed in range(first, last + 1) if simulate(seed)[1].violations]
    print(f"control: the program as it is, seeds {first} to {last}: {len(dirty)} with violations {dirty or ''}")
    return 0 if found_all and not dirty else 1


def replay(seed: int, bug: str | None) -> int:
    """Live a seed's world again and print its whole history."""
    with simulated(), planted(bug):
        world, outcome = simulate(seed, keep_journal=True)
    print(world.plan)
    for line in history.lines(world):
        print(line)
    print(
        f"digest {outcome.digest}: {outcome.triggers} triggers, {outcome.transactions} transactions, faults: "
        f"{dict(outcome.faults)}"
    )
    for violation in outcome.violations:
        print(f"VIOLATION {violation}")
    return 1 if outcome.violations else 0


def _say(text: str, end: str = "\n") -> None:
    print(text, file=sys.stderr, end=end, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="The gate's own lanes, tables and Kafka client on a simulated Kafka, under a seeded scheduler.",
    )
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (1,000; with --bug at most this many each)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print the whole history of one seed")
    parser.add_argument("--bug", choices=["all", *BUGS], help="plant a bug and look for it; all: each in turn")
    given = parser.parse_args()
    if given.replay is not None:
        return replay(given.replay, None if given.bug == "all" else given.bug)
    if given.bug is not None:
        return run_bugs(list(BUGS) if given.bug == "all" else [given.bug], given.first, min(given.seeds, BUG_SEEDS))
    return run_seeds(given.first, given.seeds, given.jobs)
