"""What a campaign showed: a table for people, JSON for machines."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.campaign.judge import BY_ROWS, NOT_HERE, STANDS_FOR

NOT_IN_QUICK = "not part of --quick"
NO_BUG = "no bug"  # planted like the bugs, to see that the judge finds none


@dataclass
class Outcome:
    """One row, played and judged."""

    row: str
    what: str
    asked: int
    faults: int  # that took effect
    tried: int
    triggers: int = 0
    jobs: int = 0
    violations: list[str] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    indeterminate: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage: str = ""
    judged: bool = True
    inputs: bool = False  # its faults are records sent, not things broken
    bound_s: float | None = None  # for 99 of 100 recoveries: told, and no violation


def percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def quantiles(seconds: list[float]) -> str:
    """The median and the 99th of 100, as `1.0 / 2.0 s`; `-` of none."""
    median, worst = percentile(seconds, 0.5), percentile(seconds, 0.99)
    return "-" if median is None or worst is None else f"{median:.1f} / {worst:.1f} s"


@dataclass
class Report:
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # of the campaign itself, not of what it tests
    planted: dict[str, str] = field(default_factory=dict)  # bug, or NO_BUG → what caught it, or "missed"
    controls: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    date: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"))

    @property
    def good(self) -> bool:
        return (
            not self.failed
            and not set(self.not_run.values()) - {NOT_IN_QUICK}
            and bool(self.outcomes or self.planted)
            and not any(each.violations or not each.judged or each.faults < each.asked for each in self.outcomes)
            and not any("missed" in caught for caught in (*self.planted.values(), *self.controls.values()))
        )

    def markdown(self) -> str:
        lines = [
            "| row | faults injected | of kinds | triggers | violations | decided again p50 / p99 |",
            "|---|---|---|---|---|---|",
        ]
        stages: Counter[str] = Counter()
        for each in self.outcomes:
            worst, took = percentile(each.recovered_s, 0.99), quantiles(each.recovered_s)
            if each.bound_s and worst is not None:
                took += f" (≤ {each.bound_s:.1f}: {'met' if worst <= each.bound_s else 'missed'})"
            shared = stages[each.stage]
            stages[each.stage] += 1
            triggers = "the same" if shared else f"{each.triggers:,}"
            verdict = str(len(each.violations)) if each.judged else "not judged"
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(each.kinds.items()))
            faults = f"{each.faults:,}{' inputs' if each.inputs else ''}" + (
                f" of {each.asked}" if each.faults < each.asked else ""
            )
            lines.append(f"| {each.row} {each.what} | {faults} | {kinds} | {triggers} | {verdict} | {took} |")
        total = {outcome.stage: outcome.triggers for outcome in self.outcomes}
        lines += [
            "",
            (
                f"{sum(each.faults for each in self.outcomes if not each.inputs):,} faults that took effect, {sum(total.values()):,} "
                f"triggers, {sum(len(each.violations) for each in self.outcomes)} violations in "
                f"{self.seconds / 60:.0f} min. {self.date}, commit {commit()}, {machine()}, seed {self.seed}."
            ),
            "",
            (
                f"Invariants checked after each stage: {', '.join(sorted(set(STANDS_FOR.values()) - BY_ROWS, key=_by_number))}. "
                f"Not here: {'; '.join(f'{name} ({why})' for name, why in NOT_HERE.items())}."
            ),
        ]
        if self.planted:
            bugs = [by for name, by in self.planted.items() if name != NO_BUG]
            caught = sum("missed" not in by for by in bugs)
            lines += [f"Planted bugs caught by the same judge: {caught} of {len(bugs)}."] if bugs else []
            lines += [f"- {name}: {by}" for name, by in self.planted.items()]
        lines += [f"Control {name}: {by}" for name, by in self.controls.items()]
        if self.not_run:
            lines.append(f"Not run: {'; '.join(f'{name} ({why})' for name, why in self.not_run.items())}.")
        lines += [f"Failed in the campaign itself: {name}: {why}" for name, why in self.failed.items()]
        for each in self.outcomes:
            lines += [f"- {each.row}: {note}" for note in each.notes]
            lines += [f"- {each.row} **violation** {what}" for what in each.violations]
            lines += [f"- {each.row}: {count} {what}" for what, count in each.indeterminate.items() if count]
        return "\n".join(lines) + "\n"

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "campaign.md").write_text(self.markdown())
        whole = asdict(self) | {"commit": commit(), "machine": machine()}
        (directory / "campaign.json").write_text(json.dumps(whole, indent=1) + "\n")


def _by_number(name: str) -> tuple[str, int]:
    return name[0], int(name[1:])


def commit() -> str:
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
