"""The supervisor stops every worker it has started, whenever it is told to; its workers here need no broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STOP_TIMEOUT_S = 15

# Worker 0 falls once; whoever runs says so and would run for long.
WORKER = """
import os, pathlib, sys, time
fallen = pathlib.Path("fallen")
if os.environ["TOLLGATE_WORKER_INDEX"] == "0" and not fallen.exists():
    fallen.touch()
    sys.exit(1)
print("works", flush=True)
time.sleep(60)
"""
SUPERVISOR = """
import sys
from app.stream.supervisor import _Workers
sys.exit(_Workers(2, [sys.executable, "worker.py"]).run())
"""
RESTARTED_SOON = """
from app.stream import supervisor
supervisor.RESTART_WAIT_S = 0.1
"""
# A signal that comes when a worker runs and `Popen` has not returned it yet.
WITHIN_POPEN = """
import os, signal, subprocess
from app.stream import supervisor
class Popen(subprocess.Popen):
    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        os.kill(os.getpid(), signal.SIGTERM)
supervisor.subprocess.Popen = Popen
"""


@pytest.mark.parametrize("when", ["before a restart", "while a worker is made"])
def test_a_gate_that_is_told_to_stop_leaves_no_worker(when: str, tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    script = SUPERVISOR if when == "before a restart" else WITHIN_POPEN + SUPERVISOR
    gate = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        if when == "before a restart":
            assert gate.stderr is not None
            assert any("worker_exited" in line for line in gate.stderr)
            gate.send_signal(signal.SIGTERM)
        # Its end, and that of whoever else could write: no worker outlives it.
        gate.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        gate.kill()  # its workers are tethered to it
    assert gate.returncode == 0


def test_a_worker_that_fell_is_started_again_and_stopped_with_the_gate(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    gate = subprocess.Popen(
        [sys.executable, "-c", RESTARTED_SOON + SUPERVISOR], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert gate.stdout is not None
    try:
        assert [gate.stdout.readline() for _ in range(2)] == ["works\n"] * 2
        gate.send_signal(signal.SIGTERM)
        gate.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        gate.kill()
    assert gate.returncode == 0
