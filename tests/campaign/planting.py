"""The bugs the judge must find, played on a real stage: each with the same strikes and the same time to come right as
any row, and one stage with no bug: whatever is late is late there, too."""

from __future__ import annotations

import time
from typing import Any

from tests.campaign import strikes
from tests.campaign.network import Ends
from tests.campaign.points import Point
from tests.campaign.stage import Stage
from tests.planted.bugs import BUGS
from tests.support import proxy

STAGE: dict[str, Any] = {
    "gate_count": 2, "lanes": 4, "rate": 250, "proxied": True, "session_ms": 2_000,
    "gate__batch_max_records": "20",
    "load": {"repeats": 0.3, "bad": 0.1, "remembered": 300},
}  # fmt: skip
HOLD_S = 10.0
BACKLOG_S = 4.0
ENOUGH = 2  # things that did not come right by themselves
# Checks that the table names as the simulation has them, and that are one here.
SAME = {"stores_hold_only_what_was_committed": "stores_as_their_changelogs"}


def plant(name: str) -> None:
    """In a gate's own process."""
    BUGS[name].plant()


def strike_all(stage: Stage) -> None:
    """What each bug needs to show, one after another; ends at the first thing that does not come right by itself."""
    ends = Ends(stage)

    def hold(count: int, *, before_fence: bool) -> None:
        ends.before_fence = before_fence
        ends.hold("planted", proxy.END_TXN, count)
        stage.until(lambda: ends.idle, HOLD_S)
        ends.give_up()

    def crash(*points: Point) -> None:
        strikes.crash_round(stage, "planted", points)

    for step in (
        lambda: hold(4, before_fence=True),
        lambda: time.sleep(1.5),
        lambda: hold(6, before_fence=False),
        lambda: [strikes.tear_round(stage, "planted") for _ in range(3)],
        lambda: [strikes.hijack(stage, "planted", lane) for lane in range(2)],
        lambda: crash(Point.BEFORE_END, Point.BEFORE_END),
        lambda: crash(Point.AFTER_BEGIN),
        lambda: strikes.kill_round(stage, "planted", 1),
        lambda: crash(Point.BEFORE_END),
        lambda: strikes.kill_round(stage, "planted", 2),
        lambda: strikes.kill_round(stage, "planted", 1),
        lambda: cut_short(stage),
        lambda: time.sleep(1.5),
    ):
        step()
        if len(stage.broken) >= ENOUGH:
            return


def cut_short(stage: Stage) -> None:
    """What came while no gate ran is being caught up with, in small turns, when all gates are killed again."""
    for wait_s in (BACKLOG_S, 0.0):
        for gate in stage.gates:
            gate.kill()
        time.sleep(wait_s)
        at = time.monotonic()
        for gate in stage.gates:
            gate.start()

        def begun(at: float = at) -> bool:
            stage.journals.update()
            return any(stage.journals.decided_since(lane, at) for lane in range(stage.lanes))

        stage.until(begun, stage.settle_s)
    stage.until_all_decide("gates killed while catching up")
