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


def write_markers(
    bootstrap: str, producer_id: int, epoch: int, partitions: Sequence[tuple[str, int]], *, commit: bool = True
) -> None:
    """Raises AssertionError for an error of any partition."""
    numbers: dict[str, list[int]] = {}
    for topic, number in partitions:
        numbers.setdefault(topic, []).append(number)
    topics = [
        _text(topic) + _array([struct.pack(">i", number) for number in each]) + _NO_TAGS
        for topic, each in numbers.items()
    ]
    marker = struct.pack(">qh?", producer_id, epoch, commit) + _array(topics) + struct.pack(">i", 0) + _NO_TAGS
    header = struct.pack(">hhih", WRITE_TXN_MARKERS, _VERSION, 1, -1) + _NO_TAGS
    request = header + _array([marker]) + _NO_TAGS
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), _TIMEOUT_S) as broker, broker.makefile("rb") as answers:
        broker.sendall(struct.pack(">i", len(request)) + request)
        answer = answers.read(int.from_bytes(answers.read(4), "big"))
    at = 4 + 1 + 1 + 8  # correlation id, tags, one marker, its producer id
    topics_left, at, codes = answer[at] - 1, at + 1, list[int]()
    for _ in range(topics_left):
        at += answer[at]  # a compact string's length, like an array's, is one more than what it has
        rows, at = answer[at] - 1, at + 1
        for _ in range(rows):
            codes.append(int.from_bytes(answer[at + 4 : at + 6], "big", signed=True))  # behind its number
            at += 4 + 2 + 1
        at += 1
    assert codes == [0] * len(partitions), f"WriteTxnMarkers: {codes}"


def _array(rows: Sequence[bytes]) -> bytes:
    return bytes([len(rows) + 1]) + b"".join(rows)


def _text(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw) + 1]) + raw
