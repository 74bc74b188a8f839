"""One run of the benchmark: where, how long, and with which keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

from scripts.benchmark.traffic import Issuer


class Run(NamedTuple):
    """What all rows of a run share."""

    bootstrap: str
    workdir: Path
    issuer: Issuer
    repeats: int
    webhook_triggers: int
    oneshot_triggers: int
    latency_triggers: int
    http_triggers: int
    revocations: int
    restore_entries: int
    big_entries: int
    raw_s: float
    warm_up: bool

    @staticmethod
    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)


class Size(NamedTuple):
    """How much is measured."""

    repeats: int
    webhook_triggers: int
    oneshot_triggers: int
    latency_triggers: int
    http_triggers: int
    revocations: int
    restore_entries: int
    big_entries: int
    raw_s: float
    warm_up: bool


FULL: Final = Size(5, 200_000, 60_000, 2_500, 40_000, 1_000, 1_000_000, 20_000_000, 1.0, True)
QUICK: Final = Size(2, 60_000, 15_000, 500, 8_000, 100, 200_000, 2_000_000, 0.5, True)
SMOKE: Final = Size(1, 1_000, 400, 60, 200, 5, 5_000, 20_000, 0.05, False)
