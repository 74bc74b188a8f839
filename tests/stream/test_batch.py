"""Record batches: what we write others read identically, and what others write we read within a bound."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cramjam
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from confluent_kafka import TopicPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.config import Kafka
from app.gate.outputs import Out
from app.stream import batch
from app.stream.cluster import Cluster
from app.stream.inspection import connect
from tests.support import memory, reader
from tests.support.emitting import Raw, emit

MIB = 1 << 20
BOMB_BYTES = 150 * MIB
LIMIT_BYTES = 8 * MIB

HEADER = batch._HEADER
sizes = st.one_of(st.binary(max_size=40), st.sampled_from([63, 64, 8_190, 8_192, 70_000]).map(lambda n: b"v" * n))
# Without NUL, at which confluent-kafka cuts off the name of a header it reads.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
outs = st.builds(
    Out,
    key=st.none() | sizes,
    value=st.none() | sizes,
    headers=st.lists(st.tuples(names, st.binary(max_size=80)), max_size=6).map(tuple),
)
Fields = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def _fields(record: Out) -> Fields:
    return record.key, record.value, list(record.headers)


def _records(part: batch.Batch, max_bytes: int) -> list[Any]:
    reading = batch.Records(part, max_bytes)
    return list(_drained(lambda: reading.take(7)))


def _drained(take: Callable[[], list[Any]]) -> Iterator[Any]:
    while taken := take():
        yield from taken


def _encode(records: Sequence[Out], codec: int = 0) -> bytes:
    return batch.encode(records, producer_id=7, producer_epoch=3, base_sequence=11, codec=codec)


# ── writing ──


@given(st.lists(outs, min_size=1, max_size=30))
@settings(deadline=None)
def test_aiokafka_reads_back_what_was_encoded(records: list[Out]) -> None:
    raw = _encode(records)
    read = DefaultRecordBatch(raw)
    assert read.validate_crc()
    assert [(r.key, r.value, list(r.headers)) for r in read] == [_fields(record) for record in records]
    assert (read.is_transactional, read.producer_id, read.producer_epoch, read.base_sequence) == (True, 7, 3, 11)


@given(st.lists(outs, min_size=1, max_size=30), st.sampled_from(sorted(batch.CODECS.values())))
@settings(deadline=None)
def test_our_own_reader_reads_back_what_was_encoded(records: list[Out], codec: int) -> None:
    ((part, next_offset),) = batch.visible(_encode(records, codec), None, 0)
    assert part is not None
    assert next_offset == len(records)
    assert [(r.key, r.value, list(r.headers)) for r in _records(part, 64 * MIB)] == list(map(_fields, records))


@pytest.fixture(scope="module")
def topic(broker: str) -> Iterator[str]:
    """A topic that takes large batches."""
    from confluent_kafka.admin import NewTopic

    name = f"batches-{os.getpid()}"
    admin = connect(Kafka(bootstrap=broker))
    made = admin.create_topics([NewTopic(name, 3, config={"max.message.bytes": str(64 * MIB)})])
    made[name].result(30)
    yield name
    admin.delete_topics([name])[name].result(30)


@pytest.mark.parametrize("codec", sorted(batch.CODECS))
def test_confluent_kafka_reads_back_what_a_writer_committed(broker: str, topic: str, codec: str) -> None:
    consumer = reader.consumer_of(broker)
    with asyncio.Runner() as runner:
        cluster = _Cluster(broker, topic, codec)
        writer = runner.run(cluster.start())

        @given(st.lists(outs, min_size=1, max_size=30))
        @settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
        def committed_is_read(records: list[Out]) -> None:
            placed = runner.run(writer.commit({(topic, 0): records}))[(topic, 0)]
            consumer.assign([TopicPartition(topic, 0, placed.base_offset)])
            read: list[Fields] = []
            while len(read) < len(records):
                message = consumer.poll(10)
                assert message is not None
                if message.error() is None:
                    read.append((message.key(), message.value(), list(message.headers() or [])))
            assert read == list(map(_fields, records))

        try:
            committed_is_read()
        finally:
            runner.run(cluster.stop())
            consumer.close()


class _Cluster:
    """A cluster connection and a writer, made within the loop they live in."""

    def __init__(self, broker: str, topic: str, codec: str) -> None:
        self._broker, self._topic, self._codec = broker, topic, codec

    async def start(self):  # type: ignore[no-untyped-def]
        self._cluster = Cluster(
            Kafka(bootstrap=self._broker), [self._topic], transaction_timeout_ms=10_000, codec=self._codec,
            max_batch_bytes=LIMIT_BYTES,
        )  # fmt: skip
        await self._cluster.start()
        return await self._cluster.fence(f"batches-{self._codec}", "test")

    async def stop(self) -> None:
        await self._cluster.stop()


# ── what is visible ──


def _placed(raw: bytes, base_offset: int, attributes: int | None = None, producer_id: int | None = None) -> bytes:
    """A batch as a broker would serve it: offsets given, and what a test changes of its header."""
    fields = list(HEADER.unpack_from(raw))
    fields[0] = base_offset
    fields[5] = fields[5] if attributes is None else attributes
    fields[9] = fields[9] if producer_id is None else producer_id
    return HEADER.pack(*fields) + raw[HEADER.size :]


TRANSACTIONAL, CONTROL = 0x10, 0x20


def _marker(offset: int, producer_id: int) -> bytes:
    return _placed(_encode([Out(b"\0\0\0\0", b"\0\0\0\0\0\0")]), offset, TRANSACTIONAL | CONTROL, producer_id)


def _of(producer_id: int, offset: int, *values: bytes) -> bytes:
    return _placed(_encode([Out(None, value) for value in values]), offset, producer_id=producer_id)


def _visible(raw: bytes, aborted: Sequence[tuple[int, int]] | None = None, position: int = 0) -> list[object]:
    """Values, and the offset at which each passing over ends."""
    seen: list[object] = []
    for part, next_offset in batch.visible(raw, aborted, position):
        seen += [next_offset] if part is None else [record.value for record in _records(part, MIB)]
    return seen


def test_records_of_a_committed_transaction_are_visible_and_its_marker_is_passed() -> None:
    assert _visible(_of(1, 0, b"a", b"b") + _marker(2, 1)) == [b"a", b"b", 3]


def test_records_of_an_aborted_transaction_are_passed() -> None:
    assert _visible(_of(1, 0, b"a", b"b") + _marker(2, 1), aborted=[(1, 0)]) == [2, 3]


def test_an_abort_hides_only_its_own_producer() -> None:
    raw = _of(1, 0, b"a") + _of(2, 1, b"b") + _marker(2, 1) + _marker(3, 2)
    assert _visible(raw, aborted=[(1, 0)]) == [1, b"b", 3, 4]


def test_after_the_marker_of_an_abort_the_same_producer_is_visible_again() -> None:
    raw = _of(1, 0, b"a") + _marker(1, 1) + _of(1, 2, b"b") + _marker(3, 1)
    assert _visible(raw, aborted=[(1, 0)]) == [1, 2, b"b", 4]


def test_two_aborts_of_one_producer_with_a_commit_between_hide_the_two() -> None:
    raw = b"".join(_of(1, 2 * n, b"%d" % n) + _marker(2 * n + 1, 1) for n in range(3))
    assert _visible(raw, aborted=[(1, 4), (1, 0)]) == [1, 2, b"1", 4, 5, 6]


def test_a_batch_that_lies_before_the_position_is_left_out() -> None:
    raw = _of(1, 0, b"a") + _marker(1, 1) + _of(1, 2, b"b")
    assert _visible(raw, position=2) == [b"b"]


def test_a_batch_cut_off_at_the_end_of_the_answer_is_left_for_the_next() -> None:
    whole, cut = _of(1, 0, b"a"), _of(1, 1, b"b")
    for size in (0, 1, HEADER.size - 1, HEADER.size, len(cut) - 1):
        assert _visible(whole + cut[:size]) == [b"a"]


def test_an_empty_answer_shows_nothing() -> None:
    assert _visible(b"") == []


def test_a_batch_whose_last_records_were_compacted_away_ends_where_it_did() -> None:
    fields = list(HEADER.unpack_from(_of(1, 10, b"a")))
    fields[6] = 4  # last offset delta: offsets 11 to 14 are gone
    raw = HEADER.pack(*fields) + _of(1, 10, b"a")[HEADER.size :]
    ((part, next_offset),) = batch.visible(raw, None, 0)
    assert next_offset == 15
    assert part is not None
    assert [record.offset for record in _records(part, MIB)] == [10]


# ── compressed by others ──

CODECS = ("gzip", "snappy", "lz4", "zstd")


async def _fetch(broker: str, topic: str, partition: int, start: int) -> list[batch.Batch]:
    """The batches on a partition from an offset on, as a lane fetches them."""
    cluster = Cluster(
        Kafka(bootstrap=broker), [topic], transaction_timeout_ms=10_000, codec="none", max_batch_bytes=LIMIT_BYTES
    )
    await cluster.start()
    found: list[batch.Batch] = []
    try:
        marks = await cluster.watermarks((topic, partition))
        position = start
        while position < marks.high:
            raw, aborted = await cluster._fetch_one((topic, partition), position, "test")
            for part, position in batch.visible(raw, aborted, position):  # noqa: B007, B020
                found += [] if part is None else [part]
    finally:
        await cluster.stop()
    return found


@pytest.mark.parametrize("codec", CODECS)
async def test_a_batch_compressed_by_librdkafka_is_read(broker: str, topic: str, codec: str) -> None:
    values = [os.urandom(20) + b"x" * 2_000 for _ in range(50)]
    ids = emit(broker, topic, 1, [Raw(value, [("h", b"1")], b"k") for value in values], compression_type=codec)
    parts = await _fetch(broker, topic, 1, int(ids[0].partition("-")[2]))
    assert {part.codec for part in parts} == {CODECS.index(codec) + 1}
    read = [record for part in parts for record in _records(part, LIMIT_BYTES)]
    assert [record.value for record in read] == values
    assert all(record.key == b"k" and list(record.headers) == [("h", b"1")] for record in read)


@pytest.mark.parametrize("codec", CODECS)
async def test_a_batch_that_expands_beyond_the_limit_is_refused_before_it_is_unpacked(
    broker: str, topic: str, codec: str
) -> None:
    (trigger_id,) = emit(broker, topic, 2, [Raw(bytes(12 * MIB))], compression_type=codec)
    (part,) = await _fetch(broker, topic, 2, int(trigger_id.partition("-")[2]))
    with pytest.raises(batch.ExpandsTooFar):
        _records(part, LIMIT_BYTES)
    (record,) = _records(part, 16 * MIB)
    assert len(record.value) == 12 * MIB


def _bomb(codec: int) -> bytes:
    """A batch of one record of BOMB_BYTES zeros, compressed."""
    before = b"\0\0\0\1" + batch._varint(BOMB_BYTES)
    plain = b"".join((batch._varint(len(before) + BOMB_BYTES + 1), before, bytes(BOMB_BYTES), b"\0"))
    match codec:
        case 1:
            packed = cramjam.gzip.compress(plain, level=1)
        case 2:
            packed = cramjam.snappy.compress_raw(plain)
        case 3:
            packed = cramjam.lz4.compress(plain)
        case _:
            packed = cramjam.zstd.compress(plain, level=1)
    payload = bytes(packed)
    fields = (0, HEADER.size - 12 + len(payload), -1, 2, 0, codec, 0, 0, 0, -1, -1, -1, 1)
    return HEADER.pack(*fields) + payload


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_of_150_mb_costs_no_more_memory_than_the_limit(codec: int) -> None:
    raw = _bomb(codec)
    ((part, _),) = batch.visible(raw, None, 0)
    assert part is not None
    # In a process of its own, so that the peak is this decompression's.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        peak = 0
        try:
            memory.begin_peak_anew()
            before = memory.peak_bytes()
            try:
                _records(part, LIMIT_BYTES)
            except batch.ExpandsTooFar:
                peak = max(memory.peak_bytes() - before, 1)
        finally:
            os.write(writing, struct.pack(">q", peak))
            os._exit(0)
    os.waitpid(child, 0)
    (grown,) = struct.unpack(">q", os.read(reading, 8))
    os.close(reading)
    os.close(writing)
    assert grown, "the bomb was unpacked"
    assert grown < 4 * LIMIT_BYTES


def test_a_snappy_block_that_lies_about_its_size_is_refused() -> None:
    body = bytes(cramjam.snappy.compress_raw(b"a" * 100))
    lying = b"\xff\xff\xff\xff\x0f" + body[1:]  # says 4 GiB
    with pytest.raises(batch.ExpandsTooFar):
        batch._decompress(2, memoryview(lying), LIMIT_BYTES)


# ── header names ──


def _with_header_name(name: bytes) -> batch.Batch:
    raw = _encode(
        [Out(b"k0", b"v0", (("plain", b"0"),)), Out(b"k1", b"v1", (("x" * len(name), b"1"),)), Out(None, b"")]
    )
    raw = raw.replace(b"x" * len(name), name)
    ((part, _),) = batch.visible(raw, None, 0)
    assert part is not None
    return part


def test_a_header_name_that_is_not_utf8_comes_out_with_replacement_characters_and_the_rest_as_it_is() -> None:
    read = _records(_with_header_name(b"h\xff\xfe"), MIB)
    assert [(r.offset, r.key, r.value) for r in read] == [(0, b"k0", b"v0"), (1, b"k1", b"v1"), (2, None, b"")]
    assert list(read[0].headers) == [("plain", b"0")]
    assert list(read[1].headers) == [("h\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", b"1")]


def test_reading_by_hand_agrees_with_the_compiled_reader() -> None:
    part = _with_header_name(b"fine")
    by_hand = [tuple(r) for r in batch._by_hand(part.raw)]
    compiled = [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in _records(part, MIB)]
    assert by_hand == compiled


def test_what_lies_before_the_position_still_tells_which_transaction_was_aborted() -> None:
    """A producer that aborted and then committed: a reader that begins between the two sees what was committed."""

    def at(base: int, count: int = 1, *, control: bool = False) -> bytes:
        raw = bytearray(_encode([Out(b"k", b"v")] * count))
        raw[:8] = base.to_bytes(8, "big")
        raw[batch._ATTRIBUTES_AT + 1] |= batch._CONTROL if control else 0
        return bytes(raw)

    raw = at(0, 2) + at(2, control=True) + at(3) + at(4, control=True)
    for position, expected in (
        (0, [None, None, 3, None]),
        (1, [None, None, 3, None]),
        (2, [None, 3, None]),
        (3, [3, None]),
    ):
        seen = [part and part.base_offset for part, _ in batch.visible(raw, [(7, 0)], position)]
        assert seen == expected, position
