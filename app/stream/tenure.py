"""A tenure: a lane while its lock is held. Records become transactions, until one fails or the lane is released.

A transaction whose end is not known ends the tenure with it: the next one begins from what Kafka says.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from app.gate import outputs
from app.gate.decide import Held
from app.gate.records import Checkpoint
from app.gate.token import KeyWanted
from app.stream import restore
from app.stream.clock import LaneClock
from app.stream.doubt import Doubt
from app.stream.holding import CLOCK, KEYS, TABLES_BEHIND, TABLES_STALE, TABLES_UNREAD, Waiting
from app.stream.kept import Kept
from app.stream.log import CommitUnknown, Fenced, OffsetGone, Writer
from app.stream.store import Store
from app.stream.together import together
from app.stream.topics import Topic
from app.stream.turn import Behind, Turn
from app.telemetry import (
    BATCH_RECORDS,
    COMMIT_SECONDS,
    DECISIONS,
    HANDOFFS,
    LANE_LAG,
    QUEUE_AGE,
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
TURN_SHRINKS_BY: Final = 8


# ── taking: rule 2 ──


async def take(kept: Kept) -> Tenure:
    """Lock the lane and bring it up to date. Who gets it closes it.

    Raises Fenced, CommitUnknown, OffsetGone, CheckpointLost, Unreadable, StoreUnusable, and what Kafka and the disk do.
    """
    began = time.monotonic()
    # 1 the lock: fences the former owner and ends its transaction
    writer = await kept.source.fence(f"{kept.shared.prefix}lane-{kept.number}", kept.shared.owner)
    tenure: Tenure | None = None
    try:
        if kept.doubt is not None:
            await kept.doubt.settle(kept.source, writer)
            kept.doubt = None
        # 2 the local store and the changelog, 3 the checkpoint and its offsets: neither needs the other
        checkpoint, store = await together(_checkpoint_in_reach(kept), _table_up_to_date(kept))
        tenure = Tenure(kept, writer, store, checkpoint)
        # 4 a first checkpoint of our own: its append time is the broker's clock
        await tenure.commit(None)
        kept.progress()
        log.info(
            Event.LANE_TAKEN, lane=kept.number, seconds=round(time.monotonic() - began, 3),
            triggers_offset=checkpoint.triggers_offset, handoffs_offset=checkpoint.handoffs_offset,
        )  # fmt: skip
    except BaseException:
        await (tenure or writer).close()
        raise
    return tenure


async def _table_up_to_date(kept: Kept) -> Store:
    changelog = kept.partition(Topic.IDEMPOTENCY)
    return await kept.table.bring_up_to_date(kept.source, changelog, kept.shared.keep_tombstones_ms, kept.progress)


async def _checkpoint_in_reach(kept: Kept) -> Checkpoint:
    """The newest checkpoint. Raises OffsetGone when a topic no longer holds where it stands."""
    shared = kept.shared
    checkpoint = await restore.last_checkpoint(
        kept.source, kept.partition(Topic.CHECKPOINTS), shared.birth_id, shared.lanes
    )
    triggers, handoffs = kept.partition(Topic.TRIGGERS), kept.partition(Topic.HANDOFFS)
    of_triggers, of_handoffs = await together(kept.source.watermarks(triggers), kept.source.watermarks(handoffs))
    for partition, position, marks in (
        (triggers, checkpoint.triggers_offset, of_triggers),
        (handoffs, checkpoint.handoffs_offset, of_handoffs),
    ):
        if not marks.start <= position <= marks.high:
            raise OffsetGone(partition, position, *marks)
    return checkpoint


class Tenure:
    """What there is only while the lock is held: writer, tails, clock, checkpoint, what was taken from the tails."""

    def __init__(self, kept: Kept, writer: Writer, store: Store, checkpoint: Checkpoint) -> None:
        self._kept, self._writer, self._store, self._checkpoint = kept, writer, store, checkpoint
        self.decided = False  # something was committed, or there was nothing to decide
        self._clock = LaneClock(checkpoint.lane_clock_ms, kept.shared.clock_tolerance_ms)
        self._committed_at_s = 0.0
        follow = kept.source.follow
        self._triggers = follow(kept.partition(Topic.TRIGGERS), checkpoint.triggers_offset, kept.wake)
        self._handoffs = follow(kept.partition(Topic.HANDOFFS), checkpoint.handoffs_offset, kept.wake)
        self._handed, self._arrived = Waiting(), Waiting()  # taken from the two

    async def close(self) -> None:
        """Let everything go but the lock: that stays until another takes it."""
        for tail in (self._triggers, self._handoffs):
            tail.close()
        for waiting in (self._handed, self._arrived):
            self._kept.holds.end(*filter(None, [waiting.cause]))
            waiting.clear()
        await self._writer.close()

    @property
    def failing_s(self) -> float:
        """For how long one of its topics could not be read."""
        return max(self._triggers.failing_s, self._handoffs.failing_s)

    # ── working ──

    def may_decide(self) -> bool:
        """Whether tables and clock are fit to decide by. What is wrong with them is an alarm."""
        tables = self._kept.tables
        wrong = {TABLES_STALE: tables.stale(), TABLES_UNREAD: tables.unread(), CLOCK: self._clock.complaint()}
        for cause, why in wrong.items():
            if why is None:
                self._kept.holds.end(cause)
            else:
                self._kept.holds.begin(cause, why)
        return not any(wrong.values())

    async def hold(self) -> None:
        """Decide nothing, for a moment."""
        await self._probe()
        await asyncio.sleep(HOLD_S)

    async def work(self) -> None:
        """Decide what there is, or wait for a moment: for more, or for what a record needs to be judged."""
        self._fill(0)
        if self._handed.to_judge or self._arrived.to_judge:
            await self._turn()
        elif self._handed.records or self._arrived.records:
            if self._kept.holds:
                await self._probe()
            await self._kept.until_woken(HOLD_S)
        else:
            await self._rest()

    async def _probe(self) -> None:
        """A lane that holds goes on asking the broker: whether it still has its lock, and what time it is."""
        if time.monotonic() - self._committed_at_s > PROBE_S:
            await self.commit(None)

    def _fill(self, done: int) -> None:
        """Take what the next slice of a turn needs and no more: records are judged while they are warm in the cache."""
        self._kept.wake.clear()
        limit = min(SLICE_RECORDS, self._kept.turn_records - done)
        self._handed.fill(self._handoffs, limit, SLICE_BYTES)
        # Handoffs that wait take no room from triggers, which need not wait with them.
        self._arrived.fill(self._triggers, limit - len(self._handed.to_judge), SLICE_BYTES)

    async def _rest(self) -> None:
        """Nothing to do: sweep a little, and keep the checkpoint abreast of markers and the clock."""
        if time.monotonic() - self._committed_at_s > IDLE_CHECKPOINT_S:
            await self.commit(None)
            self.decided = True  # all there was
        self._sweep()
        await self._kept.until_woken(WAIT_S)  # not cleared: what arrived since `_fill` must not wait

    def _sweep(self) -> None:
        """Drop some entries of the table that outlived their window."""
        dead_before_ms = self._clock.floor_ms - self._kept.shared.queue_age_cap_ms
        self._kept.sweeper.sweep(self._store, time.monotonic(), dead_before_ms)

    async def _turn(self) -> None:
        """Judge what is queued, slice by slice, and commit it as one transaction."""
        kept = self._kept
        turn = Turn(
            kept.number, kept.shared.topics, kept.shared.place, kept.shared.seal, kept.tables.world, self._store,
            time.time_ns() // 1_000_000, self._clock.read(),
        )  # fmt: skip
        while not turn.full:
            handoffs, triggers = self._handed.to_judge, self._arrived.to_judge
            if not handoffs and not triggers:
                break
            looked_for = self._handed.looked_for, self._arrived.looked_for
            judged = kept.judge.slice(handoffs, triggers, turn.world, self._arrived.taken_at_s, looked_for)
            turn.settle(judged.handoffs, judged.triggers)
            self._decided_of(self._handed, len(judged.handoffs), judged.handoffs_wait)
            self._decided_of(self._arrived, len(judged.triggers), judged.triggers_wait)
            await asyncio.sleep(0)
            if kept.tables.world is not turn.world or kept.tables.complaint() is not None:
                break  # what waits is judged by tables that are up to date
            self._fill(turn.records_in + len(self._arrived.records))
        if not turn.empty:
            await self.commit(turn)

    def _decided_of(self, waiting: Waiting, count: int, what: Held | Behind | None) -> None:
        """Some records of a topic are decided. The one after them may have to wait, which holds up no other topic."""
        holds = self._kept.holds
        holds.end(*filter(None, [waiting.decided(count)]))
        match what:
            case None:
                return
            case Held(wanted=KeyWanted(iss=iss, kid=None)):
                # No key set at all: hold and alarm; refusing would be wrong, and so would accepting.
                waiting.wait(HOLD_S)
                waiting.cause = KEYS
                holds.begin(KEYS, f"no key set of {iss}")
            case Held(wanted=wanted):
                waiting.wait_for(wanted, self._kept.tables.fetch(wanted), self._kept.wake.set)
            case Behind():
                waiting.wait(HOLD_S)
                if waiting.waited_s > BEHIND_ALARM_S:
                    waiting.cause = TABLES_BEHIND
                    why = "a handoff's lane had read further in the registry or the revocations"
                    holds.begin(TABLES_BEHIND, why)

    # ── committing ──

    async def commit(self, turn: Turn | None) -> None:
        """One transaction: the turn, and the checkpoint that describes the lane after it. None: checkpoint alone.

        Raises Fenced, CommitUnknown, LaneBroken or StoreUnusable; after any of them the tenure is over.
        """
        kept = self._kept
        if turn is None and self._clock.complaint() is None:
            self._clock.read()  # or the checkpoints of an idle lane would seem to be of a clock that stands still
        checkpoint = msgspec.structs.replace(
            self._checkpoint,
            triggers_offset=self._arrived.next_offset(self._triggers),
            handoffs_offset=self._handed.next_offset(self._handoffs),
            lane_clock_ms=self._clock.floor_ms,
        )
        checkpoints, changelog = kept.partition(Topic.CHECKPOINTS), kept.partition(Topic.IDEMPOTENCY)
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
                    kept.doubt = Doubt(parts, error.placed, checkpoints)
                TRANSACTIONS.labels("unknown").inc()
                log.warning(Event.COMMIT_UNKNOWN, lane=kept.number)
            kept.turn_records = max(kept.turn_records // TURN_SHRINKS_BY, 1)
            raise
        # Known to be committed: only now may the local store hold it.
        if turn is not None and turn.overlay:
            self._store.apply(turn.overlay.items(), placed[changelog].base_offset + len(parts[changelog]))
            kept.sweeper.written(len(turn.overlay))
        elif turn is None:
            self._store.confirm()  # whoever is idle for a day is up to date all the same
        self._checkpoint = checkpoint
        self._committed_at_s = time.monotonic()
        self._clock.confirm(placed[checkpoints].appended_at_ms)
        if turn is not None:
            self.decided = True
            kept.turn_records = min(2 * kept.turn_records, kept.shared.batch_max_records)
            self._tell(turn, self._committed_at_s - began)
            self._sweep()
        kept.on_commit(kept.number, checkpoint.triggers_offset)

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
        LANE_LAG.labels(self._kept.number, Topic.TRIGGERS.value).set(self._triggers.backlog)
        LANE_LAG.labels(self._kept.number, Topic.HANDOFFS.value).set(self._handoffs.backlog)
