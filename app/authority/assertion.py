"""Client assertions: a client proves who it is by a JWT signed with its own key (RFC 7523 section 3).

Pure: no I/O, no clock, no randomness. Whether an assertion was shown before is for whoever keeps a memory.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from app.authority.identities import Identity, key_at
from app.gate import limits
from app.gate.jws import parse_unverified, read_jws
from app.gate.keyset import EDDSA, ES256, VerificationKey, eddsa_key, es256_key
from app.gate.reasons import Rejected
from app.gate.strict_json import JSONRefused, loads_object

LIFETIME_MAX_S: Final = 300  # from its iat, however much later its exp is: libraries say an hour
TYPES: Final = (None, "JWT", "client-authentication+jwt")


class Proven(NamedTuple):
    """An assertion that holds: by which key, and what names it until it expires."""

    credential_id: str
    jti: str
    ends_s: int  # from then on it holds no more


def named_by(unverified_assertion: str) -> tuple[str, str]:
    """The client an assertion says it is from, and the key it says it is signed with; empty where it says none."""
    read = parse_unverified(unverified_assertion)
    if isinstance(read, Rejected):
        return "", ""
    name, kid = read.unverified_claims.get("sub"), read.unverified_header.get("kid")
    return name if isinstance(name, str) else "", kid if isinstance(kid, str) else ""


def is_assertion(unverified_token: str) -> bool:
    """Whether a text says of itself that it is an assertion, and not a token of ours, whose typ names its class."""
    read = read_jws(unverified_token)
    return not isinstance(read, Rejected) and not isinstance(read[1], JSONRefused) and read[1][2] in TYPES


def check_assertion(
    identity: Identity | None, unverified_assertion: str, audiences: Collection[str], now_s: int, grace_s: int
) -> Proven | None:
    """What the assertion proves of this client, or None. One signature is checked, whoever asks."""
    read = read_jws(unverified_assertion)
    if isinstance(read, Rejected):
        return None
    signing_input, header, payload, signature = read
    if isinstance(header, JSONRefused):
        return None
    algorithm, kid, typ, extra = header
    known = key_at(identity, kid, now_s) if identity is not None and isinstance(kid, str) else None
    if known is None or known.algorithm != algorithm:
        _nobodys(algorithm).verify(signing_input, signature)
        return None
    holds = known.verify(signing_input, signature)
    if not holds or identity is None or extra is not None or typ not in TYPES:
        return None
    try:
        claims = loads_object(payload)
    except JSONRefused:
        return None
    return _proven(claims, identity.name, known.kid, audiences, now_s, grace_s)


def _proven(
    claims: dict[str, Any], name: str, kid: str, audiences: Collection[str], now_s: int, grace_s: int
) -> Proven | None:
    get = claims.get
    exp, iat, nbf, jti = get("exp"), get("iat", now_s), get("nbf", 0), get("jti")
    if get("iss") != name or get("sub") != name or _audience(get("aud")) not in audiences:
        return None
    if not (type(exp) is int and type(iat) is int and type(nbf) is int):
        return None
    ends_s = min(exp, iat + LIFETIME_MAX_S) if "iat" in claims else exp
    if not (now_s - grace_s < ends_s <= now_s + LIFETIME_MAX_S + grace_s and max(iat, nbf) <= now_s + grace_s):
        return None
    if type(jti) is not str or not 0 < len(jti) <= limits.JTI_MAX_CHARACTERS:
        return None
    return Proven(kid, jti, ends_s)


def _audience(aud: Any) -> str | None:
    if type(aud) is list and len(aud) == 1:
        aud = aud[0]
    return aud if type(aud) is str else None


def _nobodys(algorithm: Any) -> VerificationKey:
    """What takes as long as a key of this algorithm, so that nobody learns by the time which keys a client has."""
    return _NOBODYS[EDDSA if algorithm == EDDSA else ES256]


_NOBODYS: Final[dict[str, VerificationKey]] = {
    ES256: es256_key("nobody's", ec.derive_private_key(1, ec.SECP256R1()).public_key()),
    EDDSA: eddsa_key("nobody's", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()),
}
