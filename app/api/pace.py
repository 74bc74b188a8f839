"""How fast one identity may have records written: what it is issued, takes back and is refused stays with everyone.

A token bucket each. It is this process's alone: at two doors an identity may have twice as much.
"""

from __future__ import annotations

import math
from typing import Final

from app.api.problems import Problem

BURST_S: Final = 5  # of what it may have in a second, at once


class Pace:
    """Buckets by identity; as many as there are identities that were authenticated here."""

    def __init__(self, per_s: int) -> None:
        self._per_s, self._burst = per_s, float(per_s * BURST_S)
        self._left: dict[str, tuple[float, float]] = {}  # and when that was

    def take(self, identity: str, now_s: float) -> None:
        """One. Raises Problem, which says when there is one again. `now_s` is monotonic."""
        left, at_s = self._left.get(identity, (self._burst, now_s))
        left = min(left + (now_s - at_s) * self._per_s, self._burst)
        if left < 1:
            wait_s = max(math.ceil((1 - left) / self._per_s), 1)
            raise Problem("client_too_fast", headers={"Retry-After": str(wait_s)})
        self._left[identity] = (left - 1, now_s)
