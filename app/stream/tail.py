"""One followed partition: what was fetched of it and not taken yet, read record by record."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from operator import lt
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import KafkaError

from app.gate.trigger import Record
from app.logs import Event, log
from app.stream import batch
from app.stream.log import OffsetGone, Partition, Unreadable

if TYPE_CHECKING:
    from app.stream.pollers import Pollers

BUFFER_BYTES: Final = 2 << 20  # as fetched
TAKE_AT_ONCE: Final = 100
FAILED_AGAIN_S: Final = 1.0  # a partition whose fetch failed is not asked for; the broker's others are
FAILED_TOLD_AFTER_S: Final = 5.0  # leaders change in less
FAILED_TOLD_EVERY_S: Final = 60.0
_RECORD_OVERHEAD_BYTES: Final = 200


class KafkaTail:
    """One followed partition: what was fetched and not taken yet."""

    def __init__(
        self, pollers: Pollers, partition: Partition, position: int, wake: asyncio.Event, max_batch_bytes: int,
        past_open_transactions: bool,
    ) -> None:  # fmt: skip
        self.partition, self.past_open_transactions = partition, past_open_transactions
        self.fetched = position  # where the next fetch begins
        self._position = position
        self._pollers, self._wake, self._max_batch_bytes = pollers, wake, max_batch_bytes
        self._waiting: deque[tuple[batch.Batch | None, int]] = deque()
        self._bytes = 0
        self._current: _Reading | None = None
        self._ready: list[Record] = []  # read from it, and not taken yet
        self._current_end = position
        self._high = position
        self._gone = False
        self._error: Exception | None = None
        self._caught_up = (position, float("-inf"))  # all there was at that time, and when
        self.confirmed_at_s = float("-inf")
        self._failing_since_s: float | None = None
        self._ask_again_at_s = self._tell_at_s = float("-inf")

    @property
    def position(self) -> int:
        return self._position

    @property
    def backlog(self) -> int:
        return max(self._high - self._position, 0)

    @property
    def wants(self) -> bool:
        return self._bytes < BUFFER_BYTES and not self._gone and time.monotonic() >= self._ask_again_at_s

    @property
    def failing_s(self) -> float:
        return 0.0 if self._failing_since_s is None else time.monotonic() - self._failing_since_s

    def arrived(self, raw: bytes, aborted: Sequence[tuple[int, int]] | None, high: int) -> None:
        self._high = high
        self._failing_since_s = None
        before = self.fetched
        for part, next_offset in batch.visible(raw, aborted, self.fetched):
            self._waiting.append((part, next_offset))
            self._bytes += len(part.raw) if part is not None else 0
            self.fetched = next_offset
        if self.fetched != before:
            self._wake.set()

    def caught_up(self, at_s: float) -> None:
        """The broker had no more when it was asked at `at_s` (monotonic, in seconds)."""
        self._caught_up = (self.fetched, at_s)
        self._confirm()

    def _confirm(self) -> None:
        # Not when it was fetched: whoever follows a table knows what it took.
        end, at_s = self._caught_up
        if self._position >= end:
            self.confirmed_at_s = at_s

    def failed(self, error: type[KafkaError]) -> None:
        """The broker could not read it for us. Asked for again, for as long as it takes."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s, self._tell_at_s = now_s, now_s + FAILED_TOLD_AFTER_S
        if not error.invalid_metadata:  # else it is asked for again when the leaders are known anew
            self._ask_again_at_s = now_s + FAILED_AGAIN_S
        if now_s >= self._tell_at_s:
            self._tell_at_s = now_s + FAILED_TOLD_EVERY_S
            topic, number = self.partition
            log.warning(
                Event.FETCH_FAILED, topic=topic, partition=number, error=error.__name__,
                seconds=round(now_s - self._failing_since_s),
            )  # fmt: skip

    def out_of_range(self) -> None:
        self._gone = True
        self._wake.set()

    def broken(self, error: Exception) -> None:
        self._error = error
        self._gone = True
        self._wake.set()

    def take(self, limit: int, max_bytes: int) -> list[Record]:
        if isinstance(self._error, KafkaError):
            raise self._error  # what passes, as an ACL that is missing may: not the end of a lane
        if self._error is not None:
            raise Unreadable(f"{self.partition[0]}[{self.partition[1]}] at {self.fetched}: {self._error}")
        if self._gone:
            raise OffsetGone(self.partition, self.fetched, -1, self._high)
        taken: list[Record] = []
        while len(taken) < limit and max_bytes > 0:
            if not self._ready:
                if self._current is None and not self._open_next():
                    break
                if self._current is None:  # passed over
                    self._position = max(self._position, self._current_end)
                    continue
                self._ready = self._current.take(TAKE_AT_ONCE)
                if not self._ready:
                    self._current = None
                    self._position = max(self._position, self._current_end)
                    continue
            count = 0
            for record in self._ready[: limit - len(taken)]:
                count += 1
                max_bytes -= _size_of(record)
                if max_bytes <= 0:  # a batch of few bytes may hold records of many
                    break
            taken += self._ready[:count]
            del self._ready[:count]
        if taken:
            self._position = max(self._position, taken[-1].offset + 1)
        self._confirm()
        return taken

    def _open_next(self) -> bool:
        """Look into the next batch. What is passed over moves the position alone."""
        if not self._waiting:
            return False
        part, self._current_end = self._waiting.popleft()
        if part is not None:
            was_full = self._bytes >= BUFFER_BYTES
            self._bytes -= len(part.raw)
            self._current = _Reading(part, self.partition[1], self._position, self._max_batch_bytes)
            if was_full and self._bytes < BUFFER_BYTES:
                self._pollers.wake()
        return True

    def close(self) -> None:
        self._pollers.forget(self)


def _size_of(record: Record) -> int:
    size = _RECORD_OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b"")
    if record.headers:
        size += sum([len(name) + len(content or b"") for name, content in record.headers])
    return size


class _Reading:
    """A batch of a followed partition, being taken record by record."""

    def __init__(self, part: batch.Batch, number: int, start: int, max_bytes: int) -> None:
        self._part, self._number, self._start, self._by_broker = part, number, start, part.log_append_time
        self._next = part.base_offset  # of the next record
        self._refused: Iterator[Record] | None = None
        try:
            self._records = batch.Records(part, max_bytes)
        except batch.ExpandsTooFar as error:
            self._refuse("batch_too_large", error)
        except Exception as error:
            self._refuse("batch_unreadable", error)

    def take(self, limit: int) -> list[Record]:
        """Up to `limit` records; none only at the end. What cannot be read comes out refused, offset by offset."""
        number, start, by_broker = self._number, self._start, self._by_broker
        while self._refused is None:
            try:
                raw = self._records.take(limit)
                self._next = offsets_in_order(raw, self._next, self._part.next_offset)
                got = [
                    Record(number, r.offset, r.timestamp, by_broker, r.key, r.value, tuple(r.headers))
                    for r in raw
                    if r.offset >= start
                ]
            except Exception as error:
                self._refuse("batch_unreadable", error)
                break
            if got or not raw:
                return got
        return list(itertools.islice(self._refused or (), limit))

    def _refuse(self, fault: str, error: Exception) -> None:
        """Each offset that is left gets a decision of its own; what the batch held there is not shown to anybody."""
        part, number = self._part, self._number
        log.warning(
            Event.BATCH_UNREAD, partition=number, base_offset=part.base_offset, fault=fault, error=type(error).__name__
        )
        self._refused = (
            Record(number, offset, part.max_timestamp_ms, self._by_broker, None, None, (), fault)
            for offset in range(max(self._start, self._next), part.next_offset)
        )


def offsets_in_order(records: Sequence[Any], start: int, end: int) -> int:
    """Where the next record stands. Raises ValueError for offsets that do not increase within the batch's own.

    In a batch that is not compressed the broker leaves the records' own offsets as the producer wrote them: believed,
    one would name other triggers than its own, or carry the lane past all that come after it.
    """
    if not records:
        return start
    offsets: list[int] = [record.offset for record in records]
    first, last = offsets[0], offsets[-1]
    if first < start or last >= end:
        raise ValueError(f"records of offsets {first} to {last} where {start} to {end - 1} may stand")
    if offsets != list(range(first, last + 1)) and not all(map(lt, offsets, offsets[1:])):  # compacted ones have gaps
        raise ValueError("a batch whose offsets do not increase")
    return last + 1
