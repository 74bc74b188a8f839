"""The same triggers in the same lane get the same verdicts, however often and by whomever they are decided (I18)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted.bugs import planted
from tests.simulation import checker
from tests.simulation.test_found import all_run, quiet, until
from tests.simulation.world import World, live

pytestmark = pytest.mark.usefixtures("replaced")

ROUNDS = 60  # of the emitter, each of one trigger or several

Verdicts = list[tuple[str, str, str | None, str | None]]


def decided(*, kills: int = 0, judged: bool = True, **plan: Any) -> Verdicts:
    """Verdicts in the order of each lane; the triggers are all in lane 0 before any gate starts, so what others are
    handed comes in its order, too. With kills, other gates go on."""
    before: set[str] = set()

    async def script(world: World) -> None:
        world.prepare()
        for _ in range(ROUNDS):
            for trigger in world.emitter.next():
                await world.send(trigger, 0)
        before.update(world.sent)
        world.begin()
        for number in range(1, kills + 1):
            share = len(before) * number // (kills + 1)
            await until("a part is decided", lambda share=share: len(checker.read(world).receipts) >= share, 60)
            gate, _ = (await all_run(world))[0]
            assert gate.process is not None
            world.loop.kill(gate.process)
            gate.joined = False
        await world.drain()
        await world.end()

    world, outcome = live(quiet(**plan), script)
    assert outcome.violations == [] or not judged
    assert len(before) > ROUNDS
    return [
        (row["trigger_id"], row["outcome"], row["reason"], row["run_id"])
        for _, row in checker.read(world).receipt_rows
        if row["trigger_id"] in before
    ]


@pytest.fixture(params=[1, 3])
def lanes(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def once(replaced: None, lanes: int) -> Verdicts:
    verdicts = decided(lanes=lanes)
    assert {outcome for _, outcome, _, _ in verdicts} == {"accepted", "duplicate", "rejected"}
    return verdicts


@pytest.mark.parametrize("batch_max_records", [1, 3, 7, 500])
def test_however_many_are_decided_at_once(once: Verdicts, lanes: int, batch_max_records: int) -> None:
    assert decided(lanes=lanes, batch_max_records=batch_max_records) == once


@pytest.mark.parametrize("kills", [1, 2, 5])
def test_however_often_the_lane_is_taken_anew(once: Verdicts, lanes: int, kills: int) -> None:
    assert decided(lanes=lanes, kills=kills, gates=3, batch_max_records=2) == once


def test_in_whatever_order_callbacks_run(once: Verdicts, lanes: int) -> None:
    assert decided(lanes=lanes, fifo=False) == once


def test_a_difference_would_show(once: Verdicts, lanes: int) -> None:
    with planted("receipts_unordered"):
        assert decided(lanes=lanes, batch_max_records=3, judged=False) != once
