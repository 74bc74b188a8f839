"""What anyone may send costs in proportion to its size, and no more memory than a few times that.

Whatever runs before a signature is verified runs for strangers. Each input is a small piece many times over, at two
sizes, and their CPU times are compared with each other: at eight times the size, the square is sixty-four times as much.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.gate import limits
from app.gate.original import original
from app.gate.redact import redact, token_shaped
from app.gate.trigger import Record, parse

SMALL, LARGE = 6_000, 48_000
ALLOWED = 4 * LARGE / SMALL  # four times what is in proportion
UNSEEN_S = 0.1  # less is nobody's harm, and too little to compare

PIECES = (
    "eyJA", "eyJAAAAAAAAA", "eyJhbGciOiJF", ".", "..", "ref:", "\\u00", "\\u0041", "%25", "%41", "%", "\\", "A" * 16,
    "A" * 86, "A" * 5, " ", "=", "\n", "\r\n", "\x00", '"signature":"', "ZXlK", "é", '"', ":", "ref:AAAAAAAAAAAAAAAA", "-",
    "/", "{", "}", "[", "]", ",", "a", "1", "1e9", "\\n", "\\\\", "IHsi", "ewok",
)  # fmt: skip


def record(value: bytes, headers: Any = ()) -> Record:
    return Record(0, 0, 1, True, None, value, headers)


def presented(text: str) -> object:
    return redact(json.dumps({"a.b": 1, "token": text}).encode(), text.encode())


WAYS: dict[str, Callable[[str], object]] = {
    "shape of a text": token_shaped,
    "redacted": lambda text: redact(text.encode(), None),
    "redacted, as the token presented": presented,
    "params": lambda text: parse(record(json.dumps({"job": "x", "token": "x", "params": {"a": text}}).encode())),
    "value": lambda text: parse(record(text.encode())),
    "value in an object": lambda text: parse(record(b'{"a":"' + text.encode() + b'"}')),
}  # fmt: skip


def seconds(way: Callable[[str], object], text: str) -> float:
    began = time.process_time()
    way(text)
    return time.process_time() - began


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join), st.sampled_from(["", " .", "x.y"]))
def test_no_repetition_costs_the_square_of_its_size(pattern: str, end: str) -> None:
    for name, way in WAYS.items():
        large = seconds(way, pattern * (LARGE // len(pattern)) + end)
        if large < UNSEEN_S:
            continue
        small = min(seconds(way, pattern * (SMALL // len(pattern)) + end) for _ in range(3))
        again = min(large, seconds(way, pattern * (LARGE // len(pattern)) + end))
        assert again <= ALLOWED * small, (name, pattern, end)


@pytest.mark.parametrize(
    "value",
    [
        json.dumps({"job": "x", "token": "x", "params": {"a": "eyJAAAAAAAAA" * 80_000 + " ."}}).encode(),
        json.dumps({"job": "a.b", "token": ("A" * 16 + ".") * 60_000}).encode(),
        json.dumps({"job": "a.b", "token": ".".join(f"{number:016}" for number in range(60_000))}).encode(),
        b"%41" * (2 << 20),
        b"\x00a" * (4 << 20),
    ],
    ids=["a run of headers", "equal parts", "different parts", "escapes beyond the limit", "UTF-16 beyond the limit"],
)
def test_a_record_takes_little_memory(value: bytes) -> None:
    given_record = record(value)
    tracemalloc.start()
    try:
        trigger = parse(given_record)
        original(given_record, getattr(trigger, "unverified_token", None), lambda *_: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * len(value)
    assert peak < 64 << 20


def test_what_nobody_is_shown_is_not_looked_through() -> None:
    token = "ref:" + "A" * 43
    huge = token.encode() + b" " * limits.RECORD_MAX_BYTES
    redacted, sealed = original(Record(0, 0, 1, True, huge, huge, (("h", huge),)), None, lambda *_: "sealed")
    assert redacted.key is not None
    assert token.encode() not in redacted.key
    assert redacted.headers == ()
    assert sealed is None


def test_a_token_in_a_headers_name_is_dropped() -> None:
    handle = "ref:" + "A" * 43
    redacted, _ = original(
        record(b"{}", ((handle, b"1"), (f"x-{handle}", b"2"), ("plain", b"3"))), None, lambda *_: None
    )
    assert redacted.headers == (("plain", b"3"),)
