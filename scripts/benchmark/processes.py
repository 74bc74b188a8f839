"""Processes under measurement: what they, their threads and descendants have used of the CPU and of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

STOP_TIMEOUT_S: Final = 30.0
LAST_LINES: Final = 15
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # the thread has ended
                continue
    return found


def cpu_s(pid: int) -> float:
    """User and system time of a process tree, children that have ended included."""
    ticks = 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / _TICKS_A_SECOND


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process tree; `VmHWM` is the most it ever had."""
    kib = 0
    for each in tree(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                kib += int(line.split()[1])
    return kib / 1024


class Child:
    """A program of ours with a log file of its own; stopped in order, and killed only when that does not help."""

    def __init__(self, command: Sequence[str], log_file: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log_file = log_file
        self.started_at_s = time.time()
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(env), cwd=cwd)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def raise_if_dead(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"{self.log_file.stem} ended with code {code}:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def wait_for_line(self, word: str, timeout_s: float = 60.0) -> None:
        """Until the program has said `word`."""
        deadline = time.monotonic() + timeout_s
        while word not in self.log_file.read_text(errors="replace"):
            self.raise_if_dead()
            if time.monotonic() > deadline:
                name = self.log_file.stem
                raise TimeoutError(f"{name} did not say {word!r} within {timeout_s:.0f} s:\n{self.last_words()}")
            time.sleep(0.05)

    def stop_innermost(self) -> None:
        """Ask the program itself to stop, where another one started it for us, and wait for both."""
        os.kill(tree(self.pid)[-1], signal.SIGTERM)
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                for each in reversed(tree(self.pid)):
                    os.kill(each, signal.SIGKILL)
                self._process.wait()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
