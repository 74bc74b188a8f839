"""The local store of a lane that no deployment has, and what the tests put into it."""

from __future__ import annotations

from pathlib import Path

from app.stream import store
from app.stream.store import Store

CLUSTER, BIRTH, LANE = "cluster", "birth", 0

Table = dict[bytes, bytes]


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def packed(number: int) -> bytes:
    return b"entry %d" % number


def opened(path: Path) -> Store:
    return store.open_store(path, CLUSTER, BIRTH, LANE)[0]


def stale_store(path: Path, offset: int, lane: int = LANE, birth: str = BIRTH) -> None:
    """A store that holds an entry the changelog does not."""
    made, _ = store.open_store(path, CLUSTER, birth, lane)
    made.apply([(identity(99), b"of another time")], offset)
    made.close()
