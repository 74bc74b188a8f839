"""What a lane needs of Kafka, and nothing more: the seam at which a simulated log can stand.

A lane reads partitions as a read_committed reader and writes whole transactions. It never begins one it has not all
the records of, so begin, produce and end are one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from app.gate.outputs import Out
from app.gate.trigger import Record

Partition = tuple[str, int]  # topic with prefix, partition


class Placed(NamedTuple):
    """Where one partition's records of a transaction landed."""

    base_offset: int
    appended_at_ms: int  # -1 where the topic has CreateTime
    producer_id: int = -1
    epoch: int = -1


class Fenced(Exception):  # noqa: N818 - the field's word
    """Another owner has taken the lane's transactional id, or the transaction timed out: the two look the same."""


class CommitUnknown(Exception):  # noqa: N818
    """The transaction's end is not known, or it failed. The writer is dead: fence anew and read the checkpoint."""

    def __init__(self, why: str, placed: Mapping[Partition, Placed] | None = None) -> None:
        super().__init__(why)
        self.placed = placed or {}  # where its records are, when a commit was asked for that may have been done


class OffsetGone(Exception):  # noqa: N818
    """A position lies outside the partition: records were deleted unread, or the topic was recreated."""

    def __init__(self, partition: Partition, position: int, start: int, end: int) -> None:
        super().__init__(
            f"{partition[0]}[{partition[1]}] holds offsets {start} to {end}, the lane stands at {position}"
        )
        self.partition, self.position, self.start, self.end = partition, position, start, end


class Unreadable(Exception):  # noqa: N818
    """A partition holds bytes that are no record batch we know."""


def require_read(record: Record, topic: str) -> None:
    """Raises Unreadable for a record whose batch was not read: passed over, it might be one that matters."""
    if record.batch_fault is not None:
        raise Unreadable(f"{topic} at {record.offset}: {record.batch_fault}")


class Watermarks(NamedTuple):
    """First offset of a partition, and its high watermark: the end as read_uncommitted sees it."""

    start: int
    high: int


class Tail(Protocol):
    """A partition being followed from an offset on."""

    @property
    def position(self) -> int:
        """The offset after the last record taken; passes markers and aborted records."""

    @property
    def backlog(self) -> int:
        """Records between the position and the end, as last told by the broker."""

    @property
    def confirmed_at_s(self) -> float:
        """When (monotonic clock) the last request was sent whose answer left nothing fetched behind the end."""

    @property
    def failing_s(self) -> float:
        """For how long the broker has answered with errors; 0 when it does not."""

    def take(self, limit: int, max_bytes: int) -> list[Record]:
        """Up to `limit` records that have arrived, about `max_bytes` of them, without waiting. Raises OffsetGone."""

    def close(self) -> None:
        """Stop following."""


class Writer(Protocol):
    """A lane's transactional producer: the lock on the lane."""

    async def commit(self, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        """Write all records in one transaction and commit it.

        Raises Fenced or CommitUnknown; after either, and after a cancelled call, the writer never works again.
        """

    async def close(self) -> None:
        """Let go of connections. The lock stays until another takes it."""


class ReadRecord(NamedTuple):
    """A record of a topic of our own."""

    offset: int
    key: bytes | None
    value: bytes | None
    appended_at_ms: int = -1


class Log(Protocol):
    """Kafka as a lane sees it."""

    async def fence(self, transactional_id: str, owner: str) -> Writer:
        """Take a transactional id: fences its former owner and ends that one's transaction (KIP-98)."""

    async def watermarks(self, partition: Partition) -> Watermarks: ...

    async def outcome(self, partition: Partition, placed: Placed) -> bool | None:
        """What became of the records of a transaction: committed; or aborted, or not there. None: nobody can tell.

        Read past everyone else's open transactions; it waits for nobody but, for a while, its own marker.
        """

    def read(self, partition: Partition, start: int, end: int) -> AsyncIterator[tuple[Sequence[ReadRecord], int]]:
        """Committed records from `start` until the position reaches `end`: (chunk, next offset)."""

    def follow(
        self, partition: Partition, position: int, wake: asyncio.Event, *, past_open_transactions: bool = True
    ) -> Tail:
        """Follow a partition; `wake` is set whenever something has arrived.

        What an open transaction holds back is not committed yet and counts as not there; with `past_open_transactions`
        false the tail is not confirmed meanwhile, for what stands behind it may well be committed.
        """
