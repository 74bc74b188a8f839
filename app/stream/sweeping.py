"""Sweeping: when a lane looks for entries of its table that have outlived their window, and at how many.

What is looked at grows with what is written, or the table of a busy lane would grow without bound; and only while it is
worth it: in a table that is young, or whose windows are long, next to nothing is dead.
"""

from __future__ import annotations

from typing import Final

from app.gate import idempotency
from app.stream.store import Store

EVERY_S: Final = 1.0
RECORDS: Final = 500  # looked at that often, whatever was written
# At this pace a pass ends before as many entries have died as were alive at its start.
LOOKS_PER_ENTRY: Final = 2
SLICE_RECORDS: Final = 4_000  # at once, at about 1 µs each: other lanes wait meanwhile
WORTH_IT: Final = 0.25  # of those looked at are dead: what is not cleared away takes a third of the rest at most


class Sweeper:
    """The sweeps of one table."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._owed = 0  # entries to look at, for those written since
        self._worth_it = False

    def written(self, entries: int) -> None:
        self._owed += LOOKS_PER_ENTRY * entries

    def sweep(self, store: Store, now_s: float, dead_before_ms: int) -> int:
        """Look at some entries, if it is time for it, and drop those whose window ended before. Returns how many went.

        `now_s` is monotonic. Raises StoreUnusable.
        """
        due = now_s - self._at_s > EVERY_S
        if not due and not (self._worth_it and self._owed):
            return 0
        looked_at = min(max(self._owed, RECORDS), SLICE_RECORDS)
        went = store.sweep(looked_at, lambda packed: idempotency.expires_at_ms(packed) < dead_before_ms)
        self._worth_it = went >= WORTH_IT * looked_at
        self._owed = max(self._owed - looked_at, 0) if self._worth_it else 0
        if due:
            self._at_s = now_s
        return went
