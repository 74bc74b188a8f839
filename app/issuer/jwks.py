"""The public JWK Set (RFC 7517): what verifiers need, and nothing that signs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.gate import base64url
from app.gate.keyset import EDDSA, ES256
from app.issuer.files import write_atomically

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_FILE_MODE: Final = 0o644
_COORDINATE_BYTES: Final = 32


def public_jwk(kid: str, public_key: PublicKey) -> dict[str, str]:
    """The members by name, one by one: nothing private can slip in."""
    match public_key:
        case ec.EllipticCurvePublicKey():
            point = public_key.public_numbers()
            curve = {
                "kty": "EC",
                "crv": "P-256",
                "alg": ES256,
                "x": base64url.encode(point.x.to_bytes(_COORDINATE_BYTES, "big")),
                "y": base64url.encode(point.y.to_bytes(_COORDINATE_BYTES, "big")),
            }
        case ed25519.Ed25519PublicKey():
            raw = public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            curve = {"kty": "OKP", "crv": "Ed25519", "alg": EDDSA, "x": base64url.encode(raw)}
    return {"kid": kid, "use": "sig", **curve}


def jwks_document(keys: Iterable[tuple[str, PublicKey]]) -> bytes:
    document: Mapping[str, list[dict[str, str]]] = {"keys": [public_jwk(kid, key) for kid, key in keys]}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_jwks(path: Path, document: bytes) -> None:
    """Publish the set; a verifier that reads meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, document, _FILE_MODE)
