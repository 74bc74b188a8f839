"""A valid world of tokens: fixed keys, one issuer, one token; each test states one difference from it."""

import hashlib
import json

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from app.gate.keyset import KeySet, eddsa_key, es256_key
from tests.support import jose
from tests.support.jose import changed

ISS = "https://issuer.example"
AUD = "tollgate:tollgate."
NOW_S = 1_700_000_000
JTI = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
PRIVATE = ec.derive_private_key(0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF, ec.SECP256R1())
OTHER = ec.derive_private_key(0xFEDCBA0987654321FEDCBA0987654321FEDCBA0987654321FEDCBA0987654321, ec.SECP256R1())
ED_PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = KeySet(
    {"k1": es256_key("k1", PRIVATE.public_key()), "ed1": eddsa_key("ed1", ED_PRIVATE.public_key())},
    frozenset({"ES256", "EdDSA"}),
)
RING = {ISS: KEYS}
HEADER = {"alg": "ES256", "kid": "k1", "typ": "trigger+jwt"}
GRANT = {"type": "job_trigger", "actions": ["106-Trigger"], "jobs": ["reports/nightly"], "params": {"region": "eu"}}
CLAIMS = {
    "iss": ISS, "aud": AUD, "sub": "service:ci", "org_id": "acme", "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 600,
    "jti": JTI, "uses": "once", "authorization_details": [GRANT],
}  # fmt: skip


def es256(message: bytes, private=PRIVATE) -> bytes:
    return jose.es256(message, private)


def signed(header_json: bytes, claims_json: bytes, private=PRIVATE) -> str:
    """A correct signature over these very bytes."""
    return jose.signed(header_json, claims_json, private)


def token(header: dict | None = None, claims: dict | None = None, grant: dict | None = None) -> str:
    """A token with one difference in its header, claims or grant, correctly signed."""
    details = {} if grant is None else {"authorization_details": [changed(GRANT, grant)]}
    return signed(
        json.dumps(changed(HEADER, header or {})).encode(),
        json.dumps(changed(CLAIMS | details, claims or {})).encode(),
    )


def public_jwk(kid: str = "k1", private=PRIVATE, **changes) -> dict:
    return changed(jose.public_jwk(kid, private), changes)


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
