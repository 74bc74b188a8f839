"""The program itself: help, version, bad usage and errors as one sentence. No broker needed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.stream.topics import Topic
from tests.cli.program import tollgate, within
from tests.support.gates import environment

pytestmark = pytest.mark.slow  # many processes

COMMANDS = ("up", "broker", "gate", "topics", "jobs", "trust", "identities", "policy", "doctor", "keys", "token",
            "revocations", "emit", "receipts",
            "dead-letters", "audit", "explain")  # fmt: skip
NOBODY = "127.0.0.1:1"
HELP_SECONDS = 0.4
ATTEMPTS = 5  # on a busy machine the best of a few says what the program costs


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(NOBODY, "tollgate.") | {"TOLLGATE_CONFIG": "", "HOME": str(tmp_path)}


def test_the_help_names_every_command(env: dict[str, str]) -> None:
    said = tollgate(env, "--help")
    assert said.code == 0
    assert set(COMMANDS) <= set(re.findall(r"^  ([a-z-]+) ", said.out, re.MULTILINE))


def test_the_help_comes_at_once(env: dict[str, str]) -> None:
    best = min(_seconds(env) for _ in range(ATTEMPTS))
    assert best <= HELP_SECONDS * 2  # twice: tests run beside each other on few cores


def _seconds(env: dict[str, str]) -> float:
    started = time.monotonic()
    tollgate(env, "--help")
    return time.monotonic() - started


@pytest.mark.parametrize("module", ["typer", "app.cli.common", "app.cli.commands", "app.cli.keys", "app.config"])
def test_an_interrupt_while_it_starts_is_no_traceback(env: dict[str, str], tmp_path: Path, module: str) -> None:
    """The interrupt comes when `module` is looked for, as a Ctrl-C in the first moments would."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from app.cli.main import main\n"
        "main()\n"
    )
    words = [sys.executable, str(tmp_path / "interrupted.py"), "keys", "list"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"


@pytest.mark.parametrize("words", [("emit.py",), ("emit.py", NOBODY, "a/b", "{}"), ("worker.py",)], ids=" ".join)
def test_an_example_without_what_it_needs_says_so(env: dict[str, str], words: tuple[str, ...]) -> None:
    command = [sys.executable, str(EXAMPLES / words[0]), *words[1:]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.returncode
    assert "Traceback" not in done.stderr


def test_the_version_is_printed(env: dict[str, str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", within(env, "--version").out)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "explain"])
def test_every_command_explains_itself_with_an_example(env: dict[str, str], command: str) -> None:
    said = within(env, command, "--help")
    assert said.code == 0
    assert f"tollgate {command}" in said.out


def test_an_unknown_command_is_a_usage_error(env: dict[str, str]) -> None:
    assert within(env, "trigger").code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("topics", "check"), ("topics", "create"), ("emit", "a/b"), ("receipts",), ("audit", "verify"), ("doctor",),
     ("jobs", "tail"), ("dead-letters", "list"), ("gate", "--workers", "1")],
)  # fmt: skip
def test_an_unreachable_broker_is_one_sentence_that_says_what_to_do(
    env: dict[str, str], arguments: tuple[str, ...]
) -> None:
    said = tollgate(env | {"TOLLGATE_TOKEN": "a.b.c"}, *arguments)
    assert said.code == 1
    assert NOBODY in said.err + said.out
    assert "tollgate broker" in said.err + said.out


def test_a_bad_setting_is_one_sentence_and_a_usage_error(env: dict[str, str]) -> None:
    said = within(env | {"TOLLGATE_GATE__GRACE_S": "long"}, "topics", "check")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "gate.grace_s" in said.err


def test_a_misspelt_setting_is_refused(env: dict[str, str]) -> None:
    said = within(env | {"TOLLGATE_GATE__GRACES": "1"}, "topics", "check")
    assert said.code == 2
    assert "TOLLGATE_GATE__GRACES" in said.err


def test_a_trigger_without_a_token_is_a_usage_error(env: dict[str, str]) -> None:
    said = within(env, "emit", "a/b")
    assert said.code == 2
    assert "--token-file" in said.err


@pytest.mark.parametrize("param", ["region", "=eu", "n:=oops"])
def test_a_malformed_param_is_a_usage_error(env: dict[str, str], param: str) -> None:
    assert within(env | {"TOLLGATE_TOKEN": "a.b.c"}, "emit", "a/b", "--param", param).code == 2


def test_the_commands_that_create_the_topics_can_be_printed_without_a_broker(env: dict[str, str]) -> None:
    said = within(env, "topics", "create", "--print", "--lanes", "3", "--replication-factor", "3")
    assert said.code == 0
    assert said.out.count("kafka-topics.sh") == len(Topic)
    assert said.out.count("--partitions 3 ") == 8
    assert "min.insync.replicas=2" in said.out
    assert said.out.endswith("tollgate topics create\n")
