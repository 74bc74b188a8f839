"""A valid world of tokens: fixed keys, one issuer, one token; each test states one difference from it."""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from app.gate.keyset import KeySet, eddsa_key, es256_key

ISS = "https://issuer.example"
AUD = "tollgate:tollgate."
NOW_S = 1_700_000_000
JTI = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
PRIVATE = ec.derive_private_key(0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF, ec.SECP256R1())
OTHER = ec.derive_private_key(0xFEDCBA0987654321FEDCBA0987654321FEDCBA0987654321FEDCBA0987654321, ec.SECP256R1())
ED_PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
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


class _Absent:
    def __repr__(self) -> str:
        return "absent"  # the same in every process: it is in names of tests


ABSENT = _Absent()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_changes(base: dict, changes: dict) -> dict:
    """`base` with members changed; ABSENT removes one."""
    return {name: value for name, value in (base | changes).items() if value is not ABSENT}


def es256(message: bytes, private=PRIVATE) -> bytes:
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(header_json: bytes, claims_json: bytes, private=PRIVATE) -> str:
    """A correct signature over these very bytes."""
    message = f"{b64(header_json)}.{b64(claims_json)}"
    return f"{message}.{b64(es256(message.encode(), private))}"


def token(header: dict | None = None, claims: dict | None = None, grant: dict | None = None) -> str:
    """A token with one difference in its header, claims or grant, correctly signed."""
    details = {} if grant is None else {"authorization_details": [with_changes(GRANT, grant)]}
    return signed(
        json.dumps(with_changes(HEADER, header or {})).encode(),
        json.dumps(with_changes(CLAIMS | details, claims or {})).encode(),
    )


def public_jwk(kid: str = "k1", private=PRIVATE, **changes) -> dict:
    numbers = private.public_key().public_numbers()
    x, y = (b64(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    return with_changes(
        {"kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": "sig", "x": x, "y": y}, changes
    )


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
