"""Receipts, as one follower of their topic per process hands them out: to who waits for one, and to streams.

It begins a little before the end, so that what was decided just before the start is at hand; what is older is searched
for on the topic (`search.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from app.api.following import Follower
from app.gate.records import UNREADABLE
from app.gate.trigger import Record
from app.logs import Event, log
from app.stream.cluster import Cluster
from app.stream.log import require_read
from app.stream.tail import KafkaTail

TAKE_RECORDS: Final = 2_000  # of one lane at a time: others' answers are not kept waiting
EMITTER_STREAMS_MAX: Final = 20  # of one emitter at once, so that none takes all of serve.streams_max
TAKE_BYTES: Final = 8 << 20
WAIT_S: Final = 0.5
QUEUE_MAX: Final = 1_000  # receipts of one stream that its reader has not taken: then it is ended, and may resume
START_TIMEOUT_S: Final = 30.0


class Receipt(msgspec.Struct, frozen=True):
    """What of a receipt is looked at here; it is handed on as it stands."""

    trigger_id: str
    outcome: str
    emitter: str | None = None
    reason: str | None = None
    detail: str | None = None


decode: Final = msgspec.json.Decoder(Receipt).decode


class Told(msgspec.Struct, frozen=True):
    """One receipt of a stream, and where its lane goes on after it."""

    lane: int
    next_offset: int
    receipt: bytes


class Subscription:
    """The live receipts of one emitter from some positions on."""

    def __init__(self, emitter: str, positions: Sequence[int]) -> None:
        self.emitter, self.positions = emitter, list(positions)
        self._queue: deque[Told] = deque()
        self._came = asyncio.Event()
        self._ended = False

    def offer(self, told: Told) -> None:
        if len(self._queue) >= QUEUE_MAX:
            self._ended = True  # what comes now would leave a gap
        elif not self._ended:
            self._queue.append(told)
        self._came.set()

    def end(self) -> None:
        self._ended = True
        self._came.set()

    async def next(self, timeout_s: float) -> Told | None:
        """The next one; None when none came in time. Raises StopAsyncIteration at the end."""
        if not self._queue and not self._ended:
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._came.wait()
        if self._queue:
            return self._queue.popleft()
        if self._ended:
            raise StopAsyncIteration
        return None


class Receipts:
    """The follower. Everything it hands out is the record's value, as the gate wrote it."""

    def __init__(self, cluster: Cluster, topic: str, lanes: int, kept: int) -> None:
        self.cluster, self.topic, self.lanes = cluster, topic, lanes
        self._kept = kept
        self._newest: dict[str, tuple[bytes, int]] = {}  # the value and when it was written
        self.covers_from_ms = 0  # what was decided since then is among the newest
        self._waiting: dict[str, list[asyncio.Future[bytes | None]]] = {}
        self._subscriptions: set[Subscription] = set()
        self._tails: list[KafkaTail] = []
        self._cut: set[int] = set()  # lanes that have older receipts than we read, until their first was read
        self._wake = asyncio.Event()
        self.follower = Follower()
        self._current = False

    @property
    def positions(self) -> list[int]:
        return [tail.position for tail in self._tails]

    def subscriptions(self, emitter: str) -> tuple[int, int]:
        """How many there are, and how many of them are this emitter's."""
        return len(self._subscriptions), sum(each.emitter == emitter for each in self._subscriptions)

    def complaint(self) -> str | None:
        if self.follower.over:
            return "the follower of the receipts has ended"
        return None if self._current else "the receipts have not been read up to their end yet"

    async def start(self) -> None:
        """Returns when the newest receipts have been read."""
        marks = [await self.cluster.watermarks((self.topic, lane)) for lane in range(self.lanes)]
        back = self._kept // self.lanes
        starts = [max(mark.start, mark.high - back) for mark in marks]
        self._cut = {lane for lane, mark in enumerate(marks) if starts[lane] > mark.start}
        self._tails = [self.cluster.follow((self.topic, lane), start, self._wake) for lane, start in enumerate(starts)]
        # What an open transaction holds back is nobody's to read yet, and may be for long.
        ends = [await self.cluster.stable_end((self.topic, lane)) for lane in range(self.lanes)]
        self.follower.start(self._follow(ends), "receipts")
        async with asyncio.timeout(START_TIMEOUT_S):
            while self.complaint() is not None:
                if self.follower.over:
                    await self.follower.ended()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self.follower.stop()
        for tail in self._tails:
            tail.close()

    async def _follow(self, ends: Sequence[int]) -> None:
        while True:
            self._wake.clear()
            more = False
            for lane, tail in enumerate(self._tails):
                taken = tail.take(TAKE_RECORDS, TAKE_BYTES)
                for record in taken:
                    require_read(record, self.topic)  # whose receipt it is cannot be told: a stream would have a gap
                    self._arrived(lane, record)
                more |= bool(taken)
                if taken:
                    await asyncio.sleep(0)
            self._current = self._current or all(
                tail.position >= end for tail, end in zip(self._tails, ends, strict=True)
            )
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAIT_S):
                        await self._wake.wait()

    def _arrived(self, lane: int, record: Record) -> None:
        value = record.value or b""
        trigger_id = (record.key or b"").decode("ascii", "replace")
        written_at_ms = record.appended_at_ms
        if lane in self._cut:
            self._cut.discard(lane)
            self.covers_from_ms = max(self.covers_from_ms, written_at_ms)
        self._newest.pop(trigger_id, None)
        self._newest[trigger_id] = (value, written_at_ms)
        if len(self._newest) > self._kept:
            _, oldest_ms = self._newest.pop(next(iter(self._newest)))
            self.covers_from_ms = max(self.covers_from_ms, oldest_ms)
        for waiting in self._waiting.pop(trigger_id, ()):
            if not waiting.done():
                waiting.set_result(value)
        if self._subscriptions:
            emitter = emitter_of(value)
            for subscription in self._subscriptions:
                if subscription.emitter == emitter:
                    subscription.offer(Told(lane, record.offset + 1, value))

    # ── what is handed out ──

    def newest(self, trigger_id: str) -> bytes | None:
        """One of the newest receipts, if it is among them."""
        known = self._newest.get(trigger_id)
        return None if known is None else known[0]

    async def wait(self, trigger_id: str, timeout_s: float) -> bytes | None:
        """The receipt once it is there; None when it has not come in time."""
        known = self.newest(trigger_id)
        if known is not None or timeout_s <= 0:
            return known
        waiting: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(trigger_id, []).append(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            return None
        finally:
            left = self._waiting.get(trigger_id)
            if left is not None:
                left.remove(waiting)
                if not left:
                    del self._waiting[trigger_id]

    def let_go(self) -> None:
        """Whoever waits is told that none has come yet, and streams end: this instance stops."""
        for futures in self._waiting.values():
            for waiting in futures:
                if not waiting.done():
                    waiting.set_result(None)
        for subscription in self._subscriptions:
            subscription.end()

    def subscribe(self, emitter: str) -> Subscription:
        """Follow an emitter's receipts from here on, until `unsubscribe`."""
        subscription = Subscription(emitter, self.positions)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)


def emitter_of(value: bytes) -> str | None:
    """Whose receipt it is; None for nobody's: its token was not verified, or it is none a gate has written."""
    try:
        return decode(value).emitter
    except UNREADABLE:
        log.error(Event.RECEIPT_FOREIGN)
        return None
