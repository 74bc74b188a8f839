"""JWK Sets: a key that is not for us is skipped, a set that should not exist is refused (attack row A18)."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from app.gate import limits
from app.gate.keyset import JWKSInvalid, KeySet, dev_key, is_kid
from tests.support.jose import ABSENT, b64, changed
from tests.support.tokens import ED_PRIVATE, OTHER, es256, public_jwk

ED = {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(ED_PRIVATE.public_key().public_bytes_raw())}
BOTH = ("ES256", "EdDSA")


def read(*jwks, algorithms=BOTH, **members) -> KeySet:
    return KeySet.from_jwks(json.dumps({"keys": list(jwks), **members}).encode(), algorithms)


def test_a_valid_set_verifies_what_its_keys_signed():
    keys = read(public_jwk("a"), public_jwk("b", OTHER), ED, unknown="members are ignored")
    assert set(keys.keys) == {"a", "b", "ed"}
    assert keys.algorithms == {"ES256", "EdDSA"}
    assert keys.keys["a"].verify(b"m", es256(b"m"))
    assert keys.keys["b"].verify(b"m", es256(b"m", OTHER))
    assert not keys.keys["a"].verify(b"m", es256(b"m", OTHER))
    assert keys.keys["ed"].verify(b"m", ED_PRIVATE.sign(b"m"))
    assert not keys.keys["ed"].verify(b"n", ED_PRIVATE.sign(b"m"))
    assert not any(key.insecure for key in keys.keys.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": ABSENT}, {"use": ABSENT}, {"key_ops": ["verify"]}, {"x5t": "ignored"},
    ],
    ids=str,
)  # fmt: skip
def test_a_key_with_one_harmless_difference_is_used(changes):
    assert set(read(public_jwk("a", **changes)).keys) == {"a"}


X = public_jwk()["x"]
SKIPPED = [
    {"kid": ABSENT}, {"kid": ""}, {"kid": 1}, {"kid": None}, {"kid": "k" * 129}, {"kid": "a\nb"}, {"use": "enc"}, {"use": None},
    {"key_ops": ["sign"]}, {"key_ops": []}, {"key_ops": "verify"}, {"alg": "ES384"}, {"alg": "RS256"}, {"alg": "HS256"},
    {"alg": "EdDSA"}, {"alg": "none"}, {"alg": None, "kty": "RSA"}, {"crv": "P-384"}, {"crv": "secp256k1"}, {"crv": "Ed25519"},
    {"crv": ABSENT}, {"crv": ["P-256"]}, {"kty": "OKP"}, {"kty": "ec"}, {"kty": ABSENT}, {"kty": {}}, {"x": ABSENT}, {"x": 1},
    {"x": X[:-1]}, {"x": X + "="}, {"x": "AA" + X}, {"x": ""}, {"y": X}, {"y": b64(bytes(32))}, {"x": b64(bytes(31))},
    {"x": b64(b"\xff" * 32)},
]  # fmt: skip


@pytest.mark.parametrize("changes", SKIPPED, ids=str)
def test_a_key_that_is_not_for_us_is_skipped_and_the_others_are_used(changes):
    assert set(read(public_jwk(**{"kid": "bad"} | changes), public_jwk("good")).keys) == {"good"}
    with pytest.raises(JWKSInvalid):
        read(public_jwk(**{"kid": "bad"} | changes))


@pytest.mark.parametrize("x", [None, 1, "", b64(bytes(31)), b64(bytes(33))])
def test_an_ed25519_key_has_32_bytes(x):
    assert set(read(changed(ED, {"x": x}), public_jwk("good")).keys) == {"good"}


PRIVATE_MEMBERS = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]


@pytest.mark.parametrize(
    "bad",
    [
        {"kty": "oct", "kid": "s", "alg": "HS256", "k": b64(bytes(32))},
        {"kty": "oct", "kid": "s"},
        *[public_jwk("s", **{name: "AQ"}) for name in PRIVATE_MEMBERS],
        public_jwk("s", use="enc", d="AQ"),
        ED | {"d": b64(bytes(32))},
        public_jwk("good", OTHER),
        public_jwk("good"),
    ],
    ids=",".join,
)
def test_a_private_shared_or_repeated_key_refuses_the_whole_set(bad):
    with pytest.raises(JWKSInvalid):
        read(public_jwk("good"), bad)
    with pytest.raises(JWKSInvalid):
        read(bad, public_jwk("good"))


GOOD = json.dumps({"keys": [public_jwk()]}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"<html>", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[]}', b'{"keys":[1]}', b'{"keys":[[]]}',
        b"\xef\xbb\xbf" + GOOD, GOOD + b"x", GOOD[:-1], GOOD.decode().encode("utf-16"),
        b'{"keys":[],"keys":' + GOOD[8:], GOOD + b" " * limits.JWKS_MAX_BYTES, b" " * 10_000_000,
        json.dumps({"keys": [public_jwk(str(n)) for n in range(257)]}).encode(),
    ],
    ids=lambda raw: str(raw[:24]),
)  # fmt: skip
def test_what_is_no_jwk_set_is_refused_with_a_sentence(raw):
    with pytest.raises(JWKSInvalid, match="JWK Set"):
        KeySet.from_jwks(raw, BOTH)


def test_a_key_of_an_algorithm_the_trust_rule_does_not_list_is_skipped():
    assert set(read(public_jwk("a"), ED, algorithms=["ES256"]).keys) == {"a"}
    with pytest.raises(JWKSInvalid):
        read(ED, algorithms=["ES256"])
    for none_of_ours in ([], ["HS256"], ["none"], ["RS256"]):
        with pytest.raises(JWKSInvalid):
            read(public_jwk("a"), algorithms=none_of_ours)


def test_the_development_secret_has_256_bits():
    with pytest.raises(ValueError, match="32"):
        dev_key(b"x" * 31)
    key = dev_key(b"x" * 32)
    assert key.insecure
    keys = read(public_jwk("a")).with_dev_key(key)
    assert set(keys.keys) == {"a", "dev"}
    assert keys.algorithms == {"ES256", "EdDSA", "HS256"}


def test_a_signature_of_another_length_is_no_signature():
    keys = read(public_jwk("a"), ED).keys
    for length in (0, 1, 63, 65, 66, 300):
        assert not keys["a"].verify(b"m", (es256(b"m") * 5)[:length])
        assert not keys["ed"].verify(b"m", (ED_PRIVATE.sign(b"m") * 5)[:length])


def test_signatures_whose_numbers_are_short_or_begin_with_a_one_bit_verify():
    """DER writes numbers in as few bytes as they need and signs them: many keys' worth of both forms."""
    key = read(public_jwk("a")).keys["a"]
    for number in range(600):
        message = str(number).encode()
        assert key.verify(message, es256(message))


def test_kids_are_short_printable_ascii():
    assert is_kid("a")
    assert is_kid("../../etc/passwd")  # looked up in a table, never a path
    for bad in ("", "é", "a\n", "\0", "k" * 129, 1, None, ["a"], b"a"):
        assert not is_kid(bad)
    assert isinstance(ED_PRIVATE, ed25519.Ed25519PrivateKey)
