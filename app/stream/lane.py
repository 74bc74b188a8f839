"""A lane: takes its lock, brings its table up to date, then turns records into transactions until it is released.

Who may call a lane's methods: the worker, from the same event loop. The lane never looks at the consumer group.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError

from app.gate import outputs
from app.gate.decide import Held
from app.gate.original import Seal
from app.gate.outputs import Place
from app.gate.records import Checkpoint
from app.gate.token import KeyWanted
from app.stream import restore
from app.stream import store as stores
from app.stream.clock import LaneClock
from app.stream.doubt import Doubt
from app.stream.holding import CLOCK, KEYS, TABLES_BEHIND, TABLES_STALE, TABLES_UNREAD, Holds, Waiting
from app.stream.judging import Judge
from app.stream.log import CommitUnknown, Fenced, Log, OffsetGone, Tail, Unreadable, Writer
from app.stream.store import Store, StoreUnusable
from app.stream.sweeping import Sweeper
from app.stream.tables import Tables
from app.stream.together import together
from app.stream.topics import Topic
from app.stream.turn import Behind, LaneBroken, Turn
from app.telemetry import (
    BATCH_RECORDS,
    COMMIT_SECONDS,
    DECISIONS,
    HANDOFFS,
    LANE_LAG,
    LANE_STATE,
    QUEUE_AGE,
    STORE_ENTRIES,
    TRANSACTIONS,
    Event,
    log,
)  # fmt: skip

SLICE_RECORDS: Final = 200
SLICE_BYTES: Final = 256 * 1024
IDLE_CHECKPOINT_S: Final = 30.0
WAIT_S: Final = 0.25
HOLD_S: Final = 0.05
PROBE_S: Final = 1.0
BEHIND_ALARM_S: Final = 1.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
FAILING_MAX_S: Final = 60.0  # of an unknown kind, with nothing decided meanwhile: a disk may be full for a while
TURN_SHRINKS_BY: Final = 8


class State(StrEnum):
    TAKING = "taking"
    RUNNING = "running"
    HELD = "held"
    RETRYING = "retrying"
    STOPPED = "stopped"
    RELEASED = "released"


class Deployment(msgspec.Struct, frozen=True):
    """What all lanes of a process share and none may change."""

    prefix: str
    topics: dict[Topic, str]
    cluster_id: str
    birth_id: str
    lanes: int
    place: Place
    seal: Seal
    state_dir: Path
    batch_max_records: int
    clock_tolerance_ms: int
    queue_age_cap_ms: int
    keep_tombstones_ms: int
    owner: str


class Lane:
    """One lane in one process."""

    def __init__(self, number: int, shared: Deployment, source: Log, tables: Tables) -> None:
        self.number, self._shared, self._log, self._tables = number, shared, source, tables
        self.state = State.TAKING
        self.stopped_because: str | None = None
        self.progress_at_s = time.monotonic()
        self._wake = asyncio.Event()
        self._released = False
        self._decided = False  # something was committed since the lane was taken
        # Less after a turn that failed, down to one: the records may be why.
        self._turn_records = shared.batch_max_records
        self._failing_since_s: float | None = None
        self._baffled_since_s: float | None = None  # since the first error of an unknown kind, with no other after it
        self._writer: Writer | None = None
        self._store: Store | None = None
        self._store_path = Path()
        self._triggers: Tail | None = None
        self._handoffs: Tail | None = None
        self._checkpoint: Checkpoint | None = None
        self._doubt: Doubt | None = None
        self._clock = LaneClock(0, shared.clock_tolerance_ms)
        self._handed, self._arrived = Waiting(), Waiting()  # taken from the two
        self._holds = Holds(number)
        self._judge = Judge(number, tables)
        self._sweeper = Sweeper()
        self._committed_at_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.on_commit: Callable[[int, int], Any] = lambda lane, offset: None  # noqa: ARG005

    # ── life ──

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"lane-{self.number}")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An error on the way out must not leave a lane that looks alive."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._stop(f"it ended by {type(error).__name__}: {str(error)[:200]}")

    async def release(self) -> None:
        """Finish the turn under way and let everything go. A lane still being taken is let go at once."""
        self._released = True
        self._wake.set()
        if self._task is not None:
            if self.state in (State.TAKING, State.RETRYING):
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def failing_s(self) -> float:
        """For how long it has met errors and decided nothing, or could not read one of its topics."""
        own_s = 0.0 if self._failing_since_s is None or self._decided else time.monotonic() - self._failing_since_s
        return max([own_s, *(tail.failing_s for tail in (self._triggers, self._handoffs) if tail is not None)])

    def _enter(self, state: State) -> None:
        if state is not self.state:
            LANE_STATE.labels(self.number, self.state.value).set(0)
            self.state = state
        LANE_STATE.labels(self.number, state.value).set(1)

    async def _live(self) -> None:
        retry_s, gone = RETRY_FIRST_S, False
        try:
            while not self._released:
                try:
                    self._enter(State.TAKING)
                    await self._take()
                    gone = False
                    await self._work()
                except Fenced as error:
                    self._baffled_since_s = None
                    # A takeover and a transaction that timed out look the same: no alarm, and another try.
                    log.info(Event.LANE_FENCED, lane=self.number, error=str(error))
                    retry_s = max(retry_s, RETRY_FIRST_S * 4)
                except (CommitUnknown, KafkaError, TimeoutError, OSError) as error:
                    self._baffled_since_s = None
                    log.failed(Event.LANE_RETRY, error, lane=self.number, what=str(error)[:300])
                except OffsetGone as error:
                    # A zombie may miss what its successor has decided: only the newest checkpoint can tell.
                    if gone:
                        self._stop(str(error))
                        break
                    gone = True
                    log.warning(Event.LANE_RETRY, lane=self.number, error=type(error).__name__, what=str(error)[:300])
                except (LaneBroken, Unreadable, restore.CheckpointLost) as error:
                    self._stop(str(error))
                    break
                except Exception as error:
                    log.error(Event.LANE_RETRY, lane=self.number, error=type(error).__name__, what=str(error)[:300])
                    if isinstance(error, StoreUnusable):
                        self._discard_store()  # rebuilt from the changelog, which needs no trust in it
                    if self._baffled(time.monotonic()):
                        self._stop(f"it failed for {FAILING_MAX_S:.0f} s, deciding nothing: {type(error).__name__}")
                        break
                await self._let_go_of_writer()
                if self._decided:
                    self._decided, self._failing_since_s, retry_s = False, None, RETRY_FIRST_S
                self._failing_since_s = self._failing_since_s or time.monotonic()
                self._enter(State.RETRYING)
                await self._sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_MAX_S)
        finally:
            await self._let_go_of_writer()
            if self._store is not None:
                self._store.close()
                self._store = None
            self._holds.forget()
            if self.state is not State.STOPPED:
                self._enter(State.RELEASED)

    def _baffled(self, now_s: float) -> bool:
        """Whether errors of an unknown kind, and no other, have come for too long. Kafka may be away for any time."""
        if self._baffled_since_s is None or self._decided:
            self._baffled_since_s = now_s
        return now_s - self._baffled_since_s > FAILING_MAX_S

    def _stop(self, why: str) -> None:
        self.stopped_because = why
        self._enter(State.STOPPED)
        log.error(Event.LANE_STOPPED, lane=self.number, why=why)

    async def _let_go_of_writer(self) -> None:
        for tail in (self._triggers, self._handoffs):
            if tail is not None:
                tail.close()
        self._triggers = self._handoffs = None
        for waiting in (self._handed, self._arrived):
            self._holds.end(*filter(None, [waiting.cause]))
            waiting.clear()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    def _discard_store(self) -> None:
        if self._store is not None:
            from shutil import rmtree

            self._store.close()
            self._store = None
            rmtree(self._store_path, ignore_errors=True)
            log.warning(Event.STORE_WIPED, lane=self.number, why="it failed while in use")

    async def _sleep(self, seconds: float) -> None:
        """Sleep that a release ends early."""
        if not self._released:
            self._wake.clear()
            await self._until_woken(seconds)

    async def _until_woken(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation (Python 3.11)
                await self._wake.wait()

    # ── taking: rule 2 ──

    async def _take(self) -> None:
        shared, number = self._shared, self.number
        began = time.monotonic()
        # 1 the lock: fences the former owner and ends its transaction
        self._writer = await self._log.fence(f"{shared.prefix}lane-{number}", shared.owner)
        if self._doubt is not None:
            await self._doubt.settle(self._log, self._writer)
            self._doubt = None
        # 2 the local store and the changelog, 3 the checkpoint and its offsets: neither needs the other
        checkpoint, _ = await together(self._checkpoint_in_reach(), self._bring_store_up_to_date())
        positions = {Topic.TRIGGERS: checkpoint.triggers_offset, Topic.HANDOFFS: checkpoint.handoffs_offset}
        self._triggers, self._handoffs = (
            self._log.follow((shared.topics[topic], number), position, self._wake)
            for topic, position in positions.items()
        )
        # 4 a first checkpoint of our own: its append time is the broker's clock
        self._clock = LaneClock(checkpoint.lane_clock_ms, shared.clock_tolerance_ms)
        self._checkpoint = checkpoint
        await self._commit(None)
        self._progress()
        log.info(
            Event.LANE_TAKEN, lane=number, seconds=round(time.monotonic() - began, 3),
            triggers_offset=checkpoint.triggers_offset, handoffs_offset=checkpoint.handoffs_offset,
        )  # fmt: skip

    async def _bring_store_up_to_date(self) -> None:
        """The local store, and the changelog from where it ends to the high watermark."""
        shared, number = self._shared, self.number
        if self._store is None:
            self._store, self._store_path = await restore.open_local(
                shared.state_dir, shared.cluster_id, shared.birth_id, number
            )
        await restore.replay(
            self._log, (shared.topics[Topic.IDEMPOTENCY], number), self._store, shared.keep_tombstones_ms,
            self._begin_anew, self._progress,
        )  # fmt: skip

    def _begin_anew(self) -> Store:
        """An empty store instead of the one that is there. Whatever fails from here on, no lane keeps a closed one."""
        old, self._store = self._store, None
        assert old is not None  # noqa: S101
        shared = self._shared
        self._store = stores.wipe(old, self._store_path, shared.cluster_id, shared.birth_id, self.number)
        return self._store

    def _progress(self) -> None:
        self.progress_at_s = time.monotonic()

    async def _checkpoint_in_reach(self) -> Checkpoint:
        """The newest checkpoint. Raises OffsetGone when a topic no longer holds where it stands."""
        shared, number = self._shared, self.number
        checkpoint = await restore.last_checkpoint(
            self._log, (shared.topics[Topic.CHECKPOINTS], number), shared.birth_id, shared.lanes
        )
        triggers, handoffs = (shared.topics[Topic.TRIGGERS], number), (shared.topics[Topic.HANDOFFS], number)
        of_triggers, of_handoffs = await together(self._log.watermarks(triggers), self._log.watermarks(handoffs))
        for partition, position, marks in (
            (triggers, checkpoint.triggers_offset, of_triggers),
            (handoffs, checkpoint.handoffs_offset, of_handoffs),
        ):
            if not marks.start <= position <= marks.high:
                raise OffsetGone(partition, position, *marks)
        return checkpoint

    # ── working ──

    async def _work(self) -> None:
        while not self._released:
            self._progress()
            if self._hold_for_tables_or_clock():
                self._enter(State.HELD)
                await self._probe()
                await asyncio.sleep(HOLD_S)
                continue
            self._enter(State.HELD if self._holds else State.RUNNING)
            self._fill(0)
            if self._handed.to_judge or self._arrived.to_judge:
                await self._turn()
            elif self._handed.records or self._arrived.records:
                if self._holds:
                    await self._probe()
                await self._until_woken(HOLD_S)
            else:
                await self._rest()

    def _hold_for_tables_or_clock(self) -> bool:
        tables = self._tables
        wrong = {TABLES_STALE: tables.stale(), TABLES_UNREAD: tables.unread(), CLOCK: self._clock.complaint()}
        for cause, why in wrong.items():
            if why is None:
                self._holds.end(cause)
            else:
                self._holds.begin(cause, why)
        return any(wrong.values())

    async def _probe(self) -> None:
        """A lane that holds goes on asking the broker: whether it still has its lock, and what time it is."""
        if time.monotonic() - self._committed_at_s > PROBE_S:
            await self._commit(None)

    def _fill(self, done: int) -> None:
        """Take what the next slice of a turn needs and no more: records are judged while they are warm in the cache."""
        self._wake.clear()
        limit = min(SLICE_RECORDS, self._turn_records - done)
        self._handed.fill(self._handoffs, limit, SLICE_BYTES)
        # Handoffs that wait take no room from triggers, which need not wait with them.
        self._arrived.fill(self._triggers, limit - len(self._handed.to_judge), SLICE_BYTES)

    async def _rest(self) -> None:
        """Nothing to do: sweep a little, and keep the checkpoint abreast of markers and the clock."""
        if time.monotonic() - self._committed_at_s > IDLE_CHECKPOINT_S:
            await self._commit(None)
            self._decided = True  # all there was
        self._sweep()
        await self._until_woken(WAIT_S)  # not cleared: what arrived since `_fill` must not wait

    def _sweep(self) -> None:
        """Drop some entries of the table that outlived their window."""
        if self._store is not None:
            dead_before_ms = self._clock.floor_ms - self._shared.queue_age_cap_ms
            self._sweeper.sweep(self._store, time.monotonic(), dead_before_ms)

    async def _turn(self) -> None:
        """Judge what is queued, slice by slice, and commit it as one transaction."""
        shared = self._shared
        assert self._store is not None  # noqa: S101 - taken lanes have one
        turn = Turn(
            self.number, shared.topics, shared.place, shared.seal, self._tables.world, self._store,
            time.time_ns() // 1_000_000, self._clock.read(),
        )  # fmt: skip
        while not turn.full:
            handoffs, triggers = self._handed.to_judge, self._arrived.to_judge
            if not handoffs and not triggers:
                break
            looked_for = self._handed.looked_for, self._arrived.looked_for
            judged = self._judge.slice(handoffs, triggers, turn.world, self._arrived.taken_at_s, looked_for)
            turn.settle(judged.handoffs, judged.triggers)
            self._decided_of(self._handed, len(judged.handoffs), judged.handoffs_wait)
            self._decided_of(self._arrived, len(judged.triggers), judged.triggers_wait)
            await asyncio.sleep(0)
            if self._tables.world is not turn.world or self._tables.complaint() is not None:
                break  # what waits is judged by tables that are up to date
            self._fill(turn.records_in + len(self._arrived.records))
        if not turn.empty:
            await self._commit(turn)

    def _decided_of(self, waiting: Waiting, count: int, what: Held | Behind | None) -> None:
        """Some records of a topic are decided. The one after them may have to wait, which holds up no other topic."""
        self._holds.end(*filter(None, [waiting.decided(count)]))
        match what:
            case None:
                return
            case Held(wanted=KeyWanted(iss=iss, kid=None)):
                # No key set at all: hold and alarm; refusing would be wrong, and so would accepting.
                waiting.wait(HOLD_S)
                waiting.cause = KEYS
                self._holds.begin(KEYS, f"no key set of {iss}")
            case Held(wanted=wanted):
                waiting.wait_for(wanted, self._tables.fetch(wanted), self._wake.set)
            case Behind():
                waiting.wait(HOLD_S)
                if waiting.waited_s > BEHIND_ALARM_S:
                    waiting.cause = TABLES_BEHIND
                    why = "a handoff's lane had read further in the registry or the revocations"
                    self._holds.begin(TABLES_BEHIND, why)

    # ── committing ──

    async def _commit(self, turn: Turn | None) -> None:
        """One transaction: the turn, and the checkpoint that describes the lane after it. None: checkpoint alone."""
        assert self._checkpoint is not None and self._writer is not None and self._store is not None  # noqa: S101, PT018
        assert self._triggers is not None and self._handoffs is not None  # noqa: S101, PT018
        shared = self._shared
        if turn is None and self._clock.complaint() is None:
            self._clock.read()  # or the checkpoints of an idle lane would seem to be of a clock that stands still
        checkpoint = msgspec.structs.replace(
            self._checkpoint,
            triggers_offset=self._arrived.next_offset(self._triggers),
            handoffs_offset=self._handed.next_offset(self._handoffs),
            lane_clock_ms=self._clock.floor_ms,
        )
        checkpoints = (shared.topics[Topic.CHECKPOINTS], self.number)
        if turn is None:
            parts = {checkpoints: [outputs.checkpoint(checkpoint)]}
        else:
            parts, checkpoint = turn.finish(checkpoint)
        began = time.monotonic()
        try:
            placed = await self._writer.commit(parts)
        except Fenced:
            TRANSACTIONS.labels("fenced").inc()
            raise
        except Exception as error:
            if isinstance(error, CommitUnknown):
                if error.placed and len(parts) > 1:  # of one partition all is there, or nothing
                    self._doubt = Doubt(parts, error.placed, checkpoints)
                TRANSACTIONS.labels("unknown").inc()
                log.warning(Event.COMMIT_UNKNOWN, lane=self.number)
            self._turn_records = max(self._turn_records // TURN_SHRINKS_BY, 1)
            raise
        # Known to be committed: only now may the local store hold it.
        if turn is not None and turn.overlay:
            base = placed[(shared.topics[Topic.IDEMPOTENCY], self.number)].base_offset
            count = len(parts[(shared.topics[Topic.IDEMPOTENCY], self.number)])
            self._store.apply(turn.overlay.items(), base + count)
            self._sweeper.written(len(turn.overlay))
        elif turn is None:
            self._store.confirm()  # whoever is idle for a day is up to date all the same
        self._checkpoint = checkpoint
        self._committed_at_s = time.monotonic()
        self._clock.confirm(placed[checkpoints].appended_at_ms)
        if turn is not None:
            self._decided = True
            self._turn_records = min(2 * self._turn_records, shared.batch_max_records)
            self._tell(turn, self._committed_at_s - began)
            self._sweep()
        self.on_commit(self.number, checkpoint.triggers_offset)

    def _tell(self, turn: Turn, seconds: float) -> None:
        TRANSACTIONS.labels("committed").inc()
        BATCH_RECORDS.observe(turn.triggers_in + turn.handoffs_in)
        COMMIT_SECONDS.observe(seconds)
        for (outcome, code), count in turn.outcomes.items():
            DECISIONS.labels(outcome, code or "").inc(count)
        if turn.handoffs_out:
            HANDOFFS.inc(turn.handoffs_out)
        if turn.presentations:
            QUEUE_AGE.observe((turn.now_ms - turn.oldest_ms) / 1000)
        if self._triggers is not None and self._handoffs is not None:
            LANE_LAG.labels(self.number, Topic.TRIGGERS.value).set(self._triggers.backlog)
            LANE_LAG.labels(self.number, Topic.HANDOFFS.value).set(self._handoffs.backlog)

    def gauge(self) -> None:
        """Figures that cost something: asked once in a while."""
        if self._store is not None:
            STORE_ENTRIES.labels(self.number).set(self._store.estimate())
