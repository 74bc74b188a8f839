"""Bad input of operators: one clear sentence that says what to do, the exit code agreed, never a traceback."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.rows.processes import TOLLGATE
from tests.rows.world import World

FAILED, USAGE = 1, 2
NOBODY = "127.0.0.1:1"
PROBES = {"TOLLGATE_TELEMETRY__PORT": "0"}
SENTENCES_MAX = 3
CHARACTERS_MAX = 700


def told(world: World, *words: str, code: int, env: dict[str, str] | None = None) -> str:
    """What a command that fails so says on stderr: little, and no traceback; and nothing on stdout."""
    done = world.tollgate(*words, code=code, env=PROBES | (env or {}))
    assert "Traceback" not in done.stderr
    assert "failed unexpectedly" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert 1 <= len(lines) <= SENTENCES_MAX, done.stderr
    assert len(done.stderr) <= CHARACTERS_MAX, done.stderr
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"TOLLGATE_KAFKA__BOOTSTRAPP": "x"}, ("TOLLGATE_KAFKA__BOOTSTRAPP", "not a setting")),
        ({"TOLLGATE_GATE__GRACE_S": "a minute"}, ("gate.grace_s", "a minute", "integer")),
        ({"TOLLGATE_GATE__GRACE_S": "99999"}, ("gate.grace_s", "99999", "600")),
        ({"TOLLGATE_KAFKA__SECURITY_PROTOCOL": "TLS"}, ("kafka.security_protocol", "TLS", "SSL")),
        ({"TOLLGATE_CONFIG": "/nowhere/tollgate.toml"}, ("TOLLGATE_CONFIG", "/nowhere/tollgate.toml")),
        ({"TOLLGATE_GATE__SEALING_KEY": "/nowhere/key.jwk"}, ("gate.sealing_key", "/nowhere/key.jwk")),
        ({"TOLLGATE_GATE__STATE_DIR": "/proc/state"}, ("gate.state_dir", "/proc/state")),
        ({"TOLLGATE_GATE__JWKS_CAFILE": "/nowhere/ca.pem"}, ("gate.jwks_cafile", "/nowhere/ca.pem")),
    ],
)
def test_a_gate_with_a_bad_setting_names_it_and_does_not_start(
    world: World, env: dict[str, str], words: tuple[str, ...]
) -> None:
    said = told(world, "gate", "--workers", "1", code=USAGE, env=env)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("toml", "word"), [("[gate]\ngrace = 3\n", "gate.grace"), ("local = 3\n", "local"), ("[gate", "cannot be read")]
)
def test_a_bad_settings_file_is_told_by_what_is_wrong_in_it(world: World, tmp_path: Path, toml: str, word: str) -> None:
    file = tmp_path / "tollgate.toml"
    file.write_text(toml)
    assert word in told(world, "gate", "--workers", "1", code=USAGE, env={"TOLLGATE_CONFIG": str(file)})


@pytest.mark.parametrize(
    "words",
    [("gate", "--workers", "1"), ("topics", "create"), ("topics", "check"), ("jobs", "list"), ("receipts",),
     ("token", "revoke", "--jti", "x"), ("emit", "rows/nightly"), ("audit", "verify"), ("explain", "0-0")],
    ids=" ".join,
)  # fmt: skip
def test_an_unreachable_broker_is_named_with_what_to_do(world: World, words: tuple[str, ...]) -> None:
    said = told(
        world, *words, code=FAILED, env={"TOLLGATE_KAFKA__BOOTSTRAP": NOBODY, "TOLLGATE_TOKEN": world.ours.token()}
    )
    assert NOBODY in said
    assert "--bootstrap" in said


@pytest.mark.parametrize(
    "words",
    [("gate", "--workers", "1"), ("jobs", "list"), ("receipts",), ("token", "revoke", "--jti", "x"), ("emit", "rows/nightly"),
     ("audit", "verify")],
    ids=" ".join,
)  # fmt: skip
def test_missing_topics_are_told_with_the_command_that_makes_them(world: World, words: tuple[str, ...]) -> None:
    prefix = f"none{secrets.token_hex(3)}."
    said = told(
        world, *words, code=FAILED, env={"TOLLGATE_KAFKA__PREFIX": prefix, "TOLLGATE_TOKEN": world.ours.token()}
    )
    assert prefix in said
    assert "tollgate topics create" in said


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (("jobs", "apply", "no-such-file.toml"), FAILED, "no-such-file.toml"),
        (("token", "issue", "--job", "rows/nightly", "--ttl", "soon"), USAGE, "--ttl soon"),
        (("token", "issue", "--job", "rows/nightly"), USAGE, "ttl_missing"),
        (("token", "revoke"), USAGE, "exactly one"),
        (("emit", "rows/nightly"), USAGE, "no token"),
        (("audit", "--run", "not-a-run"), USAGE, "UUID"),
        (("explain", "no-such-file.json"), USAGE, "no-such-file.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_was_given_something_wrong_says_what(
    world: World, words: tuple[str, ...], code: int, word: str
) -> None:
    assert word in told(world, *words, code=code)


def test_a_definition_that_is_wrong_is_told_by_its_place_and_nothing_is_written(world: World, tmp_path: Path) -> None:
    before = world.rows("jobs", "list")
    file = tmp_path / "jobs.toml"
    file.write_text('[jobs."rows/new"]\n[jobs."rows/bad"]\ndedup_window = 3\n')
    said = told(world, "jobs", "apply", str(file), code=FAILED)
    assert "rows/bad" in said
    assert "dedup_window" in said
    assert world.rows("jobs", "list") == before


def test_the_program_is_the_one_installed(world: World) -> None:
    assert TOLLGATE.exists()
    assert world.tollgate("--version").stdout.strip()
