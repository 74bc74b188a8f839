"""Issuing: what a gate takes, and the refusal of what must not be asked for."""

import hashlib
import json

import pytest

from app.gate.base64url import decode
from app.gate.claims import BoundTo
from app.gate.keyset import KeySet, dev_key
from app.gate.reference import is_handle
from app.gate.token import VerifiedToken, verify
from app.issuer.keystore import SigningKey
from app.issuer.mint import DevKeys, Minted, Refusal, TriggerTokenRequest, is_secret_name, mint, new_handle
from tests.support.tokens import AUD, ED_PRIVATE, HEADER, ISS, JTI, KEYS, NOW_S, PRIVATE, RING, token

KEY = SigningKey("k1", "ES256", PRIVATE)
VALID = {
    "issuer": ISS, "audience": AUD, "subject": "service:ci", "org_id": "acme", "jobs": ("reports/nightly",),
    "uses": "once", "ttl_s": 300,
}  # fmt: skip


def asked(key=KEY, **changes) -> Minted | Refusal:
    return mint(TriggerTokenRequest(**VALID | changes), key, NOW_S)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"ttl_s": 86_400}, {"uses": "many", "ttl_s": 90 * 86_400, "jobs": ("a", "b")}, {"idempotency_key": "k-1"},
        {"params": {"region": "eu", "nested": {"max_tokens": 5}, "list": [1, 2.5, None]}}, {"params_sha256": "0" * 64},
        {"ttl_s": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_minted_a_gate_takes(changes):
    made = asked(**changes)
    assert isinstance(made, Minted), made
    got = verify(made.token, RING, AUD)
    assert isinstance(got, VerifiedToken)
    assert got.claims == made.claims
    assert got.claims.grant.params == changes.get("params", {})
    assert got.claims.idempotency_key == changes.get("idempotency_key")
    assert (got.claims.iat, got.claims.exp) == (NOW_S, NOW_S + changes.get("ttl_s", 300))
    assert json.loads(decode(made.token.split(".")[0])) == HEADER


def test_with_time_and_jti_given_the_claims_are_settled():
    first, second = (mint(TriggerTokenRequest(**VALID), KEY, NOW_S, JTI) for _ in range(2))
    assert first.claims == second.claims
    assert first.claims.jti == JTI


def test_a_handle_is_what_its_grant_says_and_its_grant_is_no_token():
    handle = new_handle()
    assert is_handle(handle)
    made = mint(TriggerTokenRequest(**VALID), KEY, NOW_S, JTI, handle=handle)
    assert isinstance(made, Minted)
    assert (made.token, made.claims) == (handle, mint(TriggerTokenRequest(**VALID), KEY, NOW_S, JTI).claims)
    key, grant = made.grant
    assert key.decode() == hashlib.sha256(handle.encode()).hexdigest()
    assert handle[4:].encode() not in grant
    assert verify(grant.decode(), RING, AUD).code == "token_type_invalid"
    assert len({new_handle() for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize("handle", [None, "ref:" + "A" * 43])
def test_what_is_refused_for_a_token_is_refused_for_a_handle(handle):
    for changes in ({"ttl_s": None}, {"jobs": ()}, {"jobs": ("*",)}, {"params": {"password": "x"}}, {"subject": ""}):
        refused = mint(TriggerTokenRequest(**VALID | changes), KEY, NOW_S, handle=handle)
        assert isinstance(refused, Refusal), changes


def test_a_token_may_be_bound_and_a_binding_no_gate_takes_is_not_made():
    bound = BoundTo("job/reports/nightly", "b1")
    assert asked(bound_to=bound).claims.grant.bound_to == bound
    assert asked(bound_to=BoundTo("trust/emitter:7")).claims.grant.bound_to == BoundTo("trust/emitter:7")
    assert asked(bound_to=BoundTo("")).code == "grant_malformed"


def test_t02_ten_thousand_tokens_have_as_many_jtis_of_128_bits():
    from app.issuer import mint as module

    jtis = {module.secrets.token_hex(module.JTI_BYTES) for _ in range(10_000)}
    jtis |= {asked().claims.jti for _ in range(100)}
    assert len(jtis) == 10_100
    assert {len(bytes.fromhex(jti)) for jti in jtis} == {16}
    assert all(any(int(jti, 16) >> bit & 1 for jti in jtis) for bit in range(128))


JWS = token()
REFUSED = [
    ({"ttl_s": None}, "ttl_missing"),
    ({"ttl_s": 0}, "expiry_malformed"),
    ({"ttl_s": -1}, "expiry_malformed"),
    ({"ttl_s": 86_401}, "ttl_too_long"),
    ({"ttl_s": 90 * 86_400 + 1, "uses": "many"}, "ttl_too_long"),
    ({"jobs": ()}, "scope_too_broad"),
    ({"jobs": ("*",)}, "scope_too_broad"),
    ({"jobs": ("reports/*",)}, "scope_too_broad"),
    ({"jobs": ("a?",), "uses": "many"}, "scope_too_broad"),
    ({"jobs": ("[a-z]",), "uses": "many"}, "scope_too_broad"),
    ({"jobs": ("a", "b")}, "scope_too_broad"),
    ({"jobs": (), "uses": "many"}, "scope_too_broad"),
    ({"params": {"db_password": "x"}}, "secret_in_clear"),
    ({"params": {"a": {"b": [{"apiKey": "x"}]}}}, "secret_in_clear"),
    ({"params": {"x": JWS}}, "secret_in_clear"),
    ({"params": {"x": [f"Bearer {JWS}"]}}, "secret_in_clear"),
    ({"params": {JWS: 1}}, "secret_in_clear"),
    ({"params": {"x": "ref:0123456789abcdef"}}, "secret_in_clear"),
    ({"params": {"x": "-----BEGIN PRIVATE KEY-----\n"}}, "secret_in_clear"),
    ({"params": {"x": float("nan")}}, "token_json_malformed"),
    ({"params": {"x": 10**15}}, "token_json_malformed"),
    ({"params": {"x": "\ud800"}}, "token_json_malformed"),
    ({"params": {"x": "y" * 4000}}, "token_too_large"),
    ({"params": {"password": "y" * 9000}}, "token_too_large"),  # told before anything in it is looked at
    ({"params": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}}, "token_json_malformed"),
    ({"subject": ""}, "claim_malformed"),
    ({"org_id": ""}, "claim_malformed"),
    ({"idempotency_key": ""}, "claim_malformed"),
    ({"idempotency_key": "k" * 257}, "claim_malformed"),
    ({"jobs": ("j" * 201,)}, "grant_malformed"),
    ({"params_sha256": "x"}, "grant_malformed"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_must_not_be_asked_for_is_refused(changes, expected):
    made = asked(**changes)
    assert isinstance(made, Refusal)
    assert made.code == expected
    assert made.sentence
    assert JWS.split(".")[2] not in made.sentence


@pytest.mark.parametrize(
    "name",
    ["password", "db_password", "PASSWD", "dbPassword", "secret", "client-secret", "token", "accessToken", "access_token",
     "api_key", "apiKey", "APIKEY", "x-api-key", "private_key", "privateKey", "credential", "aws_credentials", "pwd",
     "passphrase", "ssh_key", "signingKey", "bearer", "Authorization", "jwt"],
)  # fmt: skip
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["region", "max_tokens", "tokenizer", "secretary", "key", "primary_key", "partition_key", "monkey", "compass", "author",
     "keyboard", "public_key", "idempotency", "path", "n", ""],
)  # fmt: skip
def test_ordinary_names_are_not_secrets(name):
    assert not is_secret_name(name)


def test_ed25519_and_the_development_secret_sign_too():
    assert isinstance(verify(asked(SigningKey("ed1", "EdDSA", ED_PRIVATE)).token, RING, AUD), VerifiedToken)
    secret = b"x" * 32
    made = asked(DevKeys(secret).signing_key(0)).token
    got = verify(made, {ISS: KeySet({}, frozenset()).with_dev_key(dev_key(secret))}, AUD)
    assert isinstance(got, VerifiedToken)
    assert got.insecure
    assert verify(made, {ISS: KEYS}, AUD).code == "algorithm_not_allowed"


def test_a_signing_key_shows_its_name_only():
    assert repr(DevKeys(b"hush" * 8).signing_key(0)) == "SigningKey('dev', 'HS256')"
    assert "PRIVATE" not in repr(KEY)
