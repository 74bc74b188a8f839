"""What is given on a command line, whatever it is: no token of it is repeated, and what is wrong is one sentence.

The program runs within this process: these are many, and none of them reaches a broker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from app import config
from app.cli import commands as table
from app.emission import home_of
from tests.cli.program import Said, within
from tests.support.gates import environment
from tests.support.issuer import OtherIssuer

USAGE = 2
NOBODY = "127.0.0.1:1"
Program = Callable[..., Said]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`tollgate`, in this process and an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **env: within(environment(NOBODY, "tollgate.") | env, *arguments)


@pytest.fixture(scope="module")
def token() -> str:
    return OtherIssuer("tollgate.").token()


def commands() -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The words of every command there is, and its parameters."""
    for command in table.COMMANDS:
        loaded = table._load(command)
        for name, sub in getattr(loaded, "commands", {}).items():
            yield (command.name, name), sub.params
        yield (command.name,), loaded.params


def options() -> Iterator[tuple[str, ...]]:
    for words, params in commands():
        for param in params:
            if param.param_type_name == "option" and not param.is_flag:
                yield (*words, max(param.opts, key=len))


# ── tokens ──


def holds_nothing_of(token: str, said: Said) -> None:
    for piece in token.split(".")[1:]:
        assert piece not in said.out + said.err


@pytest.mark.parametrize("words", [(), *(words for words, _ in commands())], ids=" ".join)
@pytest.mark.parametrize("before", [(), ("--no-such-option",), ("--", "reports/nightly")], ids=" ".join)
def test_no_command_repeats_a_token_that_stands_as_a_word(
    program: Program, token: str, words: tuple[str, ...], before: tuple[str, ...]
) -> None:
    said = program(*words, *before, token)
    assert said.code == USAGE
    assert "was given a token" in said.err
    holds_nothing_of(token, said)


@pytest.mark.parametrize("words", list(options()), ids=" ".join)
def test_no_option_takes_a_token_and_none_repeats_it(program: Program, token: str, words: tuple[str, ...]) -> None:
    for given in ([*words, token], [*words[:-1], f"{words[-1]}={token}"], [*words, f"Bearer {token}"]):
        said = program(*given)
        assert (said.code, said.out) == (USAGE, "")
        assert "was given a token" in said.err
        holds_nothing_of(token, said)


@pytest.mark.parametrize("setting", list(config.every()), ids=lambda setting: f"{setting.section}.{setting.name}")
def test_a_token_among_the_settings_is_not_repeated(program: Program, token: str, setting: config.Setting) -> None:
    said = program("keys", "list", **{f"TOLLGATE_{setting.section}__{setting.name}".upper(): token})
    holds_nothing_of(token, said)


def test_what_is_wrong_is_said_without_the_token_in_it_though_it_was_cut(program: Program, token: str) -> None:
    header, claims, signature = token.split(".")
    said = program("receipts", "--wait", f"{header}.{claims[:20]}\n{claims[20:]}.{signature}")
    assert said.code == USAGE
    holds_nothing_of(signature, Said(said.code, said.out, said.err))
    assert signature not in said.err
    assert "is no trigger id" in said.err


def test_what_is_not_text_holds_no_token(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff")
    for words in (("token", "inspect"), ("token", "verify"), ("token", "revoke"), ("emit", "a/b")):
        said = program(*words, "--token-file", str(file))
        assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1)
        assert "is not text" in said.err


def test_commands_about_one_token_take_it_from_the_environment(program: Program, token: str) -> None:
    said = program("token", "inspect", TOLLGATE_TOKEN=token)
    assert said.rows[0]["unverified_claims"] == OtherIssuer.claims_of(token)
    assert "TOLLGATE_TOKEN" in program("token", "inspect").err
    assert "is not JSON" not in program("token", "verify", TOLLGATE_TOKEN=token).err
    assert "token_malformed" in program("token", "revoke", TOLLGATE_TOKEN="a.b").err
    assert "exactly one" in program("token", "revoke").err
    assert "--since has no meaning" in program("token", "revoke", "--since", "1m", TOLLGATE_TOKEN=token).err


# ── what is wrong ──

DEEP = "[" * 5000 + "]" * 5000
BAD_JSON = {
    "too deep": (DEEP, "nested deeper"), "no number": ("NaN", "not JSON"), "twice": ('{"a":1,"a":2}', "named twice"),
    "long": ("9" * 30, "15 digits"), "half a pair": ('"\\ud800"', "surrogate"), "two values": ('1,"x":2', "one JSON value"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD_JSON.values(), ids=BAD_JSON)
def test_parameters_the_gate_would_not_take_are_not_sent(
    program: Program, tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "params.json"
    file.write_text(f'{{"x":{text}}}')
    cases = [("--param", f"x:={text}")] + ([("--params-file", str(file))] if told != "one JSON value" else [])
    for words in cases:
        for command in (("emit", "a/b"), ("token", "issue", "--job", "a/b", "--ttl", "60")):
            said = program(*command, *words, TOLLGATE_TOKEN="a.b.c")
            assert (said.code, said.out) == (USAGE, "")
            assert told in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("receipts", "--since", "30000d"), "before 1970"),
        (("receipts", "--since", "2999-01-01T00:00:00Z"), "still to come"),
        (("token", "revoke", "--subject", "x", "--since", "99999d"), "before 1970"),
        (("token", "revoke", "--subject", "x", "--since", "0001-01-01T00:00:00Z"), "before 1970"),
        (("token", "revoke", "--subject", "x", "--since", "2999-01-01T00:00:00Z"), "still to come"),
        (("receipts", "--wait", "0-99", "--timeout", "inf"), "--timeout"),
        (("receipts", "--wait", "0-99", "--timeout", "nan"), "--timeout"),
        (("emit", "a/b", "--rate", "inf"), "--rate"),
        (("emit", "a/b", "--rate", "nan"), "--rate"),
        (("emit", "a/b", "--timeout", "nan", "--wait"), "--timeout"),
        (("emit", "a/b", "--param", "a=1", "--param", "a=2"), "given twice"),
        (("jobs", "list", "--bootstrap", "localhost:notaport"), "HOST:PORT"),
        (("jobs", "list", "--bootstrap", "localhost:70000"), "HOST:PORT"),
        (("jobs", "list", "--bootstrap", "localhost:9092,"), "HOST:PORT"),
        (("jobs", "list", "--bootstrap", "localhost:0"), "HOST:PORT"),
        (("jobs", "list", "--bootstrap", "[::1"), "HOST:PORT"),
        (("receipts", "--outcome", "acepted"), "accepted"),
        (("audit", "--outcome", "acepted"), "duplicate"),
        (("dead-letters", "list", "--reason", "nonsens"), "token_expired"),
        (("explain", "3-\N{SUPERSCRIPT TWO}"), "neither coordinates"),
        (("token", "issue", "--job", "a/b"), "ttl_missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_a_usage_error_and_says_what_is_right(
    program: Program, words: tuple[str, ...], told: str
) -> None:
    if words[:2] == ("token", "issue"):
        assert program("keys", "generate").code == 0
    said = program(*words, TOLLGATE_TOKEN="a.b.c")
    assert (said.code, said.out) == (USAGE, "")
    assert told in said.err


@pytest.mark.parametrize("address", ["localhost", "localhost:1", "a:1,b:2", "[::1]:9092", "[::1]", "10.0.0.1:9092, b"])
def test_addresses_of_brokers_are_taken(program: Program, address: str) -> None:
    assert program("topics", "create", "--print", "--bootstrap", address).code == 0


def test_a_jwk_set_too_deep_is_no_failure_of_ours(program: Program, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(DEEP)
    said = program("trust", "register", "emitter:ci", "--jwks", "deep.json", "--job", "a/b")
    assert (said.code, said.err.count("\n")) == (USAGE, 1)


def test_a_header_from_a_file_that_is_no_text_is_told(program: Program, tmp_path: Path) -> None:
    (tmp_path / "value").write_text("{}")
    (tmp_path / "binary").write_bytes(b"\xff")
    said = program("explain", "value", "-H", "authorization: Bearer @binary")
    assert (said.code, said.err) == (USAGE, "binary is not text: a header from a file is UTF-8\n")


def test_no_keys_is_said_with_what_makes_one(program: Program) -> None:
    assert "tollgate keys generate" in program("keys", "list").err


# ── what reaches the terminal ──

STEERS = "\x1b[2J\x85\x9b31m\N{RIGHT-TO-LEFT OVERRIDE}\u2066\u2028\x7f"


@pytest.mark.parametrize("form", ["json", "jsonl", "table"])
def test_what_steers_a_terminal_is_escaped_and_the_rest_stays_readable(program: Program, form: str) -> None:
    claims = {"note": STEERS, "sub": "Größe 日本 \N{PARTY POPPER}"}
    token = jwt.encode(claims, "k" * 32, "HS256", headers={"kid": "k", "typ": "trigger+jwt"})
    said = program("token", "inspect", "-o", form, TOLLGATE_TOKEN=token)
    assert not [c for c in said.out if not c.isprintable() and c != "\n"]
    if form != "table":
        assert claims["sub"] in said.out
        assert json.loads(said.out)["unverified_claims"] == claims


# ── what no text can hold ──


@pytest.mark.parametrize("words", [("emit", "a/b", "--correlation-id"), ("token", "revoke", "--subject"),
                                   ("token", "revoke", "--jti", "x", "--reason"), ("explain", "f", "-H")], ids=" ".join)  # fmt: skip
def test_bytes_that_are_no_text_are_refused_before_anything_is_sent(program: Program, words: tuple[str, ...]) -> None:
    said = program(*words, "x: \udcff", TOLLGATE_TOKEN="a.b.c")
    assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1)
    assert "UTF-8" in said.err


def test_a_triggers_own_key_is_that_by_which_its_home_is_found_as_far_as_the_emitter_can_know() -> None:
    issuer, handle = OtherIssuer("tollgate."), "ref:" + "A" * 43
    once, many = issuer.token("once"), issuer.token("many")
    assert home_of(once, None) == issuer.claims_of(once)["jti"]
    assert home_of(issuer.token("once", key="mine"), None) == "mine"
    assert home_of(many, "beside") == "beside"
    assert home_of(many, None) is None
    assert home_of(handle, "beside") == "beside"  # what it stands for, only gates and ops can see
    assert home_of(handle, None) is None


def test_options_before_a_subcommand_are_not_dropped(program: Program) -> None:
    said = program("audit", "--prefix", "nope.", "verify")
    assert (said.code, said.out) == (USAGE, "")
    assert "tollgate audit verify --prefix" in said.err
