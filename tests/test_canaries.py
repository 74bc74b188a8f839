"""The search for secrets finds what is planted, in every form and at every place, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import random
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from tests.support.canaries import Canaries, of_record
from tests.support.issuer import OtherIssuer

RANDOM = random.Random(7)
TOKEN = OtherIssuer("canaries.").token()
HANDLE = "ref:" + base64.urlsafe_b64encode(RANDOM.randbytes(32)).decode().rstrip("=")
SECRET = f"tgs_{'0a' * 8}_" + base64.urlsafe_b64encode(RANDOM.randbytes(32)).decode().rstrip("=")
PLANTED = {"token": TOKEN, "handle": HANDLE, "client secret": SECRET}


def raw(text: str) -> bytes:
    part = text.rpartition(".")[2].rpartition(":")[2]
    part = part[-43:] if part.startswith("tgs_") else part
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


AS = {
    "as it is": lambda text: text.encode(),
    "in hex": lambda text: text.encode().hex().encode(),
    "in capital hex": lambda text: text.encode().hex().upper().encode(),
    "in base64": lambda text: base64.b64encode(text.encode()),
    "in base64url": lambda text: base64.urlsafe_b64encode(text.encode()),
    "in base64 after one byte": lambda text: base64.b64encode(b"x" + text.encode()),
    "in base64 after two bytes": lambda text: base64.b64encode(b"xy" + text.encode() + b"z"),
    "its bytes": raw,
    "its bytes in hex": lambda text: raw(text).hex().encode(),
    "its bytes in plain base64": lambda text: base64.b64encode(raw(text)),
    "its bytes in base64 after others": lambda text: base64.b64encode(b"xy" + raw(text)),
    "in UTF-16": lambda text: text.encode("utf-16-le"),
    "percent-encoded": lambda text: quote(text, safe="").encode(),
    "within other words": lambda text: f'{{"detail":"no {text}, please"}}'.encode(),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("form", AS)
@pytest.mark.parametrize("noise", [b"", b"\x00", b'{"', b"abc", bytes(range(200, 256)) * 40])
def test_what_is_planted_is_found_in_every_form_wherever_it_stands(kind: str, form: str, noise: bytes) -> None:
    canaries = Canaries()
    canaries.note(f"made: {PLANTED[kind]} and so on")
    planted = noise + AS[form](PLANTED[kind]) + noise
    (found,) = canaries.found_in(planted)
    assert found.startswith(kind)
    assert canaries.leaks({"a log": [noise, planted], "another": [noise]}) == {"a log": [found]}
    assert PLANTED[kind].rpartition(".")[2] not in found


@pytest.mark.parametrize("kind", PLANTED)
def test_where_it_is_not_nothing_is_found(kind: str) -> None:
    canaries = Canaries()
    canaries.note(*PLANTED.values())
    text = PLANTED[kind]
    other = text[:-20] + ("A" if text[-20] != "A" else "B") + text[-19:]
    digest = hashlib.sha256(text.encode()).hexdigest().encode()
    for clean in (b"", b"x", other.encode(), digest, text[:-30].encode(), RANDOM.randbytes(200_000)):
        assert canaries.found_in(clean) == []


def test_among_many_alike_each_is_told_from_the_others() -> None:
    """Tokens of one message with signatures that differ in one character, as tests that alter them make."""
    canaries = Canaries()
    altered = [TOKEN[:-40] + letter + TOKEN[-39:] for letter in "abcdefgh"]
    canaries.note(*altered)
    assert canaries.kinds == {"token": 8}
    assert len({found for text in altered for found in canaries.found_in(text.encode())}) == 8
    assert canaries.found_in((TOKEN[:-40] + "-" + TOKEN[-39:]).encode()) == []


@pytest.mark.parametrize("cut", range(5))
def test_a_piece_of_a_header_or_of_claims_is_none_whatever_put_it_in_a_signatures_place(cut: int) -> None:
    header, claims, _ = TOKEN.split(".")
    canaries = Canaries()
    for piece in (header[cut:], claims[cut:], claims[cut : cut + 86], claims[-86 - cut :]):
        canaries.note(f"{header}.{claims}.{piece}", f" {piece} ", f"{header}.{claims[:40]}%2e{piece}.x")
    assert canaries.kinds == {}
    canaries.note(TOKEN)
    assert canaries.kinds == {"token": 1}


def test_they_are_heard_wherever_they_are_said() -> None:
    canaries = Canaries()
    basic = base64.b64encode(f"svc%3Aci:{SECRET}".encode()).decode()
    canaries.note(f"Basic {basic}", f"token={quote(HANDLE, safe='')}&x=1", b"\xff" + TOKEN.encode(), None)
    assert canaries.kinds == {"client secret": 1, "handle": 1, "token": 1}


def test_of_a_record_nothing_is_left_out() -> None:
    canaries = Canaries()
    canaries.note(TOKEN)
    at = TOKEN.encode()
    for planted in (
        {"key": at}, {"value": b"\x00" + at}, {"headers": [("x", None), ("y", at)]}, {"headers": [(TOKEN, b"")]},
    ):  # fmt: skip
        record = SimpleNamespace(**({"key": None, "value": None, "headers": []} | planted))
        assert canaries.found_in(of_record(record))
