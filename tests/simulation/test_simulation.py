"""A short campaign: the program is clean on every seed, and each planted bug is found within a few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.stream.doubt import Doubt
from tests.planted.bugs import BUGS, planted
from tests.simulation import history
from tests.simulation.campaign import find_bug
from tests.simulation.faults import TORN_EVERY
from tests.simulation.world import simulate

pytestmark = pytest.mark.usefixtures("replaced")

SEEDS = 100
BUG_SEEDS = 150
_TELL_DIGEST = """
from tests.simulation.replaced import simulated
from tests.simulation.world import simulate
with simulated():
    print(simulate(7)[1].digest)
"""


@pytest.mark.slow
def test_the_program_as_it_is_breaks_nothing_on_any_seed() -> None:
    broken = {}
    transactions = faults = 0
    for seed in range(SEEDS):
        _, outcome = simulate(seed)
        transactions += outcome.transactions
        faults += outcome.faults.total()
        if outcome.violations:
            broken[seed] = outcome.violations
    assert broken == {}, f"see scripts/simulate --replay {min(broken)}"
    assert transactions > 10 * SEEDS
    assert faults > 10 * SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_by_a_check_that_is_there_for_it(name: str) -> None:
    assert find_bug(name, BUG_SEEDS) is not None, f"not within {BUG_SEEDS} seeds"


@pytest.mark.slow
def test_transactions_that_kafka_tears_would_show_if_they_were_left_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(*_: object) -> None:
        """As if nobody asked."""

    torn = range(TORN_EVERY - 1, TORN_EVERY * 20, TORN_EVERY)
    outcomes = [simulate(seed)[1] for seed in torn]
    assert sum(outcome.faults["torn"] for outcome in outcomes) > 10
    assert [outcome.violations for outcome in outcomes] == [[]] * len(torn)
    monkeypatch.setattr(Doubt, "settle", settle)
    assert any(simulate(seed)[1].violations for seed in torn)


@pytest.mark.slow
def test_a_planted_bug_is_taken_out_again() -> None:
    before = simulate(0)[1]
    with planted("receipts_unordered"):
        assert simulate(0)[1].violations
    assert simulate(0)[1] == before


@pytest.mark.slow
def test_a_seed_gives_the_same_world_in_every_process(checkout: Path) -> None:
    here = simulate(7)[1].digest
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _TELL_DIGEST], cwd=checkout, env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert done.stdout.strip() == here


def test_a_history_tells_what_happened_and_changes_nothing() -> None:
    world, told = simulate(3, keep_journal=True)
    assert told.digest == simulate(3)[1].digest
    words = "\n".join(history.lines(world))
    for word in ("gate-0.1", "starts", "InitProducerId(lane-", "Produce(lane-", "EndTxn(lane-", "fault", "→ done"):
        assert word in words
