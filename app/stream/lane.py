"""A lane: takes its lock, brings its table up to date, then turns records into transactions until it is released.

Who may call a lane's methods: the worker, from the same event loop. The lane never looks at the consumer group.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError

from app.gate import idempotency, outputs
from app.gate.decide import Held
from app.gate.original import Seal
from app.gate.outputs import Place
from app.gate.records import Checkpoint
from app.gate.trigger import Record
from app.stream import restore
from app.stream.clock import LaneClock
from app.stream.judging import Judge
from app.stream.log import CommitUnknown, Fenced, Log, OffsetGone, Tail, Unreadable, Writer
from app.stream.store import Store, StoreUnusable
from app.stream.tables import Tables
from app.stream.together import together
from app.stream.topics import Topic
from app.stream.turn import LaneBroken, Turn
from app.telemetry import (
    BATCH_RECORDS,
    COMMIT_SECONDS,
    DECISIONS,
    HANDOFFS,
    HELD,
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
HOLD_CAUSES: Final = ("tables_stale", "clock", "keys")
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
FAILING_MAX_S: Final = 60.0  # of an unknown kind, with nothing decided meanwhile: a disk may be full for a while
SWEEP_EVERY_S: Final = 1.0
SWEEP_RECORDS: Final = 500


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
        self._writer: Writer | None = None
        self._store: Store | None = None
        self._store_path = Path()
        self._triggers: Tail | None = None
        self._handoffs: Tail | None = None
        self._checkpoint: Checkpoint | None = None
        self._clock = LaneClock(0, shared.clock_tolerance_ms)
        self._handed: list[Record] = []  # taken from the two, and not decided yet
        self._arrived: list[Record] = []
        self._judge = Judge(number, tables)
        self._committed_at_s = self._swept_at_s = 0.0
        self._without_keys_since_s: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.on_commit: Callable[[int, int], Any] = lambda lane, offset: None  # noqa: ARG005

    # ── life ──

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"lane-{self.number}")

    async def release(self) -> None:
        """Finish the turn under way and let everything go. A lane still being taken is let go at once."""
        self._released = True
        self._wake.set()
        if self._task is not None:
            if self.state in (State.TAKING, State.RETRYING):
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            LANE_STATE.labels(self.number, self.state.value).set(0)
            self.state = state
        LANE_STATE.labels(self.number, state.value).set(1)

    async def _live(self) -> None:
        retry_s, gone = RETRY_FIRST_S, False
        failing_since_s: float | None = None
        try:
            while not self._released:
                try:
                    self._enter(State.TAKING)
                    await self._take()
                    gone = False
                    await self._work()
                except Fenced as error:
                    # A takeover and a transaction that timed out look the same: no alarm, and another try.
                    log.info(Event.LANE_FENCED, lane=self.number, error=str(error))
                    retry_s = max(retry_s, RETRY_FIRST_S * 4)
                except (CommitUnknown, KafkaError, TimeoutError, OSError) as error:
                    log.warning(Event.LANE_RETRY, lane=self.number, error=type(error).__name__, what=str(error)[:300])
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
                    failing_since_s = failing_since_s or time.monotonic()
                    failed_s = time.monotonic() - failing_since_s
                    if failed_s > FAILING_MAX_S:
                        self._stop(f"it failed for {failed_s:.0f} s, deciding nothing: {type(error).__name__}")
                        break
                await self._let_go_of_writer()
                if self._decided:
                    self._decided, failing_since_s, retry_s = False, None, RETRY_FIRST_S
                self._enter(State.RETRYING)
                await self._sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_MAX_S)
        finally:
            await self._let_go_of_writer()
            if self._store is not None:
                self._store.close()
                self._store = None
            if self.state is not State.STOPPED:
                self._enter(State.RELEASED)

    def _stop(self, why: str) -> None:
        self.stopped_because = why
        self._enter(State.STOPPED)
        log.error(Event.LANE_STOPPED, lane=self.number, why=why)

    async def _let_go_of_writer(self) -> None:
        for tail in (self._triggers, self._handoffs):
            if tail is not None:
                tail.close()
        self._triggers = self._handoffs = None
        self._handed, self._arrived = [], []
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
        self._store = await restore.replay(
            self._log, (shared.topics[Topic.IDEMPOTENCY], number), self._store, self._store_path,
            shared.cluster_id, shared.birth_id, number, shared.keep_tombstones_ms,
        )  # fmt: skip

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
        held_since: float | None = None
        while not self._released:
            self.progress_at_s = time.monotonic()
            cause = self._hold_cause()
            if cause is not None:
                if held_since is None:
                    held_since = time.monotonic()
                    log.warning(Event.LANE_HELD, lane=self.number, cause=cause[0], why=cause[1])
                    HELD.labels(self.number, cause[0]).set(1)
                self._enter(State.HELD)
                if time.monotonic() - self._committed_at_s > PROBE_S:
                    await self._commit(None)
                await asyncio.sleep(HOLD_S)
                continue
            if held_since is not None:
                log.info(Event.LANE_RESUMED, lane=self.number, seconds=round(time.monotonic() - held_since, 3))
                for name in HOLD_CAUSES:
                    HELD.labels(self.number, name).set(0)
                held_since = None
            if self._without_keys_since_s is None:
                self._enter(State.RUNNING)
            self._fill(0)
            if self._handed or self._arrived:
                await self._turn()
            else:
                await self._rest()

    def _hold_cause(self) -> tuple[str, str] | None:
        stale = self._tables.complaint()
        if stale is not None:
            return "tables_stale", stale
        wrong = self._clock.complaint()
        return None if wrong is None else ("clock", wrong)

    def _fill(self, done: int) -> None:
        """Take what the next slice of a turn needs and no more: records are judged while they are warm in the cache.

        Each list is filled when it is empty: what a trigger waits for, handoffs do not.
        """
        limit = min(SLICE_RECORDS, self._shared.batch_max_records - done)
        self._wake.clear()
        if self._handoffs is not None and not self._handed:
            self._handed = self._handoffs.take(limit, SLICE_BYTES)
        if self._triggers is not None and not self._arrived:
            self._arrived = self._triggers.take(limit - len(self._handed), SLICE_BYTES)

    async def _rest(self) -> None:
        """Nothing to do: sweep a little, and keep the checkpoint abreast of markers and the clock."""
        if time.monotonic() - self._committed_at_s > IDLE_CHECKPOINT_S:
            await self._commit(None)
        self._sweep()
        await self._until_woken(WAIT_S)  # not cleared: what arrived since `_fill` must not wait

    def _sweep(self) -> None:
        """Once a second, look at a few entries of the table and drop those that outlived their window."""
        if self._store is not None and time.monotonic() - self._swept_at_s > SWEEP_EVERY_S:
            self._swept_at_s = time.monotonic()
            dead_before = self._clock.floor_ms - self._shared.queue_age_cap_ms
            self._store.sweep(SWEEP_RECORDS, lambda packed: idempotency.expires_at_ms(packed) < dead_before)

    async def _turn(self) -> None:
        """Judge what is queued, slice by slice, and commit it as one transaction."""
        shared = self._shared
        assert self._store is not None  # noqa: S101 - taken lanes have one
        turn = Turn(
            self.number, shared.topics, shared.place, shared.seal, self._tables.world, self._store,
            time.time_ns() // 1_000_000, self._clock.read(),
        )  # fmt: skip
        while (self._handed or self._arrived) and not turn.full:
            judged = self._judge.slice(self._handed, self._arrived, turn.world)
            turn.settle(judged.handoffs, judged.triggers)
            del self._handed[: len(judged.handoffs)], self._arrived[: len(judged.triggers)]
            if judged.waits is not None:
                if turn.empty:
                    await self._wait_for(judged.waits)
                    return
                break  # commit what is decided; what waits gets a turn of its own
            await asyncio.sleep(0)
            if self._tables.complaint() is not None:
                break  # the process stood still meanwhile: what waits is judged by tables that are up to date
            self._fill(turn.records_in + len(self._arrived))
        if not turn.empty:
            await self._commit(turn)

    async def _wait_for(self, what: object) -> None:
        """The next record cannot be decided yet: wait for keys or tables, then let the lane look again."""
        if isinstance(what, Held) and what.wanted.kid is not None:
            await self._tables.fetch_key(what.wanted)
        elif isinstance(what, Held):
            # No key set at all: hold and alarm; refusing would be wrong, and so would accepting.
            if self._without_keys_since_s is None:
                self._without_keys_since_s = time.monotonic()
                log.warning(Event.LANE_HELD, lane=self.number, cause="keys", why=f"no key set of {what.wanted.iss}")
                HELD.labels(self.number, "keys").set(1)
            self._enter(State.HELD)
            if time.monotonic() - self._committed_at_s > PROBE_S:
                await self._commit(None)
            await asyncio.sleep(HOLD_S)
        else:
            await asyncio.sleep(HOLD_S)

    def _resume_with_keys(self) -> None:
        """Something was decided: whoever lacked a key set has one, or is refused."""
        if self._without_keys_since_s is not None:
            seconds = time.monotonic() - self._without_keys_since_s
            self._without_keys_since_s = None
            log.info(Event.LANE_RESUMED, lane=self.number, seconds=round(seconds, 3))
            HELD.labels(self.number, "keys").set(0)

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
            triggers_offset=self._next_offset(self._arrived, self._triggers),
            handoffs_offset=self._next_offset(self._handed, self._handoffs),
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
        except CommitUnknown:
            TRANSACTIONS.labels("unknown").inc()
            log.warning(Event.COMMIT_UNKNOWN, lane=self.number)
            raise
        # Known to be committed: only now may the local store hold it.
        if turn is not None and turn.overlay:
            base = placed[(shared.topics[Topic.IDEMPOTENCY], self.number)].base_offset
            count = len(parts[(shared.topics[Topic.IDEMPOTENCY], self.number)])
            self._store.apply(turn.overlay.items(), base + count)
        self._checkpoint = checkpoint
        self._committed_at_s = time.monotonic()
        self._clock.confirm(placed[checkpoints].appended_at_ms)
        if turn is not None:
            self._decided = True
            self._resume_with_keys()
            self._tell(turn, self._committed_at_s - began)
            self._sweep()
        self.on_commit(self.number, checkpoint.triggers_offset)

    @staticmethod
    def _next_offset(waiting: Sequence[Record], tail: Tail) -> int:
        """After the last record decided; past markers and aborted records when none is waiting."""
        return waiting[0].offset if waiting else tail.position

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
