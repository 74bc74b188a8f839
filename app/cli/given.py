"""What people write on a command line, read once: parameters, lengths of time, points in time, tokens."""

from __future__ import annotations

import getpass
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import typer

from app.cli import common
from app.gate import strict_json
from app.gate.strict_json import JSONRefused

_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LENGTH: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
_TRIGGER_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,19})")
_CLOCK_SLACK_S: Final = 60  # a time just read off another machine's clock


def params(given: Sequence[str], params_file: Path | None) -> dict[str, Any]:
    """Parameters from `NAME=TEXT`, `NAME:=JSON` and a file, over which the others win; JSON as strict as the gate's."""
    read: dict[str, Any] = {}
    if params_file is not None:
        try:
            read = strict_json.loads_object(params_file.read_bytes())
        except JSONRefused as refused:
            common.fail(f"{params_file}: parameters are one JSON object: {refused.detail}", common.USAGE)
    named: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        is_json, name = name.endswith(":"), name.removesuffix(":")
        if not equals or not name:
            common.fail(f"--param {name}: write NAME=TEXT, or NAME:=JSON", common.USAGE)
        if name in named:
            common.fail(f"--param {name} is given twice", common.USAGE)
        named[name] = _json(name, value) if is_json else value
    return read | named


def _json(name: str, text: str) -> Any:
    try:
        read = strict_json.loads_object(b'{"":%b}' % text.encode())
    except JSONRefused as refused:
        common.fail(f"--param {name}: after := comes JSON: {refused.detail}", common.USAGE)
    if len(read) != 1:  # `1,"x":2` went on after the value
        common.fail(f"--param {name}: after := comes one JSON value", common.USAGE)
    return read[""]


def length_s(option: str, text: str) -> int:
    """Seconds of `300`, `300s`, `5m`, `24h` or `7d`."""
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        common.fail(f"{option} {text}: give seconds, or a number and a unit, such as 300, 5m, 24h or 7d", common.USAGE)
    return int(found[1]) * _UNITS_S[found[2]]


def moment_s(option: str, text: str) -> int:
    """Seconds since 1970 of `10m` (ago), or of a time such as 2026-01-31T12:00:00Z; never one to come."""
    now_s = int(time.time())
    if _LENGTH.fullmatch(text.strip()):
        at_s = now_s - length_s(option, text)
    else:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            common.fail(
                f"{option} {text}: give how long ago (10m), or a time with its zone (2026-01-31T12:00:00Z)",
                common.USAGE,
            )
        at_s = int(moment.timestamp())
    if at_s < 0:
        common.fail(f"{option} {text} is before 1970: nothing here is as old", common.USAGE)
    if at_s > now_s + _CLOCK_SLACK_S:
        common.fail(f"{option} {text} is still to come: give a time that has passed", common.USAGE)
    return at_s


def finite(number: float | None) -> float | None:
    """An option's number; `inf` and `nan`, which are floats too, are none."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no number")
    return number


def one_of(option: str, text: str | None, known: Iterable[str]) -> None:
    """Refuse what is not among the known words, and name those."""
    if text is not None and text not in known:
        common.fail(f"{option} {text}: one of {', '.join(known)}", common.USAGE)


def trigger_id(text: str) -> tuple[int, int] | None:
    """Partition and offset of `3-1042`, or None: it is no trigger id."""
    found = _TRIGGER_ID.fullmatch(text)
    return (int(found[1]), int(found[2])) if found is not None else None


def tokens(token_file: str | None) -> tuple[list[str], str]:
    """The tokens of a file, of stdin (`-`) or (None) of TOLLGATE_TOKEN, and what to call that; never of an argument,
    which a process list would show. Raises OSError.
    """
    return _words(token_file, "TOLLGATE_TOKEN", "token")


def token(token_file: str | None) -> str:
    """The one token that a command is about."""
    words, where = tokens(token_file)
    if not words:
        common.fail(f"no token in {where}: give --token-file FILE, or - for stdin", common.USAGE)
    if len(words) > 1:
        common.fail(f"{where} holds more than one word: give one token", common.USAGE)
    return words[0]


def secret(name: str, secret_file: str | None) -> str:
    """The secret of the identity a command acts as: of a file, of stdin, of TOLLGATE_CLIENT_SECRET, or asked for."""
    if secret_file is None and "TOLLGATE_CLIENT_SECRET" not in os.environ and sys.stdin.isatty():
        return getpass.getpass(f"secret of {name}: ", stream=sys.stderr).strip()
    words, where = _words(secret_file, "TOLLGATE_CLIENT_SECRET", "secret")
    if len(words) != 1:
        common.fail(f"{where} does not hold one secret: give --secret-file FILE, or - for stdin", common.USAGE)
    return words[0]


def _words(file: str | None, variable: str, what: str) -> tuple[list[str], str]:
    if file is None:
        return os.environ.get(variable, "").split(), f"{variable} in the environment"
    raw, where = (sys.stdin.buffer.read(), "stdin") if file == "-" else (Path(file).read_bytes(), file)
    try:
        return raw.decode().split(), where
    except UnicodeDecodeError:
        common.fail(f"{where} is not text, so it holds no {what}", common.USAGE)
