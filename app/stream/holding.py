"""What a lane waits for: as a whole, told as an alarm, and the first of the records it has taken from a topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from app.gate.trigger import Record
from app.stream.log import Tail
from app.telemetry import HELD, Event, log

TABLES_STALE: Final = "tables_stale"
TABLES_UNREAD: Final = "tables_unread"
CLOCK: Final = "clock"
KEYS: Final = "keys"
TABLES_BEHIND: Final = "tables_behind"


class Holds:
    """The causes for which a lane holds now. Each is told once when it begins, and once when it ends."""

    def __init__(self, lane: int) -> None:
        self._lane = lane
        self._since_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._since_s)

    def begin(self, cause: str, why: str) -> None:
        if cause not in self._since_s:
            self._since_s[cause] = time.monotonic()
            HELD.labels(self._lane, cause).set(1)
            log.warning(Event.LANE_HELD, lane=self._lane, cause=cause, why=why)

    def end(self, *causes: str) -> None:
        for cause in causes:
            since_s = self._since_s.pop(cause, None)
            if since_s is not None:
                HELD.labels(self._lane, cause).set(0)
                seconds = round(time.monotonic() - since_s, 3)
                log.info(Event.LANE_RESUMED, lane=self._lane, cause=cause, seconds=seconds)

    def forget(self) -> None:
        """The lane is somebody else's now."""
        for cause in self._since_s:
            HELD.labels(self._lane, cause).set(0)
        self._since_s.clear()


class Waiting:
    """The records of one topic that were taken and not decided, and what the first of them waits for, if it does."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.taken_at_s = 0.0  # monotonic
        self.cause: str | None = None  # for which its lane holds
        self._since_s: float | None = None
        self._again_at_s = 0.0
        self._work: asyncio.Task[Any] | None = None
        self._wanted: object = None  # what the work is for

    @property
    def to_judge(self) -> list[Record]:
        """What may be judged now; the first alone, when it had to wait: those behind it would be judged for nothing."""
        if self._since_s is None or not self.records:
            return self.records
        over = self._work.done() if self._work is not None else time.monotonic() >= self._again_at_s
        return self.records[:1] if over else []

    @property
    def looked_for(self) -> object:
        """What the first record has waited for and was looked for meanwhile, found or not; None before that."""
        return self._wanted if self._work is not None and self._work.done() else None

    @property
    def waited_s(self) -> float:
        """How long the first record has been waiting."""
        return 0.0 if self._since_s is None else time.monotonic() - self._since_s

    def fill(self, tail: Tail | None, limit: int, max_bytes: int) -> None:
        """More is taken when all was decided: a list is never longer than one taking, in records and in bytes."""
        if tail is not None and not self.records:
            self.taken_at_s = time.monotonic()
            self.records = tail.take(limit, max_bytes)

    def next_offset(self, tail: Tail) -> int:
        """After the last record decided; past markers and aborted records when none is waiting."""
        return self.records[0].offset if self.records else tail.position

    def decided(self, count: int) -> str | None:
        """The first `count` were. Returns the cause that ends with that, if there is one."""
        if not count:
            return None
        del self.records[:count]
        self._end_work()
        ended, self.cause, self._since_s, self._again_at_s = self.cause, None, None, 0.0
        return ended

    def wait(self, seconds: float) -> None:
        """Its first record is judged again after so long."""
        self._begin()
        self._again_at_s = time.monotonic() + seconds

    def wait_for(self, wanted: object, work: Coroutine[Any, Any, Any], done: Callable[[], None]) -> None:
        """Its first record is judged again after this work, which looks for `wanted` and calls `done` at its end."""
        self._begin()
        self._wanted = wanted
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(lambda _: done())

    def clear(self) -> None:
        """What was taken is taken again, by whoever has the lane."""
        self._end_work()
        self.records, self.cause, self._since_s, self._again_at_s = [], None, None, 0.0

    def _begin(self) -> None:
        self._end_work()
        if self._since_s is None:
            self._since_s = time.monotonic()

    def _end_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work = None
