"""A quick reading gives what the full reading gives, or nothing."""

from __future__ import annotations

import json
import random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.gate import redact
from app.gate import trigger as triggers
from app.gate.claims import ClaimRefused, claims_of_quick, read_claims
from app.gate.original import original, original_of_verified
from app.gate.quick import quick_claims, quick_trigger
from app.gate.strict_json import JSONRefused, loads_object
from app.gate.token import fingerprint
from app.gate.trigger import Record, Trigger, parse

TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2kifQ.c2lnbmF0dXJl"
SECRET = f"tgs_{'0a' * 8}_{'Ab-9_' * 8}xyz"
PLAIN = {"job": "reports/nightly", "params": {"region": "eu", "n": 7, "dry": True, "x": None}, "token": TOKEN}

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a:b", "1.5", "ref:abcdefghijklmnopqrst", SECRET, TOKEN, "eyJ..", "é", "\\u003a", '"', "reports/nightly", ""]
)
values = st.recursive(
    texts | st.integers(-(10**16), 10**16) | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(["job", "params", "token", "idempotency_key", "correlation_id", "params_sha256", "other"])
envelopes = st.dictionaries(members, values | st.just(TOKEN) | st.dictionaries(texts, values, max_size=3), max_size=5)


def fully(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as patched:
        patched.setattr(triggers, "quick_trigger", lambda _: None)
        return parse(record(raw))


def record(raw: bytes) -> Record:
    return Record(0, 7, 1_700_000_000_000, True, None, raw, ())


def without_canonical(parsed: object) -> object:
    """Parsing may come by the canonical params, or leave them to who needs them: the one difference allowed."""
    if isinstance(parsed, Trigger):
        return {name: getattr(parsed, name) for name in parsed.__struct_fields__ if name != "params_canonical"}
    return parsed


def test_the_plain_form_is_read_quickly():
    assert quick_trigger(orjson.dumps(PLAIN)) is not None


@settings(max_examples=200, deadline=None)
@given(envelopes, st.booleans())
def test_triggers_read_quickly_are_read_the_same(envelope: dict[str, object], full: bool):
    raw = orjson.dumps(PLAIN | envelope if full else envelope)
    with pytest.MonkeyPatch.context() as patched:
        assert without_canonical(parse(record(raw))) == without_canonical(fully(raw, patched))


def test_triggers_of_mutated_bytes_are_read_the_same(monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(20260101)
    base = orjson.dumps(PLAIN | {"idempotency_key": "order:7"})
    alphabet = [b'"', b":", b"{", b"}", b",", b"\\", b".", b"a", b"\x00", b"\xff", b"1", b'"token":"x",', b'"n":1,', b"ref:"]  # fmt: skip
    for _ in range(1_500):
        at = chance.randrange(len(base))
        raw = base[:at] + chance.choice(alphabet) + base[at + chance.randrange(3) :]
        assert without_canonical(parse(record(raw))) == without_canonical(fully(raw, monkeypatch)), raw


CLAIMS = {
    "iss": "https://issuer.example", "aud": "tollgate:t.", "sub": "service:ci", "org_id": "acme", "iat": 1_700_000_000,
    "nbf": 1_700_000_000, "exp": 1_700_003_600, "jti": "0a1b2c", "uses": "once",
    "authorization_details": [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": ["reports/nightly"]}],
}  # fmt: skip
grants = st.dictionaries(st.sampled_from(["type", "actions", "jobs", "params", "other"]), values, max_size=3)
changed_claims = st.dictionaries(
    st.sampled_from([*CLAIMS, "idempotency_key", "other"]), values | st.lists(grants, max_size=2), max_size=3
)


def claims_fully(raw: bytes) -> object:
    try:
        members = loads_object(raw)
        return read_claims(members, "k1", "trigger", "tollgate:t.") if type(members.get("iss")) is str else None
    except (ClaimRefused, JSONRefused):
        return None


def claims_quickly(raw: bytes) -> object:
    """None where the quick reading leaves it to the full one."""
    quick = quick_claims(raw)
    if quick is None or quick[1][-1] != "tollgate:t.":
        return None
    assert quick[0] == loads_object(raw)
    return claims_of_quick(quick[1], quick[0]["iss"], "k1", "trigger")


def test_usual_claims_are_read_quickly():
    assert claims_quickly(orjson.dumps(CLAIMS)) is not None
    assert claims_quickly(orjson.dumps(CLAIMS | {"idempotency_key": "order-7", "uses": "many"})) is not None


@settings(max_examples=200, deadline=None)
@given(changed_claims)
def test_claims_read_quickly_are_read_the_same(changes: dict[str, object]):
    raw = orjson.dumps(CLAIMS | changes)
    assert claims_quickly(raw) in (None, claims_fully(raw))


def test_claims_of_mutated_bytes_are_read_the_same():
    chance = random.Random(20260102)
    base = orjson.dumps(CLAIMS | {"idempotency_key": "order:7"})
    alphabet = [
        b'"',
        b":",
        b"{",
        b"}",
        b",",
        b"\\",
        b" ",
        b"a",
        b"\x00",
        b"\xff",
        b"1",
        b'"exp":5,',
        b'"uses":"many",',
        b"e9",
    ]
    for _ in range(1_500):
        at = chance.randrange(len(base))
        raw = base[:at] + chance.choice(alphabet) + base[at + chance.randrange(3) :]
        assert claims_quickly(raw) in (None, claims_fully(raw)), raw


@pytest.mark.parametrize(
    "doubled", [b'"exp":5,', b'"iss":"a",', b'"authorization_details":[],', b'"exp":1e9,"jti":"",']
)
def test_claims_with_a_member_given_twice_are_not_read_quickly(doubled: bytes):
    twice = b"{" + doubled + orjson.dumps(CLAIMS)[1:]
    assert quick_claims(twice) is None
    with pytest.raises(JSONRefused):
        loads_object(twice)


@pytest.mark.parametrize(
    "doubled", [b'"job":"a",', b'"params":{"a":1e300},', b'"token":"x",', b'"params":{},"job":"",']
)
@pytest.mark.parametrize("spaces", [b"", b" "])
def test_a_trigger_with_a_member_given_twice_is_not_read_quickly(doubled: bytes, spaces: bytes):
    raw = orjson.dumps(PLAIN | {"params": {"far": 123456789012345}}).replace(b",", b"," + spaces)
    assert quick_trigger(raw) is not None
    assert quick_trigger(b"{" + doubled + raw[1:]) is None


pieces = st.lists(
    st.sampled_from(
        [TOKEN.encode(), b'"' + TOKEN.encode() + b'"', TOKEN.split(".")[1].encode(), b'{"token":', b"}", b".", b"%2E", b"\\u0065",
         b'"params":{"a":1}', b"eyJhbGciOiJFUzI1NiJ9", b"ref:abcdefghijklmnopqrst", b'"signature":"', b"AAAAAAAAAAAAAAAAAAAA",
         b"ZXlKaGJHY2lPaUpGVXpJMU5pSjk", b"\x00", b" ", b'","']
    )
    | st.binary(max_size=6),
    max_size=7,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pieces, st.booleans())
def test_bytes_redacted_plainly_are_redacted_the_same(parts: list[bytes], presented: bool):
    data, token = b"".join(parts), TOKEN.encode() if presented else None
    plain = redact._redact_plain(data, token)
    assert plain is None or plain == redact._redact_closely(data, token)


def test_a_plain_trigger_is_redacted_plainly():
    assert redact._redact_plain(orjson.dumps(PLAIN), TOKEN.encode()) is not None


odd = texts | st.sampled_from(
    ["100%41", "ZXlKaGJHY2lPaUpGVXpJMU5pSjk", "signature", "AAAAAAAAAAAAAAAA", TOKEN.split(".")[1], "a\nb"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(odd, odd | st.integers(0, 9), max_size=3), odd, odd, st.booleans(), st.none() | odd)
def test_originals_of_verified_triggers_are_those_of_all(
    params: dict[str, object], job: str, key: str, keyed: bool, record_key: str | None
):
    token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2kifQ." + "A" * 86
    value = {"params": params, "token": token, "job": job} | ({"idempotency_key": key} if keyed else {})
    for raw in (orjson.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        came = Record(0, 7, 0, True, None if record_key is None else record_key.encode(), raw, ())
        parsed = parse(came)
        if not isinstance(parsed, Trigger):
            continue
        done = original_of_verified(came, parsed, fingerprint(token), lambda taken, *_: repr(taken))
        assert done == original(came, token, lambda taken, *_: repr(taken))
        closely, _ = redact._redact_closely(raw, token.encode())
        assert done[0].value == closely
