"""`tollgate broker --secured`: a Kafka to try the roles on, by the files it writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.stream.access import Role

pytestmark = pytest.mark.broker

TOLLGATE = Path(sys.executable).with_name("tollgate")
TIMEOUT_S = 120


@contextmanager
def broker(directory: Path) -> Iterator[str]:
    """Its address, while it runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_KAFKA")}
    command = subprocess.Popen(
        [TOLLGATE, "broker", "--secured", "--data", directory / "kafka"], cwd=directory, env=clean, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert command.stdout is not None
    try:
        yield command.stdout.readline().strip()
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=TIMEOUT_S)


def run(directory: Path, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return subprocess.run(
        [TOLLGATE, *words], cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env=clean | {"TOLLGATE_CONFIG": str(directory / "kafka" / "access" / f"{user}.toml")},
    )  # fmt: skip


def test_each_role_has_a_file_of_its_own_that_still_works_after_a_restart(tmp_path: Path) -> None:
    access = tmp_path / "kafka" / "access"
    with broker(tmp_path) as address:
        assert address.startswith("127.0.0.1:")
        assert {file.stem for file in access.glob("*.toml")} == {role.value for role in Role}
        made = run(tmp_path, "admin", "topics", "create", "--lanes", "1")
        assert made.returncode == 0, made.stderr
        assert run(tmp_path, "emitter", "topics", "check").returncode == 4
    passwords = {file: file.read_bytes() for file in access.glob("*.password")}
    assert all(file.stat().st_mode & 0o077 == 0 for file in access.iterdir())
    with broker(tmp_path):
        checked = run(tmp_path, "ops", "topics", "check")
        assert checked.returncode == 0, checked.stderr
    assert passwords == {file: file.read_bytes() for file in access.glob("*.password")}
    properties = tmp_path / "kafka" / "node-1" / "server.properties"
    assert properties.stat().st_mode & 0o077 == 0  # it holds the brokers' own password
