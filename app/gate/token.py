"""The token: bytes become claims only through `verify`, which alone can make a VerifiedToken.

Nothing unverified leaves this module under a name that does not say so.

  1 size            before anything is decoded
  2 form            three parts of strict base64url, two strict JSON objects (RFC 7515 section 7.1)
  3 header          exactly alg, kid and typ; an algorithm of the issuer's keys; the class; the kid
  4 issuer and key  iss is read unverified, to find the key and for nothing else
  5 signature       with the key's own algorithm
  6 claims          audience, lifetime, identity, grant: their presence and form
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple

import msgspec

from app.gate import limits
from app.gate.base64url import TO_STANDARD, decode_standard
from app.gate.keyset import EDDSA, ES256, HS256, KeyRing, is_kid
from app.gate.reasons import Rejected
from app.gate.redact import token_shaped
from app.gate.strict_json import JSONRefused, loads_object

Uses = Literal["once", "many"]


class Grant(msgspec.Struct, frozen=True):
    """What a trigger token permits: the one member of its authorization_details (RFC 9396)."""

    actions: tuple[str, ...]
    jobs: tuple[str, ...]  # exact names
    params: dict[str, Any]  # fixed by the issuer; win over the emitter's
    params_sha256: str | None = None  # fixes the digest of the emitter's params (canonical JSON, hex)


class Claims(msgspec.Struct, frozen=True):
    """The verified claims of a trigger token (also what a handoff carries in place of the token)."""

    iss: str
    kid: str
    sub: str
    org_id: str
    jti: str
    iat: int  # seconds
    nbf: int
    exp: int
    uses: Uses
    token_class: str  # "trigger", from typ "trigger+jwt"
    grant: Grant
    idempotency_key: str | None = None


class VerifiedToken(msgspec.Struct, frozen=True):
    """Claims whose signature was verified by this process, and how to speak of the token without showing it."""

    claims: Claims
    fingerprint: str  # first 32 hex digits of SHA-256 of the token as presented
    insecure: bool = False  # verified with a development secret (HS256)


class KeyWanted(msgspec.Struct, frozen=True):
    """The token cannot be verified yet: the issuer's key set is not loaded (kid None) or has no such kid."""

    iss: str
    kid: str | None


class UnverifiedToken(NamedTuple):
    """What a token says of itself. Anyone can write this."""

    unverified_header: dict[str, Any]
    unverified_claims: dict[str, Any]
    fingerprint: str


# typ → the class of token. Other classes (user, host, execution, task) start no jobs (RFC 8725 section 3.11).
CLASSES: Final = {"trigger+jwt": "trigger"}
GRANT_TYPE: Final = "job_trigger"
_ALGORITHMS: Final = frozenset((ES256, EDDSA, HS256))
_HEADER_MEMBERS: Final = frozenset(("alg", "kid", "typ"))
_GRANT_MEMBERS: Final = frozenset(("type", "actions", "jobs", "params", "params_sha256"))
_FINGERPRINT_DIGITS: Final = 32
_HEADERS_REMEMBERED: Final = 1024
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9_#-]{1,32}")
_NO_PARAMS: Final[dict[str, Any]] = {}

# Decoded sizes as lengths of base64url.
_HEADER_MAX_CHARACTERS: Final = -(-limits.TOKEN_HEADER_MAX_BYTES * 4 // 3)
_CLAIMS_MAX_CHARACTERS: Final = -(-limits.TOKEN_CLAIMS_MAX_BYTES * 4 // 3)


class _Refusal(Exception):  # noqa: N818 - carries a refusal out of a leaf, caught in `verify`
    def __init__(self, code: str, detail: str) -> None:
        self.rejected = Rejected(code, detail)


def verify(unverified_token: str, ring: KeyRing, audience: str) -> VerifiedToken | Rejected | KeyWanted:
    """Verify a JWS in compact form (RFC 7515) and the shape of its claims (RFC 7519, RFC 8725)."""
    # 1 size: one character is at least one byte, so that a huge text is refused by its length alone
    if len(unverified_token) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    try:
        presented = unverified_token.encode("ascii")
    except UnicodeEncodeError:
        return _malformed_or_too_large(unverified_token)
    segments = presented.translate(TO_STANDARD).split(b".")

    # 2 form
    if len(segments) != 3:
        return Rejected("token_malformed", f"{len(segments)} parts instead of three")
    header_segment, claims_segment, signature_segment = segments
    if len(header_segment) > _HEADER_MAX_CHARACTERS:
        return Rejected("token_too_large", f"a header of more than {limits.TOKEN_HEADER_MAX_BYTES} bytes")
    if len(claims_segment) > _CLAIMS_MAX_CHARACTERS:
        return Rejected("token_too_large", f"claims of more than {limits.TOKEN_CLAIMS_MAX_BYTES} bytes")
    header = _header(header_segment)
    claims_json = decode_standard(claims_segment)
    signature = decode_standard(signature_segment)
    if header is None or not claims_json or not signature:
        return Rejected("token_malformed", "a part is empty or not strict base64url")
    if isinstance(header, JSONRefused):
        return Rejected("token_json_malformed", f"header: {header.detail}")
    try:
        unverified = loads_object(claims_json)
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
    token_class = CLASSES.get(typ) if type(typ) is str else None
    if token_class is None:
        return Rejected("token_type_invalid")
    if key is None:
        return _no_key(kid, unverified, ring)

    # 5 signature
    if not key.verify(presented[: presented.rindex(b".")], signature):
        return Rejected("signature_invalid")

    # 6 claims
    try:
        claims = _claims(unverified, key.kid, token_class, audience)
    except _Refusal as refusal:
        return refusal.rejected
    return VerifiedToken(claims, sha256(presented).hexdigest()[:_FINGERPRINT_DIGITS], key.insecure)


def parse_unverified(token: str) -> UnverifiedToken | Rejected:
    """Read a token for people to look at. Nothing is verified: neither who made it nor whether it was altered."""
    if len(token) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    presented = token.encode("utf-8", "surrogatepass")
    segments = presented.translate(TO_STANDARD).split(b".")
    decoded = [decode_standard(segment) for segment in segments]
    if len(decoded) != 3 or decoded[0] is None or decoded[1] is None or decoded[2] is None:
        return Rejected("token_malformed", "not three parts of strict base64url")
    try:
        header, claims = loads_object(decoded[0]), loads_object(decoded[1])
    except JSONRefused as refused:
        return Rejected("token_json_malformed", refused.detail)
    return UnverifiedToken(header, claims, sha256(presented).hexdigest()[:_FINGERPRINT_DIGITS])


_Header = tuple[Any, Any, Any, str | None]  # alg, kid, typ, and the first member that has no place there


@lru_cache(maxsize=_HEADERS_REMEMBERED)
def _header(segment: bytes) -> _Header | JSONRefused | None:
    """Read a header; all tokens of a key have the same, so what was read is remembered. None: not base64url."""
    raw = decode_standard(segment)
    if not raw:
        return None
    try:
        members = loads_object(raw)
    except JSONRefused as refused:
        return JSONRefused(refused.fault, refused.detail)  # without its traceback, which would hold the frames
    extra = sorted(members.keys() - _HEADER_MEMBERS)
    # The name is a stranger's: said only if it is a plain word.
    named = None if not extra else extra[0] if _WORD.fullmatch(extra[0]) else "an odd member"
    return members.get("alg"), members.get("kid", _ABSENT), members.get("typ"), named


_ABSENT: Final = object()


def _malformed_or_too_large(unverified_token: str) -> Rejected:
    if len(unverified_token.encode("utf-8", "surrogatepass")) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    return Rejected("token_malformed", "characters beyond ASCII")


def _no_key(kid: Any, unverified: dict[str, Any], ring: KeyRing) -> Rejected | KeyWanted:
    """Why there is no key to verify with, the earliest reason first."""
    if kid is _ABSENT:
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


def _claims(signed: dict[str, Any], kid: str, token_class: str, audience: str) -> Claims:
    """The claims of a token whose signature holds. Their order is that of the reasons; unknown ones are ignored
    (RFC 7519 section 4).
    """
    get = signed.get
    if get("aud") != audience:
        _refuse_audience(signed, audience)
    exp = get("exp")
    if not (type(exp) is int and 0 < exp < limits.NUMERIC_DATE_MAX_S):
        if "exp" not in signed:
            raise _Refusal("ttl_missing", "no exp")
        raise _Refusal("expiry_malformed", "exp is not a NumericDate in whole seconds")
    if "jti" not in signed:
        raise _Refusal("jti_required", "no jti")
    if "org_id" not in signed:
        raise _Refusal("org_missing", "no org_id")
    jti, org_id = signed["jti"], signed["org_id"]
    sub: Any = get("sub")
    uses: Any = get("uses")
    _require_name("jti", jti, limits.JTI_MAX_CHARACTERS)
    _require_name("org_id", org_id, limits.SUBJECT_MAX_CHARACTERS)
    _require_name("sub", sub, limits.SUBJECT_MAX_CHARACTERS)
    iat, nbf = get("iat"), get("nbf")
    if not (type(iat) is int and 0 < iat < limits.NUMERIC_DATE_MAX_S):
        raise _Refusal("claim_malformed", "iat is missing or not a NumericDate in whole seconds")
    if not (type(nbf) is int and 0 < nbf < limits.NUMERIC_DATE_MAX_S):
        raise _Refusal("claim_malformed", "nbf is missing or not a NumericDate in whole seconds")
    if not (nbf < exp and iat < exp):
        raise _Refusal("claim_malformed", "exp does not lie after nbf and iat")
    if uses not in ("once", "many"):
        raise _Refusal("claim_malformed", 'uses is neither "once" nor "many"')
    idempotency_key = get("idempotency_key")
    if idempotency_key is not None or "idempotency_key" in signed:
        _require_idempotency_key(idempotency_key)
    grant = _grant(get("authorization_details"))
    return Claims(signed["iss"], kid, sub, org_id, jti, iat, nbf, exp, uses, token_class, grant, idempotency_key)


def _refuse_audience(signed: dict[str, Any], audience: str) -> None:
    """Raise, unless aud is a list of exactly one text, ours (RFC 7519 section 4.1.3; more than one: our profile)."""
    if "aud" not in signed:
        raise _Refusal("audience_missing", "no aud")
    aud = signed["aud"]
    if type(aud) is list and len(aud) == 1:
        aud = aud[0]
    if type(aud) is not str:
        raise _Refusal("audience_malformed", "aud is not one text")
    if aud != audience:
        raise _Refusal("audience_mismatch", "aud names another deployment")


def _require_name(claim: str, value: Any, max_characters: int) -> None:
    """A name that is shown and logged: short, and without control characters."""
    if not (type(value) is str and 0 < len(value) <= max_characters and value.isprintable()):
        raise _Refusal("claim_malformed", f"{claim} is missing or not a text of 1 to {max_characters} characters")


def _require_idempotency_key(value: Any) -> None:
    if type(value) is not str or not 0 < len(value.encode()) <= limits.IDEMPOTENCY_KEY_MAX_BYTES:
        raise _Refusal(
            "claim_malformed", f"idempotency_key is not a text of 1 to {limits.IDEMPOTENCY_KEY_MAX_BYTES} bytes"
        )


def _grant(details: Any) -> Grant:
    """The one grant. Whether it is too broad, or lacks the action, is said when the trigger is authorized."""
    if type(details) is not list or len(details) != 1 or type(details[0]) is not dict:
        raise _Refusal("grant_malformed", "authorization_details is not a list of exactly one object")
    grant: dict[str, Any] = details[0]
    if grant.get("type") != GRANT_TYPE:
        raise _Refusal("grant_malformed", f"the grant's type is not {GRANT_TYPE}")
    if not grant.keys() <= _GRANT_MEMBERS:
        # A condition this gate does not know would not be enforced (RFC 9396 section 5).
        raise _Refusal("grant_malformed", "the grant holds a member this gate does not know")
    params = grant.get("params", _NO_PARAMS)
    if type(params) is not dict:
        raise _Refusal("grant_malformed", "params is not an object")
    if params and _holds_token(params):
        raise _Refusal("grant_malformed", "a parameter holds something shaped like a token")
    digest = grant.get("params_sha256")
    if (digest is not None or "params_sha256" in grant) and not (type(digest) is str and _SHA256_HEX.fullmatch(digest)):
        raise _Refusal("grant_malformed", "params_sha256 is not 64 hexadecimal digits")
    return Grant(_texts(grant, "actions"), _texts(grant, "jobs"), params, digest)


def _texts(grant: dict[str, Any], member: str) -> tuple[str, ...]:
    """A list of short texts; absent is empty, which grants nothing."""
    values = grant.get(member, ())
    if values == ():
        return ()
    if type(values) is not list or len(values) > limits.GRANT_JOBS_MAX:
        raise _Refusal("grant_malformed", f"{member} is not a list of at most {limits.GRANT_JOBS_MAX} texts")
    for value in values:
        if type(value) is not str or not 0 < len(value.encode()) <= limits.JOB_NAME_MAX_BYTES:
            raise _Refusal("grant_malformed", f"{member} holds something else than a short text")
    return tuple(values)


def _holds_token(value: Any) -> bool:
    """Whether any text in it is shaped like a token. Depth is bounded: strict JSON was read before."""
    if type(value) is str:
        return token_shaped(value)
    if type(value) is dict:
        return any(token_shaped(name) or _holds_token(member) for name, member in value.items())
    return type(value) is list and any(map(_holds_token, value))
