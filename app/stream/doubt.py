"""Doubt: a transaction whose commit was asked for and never answered, asked of each of its partitions.

Kafka ends a transaction whole, unless the broker that leads its end is fenced while it writes markers: then some of its
partitions may say committed and others aborted. Who wrote it still has all its records, and the lock: it writes again
what is missing, so that the transaction is whole before anything follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from app.gate.outputs import Out
from app.stream.log import CommitUnknown, Log, Partition, Placed, Writer
from app.stream.together import together
from app.telemetry import TRANSACTIONS, Event, log

NAMED_MAX: Final = 10


class Doubt:
    """What a lane wrote last and where it was put, while nobody has said what became of it."""

    def __init__(
        self, parts: Mapping[Partition, Sequence[Out]], placed: Mapping[Partition, Placed], checkpoints: Partition
    ) -> None:
        self._parts, self._placed, self._checkpoints = parts, dict(placed), checkpoints
        self._stand: dict[Partition, bool | None] = dict.fromkeys(sorted(placed))  # None: not known, or not yet
        self._told: list[Partition] = []

    async def settle(self, source: Log, writer: Writer) -> None:
        """Find out what stands, and complete it. Needs the lock: only behind a fence are all markers written.

        May be tried again after any error. Nothing is written where another has had the lane meanwhile, and has begun
        from what it found.
        """
        asked = [each for each, stands in self._stand.items() if stands is None]
        found = await together(*(source.outcome(each, self._placed[each]) for each in asked))
        self._stand |= zip(asked, found, strict=True)
        missing = [each for each, stands in self._stand.items() if stands is False]
        if not missing or True not in self._stand.values():
            return
        too_late = await self._begun_by_another(source)
        self._tell(missing, too_late=too_late)
        if too_late:
            return
        try:
            await writer.commit({each: self._parts[each] for each in missing})
        except CommitUnknown as error:
            self._placed |= error.placed
            self._stand |= dict.fromkeys(error.placed)
            raise

    async def _begun_by_another(self, source: Log) -> bool:
        """Whether a checkpoint stands behind the one of this transaction: every owner begins with one."""
        own = self._placed[self._checkpoints].base_offset
        marks = await source.watermarks(self._checkpoints)
        async for chunk, _ in source.read(self._checkpoints, max(own + 1, marks.start), marks.high):
            if chunk:
                return True
        return False

    def _tell(self, missing: list[Partition], *, too_late: bool) -> None:
        """Once, however often it has to be tried."""
        if missing == self._told:
            return
        self._told = missing
        TRANSACTIONS.labels("torn").inc()
        said: dict[str, list[str]] = {"committed": [], "aborted": [], "unknown": []}
        for (topic, number), stands in self._stand.items():
            said["unknown" if stands is None else "committed" if stands else "aborted"].append(f"{topic}[{number}]")
        named = {outcome: names[:NAMED_MAX] for outcome, names in said.items()}
        log.error(Event.TRANSACTION_TORN, lane=self._checkpoints[1], too_late=too_late, **named)
