"""`scripts/demo`, interrupted: it stops what it started, whoever asks and however."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.local.test_kafka import eventually

pytestmark = pytest.mark.slow

STOP_TIMEOUT_S = 40


def running(words: str) -> list[str]:
    commands = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if words in command:
                commands.append(command)
    return commands


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_an_interrupted_demo_leaves_nothing_behind(
    checkout: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    programs = Path(sys.executable).parent
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the demo would rightly outlive it
    demo = subprocess.Popen(
        [sys.executable, checkout / "scripts/_demo.py"],
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGHUP, before)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line == "\n":  # everything is up, and the first triggers are about to be sent
            break
    time.sleep(1)
    os.killpg(demo.pid, number) if number is signal.SIGINT else demo.send_signal(number)
    _, said = demo.communicate(timeout=STOP_TIMEOUT_S)
    assert demo.returncode == code, said
    assert "Traceback" not in said
    assert number is signal.SIGKILL or "stopping everything" in said
    assert eventually(lambda: not running(str(tmp_path)), timeout_s=5)
