"""Tokens: rows A10 to A19 of the attack table, JSON, claims, grant and size; each states one difference."""

import json
import time

import pytest

from tests.support.jose import ABSENT
from tests.support.tokens import (
    AUD,
    CLAIMS,
    GRANT,
    HEADER,
    ISS,
    NOW_S,
    signed,
    token,
)
from tests.support.verifying import VALID, H, P, S, verdict

JSON_FAULTS = [
    b'{"iss":"x","iss":"x"}', b'{"a":NaN}', b'{"a":Infinity}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
    "{}".encode("utf-32"), b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":[[[[[[[[1]]]]]]]]}', b'{"a":1000000000000000}',
    b"[]", b"null", b'"x"', b"1", b"{}x", b"{", b'{"a":"\x00"}',
]  # fmt: skip


@pytest.mark.parametrize("raw", JSON_FAULTS)
def test_a10_header_and_claims_are_strict_json(raw):
    assert verdict(signed(raw, json.dumps(CLAIMS).encode())) == "token_json_malformed"
    assert verdict(signed(json.dumps(HEADER).encode(), raw)) == "token_json_malformed"


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
    assert verdict(token(claims=changes)) == expected
    if "authorization_details" not in changes:  # without params a token is read on a shorter way
        assert verdict(token(claims=changes, grant={"params": ABSENT})) == expected


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
    assert verdict(token(grant=changes)) == "grant_malformed"


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
    assert verdict(presented) == "token_too_large"
    assert time.perf_counter() - start < 0.001 * 5  # 1 ms, and room for a busy machine


def test_the_largest_token_of_the_limits_is_read():
    assert verdict(token(claims={"pad": "x" * 3000})) == "accepted"
