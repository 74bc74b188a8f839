"""Gate processes as an operator would start them, each with its own log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "app.cli.main")
STOP_TIMEOUT_S = 30


def environment(bootstrap: str, prefix: str, **settings: str) -> dict[str, str]:
    """Nothing of the caller's Tollgate settings, and these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return clean | {
        "TOLLGATE_KAFKA__BOOTSTRAP": bootstrap,
        "TOLLGATE_KAFKA__PREFIX": prefix,
        "TOLLGATE_TELEMETRY__PORT": "0",
        "TOLLGATE_TELEMETRY__LOG_FORMAT": "json",
        **{f"TOLLGATE_{name.upper()}": value for name, value in settings.items()},
    }


class GateProcess:
    """One gate; may be killed and started again with the same state directory."""

    words: Sequence[str] = ("gate", "--workers", "1")

    def __init__(self, name: str, directory: Path, env: dict[str, str], command: Sequence[str] = COMMAND) -> None:
        self.name, self.starts = name, 0
        self._command = command
        self.log_file = directory / f"{name}.log"
        self._directory = directory
        self._env = env | {"TOLLGATE_GATE__STATE_DIR": str(directory / f"{name}-state")}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self.starts += 1
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *self.words],
                env=self._env,
                cwd=self._directory,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever started it, who stops it in order
            )

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.wait()
            raise

    def events(self) -> list[dict[str, Any]]:
        """What it logged, over all its lives."""
        return events_of(self.log_file)


def events_of(log_file: Path) -> list[dict[str, Any]]:
    """The entries of a log; lines that are none, and one cut off by a kill, are left out."""
    if not log_file.exists():
        return []
    lines = log_file.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
