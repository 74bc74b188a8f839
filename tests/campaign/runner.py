"""Plays rows: starts the cluster, gives each row its stage, has it judged, and lets nothing stand when it ends."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.cluster import Cluster
from tests.campaign.judge import judge
from tests.campaign.report import Outcome, Report
from tests.campaign.rows import Play, Row
from tests.campaign.stage import Stage

PROGRESS_S = 10.0


class Campaign:
    """One run. Ctrl-C ends the row under way; what was played is judged and told."""

    def __init__(self, directory: Path, seed: int, *, quick: bool, keep: bool, scale: float = 1.0) -> None:
        self._directory, self._seed, self._quick, self._keep, self._scale = directory, seed, quick, keep, scale
        self.report = Report(seed)
        self.interrupted = False
        self._began = time.monotonic()
        self._told_at = 0.0

    def run(self, rows: Sequence[Row]) -> Report:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._say(f"seed {self._seed}; three brokers are starting")
        try:
            with Cluster(self._directory / "kafka") as cluster:
                for row in rows:
                    count = self._count(row)
                    if not count:
                        self.report.not_run[row.name] = "not part of --quick"
                    elif self.interrupted:
                        self.report.not_run[row.name] = "interrupted"
                    else:
                        self._play([row], cluster)
        except KeyboardInterrupt:
            self.interrupted = True
        self.report.seconds = time.monotonic() - self._began
        if not self._keep:
            shutil.rmtree(self._directory / "kafka", ignore_errors=True)
        return self.report

    def _count(self, row: Row) -> int:
        return math.ceil((row.quick if self._quick else row.full) * self._scale)

    def _play(self, rows: Sequence[Row], cluster: Cluster) -> None:
        """All on one stage, one after another; then the stage rests and is judged."""
        name = rows[0].name.lower()
        options = {key: value for row in rows for key, value in row.stage.items()}
        began = time.monotonic()
        played: list[Row] = []
        stage = Stage(cluster.bootstrap, name, self._directory / name, seed=self._seed, say=self._say, **options)
        with stage:
            try:
                for row in rows:
                    played.append(row)
                    row.play(
                        Play(
                            row.name, stage, cluster, self._count(row),
                            lambda done, row=row: self._tell(stage, row, done),
                        )  # fmt: skip
                    )
            except KeyboardInterrupt:
                self._say("interrupted: what was played is judged")
                stage.notes.append("interrupted")
            stage.rest()
            self._judge(played, stage, cluster, began)
        if not self._keep and all(outcome.judged and not outcome.violations for outcome in self.report.outcomes):
            stage.forget()
            shutil.rmtree(stage.directory, ignore_errors=True)

    def _judge(self, rows: Sequence[Row], stage: Stage, cluster: Cluster, began: float) -> None:
        self._say(f"{rows[0].name}: {stage.load.sent:,} triggers sent; reading everything")
        verdict = judge(stage)
        ongoing = cluster.ongoing_transactions(stage.prefix)
        verdict.violations += [f"I8 a transaction is still under way: {what}" for what in ongoing]
        for row in rows:
            mine = [fault for fault in stage.faults if fault.row == row.name]
            outcome = Outcome(
                row.name, row.what, self._count(row), sum(fault.effective for fault in mine), len(mine),
                verdict.triggers, verdict.jobs, verdict.violations if row is rows[0] else [],
                [seconds for fault in mine if fault.effective for seconds in fault.recovered_s],
                dict(Counter(fault.kind for fault in mine if fault.effective)), verdict.indeterminate, stage.notes,
                time.monotonic() - began, stage.name,
            )  # fmt: skip
            self.report.outcomes.append(outcome)
            self._say(
                f"{row.name}: {outcome.faults} faults, {verdict.triggers:,} triggers, {verdict.jobs:,} jobs, "
                f"{len(verdict.violations)} violations, {outcome.seconds:.0f} s"
            )
        for what in verdict.violations:
            self._say(f"  VIOLATION {what}")

    def _tell(self, stage: Stage, row: Row, done: int) -> None:
        if time.monotonic() - self._told_at > PROGRESS_S:
            self._told_at = time.monotonic()
            self._say(
                f"{row.name}: {done} of {self._count(row)} faults; {stage.load.sent:,} triggers sent, "
                f"{stage.watcher.answered:,} answered"
            )

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", file=sys.stderr, flush=True)
