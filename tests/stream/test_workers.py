"""A gate of several workers: what a restart mends is restarted, and what it does not mend ends the gate at once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

import pytest
from confluent_kafka.admin import AdminClient

from tests.cli.program import PROGRAM, tollgate
from tests.support.gates import environment

NOBODY = "127.0.0.1:1"
WORKERS = 2


@pytest.fixture
def env(broker: str, prefix: str, tmp_path: Path) -> dict[str, str]:
    return environment(broker, prefix) | {"TOLLGATE_GATE__STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def gate(env: dict[str, str]) -> Iterator[Popen[str]]:
    assert tollgate(env, "topics", "create", "--lanes", "2").code == 0
    process = Popen([PROGRAM, "gate", "--workers", str(WORKERS)], env=env, stderr=PIPE, text=True)
    yield process
    process.kill()


def started(gate: Popen[str]) -> int:
    """Reads its log until a worker works; the worker's pid."""
    assert gate.stderr is not None
    for line in gate.stderr:
        if '"gate_started"' in line:
            return int(json.loads(line)["pid"])
    raise AssertionError("the gate ended")


@pytest.mark.parametrize("bootstrap", [NOBODY, None], ids=["no broker", "no topics"])
def test_workers_that_cannot_start_are_not_started_again(env: dict[str, str], bootstrap: str | None) -> None:
    said = tollgate(
        env | ({"TOLLGATE_KAFKA__BOOTSTRAP": bootstrap} if bootstrap else {}), "gate", "--workers", str(WORKERS)
    )
    assert said.code == 1
    sentences = [line for line in said.err.splitlines() if line and not line.startswith("{")]
    assert 1 <= len(sentences) <= WORKERS  # one of each; a worker that is told to stop first says none
    assert len(set(sentences)) == 1
    assert 1 <= said.err.count("worker_exited") <= WORKERS


def test_a_worker_that_fell_is_started_again(gate: Popen[str]) -> None:
    os.kill(started(gate), signal.SIGKILL)
    started(gate)
    started(gate)
    gate.terminate()
    gate.communicate(timeout=30)
    assert gate.returncode == 0


@pytest.mark.slow
def test_topics_that_come_to_break_a_guarantee_stop_all_workers(gate: Popen[str], broker: str, prefix: str) -> None:
    started(gate)
    topic = f"{prefix}idempotency"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.delete_topics([topic])[topic].result(30)
    began = time.monotonic()
    try:
        _, said = gate.communicate(timeout=60)
    except TimeoutExpired:
        gate.kill()
        raise
    assert gate.returncode == 1
    assert topic in said
    assert said.count("worker_exited") <= WORKERS
    assert time.monotonic() - began < 40
