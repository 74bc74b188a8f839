"""The run id: derived from where the trigger stands, so that deciding again gives the same, and sortable by time."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final


def make_run_id(seed: int, partition: int, offset: int, appended_at_ms: int) -> bytes:
    """A UUID (RFC 9562 version 7): append time first, the rest from the coordinates. Reprocessing gives the same.

    Multiplying by an odd number is a bijection: two coordinates of one topic never meet in the 74 bits.
    """
    rest = ((partition << _OFFSET_BITS | offset) * _ODD ^ seed) & _REST_MASK
    number = (appended_at_ms & _TIME_MASK) << 80 | _VERSION_AND_VARIANT
    return (number | rest >> 62 << 64 | rest & _LOW_MASK).to_bytes(16, "big")


_OFFSET_BITS: Final = 52  # of 74; leaves 22 for the partition
_ODD: Final = 0x2D3_4F52_9B61_C8E5_A7D1 & ((1 << 74) - 1) | 1
_REST_MASK: Final = (1 << 74) - 1
_LOW_MASK: Final = (1 << 62) - 1
_TIME_MASK: Final = (1 << 48) - 1
_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0x2 << 62


def run_id_text(run_id: bytes) -> str:
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def run_seed(cluster_id: str, topic: str) -> int:
    """What run ids of one triggers topic have in common."""
    digest = blake2b(f"{len(cluster_id)}:{cluster_id}{topic}".encode(), digest_size=10).digest()
    return int.from_bytes(digest, "big") & _REST_MASK
