"""Canonical JSON (RFC 8785): one spelling of parameters, so that equal requests have equal bytes.

orjson writes the same bytes as RFC 8785 for everything but two things: numbers with a fraction or exponent (it has
other rules for their digits) and the order of names outside ASCII (RFC 8785 section 3.2.3 sorts UTF-16 code units).
Values that hold neither, which is nearly all, take its way; a property test compares the two.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
import rfc8785

from app.gate import limits

_PLAIN: Final = frozenset({str, int, bool, type(None)})


def plain_canonical(params: dict[str, Any]) -> bytes | None:
    """The same for flat parameters of texts, safe integers and truth values under ASCII names; else None."""
    for name, value in params.items():
        kind = type(value)
        if kind is int:
            if not -limits.JSON_MAX_INT <= value <= limits.JSON_MAX_INT:
                return None
        elif kind is not str and kind is not bool and value is not None:
            return None
        if not name.isascii():
            return None
    return orjson.dumps(params, option=orjson.OPT_SORT_KEYS)


def canonical(params: dict[str, Any]) -> bytes:
    """The bytes of `params`: values that strict JSON can hold, integers within 15 digits."""
    if _plain_object(params):
        return orjson.dumps(params, option=orjson.OPT_SORT_KEYS)
    return rfc8785.dumps(params)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 and 1.0 are, 1 and true (which Python holds for equal) are not."""
    if type(one) is type(other) and type(one) in _PLAIN:
        return bool(one == other)
    return canonical({"": one}) == canonical({"": other})


def _plain_object(members: dict[str, Any]) -> bool:
    for name, value in members.items():
        if not name.isascii() or (type(value) not in _PLAIN and not _plain_container(value)):
            return False
    return True


def _plain_container(value: Any) -> bool:
    if type(value) is dict:
        return _plain_object(value)
    if type(value) is not list:
        return False
    return all(type(item) in _PLAIN or _plain_container(item) for item in value)
