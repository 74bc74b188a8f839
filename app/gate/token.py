"""The token: bytes become claims only through `verify`, which alone can make a VerifiedToken.

Nothing unverified leaves this module under a name that does not say so.

  1 size            before anything is decoded
  2 form            three parts of strict base64url, two strict JSON objects (RFC 7515 section 7.1)
  3 header          exactly alg, kid and typ; an algorithm of the issuer's keys; the class; the kid
  4 issuer and key  iss is read unverified, to find the key and for nothing else
  5 signature       with the key's own algorithm
  6 claims          audience, lifetime, identity, grant: their presence and form

A handle (`ref:…`) is looked up, and what it stands for goes the same way, but that its typ is another and that it names
the handle: neither is accepted in the other's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import msgspec

from app.gate import limits
from app.gate.base64url import TO_STANDARD, decode_standard
from app.gate.claims import ClaimRefused, Claims, Grant, Uses, claims_of_quick, read_claims
from app.gate.jws import ABSENT, read_jws
from app.gate.keyset import EDDSA, ES256, HS256, KeyRing, VerificationKey, is_kid
from app.gate.quick import QuickClaims, quick_claims
from app.gate.reasons import Rejected
from app.gate.reference import GRANT_TYP, HANDLE_START, HASH_CLAIM, NO_GRANTS, Grants, handle_digest, is_handle
from app.gate.strict_json import JSONRefused, loads_object

__all__ = [
    "CLASSES", "Claims", "Classes", "Grant", "GrantWanted", "KeyWanted", "Uses", "VerifiedToken",
    "class_fault", "fingerprint", "verify",
]  # fmt: skip


class VerifiedToken(msgspec.Struct, frozen=True, gc=False):
    """Claims whose signature was verified by this process, and how to speak of the token without showing it."""

    claims: Claims
    fingerprint: str  # first 32 hex digits of SHA-256 of the token as presented
    insecure: bool = False  # verified with a development secret (HS256)


class KeyWanted(msgspec.Struct, frozen=True):
    """The token cannot be verified yet: the issuer's key set is not loaded (kid None) or has no such kid."""

    iss: str
    kid: str | None


class GrantWanted(msgspec.Struct, frozen=True):
    """Nothing is known under this handle: nobody issued it, or somebody has just now."""

    digest: bytes


Classes = Mapping[str, str]  # typ → the class of token: those that are taken in one place (RFC 8725 section 3.11)
CLASSES: Final[Classes] = {"trigger+jwt": "trigger"}  # what starts jobs
USER_CLASSES: Final[Classes] = {"user+jwt": "user"}
HOST_CLASSES: Final[Classes] = {"host+jwt": "host"}
EVERY_CLASS: Final[Classes] = {**CLASSES, **USER_CLASSES, **HOST_CLASSES}
_TYPS: Final = frozenset(("trigger+jwt", "user+jwt", "host+jwt", "execution+jwt", "task+jwt"))  # each has its place
_CLASSES_OF_GRANTS: Final = {GRANT_TYP: "trigger"}  # likewise of what a handle stands for
_ALGORITHMS: Final = frozenset((ES256, EDDSA, HS256))
_FINGERPRINT_DIGITS: Final = 32


class Signed(msgspec.Struct, frozen=True, gc=False):
    """A token read as far as its signature. Nothing in it is verified yet."""

    unverified_token: str  # as presented: of a grant, the handle
    unverified_claims: dict[str, Any]
    unverified_quick: QuickClaims | None  # the same, where a quick reading did
    signing_input: bytes
    signature: bytes
    key: VerificationKey
    token_class: str


def verify(
    unverified_token: str, ring: KeyRing, audience: str, grants: Grants = NO_GRANTS, classes: Classes = CLASSES
) -> VerifiedToken | Rejected | KeyWanted | GrantWanted:
    """Verify a JWS in compact form (RFC 7515), or a handle, and the shape of its claims (RFC 7519, RFC 8725)."""
    signed = read_signed(unverified_token, ring, grants, classes)
    if not isinstance(signed, Signed):
        return signed
    return accept(signed, holds_signature(signed), audience)


def read_signed(
    unverified_token: str, ring: KeyRing, grants: Grants, classes: Classes = CLASSES
) -> Signed | Rejected | KeyWanted | GrantWanted:
    """Steps 1 to 4: everything that needs no signature."""
    if not unverified_token.startswith(HANDLE_START):
        return _read_signed(unverified_token, unverified_token, ring, classes)
    if len(unverified_token) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    if not is_handle(unverified_token):
        return Rejected("token_malformed", "not a handle: ref: and 43 characters of strict base64url")
    if classes.keys().isdisjoint(CLASSES):
        return Rejected("wrong_client_class", "a handle stands for what starts jobs")
    digest = handle_digest(unverified_token)
    unverified_jws = grants.get(digest)
    if unverified_jws is None:
        return GrantWanted(digest)
    signed = _read_signed(unverified_jws, unverified_token, ring, _CLASSES_OF_GRANTS)
    if isinstance(signed, Signed) and signed.unverified_claims.get(HASH_CLAIM) != digest.hex():
        # A good grant, copied to where another handle finds it. The signature, checked next, covers what it names.
        return Rejected("token_unknown", "the grant under it was made for another handle")
    return signed


def _read_signed(unverified_jws: str, presented: str, ring: KeyRing, classes: Classes) -> Signed | Rejected | KeyWanted:
    # 1 size, 2 form
    read = read_jws(unverified_jws)
    if isinstance(read, Rejected):
        return read
    signing_input, header, claims_json, signature = read
    if isinstance(header, JSONRefused):
        return Rejected("token_json_malformed", f"header: {header.detail}")
    try:
        unverified, quick = quick_claims(claims_json) or (loads_object(claims_json), None)
    except JSONRefused as refused:
        return Rejected("token_json_malformed", f"claims: {refused.detail}")

    # 3 header, 4 issuer and key
    algorithm, kid, typ, extra = header
    iss = unverified.get("iss")
    known = ring.get(iss) if type(iss) is str else None
    key = known.keys.get(kid) if known is not None and type(kid) is str else None
    if extra is not None:
        return Rejected("token_header_not_allowed", f"the header holds {extra}")
    if (
        type(algorithm) is not str
        or algorithm not in _ALGORITHMS
        or (known is not None and algorithm not in known.algorithms)
        or (key is not None and algorithm != key.algorithm)
    ):
        return Rejected("algorithm_not_allowed")
    token_class = classes.get(typ) if type(typ) is str else None
    if token_class is None:
        if type(typ) is str and typ in _TYPS and presented is unverified_jws:
            return Rejected("wrong_client_class", f"typ is {typ}")
        return Rejected("token_type_invalid")
    if key is None:
        return _no_key(kid, unverified, ring)

    return Signed(presented, unverified, quick, signing_input, signature, key, token_class)


def holds_signature(signed: Signed) -> bool:
    """Step 5, apart from the others so that many can be checked one after another, which keeps the cache warm."""
    return signed.key.verify(signed.signing_input, signed.signature)


def accept(signed: Signed, holds: bool, audience: str) -> VerifiedToken | Rejected:
    """Steps 5 and 6: what `holds_signature` said, and the claims. The only way to a VerifiedToken but a handoff."""
    # 5 signature
    if holds is not True:
        return Rejected("signature_invalid")
    # 6 claims
    key, quick = signed.key, signed.unverified_quick
    if quick is not None and quick[-1] == audience and signed.token_class == "trigger":  # noqa: S105 - a class
        claims = claims_of_quick(quick, signed.unverified_claims["iss"], key.kid, signed.token_class)
        return VerifiedToken(claims, fingerprint(signed.unverified_token), key.insecure)
    try:
        claims = read_claims(signed.unverified_claims, key.kid, signed.token_class, audience)
    except ClaimRefused as refusal:
        return refusal.rejected
    return VerifiedToken(claims, fingerprint(signed.unverified_token), key.insecure)


def class_fault(unverified_token: str) -> str | None:
    """The code of what a token says of itself that starts no jobs: another class, or none of ours; None: it may.

    Enough to refuse it, no more. What cannot be read, or has no typ, says nothing.
    """
    typ = _typ_of(unverified_token.partition(".")[0][: limits.TOKEN_HEADER_MAX_BYTES * 2])
    if typ is None or typ in CLASSES:
        return None
    return "wrong_client_class" if typ in _TYPS else "token_type_invalid"


@lru_cache(1_024)
def _typ_of(unverified_header: str) -> str | None:
    """The typ of a header, which tokens of one key have in common."""
    raw = decode_standard(unverified_header.encode("utf-8", "surrogatepass").translate(TO_STANDARD))
    try:
        typ = loads_object(raw or b"").get("typ")
    except JSONRefused:
        return None
    return typ if type(typ) is str else None


def fingerprint(token: str) -> str:
    """How a token is spoken of without showing it."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:_FINGERPRINT_DIGITS]


def _no_key(kid: Any, unverified: dict[str, Any], ring: KeyRing) -> Rejected | KeyWanted:
    """Why there is no key to verify with, the earliest reason first."""
    if kid is ABSENT:
        return Rejected("kid_missing")
    if not is_kid(kid):
        return Rejected("kid_malformed")
    if "iss" not in unverified:
        return Rejected("issuer_missing")
    iss = unverified["iss"]
    if type(iss) is not str or not iss:
        return Rejected("issuer_malformed")
    if iss not in ring:
        return Rejected("issuer_untrusted")
    return KeyWanted(iss, None if ring[iss] is None else kid)
