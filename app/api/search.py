"""Searching the topic for a receipt that is no longer at hand: by the time its trigger was appended.

A trigger's id is its coordinates, and the broker tells when they were appended without showing the record, which may
hold a live token. A receipt is written later than that, into a lane that nobody but the gate could name: so the lanes
are read from then on, the trigger's own first, as long as one request may take.
"""

from __future__ import annotations

import time
from typing import Final

from app.api.places import Places
from app.api.receipts import Receipts
from app.stream.log import Partition

TIMEOUT_S: Final = 5.0
AT_ONCE, OF_ONE, LINE_MAX = 4, 2, 32
CLOCKS_DIFFER_MS: Final = 120_000  # receipts bear the gate's time, triggers the broker's
DAY_MS: Final = 86_400_000


class Search:
    """Finds old receipts, few at a time."""

    def __init__(self, receipts: Receipts, triggers_topic: str) -> None:
        self._receipts, self._triggers_topic = receipts, triggers_topic
        self._places = Places(AT_ONCE, OF_ONE, LINE_MAX, TIMEOUT_S, late="search_exhausted")

    async def find(self, lane: int, offset: int, caller: str) -> bytes | None:
        """The receipt of a trigger; None when there is none. Raises Problem when it would take too long."""
        if lane >= self._receipts.lanes:
            return None
        async with self._places.place(caller):
            return await self._find((self._triggers_topic, lane), offset)

    async def _find(self, source: Partition, offset: int) -> bytes | None:
        cluster = self._receipts.cluster
        marks = await cluster.watermarks(source)
        if not marks.start <= offset < marks.high:
            return None
        covered = self._receipts.covers_from_ms
        since = await cluster.first_since(source, covered + CLOCKS_DIFFER_MS) if covered else (0, marks.start)
        if since is not None and since[1] <= offset:
            return None  # it is as new as what is at hand, and not among that: it is not decided yet
        from_ms = await self._appended_at_ms(source, offset) - CLOCKS_DIFFER_MS
        wanted = b"%d-%d" % (source[1], offset)
        lanes = sorted(range(self._receipts.lanes), key=lambda lane: lane != source[1])
        for lane in lanes:
            partition = (self._receipts.topic, lane)
            first = await cluster.first_since(partition, max(from_ms, 0))
            if first is None:
                continue
            async for chunk, _ in cluster.read(partition, first[1], self._receipts.positions[lane]):
                for record in chunk:
                    if record.key == wanted:
                        return record.value
        return None

    async def _appended_at_ms(self, source: Partition, offset: int) -> int:
        """When the broker appended it, by bisection: times never go back on a topic of LogAppendTime."""
        cluster = self._receipts.cluster
        first = await cluster.first_since(source, 0)
        lower, upper = first[0] if first is not None else 0, time.time_ns() // 1_000_000 + DAY_MS
        while upper - lower > 1:
            middle = (lower + upper) // 2
            found = await cluster.first_since(source, middle)
            if found is None or found[1] > offset:
                upper = middle
            else:
                lower = max(middle, found[0])
        return lower
