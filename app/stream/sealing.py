"""Sealing: what was taken out of a dead letter, to ops' public key, as JWE compact (ECDH-ES, A256GCM; RFC 7516, 7518).

A gate can seal and not open. One ephemeral key serves many records; the record's trigger id and content go into the
key derivation (apv, RFC 7518 section 4.6.2), so a sealed part opens for its own dead letter only.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.config import ConfigError
from app.gate.original import Seal

RECORDS_PER_EPHEMERAL_KEY: Final = 100_000
_KEY_BITS: Final = 256
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_ALGORITHM_ID: Final = b"A256GCM"


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def binding(trigger_id: str, value: bytes) -> bytes:
    """PartyVInfo: what a sealed part belongs to."""
    return trigger_id.encode() + b"." + sha256(value).digest()


class Sealer:
    """Seals to one public key."""

    def __init__(self, public: ec.EllipticCurvePublicKey, kid: str | None) -> None:
        self._public, self._kid = public, kid
        self._left = 0
        self._shared = b""
        self._header_start = b""

    def _renew(self) -> None:
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        self._shared = ephemeral.exchange(ec.ECDH(), self._public)
        point = ephemeral.public_key().public_numbers()
        epk = {"kty": "EC", "crv": "P-256"} | {
            name: _b64(number.to_bytes(32, "big")).decode() for name, number in (("x", point.x), ("y", point.y))
        }
        header = {"alg": "ECDH-ES", "enc": "A256GCM", "epk": epk} | ({"kid": self._kid} if self._kid else {})
        self._header_start = json.dumps(header, separators=(",", ":")).encode()[:-1]
        self._left = RECORDS_PER_EPHEMERAL_KEY

    def __call__(self, taken: Sequence[bytes], trigger_id: str, value: bytes) -> str:
        """JWE whose plaintext is a JSON array of what was taken out, in order of appearance."""
        if self._left == 0:
            self._renew()
        self._left -= 1
        apv = binding(trigger_id, value)
        header = _b64(self._header_start + b',"apv":"' + _b64(apv) + b'"}')
        plaintext = orjson.dumps([part.decode("utf-8", "replace") for part in taken])
        iv = os.urandom(_IV_BYTES)
        sealed = AESGCM(self._derive(apv)).encrypt(iv, plaintext, header)
        body, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
        # Direct key agreement: the encrypted-key part is empty (RFC 7518 section 4.6).
        return b".".join((header, b"", _b64(iv), _b64(body), _b64(tag))).decode()

    def _derive(self, apv: bytes) -> bytes:
        """Concat KDF (NIST SP 800-56A, one round of SHA-256 gives 256 bits)."""
        other_info = b"".join(len(part).to_bytes(4, "big") + part for part in (_ALGORITHM_ID, b"", apv))
        return sha256(b"\x00\x00\x00\x01" + self._shared + other_info + _KEY_BITS.to_bytes(4, "big")).digest()


def unsealed(taken: Sequence[bytes], trigger_id: str, value: bytes) -> None:
    """Without a sealing key what was taken out is left out."""


def sealer_from(path: Path | None) -> Seal:
    """The Seal of a deployment. Raises ConfigError for a key that is not a public P-256 JWK."""
    if path is None:
        return unsealed
    try:
        jwk = json.loads(path.read_bytes())
        if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256" or "d" in jwk:
            raise ValueError("it must be a public JWK of kty EC and crv P-256, without d")
        x, y = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"gate.sealing_key {path} cannot be used: {error}") from None
    return Sealer(public, jwk.get("kid"))
