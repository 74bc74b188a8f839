"""Strict JSON (RFC 8259): bytes become one object that every reader would read the same way, or a named refusal.

orjson refuses what is not JSON in UTF-8, and what is left (members given twice, depth, numbers) is found by counting.
Only bytes that look suspicious are read a second time, slowly and exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final, NoReturn

import orjson

from app.gate import limits


class JSONFault(StrEnum):
    """What is wrong; the values end the reason codes `json_…` of a record."""

    MALFORMED = "malformed"
    DUPLICATE_MEMBER = "duplicate_member"
    TOO_DEEP = "too_deep"
    NUMBER_UNSAFE = "number_unsafe"


class JSONRefused(Exception):  # noqa: N818 - a refusal, not an error of ours; never leaves gate/
    """The bytes are not one strict JSON object."""

    def __init__(self, fault: JSONFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail

    @property
    def record_code(self) -> str:
        """The reason code when the bytes are a record's value."""
        return f"json_{self.fault.value}"


_BACKSLASH: Final = ord("\\")
# orjson turns integers beyond 64 bits into floats, so only a float this large can hide a long integer.
_INTEGER_AS_FLOAT_MIN: Final = 2.0**63
_INT_MAX: Final = limits.JSON_MAX_INT
_TOO_DEEP: Final = f"nested deeper than {limits.JSON_MAX_DEPTH} levels"
_INT_MAX_DIGITS: Final = len(str(limits.JSON_MAX_INT))
# Deeper than this, nothing is handed to a parser that recurses; orjson itself stops at 1024.
_RECURSION_MAX_DEPTH: Final = 100
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def loads_object(raw: bytes) -> dict[str, Any]:
    """The object `raw` holds. Raises JSONRefused, whose `fault` names the first of the faults in their order."""
    try:
        value = orjson.loads(raw)
        # Written again, each member stands once and colons inside texts stand as they were: a member given twice leaves
        # at least its own colon behind. An escaped colon (`\u003a`) could make up for it: such bytes are read exactly.
        hidden_colon = _BACKSLASH in raw and b"\\u003" in raw
        repeated = hidden_colon or raw.count(b":") != orjson.dumps(value).count(b":")
    except (ValueError, TypeError):  # not JSON; or, while writing, nested beyond orjson's 254 levels
        _refuse_exactly(raw)
    if type(value) is not dict:
        raise JSONRefused(JSONFault.MALFORMED, "the top level is not an object")
    if repeated:
        _refuse_duplicates(raw)
    _walk(value.values(), limits.JSON_MAX_DEPTH, raw)
    return value


def _walk(members: Iterable[Any], levels_left: int, raw: bytes) -> None:
    """Check numbers and depth; recurses no deeper than the depth it allows."""
    for member in members:
        kind = type(member)
        if kind is str:
            continue
        if kind is int:
            if not -_INT_MAX <= member <= _INT_MAX:
                raise JSONRefused(JSONFault.NUMBER_UNSAFE, "an integer of more than 15 digits")
        elif kind is dict or kind is list:
            if levels_left == 1:
                raise JSONRefused(JSONFault.TOO_DEEP, _TOO_DEEP)
            _walk(member.values() if kind is dict else member, levels_left - 1, raw)
        elif kind is float and not -_INTEGER_AS_FLOAT_MIN < member < _INTEGER_AS_FLOAT_MIN:
            _refuse_long_integers(raw)


def _refuse_exactly(raw: bytes) -> NoReturn:
    """Say what is wrong with bytes that orjson does not take."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise JSONRefused(JSONFault.MALFORMED, "not UTF-8") from None
    if _recurses_too_far(text):
        raise JSONRefused(JSONFault.TOO_DEEP, _TOO_DEEP)
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=_not_a_number)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JSONRefused(JSONFault.MALFORMED, "half of a surrogate pair, which UTF-8 cannot hold") from None
    except ValueError:
        raise JSONRefused(JSONFault.MALFORMED, "not JSON (RFC 8259)") from None
    if type(value) is not dict:
        raise JSONRefused(JSONFault.MALFORMED, "the top level is not an object")
    _refuse_duplicates(raw)
    # The grammar allows 1e400 (RFC 8259 section 6); no reader can hold it. A text of half a pair, given twice or
    # not, is found above: nothing else is left that orjson refuses and Python's own parser takes.
    raise JSONRefused(JSONFault.NUMBER_UNSAFE, "a number beyond the range of a double")


def _refuse_duplicates(raw: bytes) -> None:
    """Read again with a hook on every object; exact, and slower by a factor of ten."""
    text = raw.decode("utf-8")
    if _recurses_too_far(text):
        raise JSONRefused(JSONFault.TOO_DEEP, _TOO_DEEP)
    json.loads(text, object_pairs_hook=_members_once, parse_int=str, parse_float=str)


def _members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JSONRefused(JSONFault.DUPLICATE_MEMBER, "a member is named twice in one object")
    return members


def _refuse_long_integers(raw: bytes) -> None:
    json.loads(raw, parse_int=_short_integer, parse_float=str)


def _short_integer(digits: str) -> None:
    if len(digits.lstrip("-")) > _INT_MAX_DIGITS:
        raise JSONRefused(JSONFault.NUMBER_UNSAFE, "an integer of more than 15 digits")


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(constant)


def _recurses_too_far(text: str) -> bool:
    """Whether brackets nest too deep for a parser that recurses; read without recursion."""
    if text.count("[") + text.count("{") <= _RECURSION_MAX_DEPTH:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        mark = token[0]
        if mark in "[{":
            depth += 1
            if depth > _RECURSION_MAX_DEPTH:
                return True
        elif mark in "]}":
            depth -= 1
    return False
