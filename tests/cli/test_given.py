"""What is given on a command line, whatever it is: no token of it is repeated, and what is wrong is one sentence.

The program runs in this process: these are many, and none of them reaches a broker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import config
from app.cli import main
from tests.cli.program import Said
from tests.support.gates import environment
from tests.support.issuer import OtherIssuer

USAGE = 2
NOBODY = "127.0.0.1:1"
Program = Callable[..., Said]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """`tollgate`, in this process and an empty directory."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(NOBODY, "tollgate.").items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, **env: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["tollgate", *arguments])
        with monkeypatch.context() as patched:
            for name, value in env.items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main.main()
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def token() -> str:
    return OtherIssuer("tollgate.").token()


def commands() -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The words of every command there is, and its parameters."""
    for command in main.COMMANDS:
        loaded = main._load(command)
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


# ── what no text can hold ──


@pytest.mark.parametrize("words", [("emit", "a/b", "--correlation-id"), ("token", "revoke", "--subject"),
                                   ("token", "revoke", "--jti", "x", "--reason"), ("explain", "f", "-H")], ids=" ".join)  # fmt: skip
def test_bytes_that_are_no_text_are_refused_before_anything_is_sent(program: Program, words: tuple[str, ...]) -> None:
    said = program(*words, "x: \udcff", TOLLGATE_TOKEN="a.b.c")
    assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1)
    assert "UTF-8" in said.err


def test_options_before_a_subcommand_are_not_dropped(program: Program) -> None:
    said = program("audit", "--prefix", "nope.", "verify")
    assert (said.code, said.out) == (USAGE, "")
    assert "tollgate audit verify --prefix" in said.err
