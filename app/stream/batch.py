"""Record batches (message format v2, KIP-98): written by hand for speed, read with a bound on what they expand to.

Reading uses aiokafka's compiled record reader; the decompression before it is ours, because a 24 KB batch of a
stranger may expand to 800 MB in a client.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

from app.gate.outputs import Out

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and max timestamp,
# producer id, producer epoch, base sequence, record count
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_BEFORE_CRC: Final = struct.Struct(">qiib")
_AFTER_CRC: Final = struct.Struct(">hiqqqhii")
_LENGTH_AT: Final = 8
_AFTER_LENGTH: Final = 12
_ATTRIBUTES_AT: Final = 21
HEADER_BYTES: Final = _HEADER.size

_CODEC_MASK: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20
CODECS: Final = {"none": 0, "lz4": 3, "zstd": 4}


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _varint(number: int) -> bytes:
    """Zigzag varint of a number ≥ 0."""
    number <<= 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL: Final = tuple(_varint(n) for n in range(1 << 13))
_SMALL_MAX: Final = len(_SMALL)
_ZEROS: Final = b"\x00\x00"
_NO_BYTES: Final = b"\x01"  # a length of -1, zigzag
HEADER_NAMES_MAX: Final = 1_000
_header_names: dict[str, bytes] = {}


def _length(number: int) -> bytes:
    return _SMALL[number] if number < _SMALL_MAX else _varint(number)


def encode(
    records: Sequence[Out], *, producer_id: int, producer_epoch: int, base_sequence: int, codec: int = 0
) -> bytes:
    """One transactional batch of all records, in order. Record count ≥ 1."""
    parts: list[bytes] = []
    small = _SMALL
    # Many records share one tuple of headers: by its identity, which holds while the records do.
    encoded: dict[tuple[int, bool], bytes] = {}
    for delta, record in enumerate(records):
        key, value, headers, event = record.key, record.value, record.headers, record.event
        tail = encoded.get((id(headers), event))
        if tail is None:
            tail = encoded[(id(headers), event)] = _headers(headers, event)
        try:
            at, size, value_size = small[delta], small[len(key)], small[len(value)]  # type: ignore[arg-type]
            length = 2 + len(at) + len(size) + len(key) + len(value_size) + len(value) + len(tail)  # type: ignore[arg-type]
            if event:
                length += len(_CE_ID) + len(size) + len(key)  # type: ignore[arg-type]
                # The record's length, attributes and timestamp of zero, offset; key, value, headers, with ce_id last.
                parts += (small[length], _ZEROS, at, size, key, value_size, value, tail, _CE_ID, size, key)  # type: ignore[arg-type]
            else:
                parts += (small[length], _ZEROS, at, size, key, value_size, value, tail)  # type: ignore[arg-type]
        except (IndexError, TypeError):  # something long, or nothing at all
            raw = _long_record(delta, key, value, tail, event)
            parts += (_length(len(raw)), raw)
    payload: Any = b"".join(parts)
    if codec == CODECS["lz4"]:
        # Kafka reads only frames of independent blocks (KIP-57).
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(payload)
        payload = bytes(compressor.finish())
    elif codec == CODECS["zstd"]:
        payload = bytes(cramjam.zstd.compress(payload, level=1))
    now_ms = time.time_ns() // 1_000_000
    count = len(records)
    body_header = _AFTER_CRC.pack(
        codec | _TRANSACTIONAL, count - 1, now_ms, now_ms, producer_id, producer_epoch, base_sequence, count
    )
    checked = body_header + payload
    length = HEADER_BYTES - _AFTER_LENGTH + len(payload)
    head: bytes = _BEFORE_CRC.pack(0, length, -1, 2)
    checksum: int = calc_crc32c(checked)
    return head + checksum.to_bytes(4, "big") + bytes(checked)


def _long_record(delta: int, key: bytes | None, value: bytes | None, tail: bytes, event: bool) -> bytes:
    parts = [b"\x00\x00", _length(delta)]
    for field in (key, value):
        parts += (_NO_BYTES,) if field is None else (_length(len(field)), field)
    parts.append(tail)
    if event and key is not None:
        parts += (_CE_ID, _length(len(key)), key)
    return b"".join(parts)


def _headers(headers: tuple[tuple[str, bytes], ...], event: bool) -> bytes:
    """The count and all headers; an event's `ce_id`, counted here, follows them."""
    out = [_length(len(headers) + event)]
    for name, content in headers:
        out += (_header_names.get(name) or _header_name(name), _length(len(content)), content)
    return b"".join(out)


def _header_name(name: str) -> bytes:
    raw = name.encode()
    encoded = _length(len(raw)) + raw
    if len(_header_names) < HEADER_NAMES_MAX:  # strangers' names pass through dead letters
        _header_names[name] = encoded
    return encoded


_CE_ID: Final = _length(len(b"ce_id")) + b"ce_id"


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """One visible batch of a partition: not a marker, not of an aborted transaction, not decompressed yet."""

    raw: bytes
    base_offset: int
    next_offset: int
    attributes: int

    @property
    def max_timestamp_ms(self) -> int:
        return int(_HEADER.unpack_from(self.raw)[8])

    @property
    def log_append_time(self) -> bool:
        return bool(self.attributes & _LOG_APPEND_TIME)

    @property
    def codec(self) -> int:
        return self.attributes & _CODEC_MASK


class Header(NamedTuple):
    """Whose a batch is and where it stands, and of a marker what it says."""

    base_offset: int
    next_offset: int
    producer_id: int
    epoch: int
    commits: bool | None  # None: no marker


def headers(raw: bytes) -> Iterator[Header]:
    """The batches of one fetch response, whoever wrote them and whatever became of them. One cut off is left out."""
    for start, end, header in _whole(raw):
        (base, _, _, _, _, attributes, last_delta, _, _, producer_id, epoch, _, _) = header
        next_offset, commits = base + last_delta + 1, None
        if attributes & _CONTROL:
            # Its one record's key: version, then type, both int16; 1 is a commit (KIP-98).
            (marker,) = Records(Batch(raw[start:end], base, next_offset, attributes), end - start).take(1)
            commits = marker.key[2:4] == b"\x00\x01"
        yield Header(base, next_offset, producer_id, epoch, commits)


def _whole(raw: bytes) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Where each whole batch begins and ends in one fetch response, and its header. Raises ValueError for no v2."""
    at, end = 0, len(raw)
    while end - at >= HEADER_BYTES:
        header = _HEADER.unpack_from(raw, at)
        size = _AFTER_LENGTH + header[1]
        if size > end - at:
            return
        if header[3] != 2:
            raise ValueError(
                f"message format v{header[3]} at offset {header[0]}: Tollgate reads v2, Kafka's since 0.11"
            )
        yield at, at + size, header
        at += size


class ExpandsTooFar(Exception):  # noqa: N818 - it is what the batch does
    """The batch decompresses to more than the limit."""


def visible(raw: bytes, aborted: Sequence[tuple[int, int]] | None, position: int) -> Iterator[tuple[Batch | None, int]]:
    """The batches of one fetch response that a read_committed reader sees, from `position` on.

    Yields (batch, next offset); batch is None for what is passed over: markers, aborted records. `aborted` is the
    response's list of (producer id, first offset). A batch cut off at the end of the response is left for the next.
    """
    pending = sorted(aborted or (), key=lambda item: item[1])
    open_aborts: set[int] = set()
    for start, at, header in _whole(raw):
        (base, _, _, _, _, attributes, last_delta, _, _, producer_id, _, _, _) = header
        next_offset = base + last_delta + 1
        # What lies before the position is passed over, but where a producer's aborted transaction ends still counts.
        while pending and pending[0][1] <= base:
            open_aborts.add(pending.pop(0)[0])
        if attributes & _CONTROL:
            # An abort marker ends the producer's aborted transaction; a commit marker changes nothing here.
            open_aborts.discard(producer_id)
        if next_offset <= position:
            continue
        if attributes & _CONTROL or (attributes & _TRANSACTIONAL and producer_id in open_aborts):
            yield None, next_offset
        else:
            whole = start == 0 and at == len(raw)
            yield Batch(raw if whole else raw[start:at], base, next_offset, attributes), next_offset
        position = next_offset


class Records:
    """The records of a batch, lazily, in order. Making one raises ExpandsTooFar before anything is read."""

    def __init__(self, batch: Batch, max_bytes: int) -> None:
        self._raw = _expanded(batch, max_bytes) if batch.codec else batch.raw
        self._count = int(_HEADER.unpack_from(self._raw)[12])
        # Through islice: aiokafka's own iterator may be asked for only once.
        self._records: Iterator[Any] = islice(DefaultRecordBatch(self._raw), self._count)
        self._done = 0

    def take(self, limit: int) -> list[Any]:
        """Up to `limit` records: offset, timestamp, key, value, headers. Fewer only at the end.

        Header names that are not UTF-8 come out with replacement characters; aiokafka's reader would raise.
        """
        taken: list[Any] = []
        # Never past the last: aiokafka's reader begins anew, at the wrong place.
        limit = min(limit, self._count - self._done)
        try:
            for record in islice(self._records, limit):
                taken.append(record)  # noqa: PERF402 - what came before an error must stay
        except UnicodeDecodeError:
            self._records = islice(_by_hand(self._raw), self._done + len(taken), None)
            taken += islice(self._records, limit - len(taken))
        self._done += len(taken)
        return taken


class PlainRecord(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def _by_hand(raw: bytes) -> Iterator[PlainRecord]:
    """The same records, slowly, for batches with header names that are not UTF-8."""
    (base, _, _, _, _, attributes, _, first_timestamp, max_timestamp, _, _, _, count) = _HEADER.unpack_from(raw)
    at = HEADER_BYTES

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)
            shift += 7

    def blob() -> bytes | None:
        nonlocal at
        size = number()
        if size < 0:
            return None
        at += size
        return raw[at - size : at]

    for _ in range(count):
        end = number() + at
        at += 1  # attributes, unused
        timestamp = first_timestamp + number()
        if attributes & _LOG_APPEND_TIME:
            timestamp = max_timestamp
        offset = base + number()
        key, value = blob(), blob()
        headers = [((blob() or b"").decode("utf-8", "replace"), blob()) for _ in range(number())]
        at = end
        yield PlainRecord(offset, timestamp, key, value, headers)


def _expanded(batch: Batch, max_bytes: int) -> bytes:
    """The batch with its records decompressed and its codec bits cleared (its CRC no longer holds)."""
    packed = memoryview(batch.raw)[HEADER_BYTES:]
    payload = _decompress(batch.codec, packed, max_bytes)
    header = bytearray(batch.raw[:HEADER_BYTES])
    header[_ATTRIBUTES_AT + 1] &= ~_CODEC_MASK & 0xFF
    header[_LENGTH_AT:_AFTER_LENGTH] = (HEADER_BYTES - _AFTER_LENGTH + len(payload)).to_bytes(4, "big")
    return bytes(header) + payload


_CODEC_MODULES: Final = {1: cramjam.gzip, 2: cramjam.snappy, 3: cramjam.lz4, 4: cramjam.zstd}
_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"


def _decompress(codec: int, packed: memoryview, max_bytes: int) -> bytes:
    if codec not in _CODEC_MODULES:
        raise ValueError(f"compression codec {codec} is none that Kafka knows")
    if codec == 2:
        return _snappy(bytes(packed), max_bytes)
    # Into a buffer of a fixed size: the decompressor itself stops at the limit.
    for size in (min(max(64 * 1024, 8 * len(packed)), max_bytes), max_bytes):
        buffer = bytearray(size)
        try:
            written = _CODEC_MODULES[codec].decompress_into(packed, buffer)
        except cramjam.DecompressionError:
            if size == max_bytes:
                raise ExpandsTooFar from None
            continue
        return bytes(memoryview(buffer)[:written])
    raise ExpandsTooFar


def _snappy(packed: bytes, max_bytes: int) -> bytes:
    """Raw or xerial-framed snappy (what the Java client writes); each block tells its size before it is unpacked."""
    if not packed.startswith(_XERIAL_MAGIC):
        return _snappy_block(packed, max_bytes)
    at, blocks, total = 16, [], 0
    while at + 4 <= len(packed):
        size = int.from_bytes(packed[at : at + 4], "big")
        block = _snappy_block(packed[at + 4 : at + 4 + size], max_bytes - total)
        total += len(block)
        blocks.append(block)
        at += 4 + size
    return b"".join(blocks)


def _snappy_block(block: bytes, max_bytes: int) -> bytes:
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > max_bytes:
        raise ExpandsTooFar
    return bytes(cramjam.snappy.decompress_raw(block))
