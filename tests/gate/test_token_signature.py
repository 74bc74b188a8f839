"""Tokens: rows A1 to A9 of the attack table, header, form, signature and encoding; each states one difference."""

import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.gate import base64url
from app.gate.token import VerifiedToken, verify
from tests.support.jose import ABSENT, ORDER, b64
from tests.support.tokens import (
    AUD,
    CLAIMS,
    HEADER,
    ISS,
    OTHER,
    PRIVATE,
    RING,
    es256,
    public_jwk,
    signed,
    token,
)
from tests.support.verifying import VALID, H, P, S, verdict


def x_y() -> bytes:
    return PRIVATE.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def hs256(secret: bytes) -> str:
    message = f"{b64(json.dumps(HEADER | {'alg': 'HS256'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    return f"{message}.{b64(hmac.digest(secret, message.encode(), 'sha256'))}"


PUBLIC = PRIVATE.public_key()
A2 = {
    "PEM": PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "PEM less its last line break": PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).rstrip(),
    "DER": PUBLIC.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "JWK": json.dumps(public_jwk()).encode(),
    "x and y": x_y()[1:],
    "point": x_y(),
    "SSH": PUBLIC.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    "empty": b"",
}

SELF_SIGNED = {"jwk": public_jwk(private=OTHER), "jku": "https://evil.example/jwks.json", "x5u": "https://evil.example/c",
               "x5c": ["MIIB"], "x5t": "abc", "x5t#S256": "abc"}  # fmt: skip

HEADER_ROWS = [
    *[("A1", {"alg": alg}, "algorithm_not_allowed") for alg in (
        "none", "None", "NONE", "noNE", "", "es256", "ES256 ", "ES384", "ES512", "RS256", "PS256", "ES256K", "Ed25519",
        "HS256", "HS384", ABSENT, None, 1, True, ["ES256"], {"alg": "ES256"},
    )],
    *[("A3", {name: value}, "token_header_not_allowed") for name, value in SELF_SIGNED.items()],
    *[("A4", extra, "token_header_not_allowed") for extra in (
        {"crit": ["unknown"], "unknown": 1}, {"crit": []}, {"crit": "exp"}, {"crit": ["alg"]}, {"crit": None},
        {"b64": False, "crit": ["b64"]}, {"zip": "DEF"}, {"cty": "JWT"}, {"iss": ISS}, {"": 1}, {"enc": "A256GCM"},
    )],
    *[("A5", {"kid": kid}, "kid_malformed") for kid in (
        "a\0b", "k" * 129, "", 1, ["k1"], None, {"kid": "k1"}, "k\n1", "k\u202e1", "é",
    )],
    *[("A5", {"kid": kid}, "wanted") for kid in (
        "../../dev/null", "' OR 1=1 --", "|sleep 10", "https://evil.example/k", "K1", "k1 ", " k1", "${jndi:ldap://x}",
    )],
    ("A5", {"kid": ABSENT}, "kid_missing"),
    *[("A15", {"typ": typ}, "token_type_invalid") for typ in (
        ABSENT, "JWT", "jwt", "logout+jwt", "at+jwt", "trigger+JWT", "application/trigger+jwt", "", None, 1,
        ["trigger+jwt"],
    )],
    *[("M-01", {"typ": typ}, "wrong_client_class") for typ in ("user+jwt", "host+jwt", "execution+jwt", "task+jwt")],
]  # fmt: skip


@pytest.mark.parametrize(("row", "changes", "expected"), HEADER_ROWS, ids=str)
def test_a_header_with_one_difference(row, changes, expected):
    assert verdict(token(header=changes)) == expected


@pytest.mark.parametrize("form", A2)
def test_a2_the_public_key_is_no_secret(form):
    assert verdict(hs256(A2[form])) == "algorithm_not_allowed"


def test_a5_a_kid_of_100_kilobytes_is_too_large_and_a_repeated_one_is_no_json():
    assert verdict(token(header={"kid": "k" * 100_000})) == "token_too_large"
    twice = b'{"alg":"ES256","kid":"k1","kid":"k1","typ":"trigger+jwt"}'
    assert verdict(signed(twice, json.dumps(CLAIMS).encode())) == "token_json_malformed"


A6 = ["", ".", "..", "...", H, f"{H}.{P}", f"{H}.{P}.", f".{P}.{S}", f"{H}..{S}", f"{VALID}.", f".{VALID}", f"{VALID}.{S}",
      f"{VALID}.{S}.{S}", f"{H}.{P}.null", json.dumps({"payload": P, "protected": H, "signature": S}), "null", "Bearer " + VALID]  # fmt: skip


@pytest.mark.parametrize("presented", A6)
def test_a6_other_forms(presented):
    expected = "signature_invalid" if presented.endswith(".null") else "token_malformed"
    assert verdict(presented) == expected


RAW_SIGNATURE = base64url.decode(S)
R, LAST = int.from_bytes(RAW_SIGNATURE[:32], "big"), int.from_bytes(RAW_SIGNATURE[32:], "big")
BAD_NUMBERS = [0, 1, ORDER - 1, ORDER, ORDER + 1, 2**256 - 1]
A7 = [
    *[n.to_bytes(32, "big") + RAW_SIGNATURE[32:] for n in BAD_NUMBERS],
    *[RAW_SIGNATURE[:32] + n.to_bytes(32, "big") for n in BAD_NUMBERS],
    *[n.to_bytes(32, "big") * 2 for n in BAD_NUMBERS],
    RAW_SIGNATURE[:63], RAW_SIGNATURE + b"\0", b"\0" + RAW_SIGNATURE, RAW_SIGNATURE + b"\0\0", RAW_SIGNATURE * 5,
    PRIVATE.sign(f"{H}.{P}".encode(), ec.ECDSA(SHA256())),  # DER
    es256(f"{H}.{P}".encode(), OTHER), b"\0", bytes(64),
]  # fmt: skip


@pytest.mark.parametrize("signature", A7, ids=range(len(A7)))
def test_a7_other_signatures(signature):
    assert verdict(f"{H}.{P}.{b64(signature)}") == "signature_invalid"


def test_a8_the_twin_of_a_signature_verifies_as_the_same_use():
    """ECDSA allows (r, n-s); a use is told by jti, so that the twin is a duplicate and never a second job."""
    twin = f"{H}.{P}.{b64(R.to_bytes(32, 'big') + (ORDER - LAST).to_bytes(32, 'big'))}"
    first, second = verify(VALID, RING, AUD), verify(twin, RING, AUD)
    assert isinstance(second, VerifiedToken)
    assert first.claims == second.claims
    assert first.fingerprint != second.fingerprint


def spare_bits(segment: str) -> str:
    """Another last character that a lenient decoder takes for the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(
    "inserted",
    ["=", "==", "+", "/", " ", "\t", "\n", "\r\n", "?", "\0", "%", "\u0410", "\uff21", "\u2024", "\u200b", "A", "AAAA"],
)
def test_a9_nothing_is_passed_over_in_a_segment(part, inserted):
    for place in (0, 7, None):
        parts = VALID.split(".")
        at = len(parts[part]) if place is None else place
        parts[part] = parts[part][:at] + inserted + parts[part][at:]
        assert verdict(".".join(parts)) in {"token_malformed", "token_json_malformed", "signature_invalid"}
        if not inserted.startswith("A"):
            assert verdict(".".join(parts)) == "token_malformed"


def test_a9_spare_bits_are_zero():
    for part in range(3):
        for filler in ("", "x", "xx"):
            made = token(header={"kid": "k1" + filler}, claims={"extra": filler})
            parts = made.split(".")
            if len(parts[part]) % 4:
                parts[part] = spare_bits(parts[part])
                assert verdict(".".join(parts)) == "token_malformed"


def test_base64url_is_strict_and_agrees_with_a_slow_reading():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for length in range(4):
        for number in range(64 ** min(length, 2)):
            text = "".join(alphabet[number >> 6 * place & 63] for place in range(min(length, 2))) + "A" * (length - 2)
            data = base64url.decode(text)
            assert (data is None) == (len(text) % 4 == 1 or any(b64(d) != text for d in [data or b""])), text
