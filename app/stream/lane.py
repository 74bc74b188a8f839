"""A lane: taken, worked on and taken again, whatever Kafka or the disk does, until it is released or must stop.

Who may call a lane's methods: the worker, from the same event loop. The lane never looks at the consumer group.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from aiokafka.errors import KafkaError

from app.stream.kept import Deployment, Kept
from app.stream.log import CommitUnknown, Fenced, Log, OffsetGone, Unreadable
from app.stream.restore import CheckpointLost
from app.stream.store import StoreUnusable
from app.stream.tables import Tables
from app.stream.tenure import Tenure, take
from app.stream.turn import LaneBroken
from app.telemetry import LANE_STATE, STORE_ENTRIES, Event, log

RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
FENCED_RETRY_S: Final = 4 * RETRY_FIRST_S
FAILING_MAX_S: Final = 60.0  # of an unknown kind, with nothing decided meanwhile: a disk may be full for a while


class State(StrEnum):
    TAKING = "taking"
    RUNNING = "running"
    HELD = "held"
    RETRYING = "retrying"
    STOPPED = "stopped"
    RELEASED = "released"


class Lane:
    """One lane in one process. `on_commit` is told its number and its offset in the triggers after a transaction."""

    def __init__(
        self, number: int, shared: Deployment, source: Log, tables: Tables,
        on_commit: Callable[[int, int], object] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.number = number
        self.state = State.TAKING
        self.stopped_because: str | None = None
        self._kept = Kept(number, shared, source, tables, on_commit)
        self._tenure: Tenure | None = None
        self._task: asyncio.Task[None] | None = None
        self._released = False
        self._retry_s = RETRY_FIRST_S
        self._failing_since_s: float | None = None
        self._baffled_since_s: float | None = None  # since the first error of an unknown kind, with no other after it
        self._gone = False  # where its checkpoint stands was not there the last time

    # ── what the worker asks and says ──

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"lane-{self.number}")
        self._task.add_done_callback(self._ended)

    async def release(self) -> None:
        """Finish the turn under way and let everything go. A lane still being taken is let go at once."""
        self._released = True
        self._kept.wake.set()
        if self._task is not None:
            if self.state in (State.TAKING, State.RETRYING):
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def progress_at_s(self) -> float:
        """When (monotonic) it last went round, or read a part of its changelog."""
        return self._kept.progress_at_s

    @property
    def failing_s(self) -> float:
        """For how long it has met errors and decided nothing, or could not read one of its topics."""
        tenure, own_s = self._tenure, 0.0
        if self._failing_since_s is not None and not (tenure and tenure.decided):
            own_s = time.monotonic() - self._failing_since_s
        return max(own_s, tenure.failing_s if tenure else 0.0)

    def gauge(self) -> None:
        """Figures that cost something: asked once in a while."""
        if self._kept.table.store is not None:
            STORE_ENTRIES.labels(self.number).set(self._kept.table.store.estimate())

    # ── life ──

    async def _live(self) -> None:
        try:
            while not self._released:
                try:
                    await self._serve()
                except Exception as error:
                    if (why := self._ended_by(error)) is not None:
                        self._stop(why)
                        break
                await self._pause()
        finally:
            self._tenure = None
            self._kept.let_go()
            if self.state is not State.STOPPED:
                self._enter(State.RELEASED)

    async def _serve(self) -> None:
        """Take the lane and work on it."""
        self._enter(State.TAKING)
        tenure = await take(self._kept)
        try:
            self._tenure, self._gone = tenure, False
            while not self._released:
                self._kept.progress()
                may_decide = tenure.may_decide()
                self._enter(State.HELD if self._kept.holds else State.RUNNING)
                await (tenure.work() if may_decide else tenure.hold())
        finally:
            await tenure.close()

    def _ended_by(self, error: Exception) -> str | None:
        """Tell of what ended a tenure, or kept one from beginning. Returns why the lane must stop, if so."""
        match error:
            case Fenced():
                self._baffled_since_s = None
                # A takeover and a transaction that timed out look the same: no alarm, and another try.
                log.info(Event.LANE_FENCED, lane=self.number, error=str(error))
                self._retry_s = max(self._retry_s, FENCED_RETRY_S)
            case CommitUnknown() | KafkaError() | TimeoutError() | OSError():
                self._baffled_since_s = None
                log.failed(Event.LANE_RETRY, error, lane=self.number, what=str(error)[:300])
            case OffsetGone() if not self._gone:
                # A zombie may miss what its successor has decided: only the newest checkpoint can tell.
                self._gone = True
                log.warning(Event.LANE_RETRY, lane=self.number, error=type(error).__name__, what=str(error)[:300])
            case OffsetGone() | LaneBroken() | Unreadable() | CheckpointLost():
                return str(error)
            case _:
                log.error(Event.LANE_RETRY, lane=self.number, error=type(error).__name__, what=str(error)[:300])
                if isinstance(error, StoreUnusable):
                    self._kept.table.discard()  # rebuilt from the changelog, which needs no trust in it
                if self._baffled(time.monotonic()):
                    return f"it failed for {FAILING_MAX_S:.0f} s, deciding nothing: {type(error).__name__}"
        return None

    def _baffled(self, now_s: float) -> bool:
        """Whether errors of an unknown kind, and no other, have come for too long. Kafka may be away for any time."""
        if self._baffled_since_s is None or (self._tenure and self._tenure.decided):
            self._baffled_since_s = now_s
        return now_s - self._baffled_since_s > FAILING_MAX_S

    async def _pause(self) -> None:
        """Between two tenures: longer each time, until one decides something. A release ends it early."""
        tenure, self._tenure = self._tenure, None
        if tenure and tenure.decided:
            self._failing_since_s, self._retry_s = None, RETRY_FIRST_S
        self._failing_since_s = self._failing_since_s or time.monotonic()
        self._enter(State.RETRYING)
        if not self._released:
            self._kept.wake.clear()
            await self._kept.until_woken(self._retry_s)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)

    # ── ends ──

    def _stop(self, why: str) -> None:
        self.stopped_because = why
        self._enter(State.STOPPED)
        log.error(Event.LANE_STOPPED, lane=self.number, why=why)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An error on the way out must not leave a lane that looks alive."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._stop(f"it ended by {type(error).__name__}: {str(error)[:200]}")

    def _enter(self, state: State) -> None:
        if state is not self.state:
            LANE_STATE.labels(self.number, self.state.value).set(0)
            self.state = state
        LANE_STATE.labels(self.number, state.value).set(1)
