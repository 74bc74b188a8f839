"""Verification keys: a JWK Set, strictly read, and the ring of all trusted issuers' sets. Public keys only.

A key has one algorithm, settled when the set is read: a token's header never chooses how a key is used (RFC 8725
section 3.1).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeGuard

import msgspec
from awscrt import crypto as awscrt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.gate import base64url, limits
from app.gate.strict_json import JSONRefused, loads_object

ES256: Final = "ES256"
EDDSA: Final = "EdDSA"
HS256: Final = "HS256"  # never from a JWK Set: only `dev_key` makes one
DEV_KID: Final = "dev"

# Of P-256 (FIPS 186-5, SEC 2 section 2.4.2): the order of the group, as r and s are compared to it.
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551.to_bytes(32, "big")
_ZERO: Final = bytes(32)
_COORDINATE_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
# RFC 7518 sections 6.2.2, 6.3.2 and 6.4: what only the owner of a key may hold.
_PRIVATE_MEMBERS: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")


class JWKSInvalid(Exception):  # noqa: N818 - the document is invalid
    """A JWK Set that must not be used; the message is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key with its one algorithm."""

    kid: str
    algorithm: str
    verify: Callable[[bytes, bytes], bool]  # of (message, signature)
    insecure: bool = False  # a development secret


class KeySet(msgspec.Struct, frozen=True):
    """An issuer's keys by kid, and the algorithms that may be used with them."""

    keys: Mapping[str, VerificationKey]
    algorithms: frozenset[str]  # as the trust rule has them, whether or not a key of each is published yet

    @classmethod
    def from_jwks(cls, raw: bytes, algorithms: Collection[str]) -> KeySet:
        """Read a JWK Set (RFC 7517). A key that is not for us is skipped; a set that should not exist is refused.

        Raises JWKSInvalid for a set that holds private or shared keys, that names a kid twice, or without a usable key.
        """
        usable = frozenset(algorithms) & {ES256, EDDSA}
        keys: dict[str, VerificationKey] = {}
        seen: set[str] = set()
        for jwk in _jwks(raw):
            if jwk.get("kty") == "oct" or any(member in jwk for member in _PRIVATE_MEMBERS):
                raise JWKSInvalid("the JWK Set holds a private or shared key: whoever published it has lost it")
            kid = jwk.get("kid")
            if not is_kid(kid):
                continue  # no token could name it
            if kid in seen:
                raise JWKSInvalid("the JWK Set names a kid twice: which key is meant is not decided by order")
            seen.add(kid)
            key = _public_key(jwk, kid)
            if key is not None and key.algorithm in usable:
                keys[kid] = key
        if not keys:
            raise JWKSInvalid(f"the JWK Set holds no usable key: one needs a kid and an algorithm of {sorted(usable)}")
        return cls(keys, usable)

    def with_dev_key(self, key: VerificationKey) -> KeySet:
        """The set with a development secret beside its keys."""
        return KeySet({**self.keys, key.kid: key}, self.algorithms | {key.algorithm})


# Issuer → its key set; None while no set has been loaded. An issuer absent from the ring is untrusted.
KeyRing = Mapping[str, KeySet | None]


def is_kid(value: Any) -> TypeGuard[str]:
    """A short text of printable ASCII: it is looked up and logged, never made into a path, a query or an address."""
    return (
        type(value) is str and 0 < len(value) <= limits.KID_MAX_CHARACTERS and value.isascii() and value.isprintable()
    )


def es256_key(kid: str, public_key: ec.EllipticCurvePublicKey) -> VerificationKey:
    """ECDSA over P-256 by AWS-LC, which takes four fifths of the time that cryptography's OpenSSL takes."""
    encoded = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    check = awscrt.EC.new_key_from_der_data(encoded).verify

    def verify(message: bytes, signature: bytes) -> bool:
        if len(signature) != _SIGNATURE_BYTES:
            return False
        r, s = signature[:32], signature[32:]
        if not (_ZERO < r < _P256_ORDER and _ZERO < s < _P256_ORDER):
            return False
        # `is True`: whatever else a library may come to return is no yes.
        return check(sha256(message).digest(), _der_integers(r, s)) is True

    return VerificationKey(kid, ES256, verify)


def _der_integers(r: bytes, s: bytes) -> bytes:
    """ECDSA-Sig-Value: RFC 7518 section 3.4 gives r and s side by side, AWS-LC wants them in DER."""
    if r[0] == 0 or s[0] == 0:  # DER integers are as short as can be
        r, s = r.lstrip(b"\0"), s.lstrip(b"\0")
    if r[0] > 0x7F:  # and positive
        r = b"\0" + r
    if s[0] > 0x7F:
        s = b"\0" + s
    return _DER_INTEGER[len(r) + len(s) + 4] + _DER_LENGTH[len(r)] + r + b"\x02" + _DER_LENGTH[len(s)] + s


_DER_LENGTH: Final = tuple(bytes((length,)) for length in range(_SIGNATURE_BYTES + 8))
_DER_INTEGER: Final = tuple(b"\x30" + length + b"\x02" for length in _DER_LENGTH)


def eddsa_key(kid: str, public_key: ed25519.Ed25519PublicKey) -> VerificationKey:
    check = public_key.verify

    def verify(message: bytes, signature: bytes) -> bool:
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            check(signature, message)
        except InvalidSignature:
            return False
        return True

    return VerificationKey(kid, EDDSA, verify)


def dev_key(secret: bytes) -> VerificationKey:
    """A shared secret for development (HS256). What verifies with it says so; see VerifiedToken.insecure."""
    if len(secret) < limits.HS256_SECRET_MIN_BYTES:
        raise ValueError(f"an HS256 secret needs at least {limits.HS256_SECRET_MIN_BYTES} bytes (RFC 7518 section 3.2)")

    def verify(message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(secret, message, "sha256"), signature)

    return VerificationKey(DEV_KID, HS256, verify, insecure=True)


def _jwks(raw: bytes) -> list[dict[str, Any]]:
    if len(raw) > limits.JWKS_MAX_BYTES:
        raise JWKSInvalid(f"the JWK Set is larger than {limits.JWKS_MAX_BYTES} bytes")
    try:
        members = loads_object(raw).get("keys")
    except JSONRefused as refused:
        raise JWKSInvalid(f"the JWK Set is not strict JSON: {refused.detail}") from None
    if type(members) is not list or not all(type(member) is dict for member in members):
        raise JWKSInvalid("the JWK Set has no list `keys` of objects (RFC 7517 section 5)")
    if len(members) > limits.JWKS_MAX_KEYS:
        raise JWKSInvalid(f"the JWK Set holds more than {limits.JWKS_MAX_KEYS} keys")
    return members


def _public_key(jwk: dict[str, Any], kid: str) -> VerificationKey | None:
    """The key if it is one to verify with: the right curve and use, no other algorithm, a point on its curve."""
    if jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if type(operations) is not list or "verify" not in operations:
        return None
    match jwk.get("kty"), jwk.get("crv"), jwk.get("alg"):
        case "EC", "P-256", None | "ES256":
            x, y = _coordinate(jwk.get("x")), _coordinate(jwk.get("y"))
            if x is None or y is None:
                return None
            try:  # the point must be on the curve (RFC 8725 section 3.4); cryptography checks it
                point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
            except ValueError:
                return None
            return es256_key(kid, point)
        case "OKP", "Ed25519", None | "EdDSA":
            x = _coordinate(jwk.get("x"))
            if x is None:
                return None
            return eddsa_key(kid, ed25519.Ed25519PublicKey.from_public_bytes(x))
    return None


def _coordinate(value: Any) -> bytes | None:
    """RFC 7518 section 6.2.1.2: exactly as long as the curve's field."""
    data = base64url.decode(value) if type(value) is str else None
    return data if data is not None and len(data) == _COORDINATE_BYTES else None
