"""Tokens byte by byte, good or bad, of nothing but `cryptography`: what the product makes of them is not asked here."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


class _Absent:
    def __repr__(self) -> str:
        return "absent"  # the same in every process: it is in names of tests


ABSENT: Any = _Absent()  # as a change: the member is left out


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """`base` with members changed; ABSENT removes one."""
    return {name: value for name, value in {**base, **(changes or {})}.items() if value is not ABSENT}


def es256(message: bytes, private: ec.EllipticCurvePrivateKey) -> bytes:
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(header: bytes, claims: bytes, private: ec.EllipticCurvePrivateKey) -> str:
    """A correct signature over these very bytes, however odd they are."""
    message = f"{b64(header)}.{b64(claims)}"
    return f"{message}.{b64(es256(message.encode(), private))}"


def public_jwk(kid: str, private: ec.EllipticCurvePrivateKey, use: str = "sig") -> dict[str, Any]:
    numbers = private.public_key().public_numbers()
    x, y = (b64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    alg = "ES256" if use == "sig" else "ECDH-ES"
    return {"kty": "EC", "crv": "P-256", "kid": kid, "alg": alg, "use": use, "x": x, "y": y}


def unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, whoever signed it."""
    header, claims = (json.loads(unb64(part)) for part in token.split(".")[:2])
    return header, claims


def claims_of(token: str) -> dict[str, Any]:
    return unverified(token)[1]
