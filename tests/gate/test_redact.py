"""Redaction: no usable piece of a token survives anywhere, and what is no token does."""

import base64
import hashlib
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.gate.definitions import job_name_fault
from app.gate.redact import redact, token_shaped
from tests.support.jose import b64
from tests.support.tokens import token

TOKEN = token()
RAW = TOKEN.encode()
HEADER, PAYLOAD, SIGNATURE = RAW.split(b".")
JWE = ".".join([
    b64(b'{"alg":"ECDH-ES","enc":"A256GCM"}'), "", b64(bytes(range(12))), b64(bytes(range(90, 250))), b64(bytes(range(16))),
])  # fmt: skip
PIECE = 16


def pieces(of: bytes) -> set[bytes]:
    return {of[at : at + PIECE] for at in range(len(of) - PIECE + 1)}


CANARIES = pieces(PAYLOAD) | pieces(SIGNATURE)


def survivors(data: bytes, presented: bytes | None = None) -> set[bytes]:
    kept, taken = redact(data, presented)
    assert all(piece in data for piece in taken)
    return pieces(kept) & CANARIES


def wrapped(text: str, width: int, end: str) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


CARRIERS = {
    "alone": lambda t: t,
    "value": lambda t: json.dumps({"job": "reports/nightly", "token": t, "params": {"region": "eu"}}),
    "key of a member": lambda t: json.dumps({t: 1}),
    "inside a text": lambda t: json.dumps({"note": f"please use {t}, and do not tell; it is secret."}),
    "nested JSON": lambda t: json.dumps({"body": json.dumps({"inner": json.dumps({"token": t})})}),
    "header": lambda t: f"Bearer {t}",
    "query": lambda t: f"https://x.example/cb?access_token={t}&state=1#f",
    "form": lambda t: f"a=1&token={t}&b=2",
    "percent-encoded dots": lambda t: t.replace(".", "%2E"),
    "percent-encoded twice": lambda t: t.replace(".", "%252e").replace("-", "%252d").replace("_", "%255F"),
    "percent-encoded whole": lambda t: "".join(f"%{ord(c):02X}" for c in t),
    "percent-encoded JSON": lambda t: quote(json.dumps({"token": t})),
    "JSON escapes": lambda t: '{"token":"' + "".join(f"\\u{ord(c):04x}" for c in t) + '"}',
    "first letter escaped": lambda t: '{"token":"\\u0065' + t[1:] + '"}',
    "dots escaped": lambda t: '{"token":"' + t.replace(".", "\\u002E") + '"}',
    "escaped solidus around": lambda t: '{"token":"Bearer\\/' + t + '\\/"}',
    "padded": lambda t: ".".join(part + "=" * (-len(part) % 4) for part in t.split(".")),
    "a line break inside": lambda t: t[:100] + "\n" + t[100:],
    "a folded line inside": lambda t: t[:100] + "\r\n    " + t[100:],
    "an escaped line break inside": lambda t: t[:100] + "\\r\\n" + t[100:],
    "lines of 64": lambda t: wrapped(t, 64, "\n"),
    "lines of 76, quoted": lambda t: wrapped(t, 76, "=\r\n"),
    "what parses as nothing": lambda t: '{"token":"' + t + '","x":[\x00\x01\x02}',
    "broken UTF-8": lambda t: "\udcff\udcfe" + t + "\udcff",
    "glued to a word": lambda t: "token" + t + "end",
    "cut after the payload": lambda t: t.rpartition(".")[0],
    "cut in the signature": lambda t: t[:-30],
    "without its first letters": lambda t: t[20:],
    "twice": lambda t: f"{t} {t}",
    "in CSV": lambda t: f"1,{t},3",
    "in XML": lambda t: f"<token>{t}</token>",
    "as a cookie": lambda t: f"session={t}; Path=/",
}


# The limit of going by shape: a token already cut, or broken just where its payload begins, that is altered besides may
# have nothing left to tell it by. These carriers leave it whole.
WHOLE = sorted(name for name in CARRIERS if not name.startswith(("cut", "without", "lines of")))


def carried(name: str, text: str) -> bytes:
    return CARRIERS[name](text).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("presented", [None, RAW], ids=["unknown", "presented"])
@pytest.mark.parametrize("name", CARRIERS)
def test_no_piece_of_a_token_survives(name, presented):
    data = carried(name, TOKEN)
    kept, taken = redact(data, presented)
    assert b"[redacted sha256:" in kept
    assert taken
    assert not survivors(data, presented)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
def test_no_piece_survives_in_utf_16(encoding):
    kept, _ = redact(json.dumps({"token": TOKEN}).encode(encoding), None)
    assert not pieces(kept.replace(b"\0", b"")) & CANARIES


def test_the_presented_tokens_parts_are_known_wherever_they_stand():
    for part in (PAYLOAD, SIGNATURE):
        assert not survivors(b'{"part":"' + part + b'"}', RAW)


@settings(max_examples=700, deadline=None)
@given(st.sampled_from(WHOLE), st.integers(0, len(TOKEN) - 1), st.integers(0, 255), st.booleans(), st.booleans())
@example("alone", len(HEADER), ord('"'), False, False)
@example("value", len(HEADER) + len(PAYLOAD) + 1, ord(" "), False, False)
@example("value", len(HEADER) + len(PAYLOAD), ord('"'), False, False)
@example("value", 0, ord("X"), False, True)
def test_no_piece_survives_when_one_byte_is_another(name, place, byte, presented, inserted):
    altered = TOKEN[:place] + chr(byte) + TOKEN[place + (not inserted) :]
    assert not survivors(carried(name, altered), RAW if presented else None)


def test_every_place_and_a_choice_of_bytes():
    """Alone and in a value: all places, with bytes that end runs, open escapes, or look like more of the token."""
    for place in range(len(TOKEN)):
        for byte in '"\\ .%=\0X,':
            altered = TOKEN[:place] + byte + TOKEN[place + 1 :]
            assert not survivors(altered.encode()), (place, byte)
            assert not survivors(('{"token":"' + altered + '","job":"reports/nightly"}').encode()), (place, byte)


@pytest.mark.parametrize(
    "shape", [JWE, f"{HEADER.decode()}..{SIGNATURE.decode()}", "ref:0123456789abcdef", "ref:" + "A-_z" * 9]
)
def test_other_tokens_are_taken_whole(shape):
    for carrier in ("{}", "Bearer {}", '{{"token":"{}"}}', "token={}&a=b"):
        data = carrier.format(shape).encode()
        kept, taken = redact(data, None)
        assert taken == [shape.encode()]
        assert shape.encode() not in kept
        assert token_shaped(carrier.format(shape))


def test_a_replacement_names_the_fingerprint_and_can_be_put_back():
    data = b'{"job":"a","token":"' + RAW + b'","n":1}'
    kept, taken = redact(data, RAW)
    mark = b"[redacted sha256:" + hashlib.sha256(RAW).hexdigest()[:16].encode() + b"]"
    assert kept == b'{"job":"a","token":"' + mark + b'","n":1}'
    assert taken == [RAW]
    assert kept.replace(mark, taken[0]) == data


def test_a_token_of_no_shape_is_still_taken_when_it_was_presented():
    kept, taken = redact(b'{"token":"hunter2hunter2"}', b"hunter2hunter2")
    assert taken == [b"hunter2hunter2"]
    assert b"hunter2" not in kept


SURVIVES = [
    "com.example.reports.nightly", "org.apache.kafka.streams.processor.internals.StreamsPartitionAssignor", "1.22.333-rc.4",
    "v2026.11.22", "0192f1c2-7c1e-7000-8000-000000000001", hashlib.sha256(b"x").hexdigest(), hashlib.sha512(b"x").hexdigest(),
    hashlib.sha256(b"x").hexdigest() + ".tar.gz", "https://issuer.example/.well-known/jwks.json?a=b.c",
    "https://bucket.s3.eu-central-1.amazonaws.com/reports/2026/11/22/part-00000.snappy.parquet", "a.b.c", "...", "",
    "keyDescriptor.keyIdentifierRegistry.load", "survey.eyJ.example", "10.0.0.1:9092", "user@mail.example.com", "href:page",
    "ref:main", "refs/heads/feature-branch-of-some-length", "preference:something_quite_long_here", "reports/nightly",
    "The quick brown fox. It jumps over the lazy dog. Twice.", "2026-11-22T07:13:00.123456Z", "é.ü.ñ",
    base64.b64encode(hashlib.sha256(b"x").digest()).decode(), base64.urlsafe_b64encode(bytes(range(250))).decode(),
    json.dumps({"job": "a", "params": {"path": "x.y.z", "n": 1.5, "sha256": hashlib.sha256(b"y").hexdigest()}}),
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "C:\\Users\\eyJ\\file.name.txt", "50%25 of 100%",
]  # fmt: skip


@pytest.mark.parametrize("text", SURVIVES)
def test_what_is_no_token_survives(text):
    for data in (text, json.dumps({"a": text, "b": [text, text]}), f"{text} {text}\n{text}"):
        assert redact(data.encode(), None) == (data.encode(), [])
        assert redact(data.encode(), RAW) == (data.encode(), [])
        assert not token_shaped(data)


def test_params_that_hold_a_token_are_told_from_those_that_do_not():
    for name in ("alone", "header", "inside a text", "query", "glued to a word"):
        assert token_shaped(CARRIERS[name](TOKEN)), name
    assert token_shaped(b64(b'{ "alg":"none" }') + ".e30.")
    assert token_shaped(b64(json.dumps({"typ": "JWT", "alg": "HS256"}, indent=1).encode()) + ".e30.AAAA")


@pytest.mark.parametrize("odd", ["\u00e9", "\u0435", "\U0001d41e"])
def test_a_presented_token_with_a_character_beyond_ascii_is_taken_out_however_json_wrote_it(odd):
    header, claims, signature = RAW.decode().split(".")
    presented = f"{claims[20:]}.{signature}{header}.{claims[:9]}{odd}{claims[9:20]}"
    for escaped in (True, False):
        kept, _ = redact(json.dumps({"token": presented}, ensure_ascii=escaped).encode(), presented.encode())
        assert signature.encode() not in kept


def test_a_token_in_json_serialization_loses_what_makes_it_one():
    header, claims, signature = RAW.decode().split(".")
    flattened = {"protected": header, "payload": claims, "signature": signature}
    general = {"payload": claims, "signatures": [{"protected": header, "signature": signature}]}
    for presented in (flattened, general):
        for record in (json.dumps({"token": presented}), json.dumps({"x": json.dumps(presented, indent=1)})):
            kept, taken = redact(record.encode(), None)
            assert signature.encode() not in kept
            assert signature.encode() in taken


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.none() | st.binary(max_size=40))
def test_any_bytes_come_out_whole_but_for_what_was_taken(data, presented):
    kept, taken = redact(data, presented)
    for piece in taken:
        mark = b"[redacted sha256:" + hashlib.sha256(piece).hexdigest()[:16].encode() + b"]"
        kept = kept.replace(mark, piece, 1)
    assert kept == data


@pytest.mark.parametrize("broken_by", ['"job":"x",', ", {}", '":"', "   ///   ", '"a":1,'])
def test_a_token_broken_far_from_its_end_leaves_no_signature(broken_by):
    header, claims, signature = TOKEN.split(".")
    for place in (0, 40, -3):
        text = f'{{"token":"{header}.{claims[:place]}{broken_by}{claims[place:]}.{signature}"}}'
        kept, _ = redact(text.encode(), None)
        assert signature.encode() not in kept
        assert claims[place:].encode() + b"." not in kept


MEBIBYTE = 1 << 20
MUCH = [
    b".", b"eyJ", b"a", b"a.", b"\\", b"%", b"%25", b"ref:", b'"', b"\0", b"=", b"e", b"A" * 16 + b".", b"eyJhbGciOiJF ",
    b"eyJhbGciOiJF.\n", b"eyJhbGciOiJF", b"eyJhbGciOiJFeyJh.", b"A" * 16 + b'..aaaaaaaaaaaaa"', b"ZXlK", b"aaaaaaaaaaaaaaa ",
    b"ZXlKaaaaaaaaaaaaaaaaaa.", RAW + b" ",
]  # fmt: skip


@pytest.mark.parametrize("unit", MUCH, ids=lambda unit: str(unit[:24]))
def test_a_mebibyte_of_anything_takes_linear_time(unit):
    def seconds(size: int) -> float:
        start = time.process_time()
        redact(unit * (size // len(unit)), RAW)
        return time.process_time() - start

    assert min(seconds(MEBIBYTE) for _ in range(2)) < 0.25


# ── secrets of clients ──

SECRET = f"tgs_{'0a' * 8}_{b64(bytes(range(32)))}"


@pytest.mark.parametrize(
    "carrier",
    ["alone", "value", "key of a member", "inside a text", "header", "query", "form", "JSON escapes", "glued to a word",
     "percent-encoded whole", "twice", "in XML", "nested JSON"],
)  # fmt: skip
def test_a_clients_secret_goes_as_a_token_does(carrier):
    kept, taken = redact(CARRIERS[carrier](SECRET).encode("utf-8", "surrogateescape"), None)
    assert taken
    assert SECRET.rpartition("_")[2].encode() not in kept


def test_a_clients_secret_is_no_name_and_no_parameter():
    assert token_shaped(SECRET)
    assert token_shaped(f"it is {SECRET}")
    assert job_name_fault(SECRET) is not None
    for word in ("tgs_", "tgs_0a_x", SECRET[:21], "tgs_reports/nightly"):
        assert not token_shaped(word)
        assert redact(word.encode(), None) == (word.encode(), [])
