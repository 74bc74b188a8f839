"""Ops' pair of keys for dead letters: gates seal with the public one, only its holder can open with the private one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from app.issuer.files import write_atomically

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
_COORDINATE_BYTES: Final = 32  # of P-256


def make_sealing_keys(private_file: Path, public_file: Path) -> None:
    """Write a new pair (EC P-256, RFC 7518 section 6.2) as two JWK files."""
    made = ec.generate_private_key(ec.SECP256R1())
    point = made.public_key().public_numbers()
    public = {"kty": "EC", "crv": "P-256", "use": "enc", "x": _text(point.x), "y": _text(point.y)}
    private = public | {"d": _text(made.private_numbers().private_value)}
    for file, jwk, mode in ((private_file, private, PRIVATE_MODE), (public_file, public, PUBLIC_MODE)):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, json.dumps(jwk).encode(), mode)


def _text(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(_COORDINATE_BYTES, "big")).rstrip(b"=").decode()
