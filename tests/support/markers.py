"""WriteTxnMarkers, by hand: the end of a transaction written to some of its partitions, as its coordinator does it.

No client has a call for it that can say commit. Version 1 (KIP-482 encoding), to one broker that leads them all.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

WRITE_TXN_MARKERS: Final = 27
_VERSION: Final = 1
_NO_TAGS: Final = b"\0"
_TIMEOUT_S: Final = 10.0
_COORDINATOR_FENCED: Final = 52
_EPOCHS_MAX: Final = 1_000


def write_markers(
    bootstrap: str, producer_id: int, epoch: int, partitions: Sequence[tuple[str, int]], *, commit: bool = True
) -> None:
    """Raises AssertionError for an error of any partition."""
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    left = list(partitions)
    with socket.create_connection((host, int(port)), _TIMEOUT_S) as broker, broker.makefile("rb") as answers:
        # The epoch of whoever coordinated last: a lower one is refused, a higher one would fence the real coordinator.
        for coordinator_epoch in range(_EPOCHS_MAX):
            marker = struct.pack(">qh?", producer_id, epoch, commit) + _array(_topics(left))
            marker += struct.pack(">i", coordinator_epoch) + _NO_TAGS
            header = struct.pack(">hhih", WRITE_TXN_MARKERS, _VERSION, 1, -1) + _NO_TAGS
            request = header + _array([marker]) + _NO_TAGS
            broker.sendall(struct.pack(">i", len(request)) + request)
            codes = _codes(answers.read(int.from_bytes(answers.read(4), "big")))
            assert codes.keys() == set(left)
            assert set(codes.values()) <= {0, _COORDINATOR_FENCED}, f"WriteTxnMarkers: {codes}"
            left = [partition for partition, code in codes.items() if code]
            if not left:
                return
    raise AssertionError(f"WriteTxnMarkers: no epoch below {_EPOCHS_MAX} is taken by {left}")


def _topics(partitions: Sequence[tuple[str, int]]) -> list[bytes]:
    numbers: dict[str, list[int]] = {}
    for topic, number in partitions:
        numbers.setdefault(topic, []).append(number)
    return [
        _text(topic) + _array([struct.pack(">i", number) for number in each]) + _NO_TAGS
        for topic, each in numbers.items()
    ]


def _codes(answer: bytes) -> dict[tuple[str, int], int]:
    at = 4 + 1 + 1 + 8  # correlation id, tags, one marker, its producer id
    codes = {}
    topics, at = answer[at] - 1, at + 1
    for _ in range(topics):
        size = answer[at]  # a compact string's length, like an array's, is one more than what it has
        topic, at = answer[at + 1 : at + size].decode(), at + size
        rows, at = answer[at] - 1, at + 1
        for _ in range(rows):
            number, code = struct.unpack_from(">ih", answer, at)
            codes[topic, number] = code
            at += 4 + 2 + 1
        at += 1
    return codes


def _array(rows: Sequence[bytes]) -> bytes:
    return bytes([len(rows) + 1]) + b"".join(rows)


def _text(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw) + 1]) + raw
