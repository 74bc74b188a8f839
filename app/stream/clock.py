"""The lane clock: the gate's clock, never backwards, and only as long as the broker's agrees with it."""

from __future__ import annotations

import time
from collections.abc import Callable


class LaneClock:
    """Milliseconds since the epoch, by which queue age and eviction go.

    Every commit tells the broker's append time of the lane's own checkpoint; between commits a steady clock tells
    whether the wall clock has jumped. While the two disagree by more than the tolerance the lane must hold.
    """

    def __init__(
        self,
        floor_ms: int,
        tolerance_ms: int,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        steady_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._floor_ms, self._tolerance_ms = floor_ms, tolerance_ms
        self._wall_ms, self._steady_ms = wall_ms, steady_ms
        self._broker_minus_steady: int | None = None

    def confirm(self, broker_ms: int) -> None:
        """The broker's clock read `broker_ms` a moment ago."""
        self._broker_minus_steady = broker_ms - self._steady_ms()

    def deviation_ms(self) -> int | None:
        """Ours minus the broker's, now; None before the broker was first heard."""
        if self._broker_minus_steady is None:
            return None
        return self._wall_ms() - (self._steady_ms() + self._broker_minus_steady)

    def complaint(self) -> str | None:
        """Why the clock must not be used now, or None."""
        deviation_ms = self.deviation_ms()
        if deviation_ms is None:
            return "the broker's clock has not been heard yet"
        if abs(deviation_ms) > self._tolerance_ms:
            return f"our clock and the broker's differ by {deviation_ms / 1000:.0f} s: mend the one that is wrong"
        return None

    def read(self) -> int:
        """The lane's time. Call it only while there is no complaint."""
        self._floor_ms = max(self._floor_ms, self._wall_ms())
        return self._floor_ms

    @property
    def floor_ms(self) -> int:
        """What the checkpoint keeps."""
        return self._floor_ms
