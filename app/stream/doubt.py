"""Doubt: a transaction whose commit was asked for and never answered, asked of each of its partitions.

Kafka ends a transaction whole, unless the broker that leads its end is fenced while it writes markers: then some of its
partitions may say committed and others aborted. Who wrote it still has all its records, and the lock: it writes again
what is missing, so that the transaction is whole before anything follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from app.gate.outputs import Out
from app.stream.log import CommitUnknown, Log, OffsetGone, Partition, Placed, Writer
from app.stream.together import together
from app.telemetry import TRANSACTIONS, Event, log

NAMED_MAX: Final = 10


class Doubt:
    """What a lane wrote last and where it was put, while nobody has said what became of it."""

    def __init__(
        self, parts: Mapping[Partition, Sequence[Out]], placed: Mapping[Partition, Placed], checkpoints: Partition
    ) -> None:
        self._parts, self._offsets = parts, {partition: at.base_offset for partition, at in placed.items()}
        self._checkpoints = checkpoints

    async def settle(self, source: Log, writer: Writer) -> None:
        """Find out what stands, and complete it. Needs the lock: only behind a fence are all markers written.

        May be tried again after any error. Does nothing where another has had the lane meanwhile and gone on from
        what it found.
        """
        if await self._gone_on(source):
            return
        partitions = sorted(self._parts)
        standing = await together(*(_stands(source, each, self._offsets[each]) for each in partitions))
        missing = [each for each, stands in zip(partitions, standing, strict=True) if stands is False]
        if not missing or True not in standing:
            return
        TRANSACTIONS.labels("torn").inc()
        log.error(
            Event.TRANSACTION_TORN, lane=self._checkpoints[1], stand=standing.count(True),
            missing=[f"{topic}[{number}]" for topic, number in missing[:NAMED_MAX]],
        )  # fmt: skip
        try:
            await writer.commit({each: self._parts[each] for each in missing})
        except CommitUnknown as error:
            self._offsets |= {partition: at.base_offset for partition, at in error.placed.items()}
            raise

    async def _gone_on(self, source: Log) -> bool:
        """Whether a checkpoint stands behind the one of this transaction: every owner begins with one."""
        own = self._offsets[self._checkpoints]
        marks = await source.watermarks(self._checkpoints)
        async for chunk, _ in source.read(self._checkpoints, max(own + 1, marks.start), marks.high):
            if chunk:
                return True
        return False


async def _stands(source: Log, partition: Partition, offset: int) -> bool | None:
    """Whether a read_committed reader finds a record there; None where it was deleted since, whatever it was.

    Waits for whatever open transaction holds it back.
    """
    try:
        async for chunk, _ in source.read(partition, offset, offset + 1):
            if chunk:
                return True
    except OffsetGone as error:
        return None if offset < error.start else False  # a log that lost its end
    return False
