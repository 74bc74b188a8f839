"""Client assertions (RFC 7523): a valid one, and each difference from it."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.authority.assertion import LIFETIME_MAX_S, Proven, check_assertion, is_assertion, named_by
from app.authority.identities import ClientKey, Identity, identity_from_record, identity_key
from app.gate.keyset import KeySet
from tests.support.jose import ABSENT, changed
from tests.support.tokens import NOW_S, OTHER, PRIVATE, public_jwk, signed

AUDIENCE = "https://issuer.example"
CI = Identity("svc:ci", 1, "service", AUDIENCE, "acme", credentials=(ClientKey("k1", public_jwk()),))
HEADER = {"alg": "ES256", "kid": "k1", "typ": "JWT"}
CLAIMS = {"iss": "svc:ci", "sub": "svc:ci", "aud": AUDIENCE, "jti": "a1", "iat": NOW_S, "exp": NOW_S + 60}


def assertion(header=None, private=PRIVATE, **claims):
    import json

    return signed(
        json.dumps(changed(HEADER, header or {})).encode(),
        json.dumps(changed(CLAIMS, claims)).encode(),
        private,
    )


def checked(text, identity=CI, now_s=NOW_S):
    return check_assertion(identity, text, {AUDIENCE}, now_s, 60)


def test_an_assertion_names_its_client_and_key():
    assert named_by(assertion()) == ("svc:ci", "k1")
    assert named_by(assertion({"kid": 7}, sub=["svc:ci"])) == ("", "")
    assert named_by("a.b.c") == ("", "")


def test_a_good_assertion_proves_its_client():
    assert checked(assertion()) == Proven("k1", "a1", NOW_S + 60)
    assert checked(assertion({"typ": ABSENT}, aud=[AUDIENCE], iat=ABSENT)) is not None


def test_an_assertion_that_lives_too_long_holds_for_its_first_minutes():
    long = assertion(exp=NOW_S + 3_600, iat=NOW_S)
    assert checked(long) == Proven("k1", "a1", NOW_S + LIFETIME_MAX_S)
    assert checked(long, now_s=NOW_S + LIFETIME_MAX_S + 59) is not None
    assert checked(long, now_s=NOW_S + LIFETIME_MAX_S + 60) is None
    assert checked(assertion(exp=NOW_S + 30, iat=NOW_S - 3_600)) is None


def test_an_assertion_is_told_from_a_token_by_its_typ():
    for typ in (ABSENT, "JWT", "client-authentication+jwt"):
        assert is_assertion(assertion({"typ": typ}))
    for typ in ("trigger+jwt", "user+jwt", "host+jwt", "at+jwt", 7, {}):
        assert not is_assertion(assertion({"typ": typ}))
    assert not any(is_assertion(text) for text in ("", "x", "ref:x", "a.b.c"))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "svc:other"}, {"sub": "svc:other"}, {"sub": ABSENT}, {"aud": "https://elsewhere"}, {"aud": ABSENT},
        {"aud": [AUDIENCE, "https://elsewhere"]}, {"aud": None}, {"exp": ABSENT}, {"exp": NOW_S - 60}, {"exp": True},
        {"exp": float(NOW_S + 60)}, {"exp": NOW_S + LIFETIME_MAX_S + 61, "iat": ABSENT}, {"iat": NOW_S + 61}, {"nbf": NOW_S + 61},
        {"iat": "now"}, {"jti": ABSENT}, {"jti": ""}, {"jti": "x" * 129}, {"jti": 7},
    ],
)  # fmt: skip
def test_one_wrong_claim_proves_nothing(claims):
    assert checked(assertion(**claims)) is None


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS256"}, {"kid": "k2"}, {"kid": ABSENT}, {"typ": "trigger+jwt"}, {"jwk": {}}]
)
def test_one_wrong_member_of_the_header_proves_nothing(header):
    assert checked(assertion(header)) is None


def test_neither_anothers_key_nor_an_ended_one_nor_text_proves_anything():
    assert checked(assertion(private=OTHER)) is None
    ended = Identity("svc:ci", 1, "service", AUDIENCE, "acme", credentials=(ClientKey("k1", public_jwk(), 0, NOW_S),))
    assert checked(assertion(), ended) is None
    for text in ("", "x", "a.b.c", assertion()[:-1], "." * 10_000):
        assert checked(text) is None


def test_nobody_is_proven_even_by_the_key_that_stands_for_nobody():
    from cryptography.hazmat.primitives.asymmetric import ec

    everyones = ec.derive_private_key(1, ec.SECP256R1())
    for identity in (None, CI, Identity("svc:ci", 1, "service", AUDIENCE, "acme")):
        assert checked(assertion({"kid": "nobody's"}, everyones), identity) is None


def test_a_client_s_keys_are_read_with_its_record_and_never_for_an_assertion(monkeypatch):
    known = identity_from_record(identity_key("svc:ci"), msgspec.json.encode(CI))
    assert known == CI
    read = []
    monkeypatch.setattr(KeySet, "from_jwks", lambda *given: read.append(given))
    assert checked(assertion(), known) == Proven("k1", "a1", NOW_S + 60)
    assert checked(assertion(private=OTHER), known) is None
    assert read == []


@pytest.mark.parametrize(
    ("algorithm", "checks"), [("ES256", "ES256"), ("EdDSA", "EdDSA"), ("none", "ES256"), (7, "ES256")]
)
def test_one_signature_is_checked_whoever_asks(monkeypatch, algorithm, checks):
    from app.authority import assertion as module

    counted = []

    def counting(key):
        return type(key)(key.kid, key.algorithm, lambda *_: counted.append(key.algorithm) or False)

    monkeypatch.setattr(module, "_NOBODYS", {name: counting(key) for name, key in module._NOBODYS.items()})
    for identity in (None, Identity("svc:ci", 1, "service", AUDIENCE, "acme")):
        counted.clear()
        assert checked(assertion({"alg": algorithm}), identity) is None
        assert counted == [checks]


def test_what_stands_for_nobody_takes_a_signature_of_its_algorithm_as_a_clients_key_would():
    from app.authority import assertion as module

    everyones = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for key, holds in ((module._nobodys("EdDSA"), True), (module._nobodys("ES256"), False)):
        assert key.verify(b"message", everyones.sign(b"message")) is holds
