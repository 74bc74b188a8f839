"""What people write on a command line, read once: parameters, lengths of time, points in time, tokens."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from app.cli import common

_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LENGTH: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
_TOKEN_FILE_MAX_CHARACTERS: Final = 1 << 20


def params(given: Sequence[str], params_file: Path | None) -> dict[str, Any]:
    """Parameters from `NAME=TEXT`, `NAME:=JSON` and a file, over which the others win."""
    read: dict[str, Any] = {}
    if params_file is not None:
        try:
            from_file = json.loads(params_file.read_bytes())
        except ValueError as error:
            common.fail(f"{params_file} is not JSON: {error}", common.USAGE)
        if not isinstance(from_file, dict):
            common.fail(f"{params_file}: parameters are one JSON object", common.USAGE)
        read |= from_file
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.rstrip(":"):
            common.fail(f"--param {name}: write NAME=TEXT, or NAME:=JSON", common.USAGE)
        if name.endswith(":"):
            try:
                read[name[:-1]] = json.loads(value)
            except ValueError as error:
                common.fail(f"--param {name}: after := comes JSON: {error}", common.USAGE)
        else:
            read[name] = value
    return read


def length_s(option: str, text: str) -> int:
    """Seconds of `300`, `300s`, `5m`, `24h` or `7d`."""
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        common.fail(f"{option} {text}: give seconds, or a number and a unit, such as 300, 5m, 24h or 7d", common.USAGE)
    return int(found[1]) * _UNITS_S[found[2]]


def moment_s(option: str, text: str, now_s: int) -> int:
    """Seconds since 1970 of `10m` (ago), or of a time such as 2026-01-31T12:00:00Z."""
    if _LENGTH.fullmatch(text.strip()):
        return now_s - length_s(option, text)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        common.fail(f"{option} {text}: give how long ago (10m), or a time with its zone (2026-01-31T12:00:00Z)", 2)
    return int(moment.timestamp())


def token_text(token_file: str, characters: int = -1) -> tuple[str, str]:
    """What a token file holds (`-`: stdin), and what to call it. Raises OSError."""
    if token_file == "-":  # noqa: S105 - stdin
        return sys.stdin.read(characters), "stdin"
    with Path(token_file).open(encoding="utf-8", errors="surrogateescape") as file:
        return file.read(characters), token_file


def token(token_file: str) -> str:
    """One token from a file, or from stdin for `-`; never from an argument, which a process list would show."""
    text, where = token_text(token_file, _TOKEN_FILE_MAX_CHARACTERS)
    words = text.split()
    if len(words) != 1:
        common.fail(f"{where} holds {'no token' if not words else 'more than one word'}: give one token", common.USAGE)
    return words[0]
