"""The table and the JSON of one run: figures with what was asked of them, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from app.local.jars import KAFKA_VERSION
from scripts.benchmark.figures import Figure

HEADINGS: Final = ("figure", "at least", "aim", "seen (median)", "spread", "ok?")
LIBRARIES: Final = ("aiokafka", "confluent-kafka", "cryptography", "rocksdict")


def machine(root: Path, kafka: str | None) -> dict[str, Any]:
    """What the figures were taken on, and when. `kafka` is the address of a cluster that is not the local one."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(root),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "kafka": f"the cluster at {kafka}" if kafka else f"Apache Kafka {KAFKA_VERSION}, one broker on the same CPUs",
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def table(found: dict[str, Any], figures: Sequence[Figure]) -> str:
    """Markdown, so that it can stand in a README."""
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items())
    head = (
        f"{found['date']}, commit {found['commit']}; {found['cores']} cores of {found['cpu']}, "
        f"load {found['load_at_start']} at the start; {found['system']}, Python {found['python']}, {found['kafka']}; "
        f"{libraries}."
    )
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join([head, "", f"| {lines[0]} |", f"|-{rule}-|", *(f"| {line} |" for line in lines[1:])])


def write_json(path: Path, found: dict[str, Any], figures: Sequence[Figure], samples: Sequence[dict[str, Any]]) -> None:
    """Everything that was measured, each repeat by itself."""
    content = {"machine": found, "figures": [figure.as_json() for figure in figures], "samples": list(samples)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit(root: Path) -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{commit} with changes" if git("status", "--porcelain", "--", "app") else commit


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
