"""What was asked of each figure, and whether it holds."""

from __future__ import annotations

from statistics import median
from typing import Any, Final, NamedTuple


class Goal(NamedTuple):
    """What a figure must reach, and what it should."""

    at_least: float
    aim: float | None = None
    lower_is_better: bool = True
    strict: bool = False  # "less than", not "at most"

    def met(self, seen: float) -> bool:
        if self.strict:
            return seen < self.at_least
        return seen <= self.at_least if self.lower_is_better else seen >= self.at_least

    def text(self, limit: float | None, unit: str) -> str:
        if limit is None:
            return ""
        sign = "<" if self.strict else "≤" if self.lower_is_better else "≥"
        return f"{sign} {amount(limit, unit)}"


GOALS: Final = {
    "oneshot-home": Goal(1.5, 1.25),
    "webhook-home": Goal(0.4, 0.25),
    "oneshot-away": Goal(0.4, 0.25),
    "webhook-away": Goal(0.4, 0.25),
    "two-processes": Goal(1.6, 1.8, lower_is_better=False),
    "latency-home p50": Goal(12, 6),
    "latency-home p99": Goal(40, 20),
    "latency-away p50": Goal(20, 9),
    "latency-away p99": Goal(60, 30),
    "http": Goal(3_000, lower_is_better=False),
    "http-wait p50": Goal(25),
    "revoked p99": Goal(1_000),
    "restore": Goal(200_000, 300_000, lower_is_better=False),
    "restart": Goal(1.0, strict=True),
    "big memory": Goal(400),
    "big speed": Goal(0.7, lower_is_better=False),
    "confluent": Goal(0.7, 1.0, lower_is_better=False),
    "faust webhook": Goal(20, 40, lower_is_better=False),
    "faust oneshot": Goal(8, 12, lower_is_better=False),
}


class Figure(NamedTuple):
    """One line of the table: several values of one run, told by their median."""

    what: str
    values: list[float]
    unit: str = ""
    goal: Goal | None = None

    @property
    def seen(self) -> float:
        return median(self.values)

    @property
    def ok(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.seen)

    def cells(self) -> tuple[str, ...]:
        goal, seen = self.goal, self.seen
        spread = f"{amount(min(self.values))} to {amount(max(self.values))}" if len(self.values) > 1 else ""
        if goal is None:
            return self.what, "", "", amount(seen, self.unit), spread, ""
        verdict = "yes" if self.ok else "NO"
        return (
            self.what, goal.text(goal.at_least, self.unit), goal.text(goal.aim, self.unit), amount(seen, self.unit),
            spread, verdict,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        goal = self.goal._asdict() if self.goal else None
        return {**self._asdict(), "seen": self.seen, "goal": goal, "ok": self.ok}


def amount(number: float, unit: str = "") -> str:
    size = abs(number)
    text = f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"
    return f"{text} {unit}".rstrip()
