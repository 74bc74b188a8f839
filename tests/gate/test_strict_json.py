"""Strict JSON: exactly one reading of any bytes, or the right refusal."""

import json
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.gate.strict_json import JSONFault, JSONRefused, loads_object

SUITE = Path(__file__).parents[1] / "vectors" / "JSONTestSuite" / "test_parsing"


def verdict(raw: bytes):
    try:
        return loads_object(raw)
    except JSONRefused as refused:
        return refused.fault.value


def wrapped(raw: bytes):
    """The suite's documents are of any type; ours are objects, so they are read as a member."""
    return verdict(b'{"m":' + raw + b"}")


# What RFC 8259 allows and we refuse, with the reason: the whole list.
STRICTER = {
    "y_object_duplicated_key.json": "duplicate_member",  # RFC 8259 section 4: names SHOULD be unique
    "y_object_duplicated_key_and_value.json": "duplicate_member",
}
# What RFC 8259 leaves to the parser ("i_"), and we accept; every other i_ is refused.
ACCEPTED_AT_WILL = {
    "i_number_double_huge_neg_exp.json",  # 1e-400-like: rounds to zero in every reader
    "i_number_real_underflow.json",
}


def test_every_document_of_the_suite_has_its_verdict():
    wrong = []
    for path in sorted(SUITE.glob("*.json")):
        got = wrapped(path.read_bytes())
        accepted = isinstance(got, dict)
        if path.name.startswith("y_"):
            right = got == STRICTER[path.name] if path.name in STRICTER else accepted
        elif path.name.startswith("n_"):
            right = not accepted
        else:
            right = accepted == (path.name in ACCEPTED_AT_WILL)
        if not right:
            wrong.append((path.name, got))
    assert not wrong
    assert len(list(SUITE.glob("*.json"))) == 318


def test_top_level_documents_of_the_suite_are_never_wrongly_accepted():
    for path in SUITE.glob("n_*.json"):
        assert not isinstance(verdict(path.read_bytes()), dict), path.name


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "malformed"),
        (b"null", "malformed"),
        (b"[1]", "malformed"),
        (b'"x"', "malformed"),
        (b"1e400", "malformed"),
        (b'[{"a":1,"a":2}]', "malformed"),
        (b"{} {}", "malformed"),
        (b"\xef\xbb\xbf{}", "malformed"),
        ('{"a":1}'.encode("utf-16"), "malformed"),
        ('{"a":1}'.encode("utf-16-le"), "malformed"),
        ('{"a":1}'.encode("utf-32"), "malformed"),
        (b'{"a":"\xff"}', "malformed"),
        (b'{"a":"\xed\xa0\x80"}', "malformed"),
        (b'{"a":"\xc0\xaf"}', "malformed"),
        (b'{"a":"\\ud800"}', "malformed"),
        (b'{"a":"\\udc00\\ud800"}', "malformed"),
        (b'{"a":NaN}', "malformed"),
        (b'{"a":Infinity}', "malformed"),
        (b'{"a":-Infinity}', "malformed"),
        (b'{"a":01}', "malformed"),
        (b'{"a":1,}', "malformed"),
        (b"{'a':1}", "malformed"),
        (b'{"a":"\x00"}', "malformed"),
        (b"\x00{}", "malformed"),
        (b'{"a":1,"a":1}', "duplicate_member"),
        (b'{"a":1,"\\u0061":2}', "duplicate_member"),
        (b'{"a":{"b":1,"b":2}}', "duplicate_member"),
        (b'{"a":[{"b":1},{"b":1,"b":1}]}', "duplicate_member"),
        (b'{"a":"\\u003a","a":"x"}', "duplicate_member"),
        (b'{"a":"x","a":"\\u003A"}', "duplicate_member"),
        (b'{"a:":1,"b":"::","a:":2}', "duplicate_member"),
        (b'{"a":1,"a":1e400}', "duplicate_member"),
        (b'{"a":[[[[[[[[[]]]]]]]]],"a":1}', "duplicate_member"),
        (b'{"a":' * 8 + b"{}" + b"}" * 8, "too_deep"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "too_deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b'{"a":' + b"[" * 8 + b"]" * 8 + b"}", "too_deep"),
        (b'{"a":1000000000000000}', "number_unsafe"),
        (b'{"a":-1000000000000000}', "number_unsafe"),
        (b'{"a":18446744073709551616}', "number_unsafe"),
        (b'{"a":-9223372036854775809}', "number_unsafe"),
        (b'{"a":[[123456789012345678901234567890]]}', "number_unsafe"),
        (b'{"a":1' + b"0" * 5000 + b"}", "number_unsafe"),
        (b'{"a":1e400}', "number_unsafe"),
        (b'{"a":-1e400}', "number_unsafe"),
    ],
)
def test_a_fault_has_its_name(raw, fault):
    assert verdict(raw) == fault
    assert JSONRefused(JSONFault(fault), "").record_code == f"json_{fault}"


@pytest.mark.parametrize(
    "raw",
    [
        b"{}", b" \t\r\n{ } ", b'{"a":999999999999999,"b":-999999999999999}', b'{"a":1e20,"b":1.5,"c":-0,"d":1e-400}',
        b'{"a:b":"c:d","e":{"f:":":"}}', b'{"a":"\\u003a","b":"\\\\u003a"}', '{"a":"é\U0001f600"}'.encode(),
        b'{"a":"\\ud83d\\ude00"}', b'{"a":' * 7 + b"[1]" + b"}" * 7, b'{"":1,"\\u0000":2}',
        b'{"a":[{"b":1},{"b":1}],"c":{"b":1}}', b'{"a":0.12345678901234567890}', b'{"a":true,"b":null}',
    ],
)  # fmt: skip
def test_what_everyone_reads_alike_is_read(raw):
    assert loads_object(raw) == json.loads(raw)


TEXTS = st.text(st.sampled_from('a:"\\/{}[]é\n\x01u003'), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**16), 10**16)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(TEXTS, VALUES), max_size=5), st.booleans())
def test_duplicates_are_found_exactly(pairs, ascii_only):
    raw = ("{" + ",".join(f"{json.dumps(n, ensure_ascii=ascii_only)}:{json.dumps(v)}" for n, v in pairs) + "}").encode()
    got = verdict(raw)
    repeated = len({name for name, _ in pairs}) < len(pairs)
    assert (got == "duplicate_member") == repeated
    if isinstance(got, dict):
        assert got == json.loads(raw)


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.text('{}[]":,\\u0d83e1.-+ ', max_size=30).map(str.encode))
def test_any_bytes_give_an_object_or_a_refusal(raw):
    got = verdict(raw)
    if isinstance(got, dict):
        assert got == orjson.loads(raw) == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [b"[" * 1_048_576, b'"\\' * 524_288, b'{"a":"' + b'\\"' * 524_288, b'{"a":' * 200_000, b"[]," * 349_525,
     b'{"a":1' + b"0" * 1_048_000 + b"}", b'{"a":"\\u003a' + b":" * 1_048_000 + b'"}', b"\xff" * 1_048_576],
    ids=lambda raw: raw[:6],
)  # fmt: skip
def test_a_mebibyte_of_anything_is_judged_soon(raw):
    start = time.process_time()
    verdict(raw)
    assert time.process_time() - start < 1
