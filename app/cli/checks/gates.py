"""Gates, what waits for them, and clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from app.cli.checks.row import BAD, OK, WARN, Place, Row
from app.cli.when import span, utc

if TYPE_CHECKING:
    from app.config import Settings
    from app.stream.inspection import FoundCheckpoint

MOVES_WITHIN_S: Final = 7.0  # a lane that fails tries again within 5 s
LOOK_EVERY_S: Final = 1.0
STANDS_STILL_S: Final = 90.0  # a lane that works writes a checkpoint every 30 s, if it has nothing to decide


def gates(place: Place) -> Iterator[Row]:
    """Who decides, what waits, lanes that stand still, and clocks."""
    from app.stream.inspection import read_checkpoints
    from app.stream.topics import Topic

    ends = place.ends((Topic.TRIGGERS, Topic.HANDOFFS), committed=True)
    triggers, handoffs = (
        {partition: end for (topic, partition), end in ends.items() if topic == place.named(which)}
        for which in (Topic.TRIGGERS, Topic.HANDOFFS)
    )
    checkpoints = read_checkpoints(place.settings, list(triggers))
    lags = {
        lane: max(0, triggers[lane] - found.checkpoint.triggers_offset)
        + max(0, handoffs[lane] - found.checkpoint.handoffs_offset)
        for lane, found in checkpoints.items()
    }
    group = _group(place, sum(lags.values()))
    yield group
    behind = {lane: lag for lane, lag in lags.items() if lag}
    still: Collection[int] = ()
    if group.verdict == OK:
        still = standing_still(lambda lanes: read_checkpoints(place.settings, lanes), behind, checkpoints)
    yield lag_of(behind, still, gates=group.verdict == OK)
    yield from _clock(place.settings, checkpoints)


def standing_still(
    look: Callable[[list[int]], Mapping[int, FoundCheckpoint]], behind: Collection[int],
    before: Mapping[int, FoundCheckpoint],
) -> set[int]:  # fmt: skip
    """Those of these lanes whose position does not move for a while.

    By its age alone a checkpoint does not tell: a lane that is held writes one every second, and one that fails writes
    one whenever it is taken. By its position alone neither: where only a transaction's marker waits, it is written in
    half a minute.
    """
    still = set(behind)
    end = time.monotonic() + MOVES_WITHIN_S
    while still and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        now = look(sorted(still))
        still = {lane for lane in still if lane in now and _position(now[lane]) == _position(before[lane])}
    now_ms = time.time() * 1_000
    return {
        lane
        for lane in still
        if now[lane].appended_at_ms != before[lane].appended_at_ms
        or now_ms - now[lane].appended_at_ms > STANDS_STILL_S * 1_000
    }


def _position(found: FoundCheckpoint) -> tuple[int, int]:
    return found.checkpoint.triggers_offset, found.checkpoint.handoffs_offset


def lag_of(behind: Mapping[int, int], still: Collection[int], *, gates: bool) -> Row:
    """Backlog is no fault while its lane moves. What waits are never read here: they are live tokens."""
    if not behind:
        return Row(OK, "lag", "nothing waits")
    worst = max(behind, key=lambda lane: behind[lane])
    found = f"{sum(behind.values())} offsets wait in {len(behind)} lane(s); lane {worst} has the most, {behind[worst]}"
    if not gates:
        return Row(WARN, "lag", f"{found}; nobody decides them", "start a gate: `tollgate gate`")
    if not still:
        return Row(OK, "lag", found)
    lanes = ", ".join(map(str, sorted(still)))
    return Row(BAD, "lag", f"{found}; nothing was decided within {span(MOVES_WITHIN_S)} in lane(s) {lanes}",
               "the log of the gate that has them says why: lane_held, lane_retry or lane_stopped; or it has taken "
               "them only just now")  # fmt: skip


def _group(place: Place, waiting: int) -> Row:
    timeout_s = place.settings.kafka.request_timeout_ms / 1_000
    name = place.named(place.settings.gate.group)
    group = place.admin.describe_consumer_groups([name], request_timeout=timeout_s)[name].result(timeout_s + 1)
    if not group.members:
        return Row(BAD if waiting else WARN, "gates", f"none is running (group {name}), {waiting} offsets wait",
                   "start one: `tollgate gate`")  # fmt: skip
    shares = ", ".join(f"{m.host} {len(m.assignment.topic_partitions)} lane(s)" for m in group.members)
    return Row(OK, "gates", f"{len(group.members)} worker(s): {shares}")


def _clock(settings: Settings, checkpoints: Mapping[int, FoundCheckpoint]) -> Iterator[Row]:
    """Kafka tells no time, so this rests on the newest checkpoint: its append time, and the gate's clock in it."""
    tolerance_s = settings.gate.clock_tolerance_s
    decided = [found for found in checkpoints.values() if found.checkpoint.lane_clock_ms]
    if not decided:
        yield Row(OK, "clock", "no gate has written a checkpoint yet, so there is nothing to compare")
        return
    newest = max(decided, key=lambda found: found.appended_at_ms)
    ahead_s = newest.appended_at_ms / 1_000 - time.time()
    if ahead_s > tolerance_s:
        yield Row(BAD, "clock here", f"{span(ahead_s)} behind the broker's", "set this machine's clock (NTP)")
    gate_off_s = (newest.checkpoint.lane_clock_ms - newest.appended_at_ms) / 1_000
    if abs(gate_off_s) > tolerance_s:
        yield Row(BAD, "clock of the gate", f"{span(gate_off_s)} from the broker's at the newest checkpoint; beyond "
                  f"{tolerance_s} s its lanes hold", "set the clocks of gate and brokers (NTP)")  # fmt: skip
    if ahead_s <= tolerance_s and abs(gate_off_s) <= tolerance_s:
        yield Row(OK, "clock", f"gate and broker were {span(abs(gate_off_s))} apart at the newest checkpoint, "
                  f"{utc(newest.appended_at_ms)}")  # fmt: skip
