"""Batches that no client makes and that a broker takes: it looks at a batch's header, and hardly at its records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

import cramjam
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

SNAPPY: Final = 2
ZSTD: Final = 4
XERIAL: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_HEADER_BYTES: Final = 61
_BEFORE_LENGTH_ENDS: Final = 12


def varint(number: int) -> bytes:
    """Zigzag, as records have it."""
    left = (number << 1 ^ number >> 63) & (1 << 64) - 1
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes((*out, left))


def record(value: bytes, delta: int = 0, attributes: int = 0) -> bytes:
    """One record of a batch: no key, no headers."""
    body = b"".join((
        bytes([attributes]), varint(0), varint(delta), varint(-1), varint(len(value)), value, varint(0),
    ))  # fmt: skip
    return varint(len(body)) + body


def batch_of(count: int, payload: bytes, codec: int = 0) -> bytes:
    """A batch whose header says so many records, with these bytes for them."""
    body = struct.pack(">hiqqqhii", codec, count - 1, 0, 0, -1, -1, -1, count) + payload
    length = _HEADER_BYTES - _BEFORE_LENGTH_ENDS + len(payload)
    return struct.pack(">qiib", 0, length, -1, 2) + struct.pack(">I", calc_crc32c(body)) + body


def _snappy_chunk(data: bytes) -> bytes:
    packed = bytes(cramjam.snappy.compress_raw(data))
    return struct.pack(">i", len(packed)) + packed


def _two_streams(values: Sequence[bytes]) -> bytes:
    payload = b"".join(record(value, place) for place, value in enumerate(values))
    half = len(payload) // 2
    packed = XERIAL + _snappy_chunk(payload[:half]) + XERIAL + _snappy_chunk(payload[half:])
    return batch_of(len(values), packed, SNAPPY)


def _plain(deltas: Sequence[int], attributes: int = 0) -> Callable[[Sequence[bytes]], bytes]:
    return lambda values: batch_of(
        len(values), b"".join(record(v, delta, attributes) for v, delta in zip(values, deltas, strict=True))
    )


# Each makes a batch of two values.
ODD: Final[dict[str, Callable[[Sequence[bytes]], bytes]]] = {
    "offsets far ahead": _plain((1_000, 1_001)),
    "an offset at the end of all": _plain((0, 2**31 - 1)),
    "two at one offset": _plain((0, 0)),
    "offsets that fall": _plain((1, 0)),
    "an offset before the batch": _plain((0, -3)),
    "attributes of no record": _plain((0, 1), 0xFF),
    "attributes of no record, compressed": lambda values: batch_of(
        2, bytes(cramjam.zstd.compress(b"".join(record(v, n, 0xFF) for n, v in enumerate(values)))), ZSTD
    ),
    "two snappy streams in one": _two_streams,
}


async def produce(bootstrap: str, topic: str, partition: int, raw: bytes) -> int:
    """Send a batch as it is; the offset the broker gave it. Raises what the broker answers."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        answer = await client.send(node, ProduceRequest(None, -1, 10_000, [(topic, [(partition, raw)])]))
    finally:
        await client.close()
    ((_, ((_, code, offset, *_),)),) = answer.topics
    if code:
        raise for_code(code)(topic)
    return int(offset)
