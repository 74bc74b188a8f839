"""`tollgate up` as a person meets it: stopped at any moment, started twice, beside a cluster of others, bereft of Kafka."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.program import PROGRAM, tollgate
from tests.support.gates import environment

pytestmark = pytest.mark.slow  # each starts a Kafka

READY = "Everything is up"
READY_TIMEOUT_S = 150
PROMPT_S = 8  # on a busy machine, too; a stack in full takes longer to start


class Up:
    """One `tollgate up` and what it says."""

    def __init__(self, directory: Path, env: dict[str, str], *arguments: str) -> None:
        self.state = directory / "state"
        command = [PROGRAM, "up", "--state", self.state, "--lanes", "2", *arguments]
        self._process = subprocess.Popen(command, cwd=directory, env=env, stderr=subprocess.PIPE, text=True)
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said += line

    def await_said(self, words: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while words not in self.said:
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float = 60) -> int:
        code = self._process.wait(timeout_s)
        self._reader.join()
        assert "Traceback" not in self.said
        return code

    def processes(self, what: str = "") -> dict[int, str]:
        """Ours and our children's that run, by pid: their commands."""
        return {pid: command for pid, command in _commands() if str(self.state) in command and what in command}


def _commands() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue


Start = Callable[..., Up]


@pytest.fixture
def env() -> dict[str, str]:
    """As in a shell: nothing is set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}


@pytest.fixture
def start(tmp_path: Path, env: dict[str, str]) -> Iterator[Start]:
    started: list[Up] = []

    def begin(*arguments: str, **more: str) -> Up:
        started.append(Up(tmp_path, env | more, *arguments))
        return started[-1]

    yield begin
    for up in started:
        up.signal(signal.SIGKILL)


def test_a_second_one_leaves_the_first_alone_and_sigterm_stops_that_in_order(start: Start, env: dict[str, str]) -> None:
    up = start("--port", "0")
    up.await_said(READY)
    assert (up.state / "env").exists()

    second = tollgate(env, "up", "--state", str(up.state))
    assert second.code == 1
    assert str(up.state) in second.err
    assert "--state" in second.err
    assert "--data" not in second.err
    assert (up.state / "env").exists()

    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    assert "stopping the door and the gate, then Kafka" in up.said
    assert not (up.state / "env").exists()
    assert "gate_stopped" in (up.state / "gate.log").read_text().splitlines()[-1]
    assert "serve_stopped" in (up.state / "serve.log").read_text().splitlines()[-1]
    assert not up.processes()


def test_a_kafka_that_dies_is_told_and_ends_it(start: Start) -> None:
    up = start("--port", "0")
    up.await_said(READY)
    (broker,) = up.processes("kafka.Kafka")
    os.kill(broker, signal.SIGKILL)
    assert up.wait() == 1
    assert "The local Kafka (node 1) ended" in up.said
    assert not (up.state / "env").exists()


def test_another_terminal_has_the_program_by_the_env_file_and_may_start_the_stack_again(
    start: Start, tmp_path: Path
) -> None:
    data = tmp_path / "its data"
    up = start("--port", "0", TOLLGATE_LOCAL__DATA_DIR=str(data))
    up.await_said(READY)
    assert list(data.glob("node-1/data/*"))
    shown = subprocess.run(
        ["/bin/sh", "-c", '. "$0"; env; tollgate topics check', up.state / "env"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    settled = dict(line.split("=", 1) for line in shown.stdout.splitlines() if line.startswith("TOLLGATE_"))
    up.signal(signal.SIGTERM)
    assert up.wait() == 0

    again = start(**settled, TOLLGATE_LOCAL__DATA_DIR=str(data))
    again.await_said(READY)
    assert "starting Apache Kafka" in again.said
    assert f"TOLLGATE_BOOTSTRAP={settled['TOLLGATE_BOOTSTRAP']}\n" in (again.state / "env").read_text()
    again.signal(signal.SIGTERM)
    assert again.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after_s", [0.3, 2])
def test_one_that_starts_stops_at_once_and_leaves_nothing(
    start: Start, number: signal.Signals, code: int, after_s: float
) -> None:
    up = start("--port", "0")
    up.await_said("starting Apache Kafka")
    time.sleep(after_s)
    assert READY not in up.said
    up.signal(number)
    assert up.wait(PROMPT_S) == code
    assert "stopping before everything is up" in up.said
    assert not up.processes()


def test_one_that_waits_for_a_registry_of_jars_stops_at_once(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), proxy)
        cache = tmp_path / "cache"
        up = start("--port", "0", **proxies, NO_PROXY="", no_proxy="", TOLLGATE_LOCAL__CACHE_DIR=str(cache))
        up.await_said("Fetching")
        time.sleep(1)
        up.signal(signal.SIGINT)
        assert up.wait(PROMPT_S) == 130
    assert not list(cache.rglob("*.jar"))


def test_what_a_registry_holds_stays_and_is_told_where_it_differs(
    start: Start, broker: str, prefix: str, tmp_path: Path
) -> None:
    env = environment(broker, prefix)
    (tmp_path / "jobs.toml").write_text('[jobs."reports/nightly"]\ntimeout_s = 7\n')
    (tmp_path / "keys.json").write_text('{"keys": []}')
    (tmp_path / "trust.toml").write_text(
        '[trust."https://issuer.localhost"]\njwks = "keys.json"\norgs = ["theirs"]\nsubjects = ["a"]\njobs = ["a"]\n'
    )
    assert tollgate(env, "topics", "create", "--lanes", "2").code == 0
    assert tollgate(env, "jobs", "apply", str(tmp_path / "jobs.toml")).code == 0
    assert tollgate(env, "trust", "apply", str(tmp_path / "trust.toml")).code == 0
    before = tollgate(env, "jobs", "list").rows, tollgate(env, "trust", "list").rows

    # Given by its long name, an address is given as well.
    up = start(TOLLGATE_KAFKA__BOOTSTRAP=broker, TOLLGATE_KAFKA__PREFIX=prefix)
    up.await_said(READY)
    assert "starting Apache Kafka" not in up.said
    jobs, trust = tollgate(env, "jobs", "list").rows, tollgate(env, "trust", "list").rows
    up.signal(signal.SIGINT)
    assert up.wait() == 0

    assert trust == before[1]
    assert [row for row in jobs if row["name"] == "reports/nightly"] == before[0]
    assert {row["name"] for row in jobs} == {"reports/nightly", "images/resize", "database/backup"}
    assert "another job reports/nightly" in up.said
    assert "another trust rule for https://issuer.localhost" in up.said
    assert "another job images/resize" not in up.said
