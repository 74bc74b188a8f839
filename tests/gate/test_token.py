"""Tokens: each row starts from a valid token and states one difference; no mutant is ever taken."""

import hmac
import json
import random
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from app.gate import base64url
from app.gate.claims import nested
from app.gate.jws import read_jws
from app.gate.keyset import JWKSInvalid, KeySet, dev_key
from app.gate.reasons import BY_CODE, PRECEDENCE, Rejected, Stage
from app.gate.strict_json import JSONRefused
from app.gate.token import KeyWanted, VerifiedToken, parse_unverified, verify
from tests.support.tokens import (
    ABSENT,
    AUD,
    CLAIMS,
    ED_PRIVATE,
    GRANT,
    HEADER,
    ISS,
    JTI,
    KEYS,
    NOW_S,
    ORDER,
    OTHER,
    PRIVATE,
    RING,
    b64,
    es256,
    fingerprint,
    public_jwk,
    signed,
    token,
    with_changes,
)  # fmt: skip

VECTORS = Path(__file__).parents[1] / "vectors"
SECRET = b"a development secret of 32 bytes"
VALID = token()


def code(presented: str, ring=RING, audience=AUD) -> str:
    """The reason code, `wanted`, or `accepted`."""
    got = verify(presented, ring, audience)
    if isinstance(got, Rejected):
        assert got.reason.stage is Stage.VERIFY
        return got.code
    return "accepted" if isinstance(got, VerifiedToken) else "wanted"


def resigned(changes: dict) -> str:
    return token(claims=changes)


# ── the valid world ──


def test_a_valid_token_becomes_its_claims():
    got = verify(VALID, RING, AUD)
    assert isinstance(got, VerifiedToken)
    claims = got.claims
    assert (claims.iss, claims.kid, claims.sub, claims.org_id, claims.jti) == (ISS, "k1", "service:ci", "acme", JTI)
    assert (claims.iat, claims.nbf, claims.exp, claims.uses) == (NOW_S, NOW_S, NOW_S + 600, "once")
    assert (claims.token_class, claims.idempotency_key) == ("trigger", None)
    assert (claims.grant.actions, claims.grant.jobs) == (("106-Trigger",), ("reports/nightly",))
    assert claims.grant.params == {"region": "eu"}
    assert got.fingerprint == fingerprint(VALID)
    assert not got.insecure


def test_ed25519_is_accepted_where_the_trust_rule_lists_it():
    made = jwt.encode(CLAIMS, ED_PRIVATE, "EdDSA", headers={"kid": "ed1", "typ": "trigger+jwt"})
    assert code(made) == "accepted"
    only_es256 = {ISS: KeySet(KEYS.keys, frozenset({"ES256"}))}
    assert code(made, only_es256) == "algorithm_not_allowed"


def test_tokens_of_other_peoples_libraries_are_read():
    assert code(jwt.encode(CLAIMS, PRIVATE, "ES256", headers={"kid": "k1", "typ": "trigger+jwt"})) == "accepted"


@pytest.mark.parametrize(
    "changes",
    [
        {"claims": {"aud": [AUD]}},
        {"claims": {"uses": "many"}},
        {"claims": {"idempotency_key": "k\0y/" + "é" * 126}},
        {"claims": {"unknown": {"claims": ["are", "ignored"]}}},
        {"claims": {"iat": NOW_S + 5}},
        {"claims": {"parents": [{"jti": "j0", "kid": "k1", "iat": NOW_S}]}},
        {"claims": {"act": {"sub": "svc:b", "iss": ISS, "act": {"sub": "svc:c"}}}},
        {"grant": {"jobs": []}},  # too broad: said when the trigger is authorized
        {"grant": {"jobs": ["*"]}},
        {"grant": {"jobs": ABSENT}},
        {"grant": {"actions": ABSENT}},
        {"grant": {"params": ABSENT}},
        {"grant": {"params_sha256": "0" * 64}},
        {"grant": {"params": {"version": "1.22.333", "host": "a.b.example.com", "id": JTI}}},
    ],
    ids=str,
)
def test_what_the_profile_allows_is_accepted(changes):
    assert code(token(**changes)) == "accepted"


# ── attack table, rows A1 to A16 and A19 ──


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
    assert code(token(header=changes)) == expected


@pytest.mark.parametrize("form", A2)
def test_a2_the_public_key_is_no_secret(form):
    assert code(hs256(A2[form])) == "algorithm_not_allowed"


def test_a5_a_kid_of_100_kilobytes_is_too_large_and_a_repeated_one_is_no_json():
    assert code(token(header={"kid": "k" * 100_000})) == "token_too_large"
    twice = b'{"alg":"ES256","kid":"k1","kid":"k1","typ":"trigger+jwt"}'
    assert code(signed(twice, json.dumps(CLAIMS).encode())) == "token_json_malformed"


H, P, S = VALID.split(".")
A6 = ["", ".", "..", "...", H, f"{H}.{P}", f"{H}.{P}.", f".{P}.{S}", f"{H}..{S}", f"{VALID}.", f".{VALID}", f"{VALID}.{S}",
      f"{VALID}.{S}.{S}", f"{H}.{P}.null", json.dumps({"payload": P, "protected": H, "signature": S}), "null", "Bearer " + VALID]  # fmt: skip


@pytest.mark.parametrize("presented", A6)
def test_a6_other_forms(presented):
    expected = "signature_invalid" if presented.endswith(".null") else "token_malformed"
    assert code(presented) == expected


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
    assert code(f"{H}.{P}.{b64(signature)}") == "signature_invalid"


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
        assert code(".".join(parts)) in {"token_malformed", "token_json_malformed", "signature_invalid"}
        if not inserted.startswith("A"):
            assert code(".".join(parts)) == "token_malformed"


def test_a9_spare_bits_are_zero():
    for part in range(3):
        for filler in ("", "x", "xx"):
            made = token(header={"kid": "k1" + filler}, claims={"extra": filler})
            parts = made.split(".")
            if len(parts[part]) % 4:
                parts[part] = spare_bits(parts[part])
                assert code(".".join(parts)) == "token_malformed"


def test_base64url_is_strict_and_agrees_with_a_slow_reading():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for length in range(4):
        for number in range(64 ** min(length, 2)):
            text = "".join(alphabet[number >> 6 * place & 63] for place in range(min(length, 2))) + "A" * (length - 2)
            data = base64url.decode(text)
            assert (data is None) == (len(text) % 4 == 1 or any(b64(d) != text for d in [data or b""])), text


JSON_FAULTS = [
    b'{"iss":"x","iss":"x"}', b'{"a":NaN}', b'{"a":Infinity}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
    "{}".encode("utf-32"), b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":[[[[[[[[1]]]]]]]]}', b'{"a":1000000000000000}',
    b"[]", b"null", b'"x"', b"1", b"{}x", b"{", b'{"a":"\x00"}',
]  # fmt: skip


@pytest.mark.parametrize("raw", JSON_FAULTS)
def test_a10_header_and_claims_are_strict_json(raw):
    assert code(signed(raw, json.dumps(CLAIMS).encode())) == "token_json_malformed"
    assert code(signed(json.dumps(HEADER).encode(), raw)) == "token_json_malformed"


PARENT = {"jti": "j0", "kid": "k1", "iat": NOW_S}
NOT_DATES = ["1700000000", True, False, 1.5, 1700000000.0, None, [1], {"n": 1}, -1, 0, 10**11, 10**15 - 1]
CLAIM_ROWS = [
    *[("A11", {"exp": value}, "expiry_malformed") for value in NOT_DATES],
    *[("A11", {name: value}, "claim_malformed") for name in ("iat", "nbf") for value in NOT_DATES],
    *[("A11", {name: 10**30}, "token_json_malformed") for name in ("exp", "iat", "nbf")],
    ("A11", {"exp": ABSENT}, "ttl_missing"),
    ("A11", {"iat": ABSENT}, "claim_malformed"),
    ("A11", {"nbf": ABSENT}, "claim_malformed"),
    ("A11", {"nbf": NOW_S + 600}, "claim_malformed"),
    ("A11", {"iat": NOW_S + 600}, "claim_malformed"),
    ("A13", {"aud": ABSENT}, "audience_missing"),
    *[("A13", {"aud": aud}, "audience_mismatch") for aud in (
        "", "tollgate:", AUD + "x", AUD.upper(), AUD + " ", "tollgate:staging.", ["tollgate:other."],
    )],
    *[("A13", {"aud": aud}, "audience_malformed") for aud in (
        [AUD, "other"], ["other", AUD], [AUD, AUD], [], [1], [[AUD]], {"aud": AUD}, 1, True, None, [1] * 1000,
    )],
    ("A13", {"aud": [AUD] * 1000}, "token_too_large"),
    ("A14", {"iss": ABSENT}, "issuer_missing"),
    *[("A14", {"iss": iss}, "issuer_malformed") for iss in (None, "", 1, True, [ISS], {"iss": ISS})],
    *[("A14", {"iss": iss}, "issuer_untrusted") for iss in (
        ISS[:-1], ISS + "/", ISS.upper(), "https://issuer.exampl", "https://issuer.example.evil", " " + ISS,
    )],
    ("A19", {"jti": ABSENT}, "jti_required"),
    *[("A19", {"jti": jti}, "claim_malformed") for jti in ("", "j" * 129, "j" * 3000, None, 1, ["x"], "a\nb", "a\x1bb")],
    ("A-13", {"org_id": ABSENT}, "org_missing"),
    *[("A-13", {"org_id": org}, "claim_malformed") for org in ("", None, 1, ["acme"], "a" * 257, "a\0")],
    *[("V-03", {"sub": sub}, "claim_malformed") for sub in (ABSENT, "", None, 1, ["x"], "s" * 257, "a\r\nb", "a\u202eb")],
    *[("V-03", {"uses": uses}, "claim_malformed") for uses in (ABSENT, 1, 5, "Once", "twice", None, ["once"], True)],
    *[("V-03", {"idempotency_key": key}, "claim_malformed") for key in ("", None, 1, "k" * 257, "é" * 129, ["k"])],
    *[("X-13", {"act": act}, "claim_malformed") for act in (
        None, {}, "svc:b", ["svc:b"], {"sub": ""}, {"sub": 1}, {"sub": "a\nb"}, {"sub": "s" * 257}, {"sub": "svc:b", "act": None},
        {"sub": "svc:b", "act": {}}, {"sub": "svc:b", "act": "svc:c"}, {"sub": "svc:b", "iss": "https://other.example"},
    )],
    *[("X-10", {"parents": parents}, "claim_malformed") for parents in (
        None, [], {}, "j", [1], [{}], [{"jti": "j", "kid": "k"}], [PARENT | {"exp": NOW_S}], [PARENT | {"jti": ""}],
        [PARENT | {"kid": 1}], [PARENT | {"iat": "1"}], [PARENT | {"iat": True}], [PARENT | {"iat": 0}],
    )],
    ("X-10", {"parents": [PARENT] * 5}, "delegation_too_deep"),
    ("X-13", {"act": {"sub": "1", "act": {"sub": "2", "act": {"sub": "3", "act": {"sub": "4", "act": {"sub": "5"}}}}}},
     "delegation_too_deep"),
    *[("V-03", {"authorization_details": value}, "grant_malformed") for value in (
        ABSENT, None, [], {}, GRANT, [GRANT, GRANT], "x", [[GRANT]], [None],
    )],
]  # fmt: skip


@pytest.mark.parametrize(("row", "changes", "expected"), CLAIM_ROWS, ids=lambda value: str(value)[:60])
def test_claims_with_one_difference(row, changes, expected):
    assert code(token(claims=changes)) == expected
    if "authorization_details" not in changes:  # without params a token is read on a shorter way
        assert code(token(claims=changes, grant={"params": ABSENT})) == expected


GRANT_ROWS = [
    {"type": ABSENT}, {"type": "job"}, {"type": ["job_trigger"]}, {"not_before_hour": 8}, {"locations": []},
    {"jobs": "reports/nightly"}, {"jobs": [1]}, {"jobs": [""]}, {"jobs": [["x"]]}, {"jobs": ["j" * 201]},
    {"jobs": [f"job/{n}" for n in range(65)]}, {"jobs": None}, {"actions": "106-Trigger"}, {"actions": [1]},
    {"actions": None}, {"params": []}, {"params": None}, {"params": "x"}, {"params_sha256": "0" * 63},
    {"params_sha256": "A" * 64}, {"params_sha256": 1}, {"params_sha256": None},
    {"params": {"x": "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.c2ln"}}, {"params": {"x": [["ref:abcdefgh12345678"]]}},
    {"params": {"x": {"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.c2ln": 1}}},
    {"params": {"x": "see eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..aXY.Y3Q.dGFn here"}},
]  # fmt: skip


@pytest.mark.parametrize("changes", GRANT_ROWS, ids=str)
def test_a_grant_with_one_difference_is_malformed(changes):
    assert code(token(grant=changes)) == "grant_malformed"


@pytest.mark.parametrize(
    "presented",
    [
        "A" * 8193, "." * 1_048_576, "[" * 5_000_000, "eyJ" * 1_700_000, "\U0001f600" * 2049, VALID + "A" * 8192,
        f"{'A' * 1367}.{P}.{S}", f"{H}.{'A' * 5463}.{S}",
    ],
    ids=lambda text: f"{text[:3]} * {len(text)}",
)  # fmt: skip
def test_a16_size_is_judged_first_and_at_once(presented):
    start = time.perf_counter()
    assert code(presented) == "token_too_large"
    assert time.perf_counter() - start < 0.001 * 5  # 1 ms, and room for a busy machine


def test_the_largest_token_of_the_limits_is_read():
    assert code(token(claims={"pad": "x" * 3000})) == "accepted"


# ── keys ──


def test_a_signature_of_another_key_or_over_another_text_is_invalid():
    assert code(signed(json.dumps(HEADER).encode(), json.dumps(CLAIMS).encode(), OTHER)) == "signature_invalid"
    assert code(f"{H}.{b64(json.dumps(CLAIMS | {'sub': 'service:root'}).encode())}.{S}") == "signature_invalid"


def test_a_key_is_used_with_its_own_algorithm_only():
    assert code(token(header={"kid": "ed1"})) == "algorithm_not_allowed"
    assert code(token(header={"alg": "EdDSA"})) == "algorithm_not_allowed"


def test_keys_of_one_issuer_never_verify_for_another():
    other = KeySet.from_jwks(json.dumps({"keys": [public_jwk("k1", OTHER)]}).encode(), ["ES256"])
    ring = {ISS: other, "https://b.example": KEYS}
    assert code(VALID, ring) == "signature_invalid"
    assert (
        code(token(claims={"iss": "https://b.example"}), {ISS: KEYS, "https://b.example": other}) == "signature_invalid"
    )


def test_a_key_that_may_still_come_is_wanted():
    assert verify(VALID, {ISS: None}, AUD) == KeyWanted(ISS, None)
    assert verify(token(header={"kid": "k2"}), RING, AUD) == KeyWanted(ISS, "k2")
    assert code(VALID, {}) == "issuer_untrusted"


def test_the_development_secret_marks_what_it_verified():
    ring = {ISS: KEYS.with_dev_key(dev_key(SECRET))}
    made = jwt.encode(CLAIMS, SECRET, "HS256", headers={"kid": "dev", "typ": "trigger+jwt"})
    got = verify(made, ring, AUD)
    assert isinstance(got, VerifiedToken)
    assert got.insecure
    assert code(made) == "algorithm_not_allowed"
    other = jwt.encode(CLAIMS, SECRET[::-1], "HS256", headers={"kid": "dev", "typ": "trigger+jwt"})
    assert code(other, ring) == "signature_invalid"
    assert code(token(header={"kid": "dev"}), ring) == "algorithm_not_allowed"
    assert verify(VALID, ring, AUD).insecure is False


# ── several faults ──

FAULTS = [
    ("token_header_not_allowed", {"header": {"crit": ["x"]}}),
    ("algorithm_not_allowed", {"header": {"alg": "none"}}),
    ("token_type_invalid", {"header": {"typ": "JWT"}}),
    ("kid_malformed", {"header": {"kid": ""}}),
    ("issuer_untrusted", {"claims": {"iss": "https://nobody.example"}}),
    ("audience_mismatch", {"claims": {"aud": "other"}}),
    ("ttl_missing", {"claims": {"exp": ABSENT}}),
    ("jti_required", {"claims": {"jti": ABSENT}}),
    ("org_missing", {"claims": {"org_id": ABSENT}}),
    ("claim_malformed", {"claims": {"sub": ABSENT}}),
    ("delegation_too_deep", {"claims": {"act": nested("54321")}}),
    ("grant_malformed", {"grant": {"type": "x"}}),
]


@given(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=4, unique_by=lambda fault: fault[0]))
def test_of_several_faults_the_earliest_names_the_reason(faults):
    merged = {}
    for _, changes in faults:
        for part, members in changes.items():
            merged[part] = merged.get(part, {}) | members
    assert code(token(**merged)) == min((name for name, _ in faults), key=PRECEDENCE.__getitem__)


# V-02: the cross product of {absent, wrong type, wrong value, right} for kid, iss, aud and exp.
V02 = {
    "kid": ("header", {"absent": (ABSENT, "kid_missing"), "type": (1, "kid_malformed"), "value": ("k9", "wanted"), "right": ("k1", None)}),
    "iss": ("claims", {"absent": (ABSENT, "issuer_missing"), "type": (1, "issuer_malformed"), "value": ("x", "issuer_untrusted"), "right": (ISS, None)}),
    "aud": ("claims", {"absent": (ABSENT, "audience_missing"), "type": (1, "audience_malformed"), "value": ("x", "audience_mismatch"), "right": (AUD, None)}),
    "exp": ("claims", {"absent": (ABSENT, "ttl_missing"), "type": ("1", "expiry_malformed"), "value": (NOW_S, "claim_malformed"), "right": (NOW_S + 600, None)}),
}  # fmt: skip


def test_v02_only_all_right_passes_and_each_failure_has_its_own_code():
    from itertools import product

    seen = set()
    order = {**PRECEDENCE, "wanted": PRECEDENCE["kid_unknown"]}
    for states in product(("absent", "type", "value", "right"), repeat=4):
        parts, codes = {"header": {}, "claims": {}}, []
        for (name, (part, table)), state in zip(V02.items(), states, strict=True):
            value, expected = table[state]
            parts[part][name] = value
            if expected:
                codes.append(expected)
        expected = min(codes, key=order.__getitem__, default="accepted")
        assert code(token(**parts)) == expected, states
        seen.add(expected)
    assert len(seen) == 13


# ── other people's vectors, at the layer they speak of (JWS) ──


def jws_valid(presented: str, keys: KeySet | None) -> bool:
    """Whether our JWS layer takes it: form, strict header, the key's one algorithm, signature. Not kid, typ, claims."""
    read = read_jws(presented)
    if isinstance(read, Rejected):
        return False
    signing_input, header, _, signature = read
    if keys is None or isinstance(header, JSONRefused):
        return False
    return any(header[0] == key.algorithm and key.verify(signing_input, signature) for key in keys.keys.values())


def keys_of(jwk: dict) -> KeySet | None:
    """The keys our own readers make of a JWK, symmetric ones by way of the development secret."""
    if jwk.get("kty") == "oct":
        if jwk.get("alg") != "HS256" or jwk.get("use", "sig") != "sig":
            return None
        key = dev_key(base64url.decode(jwk["k"]))
        return KeySet({key.kid: key}, frozenset({"HS256"}))
    try:
        return KeySet.from_jwks(
            json.dumps({"keys": [{**jwk, "kid": jwk.get("kid", "k")}]}).encode(), ["ES256", "EdDSA"]
        )
    except JWKSInvalid:
        return None


# Every vector labelled valid upstream that we refuse, by why: the few stricter refusals.
STRICTER = {
    "profile: alg": 34,  # RS, PS and ES512 are no algorithms of ours
    "labelled valid upstream, but": 1,  # "?" in a segment: RFC 7515 section 2 wants base64url
    "as 372": 1,
}


def test_wycheproof_json_web_signatures():
    groups = json.loads((VECTORS / "wycheproof" / "json_web_signature_test.json").read_text())["testGroups"]
    expected = json.loads((VECTORS / "wycheproof" / "EXPECTATIONS_es256_hs256_profile.json").read_text())
    expected = expected["json_web_signature_test"]
    wrong, stricter, count = [], dict.fromkeys(STRICTER, 0), 0
    for group in groups:
        keys = keys_of(group.get("public") or group["private"])
        for vector in group["tests"]:
            count += 1
            presented = vector["jws"] if isinstance(vector["jws"], str) else json.dumps(vector["jws"])
            verdict = expected[str(vector["tcId"])]
            if jws_valid(presented, keys) != (verdict["expect_jws_layer"] == "valid"):
                wrong.append((vector["tcId"], vector["comment"], verdict))
            if (verdict["upstream"], verdict["expect_jws_layer"]) == ("valid", "invalid"):
                stricter[next(why for why in STRICTER if verdict["why"].startswith(why))] += 1
            assert code(presented, {ISS: keys}) != "accepted"
    assert not wrong
    assert count == 401
    assert stricter == STRICTER


def test_wycheproof_ecdsa_p256_signatures():
    from app.gate.keyset import es256_key

    wrong, count = [], 0
    for group in json.loads((VECTORS / "wycheproof" / "ecdsa_secp256r1_sha256_p1363_test.json").read_text())[
        "testGroups"
    ]:
        point = bytes.fromhex(group["publicKey"]["uncompressed"])
        key = es256_key("k", ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        for vector in group["tests"]:
            count += 1
            if key.verify(bytes.fromhex(vector["msg"]), bytes.fromhex(vector["sig"])) != (vector["result"] == "valid"):
                wrong.append((vector["tcId"], vector["comment"]))
    assert not wrong
    assert count > 200


def test_rfc_7515_examples_are_valid_signatures_and_no_tokens():
    for example in json.loads((VECTORS / "rfc7515" / "appendix_a.json").read_text()):
        jwk = example["jwk"] | ({"alg": "HS256"} if example["jwk"]["kty"] == "oct" else {})
        keys = keys_of(jwk)
        assert jws_valid(example["jws"], keys)
        assert code(example["jws"], {"joe": keys}) in {"token_type_invalid", "algorithm_not_allowed"}


# ── fuzz ──

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MUTANTS = 20_000


def test_no_mutant_of_a_token_is_accepted():
    """T-02, V-03: 20,000 mutants, any one or two characters changed, removed, doubled or swapped."""
    dice = random.Random(7)
    fault = {"accepted"}
    for _ in range(MUTANTS):
        text = list(VALID)
        for _ in range(dice.choice((1, 1, 1, 2))):
            place = dice.randrange(len(text))
            match dice.randrange(5):
                case 0:
                    text[place] = dice.choice(ALPHABET)
                case 1:
                    text[place] = chr(dice.randrange(0x180))
                case 2:
                    del text[place]
                case 3:
                    text.insert(place, dice.choice(ALPHABET + ".=\n"))
                case 4:
                    other = dice.randrange(len(text))
                    text[place], text[other] = text[other], text[place]
        mutant = "".join(text)
        if mutant != VALID:
            assert code(mutant) not in fault, mutant


def test_no_single_character_of_a_token_can_be_another():
    """Every place of the token, with a neighbour in the alphabet: the ones a lenient decoder would take."""
    for place, character in enumerate(VALID):
        for other in "AQgwBx_":
            if other != character:
                assert code(VALID[:place] + other + VALID[place + 1 :]) != "accepted"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.sampled_from([*CLAIMS, *GRANT]), JSON)
def test_any_signed_claim_gives_a_verdict_of_the_table(name, value):
    made = token(grant={name: value}) if name in GRANT else token(claims={name: value})
    got = verify(made, RING, AUD)
    assert isinstance(got, VerifiedToken | KeyWanted) or got.code in BY_CODE


@settings(max_examples=300)
@given(st.sampled_from(sorted(CLAIMS)), JSON)
def test_the_shorter_way_gives_the_same_verdict(name, value):
    """An empty params member sends the same token on the long way."""
    short = token(claims={name: value}, grant={"params": ABSENT})
    long = token(claims={name: value}, grant={"params": {}})
    first, second = verify(short, RING, AUD), verify(long, RING, AUD)
    if isinstance(first, VerifiedToken):
        assert first.claims == second.claims
    else:
        assert first == second


@settings(max_examples=300)
@given(st.text(max_size=200) | st.lists(st.binary(max_size=60).map(b64), min_size=2, max_size=5).map(".".join))
def test_any_text_gives_a_verdict(text):
    assert code(text) != "accepted"
    parse_unverified(text)


# ── looking without verifying ──


def test_an_unverified_token_is_shown_under_that_name():
    read = parse_unverified(token(header={"alg": "none"}))
    assert read.unverified_header["alg"] == "none"
    assert read.unverified_claims["sub"] == "service:ci"
    assert isinstance(parse_unverified("x.y"), Rejected)
    assert with_changes({"a": 1}, {"a": ABSENT}) == {}
