"""What is done about a transaction that was ended by halves, and when it is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from app.gate.outputs import Out
from app.stream.doubt import Doubt
from app.stream.log import CommitUnknown, Partition, Placed, ReadRecord, Watermarks

CHECKPOINTS, JOBS, RECEIPTS = ("checkpoints", 3), ("jobs", 3), ("receipts", 3)
PARTS = {partition: [Out(b"key", partition[0].encode())] for partition in (CHECKPOINTS, JOBS, RECEIPTS)}
PLACED = {CHECKPOINTS: Placed(10, -1, 7, 1), JOBS: Placed(20, -1, 7, 1), RECEIPTS: Placed(30, -1, 7, 1)}


class Ends:
    """A log and a writer: what became of each placed batch, and the checkpoints that others have written."""

    def __init__(self, *standing: Partition, unknown: Sequence[Partition] = (), later: Sequence[int] = ()) -> None:
        self.outcomes: dict[tuple[Partition, Placed], bool | None] = {
            (partition, placed): None if partition in unknown else partition in standing
            for partition, placed in PLACED.items()
        }
        self.later, self.written, self.fails = later, list[dict[Partition, Any]](), list[dict[Partition, Placed]]()

    async def outcome(self, partition: Partition, placed: Placed) -> bool | None:
        return self.outcomes[partition, placed]

    async def watermarks(self, partition: Partition) -> Watermarks:
        assert partition == CHECKPOINTS
        return Watermarks(0, max(self.later, default=11) + 1)

    async def read(self, _: Partition, start: int, end: int) -> AsyncIterator[tuple[Sequence[ReadRecord], int]]:
        yield [ReadRecord(offset, b"3", b"{}") for offset in self.later if start <= offset < end], end

    async def commit(self, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        self.written.append(dict(parts))
        if self.fails:
            raise CommitUnknown("no answer", self.fails.pop(0))
        return {}

    def settle(self, doubt: Doubt) -> None:
        asyncio.run(doubt.settle(self, self))  # type: ignore[arg-type]


def doubt() -> Doubt:
    return Doubt(PARTS, PLACED, CHECKPOINTS)


def only(*partitions: Partition) -> dict[Partition, list[Out]]:
    return {partition: PARTS[partition] for partition in partitions}


@pytest.mark.parametrize("standing", [(), (CHECKPOINTS, JOBS, RECEIPTS)])
def test_what_has_one_end_everywhere_is_left_alone(standing: tuple[Partition, ...]) -> None:
    ends = Ends(*standing)
    ends.settle(doubt())
    assert ends.written == []


def test_what_is_missing_is_written_and_nothing_else(logged: list[dict[str, Any]]) -> None:
    ends = Ends(JOBS)
    ends.settle(doubt())
    assert ends.written == [only(CHECKPOINTS, RECEIPTS)]
    (event,) = logged
    told = {"event": "transaction_torn", "level": "error", "lane": 3, "too_late": False}
    assert event.items() >= told.items()
    assert [event[name] for name in ("committed", "aborted", "unknown")] == [
        ["jobs[3]"], ["checkpoints[3]", "receipts[3]"], [],
    ]  # fmt: skip


@pytest.mark.parametrize("standing", [(), (JOBS,), (CHECKPOINTS,)])
def test_of_what_nobody_can_tell_nothing_is_written(standing: tuple[Partition, ...]) -> None:
    ends = Ends(*standing, unknown=[each for each in PARTS if each not in standing])
    ends.settle(doubt())
    assert ends.written == []


def test_what_another_has_begun_from_is_told_and_not_completed(logged: list[dict[str, Any]]) -> None:
    ends = Ends(JOBS, later=[12])
    ends.settle(doubt())
    assert ends.written == []
    assert [event["too_late"] for event in logged] == [True]


@pytest.mark.parametrize("own", [[8], [10], [8, 10]])
def test_the_lanes_own_checkpoints_are_no_other_owners(own: list[int]) -> None:
    ends = Ends(CHECKPOINTS, later=own)
    ends.settle(doubt())
    assert ends.written == [only(JOBS, RECEIPTS)]


def test_what_is_known_is_not_asked_again() -> None:
    """What was aborted may be compacted or deleted by then."""
    ends, asked = Ends(JOBS), doubt()
    ends.fails = [{}]
    with pytest.raises(CommitUnknown):
        ends.settle(asked)
    ends.outcomes = dict.fromkeys(ends.outcomes)
    ends.settle(asked)
    assert ends.written == [only(CHECKPOINTS, RECEIPTS)] * 2


def test_a_completion_without_an_answer_is_asked_for_where_it_was_put(logged: list[dict[str, Any]]) -> None:
    ends, asked = Ends(JOBS), doubt()
    again = {CHECKPOINTS: Placed(12, -1, 7, 2), RECEIPTS: Placed(32, -1, 7, 2)}
    ends.fails = [{}, again]
    with pytest.raises(CommitUnknown):
        ends.settle(asked)  # nothing of it was placed
    with pytest.raises(CommitUnknown):
        ends.settle(asked)
    assert ends.written == [only(CHECKPOINTS, RECEIPTS)] * 2
    ends.outcomes |= {(CHECKPOINTS, again[CHECKPOINTS]): True, (RECEIPTS, again[RECEIPTS]): False}
    ends.later = [12]  # its own, which stands now
    ends.settle(asked)
    assert ends.written[2:] == [only(RECEIPTS)]
    assert [event["aborted"] for event in logged] == [["checkpoints[3]", "receipts[3]"], ["receipts[3]"]]
