"""The installed program, and gates of it, as an operator would start them."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.rows.outcomes import TIMEOUT_S

TOLLGATE = Path(sys.executable).parent / "tollgate"


class Gate:
    """A gate as an operator would start it; may be stopped, killed and started again."""

    def __init__(self, name: str, directory: Path, env: Mapping[str, str], workers: int) -> None:
        self.name, self.workers = name, workers
        self.state_dir, self.log_file = directory / f"{name}-state", directory / f"{name}.log"
        self._directory = directory
        self._env = {**env, "TOLLGATE_GATE__STATE_DIR": str(self.state_dir)}
        self.ports: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        port = _free_ports(self.workers)
        self.ports = [port + number for number in range(self.workers)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [TOLLGATE, "gate", "--workers", str(self.workers)], cwd=self._directory, stdout=log, stderr=log,
                env=self._env | {"TOLLGATE_TELEMETRY__PORT": str(port)},
            )  # fmt: skip
        return self

    def wait_ready(self, timeout_s: float = TIMEOUT_S) -> Self:
        """Until every worker has restored its lanes."""
        deadline = time.monotonic() + timeout_s
        for port in self.ports:
            while not _answers_ok(f"http://127.0.0.1:{port}/readyz"):
                assert self.process is not None
                if self.process.poll() is not None:
                    assert "telemetry port" in self.log_tail(), f"gate {self.name} ended: {self.log_tail()}"
                    return self.start().wait_ready(deadline - time.monotonic())  # somebody was faster to take a port
                assert time.monotonic() < deadline, f"gate {self.name} is not ready: {self.log_tail()}"
                time.sleep(0.1)
        return self

    def stop(self) -> int | None:
        """In order, as a service manager would. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        """SIGKILL. Of one worker only: those of several are killed by the kernel a moment later."""
        assert self.workers == 1
        assert self.process is not None
        self.process.kill()
        self.process.wait(40)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def log_tail(self) -> str:
        return self.log()[-2_000:]

    def events(self) -> list[dict[str, Any]]:
        """What it logged, over all its lives."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]


def _answers_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens on, below those that clients are given."""
    while True:
        port = 10_000 + secrets.randbelow(9_000)
        if all(_is_free(port + more) for more in range(count)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as asked:
        try:
            asked.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
