"""What the gates' journals say, read while they are written: who owns which lane, and what became of transactions."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Decided(NamedTuple):
    """A commit that decided something, as the gate knew it."""

    at: float
    run: str


@dataclass
class Attempt:
    """One transaction of one writer: what it held, where it was put, and how far it is known to have come."""

    run: str
    lane: int
    producer: int
    epoch: int
    at: float
    counts: dict[str, int]
    bases: dict[str, int] = field(default_factory=dict)
    end_tried: bool = False
    end: str | None = None  # committed, failed, or None: its gate died

    def offsets(self) -> Iterator[tuple[str, range]]:
        """Where its records lie, by `topic/partition`; nothing where that was never told."""
        for where, base in self.bases.items():
            yield where, range(base, base + self.counts[where])


class Journals:
    """All journals of a directory. `update` reads what has come since; safe from several threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._at: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.attempts: list[Attempt] = []
        self._open: dict[tuple[str, int], Attempt] = {}
        self.owner: dict[int, str] = {}  # lane → the run that fenced it last
        self.epochs: dict[int, list[tuple[float, str, int]]] = defaultdict(list)
        self.decided: dict[int, list[Decided]] = defaultdict(list)
        self.struck: list[dict[str, Any]] = []
        self.other: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def update(self) -> None:
        with self._lock:
            events = []
            for path in self._directory.glob("*.journal"):
                with path.open("rb") as file:
                    file.seek(self._at.get(path, 0))
                    data = file.read()
                whole = data.rfind(b"\n") + 1
                self._at[path] = self._at.get(path, 0) + whole
                events += [orjson.loads(line) for line in data[:whole].splitlines()]
            events.sort(key=lambda event: event["at"])
            for event in events:
                self._take(event)

    def lanes_of(self, run: str) -> list[int]:
        """Lanes a run owns and has decided something in."""
        return [
            lane for lane, owner in self.owner.items()
            if owner == run and self.decided[lane] and self.decided[lane][-1].run == run
        ]  # fmt: skip

    def decided_since(self, lane: int, at: float, *, not_by: str | None = None) -> float | None:
        """When a lane first decided something after `at`."""
        first = None
        for each in reversed(self.decided[lane]):
            if each.at <= at:
                break
            if each.run != not_by:
                first = each.at
        return first

    def _take(self, event: dict[str, Any]) -> None:
        kind, run, lane = event["e"], event["run"], event.get("lane", -1)
        match kind:
            case "epoch":
                self.owner[lane] = run
                self.epochs[lane].append((event["at"], run, event["epoch"]))
            case "begin":
                attempt = Attempt(run, lane, event["producer"], event["epoch"], event["at"], event["counts"])
                self._open[run, lane] = attempt
                self.attempts.append(attempt)
            case "placed":
                self._open[run, lane].bases = event["bases"]
            case "end":
                self._open[run, lane].end_tried = True
            case "committed":
                self._open.pop((run, lane)).end = kind
                if event["decided"]:
                    self.decided[lane].append(Decided(event["at"], run))
            case "failed":
                attempt = self._open.pop((run, lane), None)
                if attempt is not None:
                    attempt.end = kind
                self.other[kind].append(event)
            case "struck":
                self.struck.append(event)
            case _:
                self.other[kind].append(event)
