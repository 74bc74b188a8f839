"""Plays rows: starts the cluster, gives each row its stage, has it judged, and lets nothing stand when it ends."""

from __future__ import annotations

import math
import queue
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.campaign import planting
from tests.campaign.case import OnBrokers
from tests.campaign.cluster import Cluster
from tests.campaign.history import save_stage
from tests.campaign.judge import Verdict, judge
from tests.campaign.report import NO_BUG, NOT_IN_QUICK, Outcome, Report, quantiles
from tests.campaign.rows import Play, Row
from tests.campaign.stage import Fault, Interrupted, Stage
from tests.campaign.strikes import BACK_AT_ONCE, NONE_LEFT, SEVERAL
from tests.planted.bugs import BUGS

PROGRESS_S = 10.0
CONTROL_FAULTS = 20
AT_ONCE = 2  # rows, each on a stage of its own
QUICK_STAGE: dict[str, Any] = {"proxied": True, "rate": 400}


class Campaign:
    """One run. Ctrl-C ends the row under way; what was played is judged and told."""

    def __init__(
        self, directory: Path, seed: int, *, quick: bool, keep: bool, scale: float = 1.0, plants: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._directory, self._seed, self._quick, self._keep, self._scale = directory, seed, quick, keep, scale
        self._plants = plants
        self.report = Report(seed)
        self.interrupted = False
        self._began = time.monotonic()
        self._told_at: dict[str, float] = {}

    def run(self, rows: Sequence[Row]) -> Report:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._say(f"seed {self._seed}; three brokers are starting")
        played = [row for row in rows if self._count(row)]
        self.report.not_run |= {row.name: NOT_IN_QUICK for row in rows if not self._count(row)}
        try:
            with Cluster(self._directory / "kafka") as cluster:
                if self._quick:
                    self._guarded("quick", lambda: self._play(played, cluster, QUICK_STAGE))
                else:
                    self._play_all(played, cluster)
        except KeyboardInterrupt:
            self.interrupted = True
        self.report.seconds = time.monotonic() - self._began
        for data in (self._directory / "kafka").glob("node-*"):  # logs stay with the rest
            shutil.rmtree(data, ignore_errors=True)
        return self.report

    def _play_all(self, rows: Sequence[Row], cluster: Cluster) -> None:
        """First the judge itself is judged; what strikes the cluster or is timed is played alone, the others by two."""
        self._by_two([(name or NO_BUG, lambda name=name: self._plant(cluster, name or None)) for name in self._plants])
        alone = [row for row in rows if row.alone]
        for row in alone[:-1]:
            self._guarded(row.name, lambda row=row: self._play([row], cluster))
        beside: list[tuple[str, Callable[[], None]]] = []
        for row in sorted((row for row in rows if not row.alone), key=lambda row: -row.seconds):
            beside.append((row.name, lambda row=row: self._play([row], cluster)))
            if row.control:
                beside.append((f"control of {row.name}", lambda row=row: self._control(row, cluster)))
        self._by_two(beside)
        for row in alone[-1:]:
            self._guarded(row.name, lambda row=row: self._play([row], cluster))

    def _by_two(self, work: list[tuple[str, Callable[[], None]]]) -> None:
        waiting = queue.SimpleQueue[tuple[str, Callable[[], None]]]()
        for each in work:
            waiting.put(each)

        def one_after_another() -> None:
            while True:
                try:
                    name, play = waiting.get_nowait()
                except queue.Empty:
                    return
                self._guarded(name, play)

        threads = [threading.Thread(target=one_after_another) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """An error of the campaign itself loses one row, not the run; it is told, and the report is not good."""
        if self.interrupted:
            self.report.not_run[name] = "interrupted"
            return
        try:
            work()
        except Interrupted:
            self.report.not_run[name] = "interrupted"
        except Exception as error:
            self.report.failed[name] = f"{type(error).__name__}: {error}"[:1_000]
            if name in self._plants:
                self.report.planted[name] = "missed: the campaign itself failed"
            self._say(f"{name} FAILED: {traceback.format_exc()}")

    def _count(self, row: Row) -> int:
        return math.ceil((row.quick if self._quick else row.full) * self._scale)

    def _play(self, rows: Sequence[Row], cluster: Cluster, options: Mapping[str, Any] | None = None) -> None:
        """All on one stage, one after another; then the stage rests and is judged."""
        name = "quick" if options is not None else rows[0].name.lower()
        options = rows[0].stage if options is None else options
        cluster.revive()
        began = time.monotonic()
        stage = Stage(cluster.bootstrap, name, self._directory / name, seed=self._seed, say=self._say, **options)
        stage.broker_logs = cluster.log_files
        with stage:
            try:
                for row in rows:
                    row.play(self._play_of(row, stage, cluster))
            except Interrupted:
                self._say(f"{name}: interrupted, what was played is judged")
                stage.notes.append("interrupted")
            stage.rest()
            good = self._judge(rows, stage, cluster, began)
            if self._keep or not good:
                save_stage(stage)
            if good:
                stage.forget()
        if good and not self._keep:
            shutil.rmtree(stage.directory, ignore_errors=True)

    def _play_of(self, row: Row, stage: Stage, cluster: Cluster) -> Play:
        def told(done: int) -> None:
            if self.interrupted:
                raise Interrupted
            self._tell(stage, row, done)

        return Play(row.name, stage, cluster, self._count(row), told)

    def _judge(self, rows: Sequence[Row], stage: Stage, cluster: Cluster, began: float) -> bool:
        self._say(f"{rows[0].name}: {stage.load.sent:,} triggers sent; reading everything")
        ongoing = cluster.ongoing_transactions(stage.prefix)
        if (
            ongoing
        ):  # one that was begun by who was told to stop then, and holds nothing yet: nobody but the timeout ends it
            time.sleep(stage.overdue_s)
            ongoing = cluster.ongoing_transactions(stage.prefix)
        stage.broken += [f"nothing_hangs: a transaction is still under way: {what}" for what in ongoing]
        verdict = judge_stage(stage)
        for row in rows:
            mine = [fault for fault in stage.faults if fault.row == row.name]
            outcome = Outcome(
                row.name, row.what, self._count(row),
                stage.counts.get(row.name, sum(fault.effective for fault in mine)), len(mine),
                verdict.triggers, verdict.jobs, verdict.violations if row is rows[0] else [],
                _recovered_s(mine, lambda kind: kind not in {BACK_AT_ONCE, SEVERAL, NONE_LEFT}),
                dict(Counter(fault.kind for fault in mine if fault.effective)), verdict.indeterminate if row is rows[0] else {},
                stage.notes if row is rows[0] else [],
                time.monotonic() - began, stage.name,
            )  # fmt: skip
            outcome.inputs = row.name in stage.counts
            for kind in (BACK_AT_ONCE, SEVERAL, NONE_LEFT):
                if took := _recovered_s(mine, lambda each, kind=kind: each == kind):
                    outcome.notes.append(f"decided again after {kind}, p50 / p99: {quantiles(took)}")
            outcome.bound_s = row.recovers_s and stage.session_ms / 1_000 + row.recovers_s
            self.report.outcomes.append(outcome)
            self._say(
                f"{row.name}: {outcome.faults} faults, {verdict.triggers:,} triggers, {verdict.jobs:,} jobs, "
                f"{len(verdict.violations)} violations, {outcome.seconds:.0f} s"
            )
        for what in verdict.violations:
            self._say(f"  VIOLATION {what}")
        return not verdict.violations

    def _control(self, row: Row, cluster: Cluster) -> None:
        """The same row with the rule it tests switched off by a planted bug: the judge must find something."""
        name = f"{row.name.lower()}control"
        options = dict(row.stage) | {"plant": row.control}
        stage = Stage(cluster.bootstrap, name, self._directory / name, seed=self._seed, say=self._say, **options)
        with stage:
            row.play(replace(self._play_of(row, stage, cluster), count=min(self._count(row), CONTROL_FAULTS)))
            stage.rest()
            violations = judge_stage(stage).violations
            if self._keep:
                save_stage(stage)
        harm = [what for what in violations if what.startswith("I")]  # of safety, not only of liveness
        told = f"red, as it must: {len(violations)} violations, first: {harm[0]}" if harm else "missed: green"
        self.report.controls[f"{row.name} with {row.control}"] = told
        self._say(f"control of {row.name}: {told}")
        if harm and not self._keep:
            stage.forget()
            shutil.rmtree(stage.directory, ignore_errors=True)

    def _plant(self, cluster: Cluster, name: str | None) -> None:
        """One stage with a bug in its gates; or with none, which must be green under the same strikes."""
        title = f"p{list(BUGS).index(name)}" if name else "clean"
        options = planting.STAGE | {"plant": name or ""}
        stage = Stage(cluster.bootstrap, title, self._directory / title, seed=self._seed, say=self._say, **options)
        with stage:
            planting.strike_all(stage)
            stage.rest()
            verdict = judge_stage(stage)
            if self._keep:
                save_stage(stage)
        found = {what.split()[1].rstrip(":") for what in verdict.violations}
        if name is None:
            told = "missed: the judge found what is not there" if verdict.violations else "0 violations, as it must"
            self.report.planted[NO_BUG] = told
        else:
            expected = sorted(found & {planting.SAME.get(check, check) for check in BUGS[name].caught_by})
            told = f"caught by {', '.join(expected)}" if expected else f"missed; found {', '.join(sorted(found))}"
            self.report.planted[name] = told
        self._say(f"planted {name or 'no bug'}: {told}")
        if name is None:
            for what in verdict.violations:
                self._say(f"  VIOLATION {what}")
        if not self._keep and "missed" not in told:
            stage.forget()
            shutil.rmtree(stage.directory, ignore_errors=True)

    def _tell(self, stage: Stage, row: Row, done: int) -> None:
        if time.monotonic() - self._told_at.get(row.name, 0) > PROGRESS_S:
            self._told_at[row.name] = time.monotonic()
            self._say(
                f"{row.name}: {done} of {self._count(row)} faults; {stage.load.sent:,} triggers sent, "
                f"{stage.watcher.answered:,} answered"
            )

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", file=sys.stderr, flush=True)


def judge_stage(stage: Stage) -> Verdict:
    """A stage that has come to rest, while its cluster is there."""
    return judge(stage.evidence(), OnBrokers(stage.bootstrap, stage.prefix))


def _recovered_s(faults: Sequence[Fault], which: Callable[[str], bool]) -> list[float]:
    return [s for fault in faults if fault.effective and which(fault.kind) for s in fault.recovered_s]
