"""Times as a person reads them: UTC, to the second, with how long ago where that helps."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(ms: int) -> str:
    """2026-01-31T12:00:00Z for milliseconds since 1970; what is no date is told as the number."""
    try:
        return datetime.fromtimestamp(ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return str(ms)


def span(seconds: float) -> str:
    """A length of time in its largest unit: 42 s, 5 min, 3 h, 2 d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"
