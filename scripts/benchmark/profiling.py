"""One row under a profiler: where the gate's event loop spends its time."""

from __future__ import annotations

import pstats
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Final

from scripts.benchmark import traffic
from scripts.benchmark.deployment import ROOT, Gate, deployed
from scripts.benchmark.drains import LANES, SITUATIONS
from scripts.benchmark.run import Run
from scripts.benchmark.throughput import drain

TOP: Final = 40


def profile(run: Run, profiler: str, names: list[str]) -> str:
    """The top functions by own time. cProfile slows small functions most; py-spy only looks, 500 times a second."""
    name = next((name for name in names if name in SITUATIONS), "webhook-home")
    situation = SITUATIONS[name]
    if situation.use == "webhook":
        requests = traffic.webhook(run.issuer, run.webhook_triggers)
    else:
        requests = traffic.one_shot(run.issuer, run.oneshot_triggers)
    with deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment:
        found = deployment.directory / "profile"
        through = ["-m", "cProfile", "-o", str(found)] if profiler == "cprofile" else []
        launcher = [] if profiler == "cprofile" else _py_spy(found)
        with Gate(deployment, through=through, launcher=launcher) as gate:
            gate.wait_ready()
            drained, _ = drain(deployment, gate, requests, away=situation.away)
            gate.stop_innermost()  # py-spy writes what it saw when the program it started ends
        top = _cprofile(found) if profiler == "cprofile" else _own_time(found)
    return f"{name}: {drained.triggers:,} triggers, {drained.per_second:,.0f}/s under {profiler}\n\n{top}"


def _py_spy(found: Path) -> list[str]:
    program = next(
        (path for path in (Path(sys.prefix) / "bin/py-spy", ROOT / ".venv-bench/bin/py-spy") if path.exists()), None
    )
    if program is None:
        sys.exit("scripts/bench: py-spy is installed by `scripts/bench --peers`; --profile cprofile needs nothing")
    options = ["--format", "raw", "--rate", "500", "--function", "--output", str(found)]
    return [str(program), "record", *options, "--"]


def _cprofile(found: Path) -> str:
    text = StringIO()
    pstats.Stats(str(found), stream=text).strip_dirs().sort_stats("tottime").print_stats(TOP)
    return text.getvalue().strip()


def _own_time(found: Path) -> str:
    """py-spy's stacks (`a;b;c count`), by their innermost frame."""
    own: Counter[str] = Counter()
    for line in found.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        own[stack.rpartition(";")[2]] += int(count)
    total = own.total() or 1
    return "\n".join(f"{count / total:6.1%}  {frame}" for frame, count in own.most_common(TOP))
