"""Canonical JSON is RFC 8785's, on the fast way and on the slow one."""

import json

import orjson
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from app.gate.canonical import canonical, same_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**15) + 1, 10**15 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
PARAMS = st.dictionaries(
    TEXT, st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=12),
    max_size=5,
)  # fmt: skip


@given(PARAMS)
@example({"a": -0.0})
@example({"a": [{"b": 1e21}]})
@example({"\U0001f600": 1, "\ufb33": 2})  # UTF-16 and code point order differ
@example({"a": {"\U0001f600": 1, "\ufb33": 2}})
@example({"a": [[{"é": 1}]]})
@example({"a": '\x00\x1f\x7f\u2028"\\/\b\t\n\f\r'})
def test_canonical_bytes_are_those_of_the_reference(params):
    assert canonical(params) == rfc8785.dumps(params)


SMALL = st.dictionaries(TEXT, TEXT | st.integers(-(10**14), 10**14) | st.floats(-1e14, 1e14), max_size=5)


@given(SMALL)
def test_canonical_json_read_back_has_the_same_canonical_form(params):
    assert canonical(orjson.loads(canonical(params))) == canonical(params)


def test_the_example_of_rfc_8785_section_3_2_3_sorts_by_utf_16():
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert [*json.loads(canonical(dict.fromkeys(names)))] == [
        "\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True), (1, True, False), (0, False, False), (None, False, False), ("1", 1, False), ("é", "e\u0301", False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True), ([1, 2], [2, 1], False), ([True], [1], False), (0.0, -0.0, True),
    ],
)  # fmt: skip
def test_values_are_compared_as_json_not_as_python(one, other, same):
    assert same_json(one, other) is same
    assert same_json(other, one) is same
