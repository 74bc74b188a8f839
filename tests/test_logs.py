"""What a process logs: an entry a line, escaped, on stderr; and what a gate loads before it can log at all."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest

from app import logs

HOSTILE = "a\nb\x1b[31m\u202ec\u2028 ☺"
# Each of these costs a start more than it gives before the first decision; requests of some kinds load them later.
NOT_AT_START = {"structlog", "rich", "pydantic", "attr", "httpx", "joserfc", "jwt", "yaml", "jgo", "requests"}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> logs.Log:
    log = logs.Log()
    monkeypatch.setattr(logs, "log", log)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    return log


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_entry_is_one_line_whatever_a_stranger_wrote(
    fresh: logs.Log, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    logs.configure_logging("info", log_format)
    fresh.warning(logs.Event.LANE_HELD, why=HOSTILE, lane=3, what={"deep": HOSTILE})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.rstrip("\n").isascii()
    assert said.err.rstrip("\n").isprintable()
    assert "lane_held" in said.err


def test_json_entries_carry_event_level_time_and_fields(fresh: logs.Log, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logging("info", "json")
    fresh.error(logs.Event.JWKS_FAILED, issuer=HOSTILE, holding=True)
    entry = json.loads(capsys.readouterr().err)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "jwks_failed", "level": "error", "issuer": HOSTILE, "holding": True}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_entry_is_written_in_one_piece(fresh: logs.Log, monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    """Workers share a stderr: between two pieces of one's entry another's would stand."""
    pieces: list[str] = []

    class Unbuffered(io.StringIO):
        def write(self, text: str, /) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Unbuffered())
    logs.configure_logging("info", log_format)
    fresh.info(logs.Event.GATE_STARTED, pid=1)
    fresh.info(logs.Event.GATE_STOPPED, pid=1)
    assert [piece.count("\n") for piece in pieces] == [1, 1]


def test_entries_below_the_level_are_not_written(fresh: logs.Log, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logging("warning", "json")
    fresh.info(logs.Event.GATE_STARTED)
    fresh.warning(logs.Event.LANE_HELD)
    assert capsys.readouterr().err.count("\n") == 1


def test_entries_go_elsewhere_for_as_long_as_asked(fresh: logs.Log, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logging("error", "json")
    entries: list[logs.Entry] = []
    with fresh.into(entries):
        fresh.info(logs.Event.GATE_STARTED, pid=1)
    fresh.info(logs.Event.GATE_STARTED, pid=2)
    assert [entry["pid"] for entry in entries] == [1]
    assert capsys.readouterr().err == ""


def test_what_libraries_log_is_an_entry_too() -> None:
    program = """
import logging
from app.logs import configure_logging
configure_logging("info", "json")
logging.getLogger("aiokafka.conn").error("Unable connect to node with id %s: %s", 1, "a\\nb")
logging.getLogger("aiokafka.conn").warning("of no worth")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["event"], first["level"], first["logger"]) == ("library", "warning", "aiokafka.conn")
    assert first["what"] == "Unable connect to node with id 1: a\nb"
    assert (second["event"], second["error"]) == ("library", "ZeroDivisionError('division by zero')")


@pytest.mark.parametrize("log_format", ["json", "console", "auto"])
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-"], ids=["a full disk", "no stderr at all"])
def test_a_log_that_cannot_be_written_stops_nobody_who_logs(redirected: str, log_format: str) -> None:
    program = f"""
import logging, sys
from app import telemetry
from app.logs import configure_logging, log
configure_logging("info", "{log_format}")
for _ in range(1_000):  # more than any buffer holds
    log.error("lane_retry", what="x" * 100)
logging.getLogger("asyncio").error("a library's")
sys.stderr = open("/dev/null", "w")
sys.stderr.close()
log.error("lane_retry")
print(log.lost, *(sample.value for metric in telemetry.LOG_LOST.collect() for sample in metric.samples))
"""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable, program],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["1002", "1002.0"]


def loaded_by(statement: str) -> set[str]:
    listed = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_gate_loads_nothing_it_does_not_need_before_its_first_decision() -> None:
    worker = "import app.cli.main, app.cli.gate, app.stream.administration, app.stream.worker"
    assert loaded_by(worker) & NOT_AT_START == set()


def test_what_only_supervises_loads_no_client_of_kafka() -> None:
    loaded = loaded_by("import app.cli.main, app.cli.gate, app.config, app.stream.supervisor")
    assert loaded & (NOT_AT_START | {"aiokafka", "confluent_kafka", "cryptography", "prometheus_client"}) == set()
