"""One broker process: started, watched, stopped in order; and what its log says when it died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from app.local.errors import LocalKafkaError

TOOL_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 256 * 1024

_TETHER: Final = Path(__file__).with_name("tether.py")

# Linux binds the death signal to the thread that started the child, not to its process: so one thread, which
# lives as long as the interpreter, starts them all.
_STARTER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tollgate-local-kafka")


class BrokerProcess:
    """A process with its own session, so that a Ctrl-C meant for its parent does not reach it."""

    def __init__(self, command: Sequence[str], log_file: Path, *, tethered: bool, inherited: Sequence[int]) -> None:
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        if tethered:
            command = [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command]
        with log_file.open("ab") as log:
            self._process = _STARTER.submit(
                subprocess.Popen,
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=inherited,
            ).result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def wait_stopped(self, timeout_s: float) -> None:
        """After `ask_to_stop`; one that does not end in time is killed."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def cause_of_death(self) -> str:
        """The last complaint in what this process wrote to its log."""
        with self.log_file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
        return cause_in(text) or f"it ended with status {self._process.poll()} and left no word"


def run_tools(commands: Sequence[Sequence[str]]) -> None:
    """Kafka's tools beside each other, each of which must succeed. Whoever is interrupted here leaves none behind."""
    tools = []
    try:
        for command in commands:
            tools.append(  # noqa: PERF401 - those that were started must be known when one cannot be
                subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
        for tool in tools:
            told, _ = tool.communicate(timeout=TOOL_TIMEOUT_S)
            if tool.returncode != 0:
                raise LocalKafkaError(
                    f"Preparing the data directory of the local Kafka failed: {cause_in(told) or told[-300:]}"
                )
    finally:
        for tool in tools:
            tool.kill()  # does nothing to one that ended
            tool.wait()


def cause_in(log: str) -> str | None:
    """One line out of a Java log: the innermost cause of the last stack trace, else the last error or line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [
        number for number, line in enumerate(lines) if " ERROR " in f" {line} " or line.startswith("Exception in")
    ]
    told = [line for line in lines[errors[-1] if errors else 0 :] if not line.startswith(("at ", "... "))]
    causes = [line.removeprefix("Caused by: ") for line in told if line.startswith("Caused by: ")]
    exceptions = [line for line in told if "Exception: " in line or "Error: " in line]
    candidates = causes[-1:] or exceptions[:1] or told[-1:]
    return candidates[0][:400] if candidates else None
