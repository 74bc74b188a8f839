"""Tokens: what a valid one becomes, with whose keys, and which of several faults names the reason."""

import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate.claims import nested
from app.gate.jws import parse_unverified
from app.gate.keyset import KeySet, dev_key
from app.gate.reasons import PRECEDENCE, Rejected
from app.gate.token import KeyWanted, VerifiedToken, verify
from tests.support.jose import ABSENT, b64, changed
from tests.support.tokens import (
    AUD,
    CLAIMS,
    ED_PRIVATE,
    HEADER,
    ISS,
    JTI,
    KEYS,
    NOW_S,
    OTHER,
    PRIVATE,
    RING,
    fingerprint,
    public_jwk,
    signed,
    token,
)
from tests.support.verifying import VALID, H, S, verdict

SECRET = b"a development secret of 32 bytes"


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
    assert verdict(made) == "accepted"
    only_es256 = {ISS: KeySet(KEYS.keys, frozenset({"ES256"}))}
    assert verdict(made, only_es256) == "algorithm_not_allowed"


def test_tokens_of_other_peoples_libraries_are_read():
    assert verdict(jwt.encode(CLAIMS, PRIVATE, "ES256", headers={"kid": "k1", "typ": "trigger+jwt"})) == "accepted"


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
    assert verdict(token(**changes)) == "accepted"


# ── keys ──


def test_a_signature_of_another_key_or_over_another_text_is_invalid():
    assert verdict(signed(json.dumps(HEADER).encode(), json.dumps(CLAIMS).encode(), OTHER)) == "signature_invalid"
    assert verdict(f"{H}.{b64(json.dumps(CLAIMS | {'sub': 'service:root'}).encode())}.{S}") == "signature_invalid"


def test_a_key_is_used_with_its_own_algorithm_only():
    assert verdict(token(header={"kid": "ed1"})) == "algorithm_not_allowed"
    assert verdict(token(header={"alg": "EdDSA"})) == "algorithm_not_allowed"


def test_keys_of_one_issuer_never_verify_for_another():
    other = KeySet.from_jwks(json.dumps({"keys": [public_jwk("k1", OTHER)]}).encode(), ["ES256"])
    ring = {ISS: other, "https://b.example": KEYS}
    assert verdict(VALID, ring) == "signature_invalid"
    assert (
        verdict(token(claims={"iss": "https://b.example"}), {ISS: KEYS, "https://b.example": other})
        == "signature_invalid"
    )


def test_a_key_that_may_still_come_is_wanted():
    assert verify(VALID, {ISS: None}, AUD) == KeyWanted(ISS, None)
    assert verify(token(header={"kid": "k2"}), RING, AUD) == KeyWanted(ISS, "k2")
    assert verdict(VALID, {}) == "issuer_untrusted"


def test_the_development_secret_marks_what_it_verified():
    ring = {ISS: KEYS.with_dev_key(dev_key(SECRET))}
    made = jwt.encode(CLAIMS, SECRET, "HS256", headers={"kid": "dev", "typ": "trigger+jwt"})
    got = verify(made, ring, AUD)
    assert isinstance(got, VerifiedToken)
    assert got.insecure
    assert verdict(made) == "algorithm_not_allowed"
    other = jwt.encode(CLAIMS, SECRET[::-1], "HS256", headers={"kid": "dev", "typ": "trigger+jwt"})
    assert verdict(other, ring) == "signature_invalid"
    assert verdict(token(header={"kid": "dev"}), ring) == "algorithm_not_allowed"
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
    assert verdict(token(**merged)) == min((name for name, _ in faults), key=PRECEDENCE.__getitem__)


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
        assert verdict(token(**parts)) == expected, states
        seen.add(expected)
    assert len(seen) == 13


# ── looking without verifying ──


def test_an_unverified_token_is_shown_under_that_name():
    read = parse_unverified(token(header={"alg": "none"}))
    assert read.unverified_header["alg"] == "none"
    assert read.unverified_claims["sub"] == "service:ci"
    assert isinstance(parse_unverified("x.y"), Rejected)
    assert changed({"a": 1}, {"a": ABSENT}) == {}
