"""A partition of the simulated Kafka: record batches as they come over the wire, offsets, aborted transactions."""

from __future__ import annotations

import bisect
import itertools
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from aiokafka.record.default_records import DefaultRecordBatch

from tests.simulation.scheduler import BEGAN_MS

Partition = tuple[str, int]
# Of a fetch response: number, error code, high watermark, last stable offset, aborted transactions, bytes.
Row = tuple[int, int, int, int, Sequence[tuple[int, int]], bytes]

# Error codes of the protocol.
OFFSET_OUT_OF_RANGE: Final = 1
UNKNOWN_TOPIC_OR_PARTITION: Final = 3
NOT_LEADER: Final = 6
MESSAGE_TOO_LARGE: Final = 10
COORDINATOR_LOADING: Final = 14
NOT_COORDINATOR: Final = 16
OUT_OF_ORDER_SEQUENCE: Final = 45
INVALID_PRODUCER_EPOCH: Final = 47
INVALID_TXN_STATE: Final = 48
INVALID_PRODUCER_ID_MAPPING: Final = 49
CONCURRENT_TRANSACTIONS: Final = 51

READ_COMMITTED: Final = 1
MAX_MESSAGE_BYTES: Final = 1 << 20

# ── record batches (message format v2) ──

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_LOG_APPEND_TIME, TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20
_COMMIT_MARKER: Final = (b"\x00\x00\x00\x01", b"\x00\x00\x00\x00\x00\x00")
_ABORT_MARKER: Final = (b"\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\x00")


class Message(NamedTuple):
    """A record as its producer gave it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int = BEGAN_MS


def _varint(number: int) -> bytes:
    number = number << 1 ^ number >> 63
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _blob(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def encode(
    messages: Sequence[tuple[int, Message]], *, last_delta: int, attributes: int = 0, producer_id: int = -1,
    epoch: int = -1, sequence: int = -1,
) -> bytes:  # fmt: skip
    """A batch of (offset delta, message)."""
    first_ms = messages[0][1].timestamp_ms if messages else 0
    body = b""
    for delta, message in messages:
        record = b"\x00" + _varint(message.timestamp_ms - first_ms) + _varint(delta)
        record += _blob(message.key) + _blob(message.value) + _varint(len(message.headers))
        for name, content in message.headers:
            record += _blob(name.encode()) + _blob(content)
        body += _varint(len(record)) + record
    max_ms = max((message.timestamp_ms for _, message in messages), default=0)
    return _HEADER.pack(
        0, _HEADER.size - 12 + len(body), -1, 2, 0, attributes, last_delta, first_ms, max_ms, producer_id, epoch,
        sequence, len(messages),
    ) + body  # fmt: skip


class Kept(NamedTuple):
    """A record of the log, as an independent reader decodes it."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Batch:
    """Some records of a partition, or a marker. `raw` is what fetches return; None once compaction took all of it."""

    __slots__ = ("base", "control", "epoch", "next", "original", "outcome", "producer_id", "raw")

    def __init__(self, raw: bytes, base: int, next_offset: int, producer_id: int, epoch: int, attributes: int) -> None:
        self.raw: bytes | None = raw
        self.original, self.base, self.next = raw, base, next_offset
        self.producer_id, self.epoch = producer_id, epoch
        self.control = bool(attributes & _CONTROL)
        # Of its transaction: None while open.
        self.outcome: bool | None = None if attributes & TRANSACTIONAL and not self.control else True

    def records(self) -> list[Kept]:
        return [
            Kept(each.offset, each.timestamp, each.key, each.value, tuple(each.headers))
            for each in DefaultRecordBatch(self.original)
        ]


class _Producer:
    __slots__ = ("epoch", "last_sequence")

    def __init__(self) -> None:
        self.epoch, self.last_sequence = -1, -1


class PartitionLog:
    """One partition."""

    def __init__(self, name: Partition, *, append_time: bool, compacted: bool) -> None:
        self.name, self.append_time, self.compacted = name, append_time, compacted
        self.start = self.end = 0
        self.batches: list[Batch] = []
        self.open: dict[int, int] = {}  # producer id → first offset of its open transaction
        self.aborted: list[tuple[int, int, int]] = []  # producer id, first offset, offset of the marker
        self._producers: dict[int, _Producer] = {}
        self._bases: list[int] = []
        self.waiting: list[Callable[[], None]] = []

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min(self.open.values(), default=self.end)

    def produce(self, raw: bytes, now_ms: int) -> tuple[int, int]:
        """(error code, base offset) of a batch as a producer sent it."""
        (_, _, _, _, _, attributes, _, _, _, producer_id, epoch, sequence, count) = _HEADER.unpack_from(raw)
        if len(raw) > MAX_MESSAGE_BYTES:
            return MESSAGE_TOO_LARGE, -1
        if producer_id >= 0:
            known = self._producers.setdefault(producer_id, _Producer())
            if epoch < known.epoch:
                return INVALID_PRODUCER_EPOCH, -1
            if sequence != (known.last_sequence + 1 if epoch == known.epoch else 0):
                return OUT_OF_ORDER_SEQUENCE, -1
            known.epoch, known.last_sequence = epoch, sequence + count - 1
            if attributes & TRANSACTIONAL:
                self.open.setdefault(producer_id, self.end)
        return 0, self.append(raw, now_ms)

    def append(self, raw: bytes, now_ms: int) -> int:
        """The base offset of a batch that may be appended."""
        (_, length, _, magic, crc, attributes, last_delta, first_ms, max_ms, producer_id, epoch, sequence, count) = (
            _HEADER.unpack_from(raw)
        )
        if self.append_time:
            attributes |= _LOG_APPEND_TIME
            max_ms = now_ms
        base = self.end
        raw = _HEADER.pack(
            base, length, 0, magic, crc, attributes, last_delta, first_ms, max_ms, producer_id, epoch, sequence, count
        ) + raw[_HEADER.size :]  # fmt: skip
        self.end = base + last_delta + 1
        self.batches.append(Batch(raw, base, self.end, producer_id, epoch, attributes))
        self._bases.append(base)
        self.changed()
        return base

    def mark(self, producer_id: int, epoch: int, commit: bool, now_ms: int) -> None:
        """Write a transaction's marker."""
        known = self._producers.setdefault(producer_id, _Producer())
        if epoch > known.epoch:
            known.epoch, known.last_sequence = epoch, -1
        first = self.open.pop(producer_id, None)
        key, value = _COMMIT_MARKER if commit else _ABORT_MARKER
        marker = Message(key, value, (), now_ms)
        if first is not None:
            for batch in self._from(first):
                if batch.producer_id == producer_id and batch.outcome is None:
                    batch.outcome = commit
            if not commit:
                self.aborted.append((producer_id, first, self.end))
        self.append(
            encode([(0, marker)], last_delta=0, attributes=TRANSACTIONAL | _CONTROL, producer_id=producer_id,
                   epoch=epoch),
            now_ms,
        )  # fmt: skip

    def changed(self) -> None:
        waiting, self.waiting = self.waiting, []
        for wake in waiting:
            wake()

    def fetch(self, number: int, position: int, isolation: int, max_bytes: int) -> Row:
        end, stable = self.end, min(self.open.values()) if self.open else self.end
        limit = stable if isolation == READ_COMMITTED else end
        if limit <= position <= end and position >= self.start:
            return number, 0, end, stable, (), b""
        if not self.start <= position <= end:
            return number, OFFSET_OUT_OF_RANGE, -1, -1, (), b""
        parts, size, last = [], 0, position
        for batch in self._from(position):
            if batch.base >= limit or (parts and size >= max_bytes):
                break
            last = batch.next
            if batch.raw is not None:
                parts.append(batch.raw)
                size += len(batch.raw)
        aborted: Sequence[tuple[int, int]] = ()
        if isolation == READ_COMMITTED and self.aborted:
            aborted = [(pid, first) for pid, first, end in self.aborted if end >= position and first < last]
        return number, 0, end, stable, aborted, b"".join(parts)

    def _from(self, position: int) -> Iterable[Batch]:
        at = max(bisect.bisect_right(self._bases, position) - 1, 0)
        return itertools.islice(self.batches, at, None)

    # ── the broker's own housekeeping ──

    def delete_before(self, offset: int) -> None:
        """As retention does: the log begins later."""
        self.start = max(self.start, min(offset, self.stable))

    def compact(self, dice: random.Random) -> int:
        """Remove what later records of the same key replace, and what was aborted; not in the last batches."""
        clean = [batch for batch in self.batches if batch.next <= self.stable][: -dice.randint(1, 3)]
        newest: dict[bytes | None, int] = {}
        for batch in clean:
            if batch.outcome and not batch.control:
                for record in batch.records():
                    newest[record.key] = record.offset
        removed = 0
        for batch in clean:
            if batch.raw is None or batch.control:
                continue
            kept = [
                (record.offset - batch.base, Message(record.key, record.value, record.headers, record.timestamp_ms))
                for record in batch.records()
                if batch.outcome and newest[record.key] == record.offset
            ]
            removed += 1
            batch.raw = None
            if kept:
                header = _HEADER.unpack_from(batch.original)
                raw = encode(kept, last_delta=header[6], attributes=header[5], producer_id=header[9], epoch=header[10],
                             sequence=header[11])  # fmt: skip
                batch.raw = struct.pack(">q", batch.base) + raw[8:35] + struct.pack(">q", header[8]) + raw[43:]
        # A marker goes when nothing of its transaction is left.
        left = {batch.producer_id for batch in clean if batch.raw is not None and not batch.control}
        for batch in clean:
            if batch.control and batch.raw is not None and batch.producer_id not in left and dice.random() < 0.5:
                batch.raw = None
                self.aborted = [each for each in self.aborted if each[2] != batch.base]
        return removed

    def committed(self) -> list[Kept]:
        """All that a read_committed reader was ever to see, compacted or not."""
        return [record for batch in self.batches if batch.outcome and not batch.control for record in batch.records()]
