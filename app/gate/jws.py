"""A JWS in compact form, taken apart (RFC 7515 section 7.1): its size and its form, and nothing about its key."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

from app.gate import limits
from app.gate.base64url import TO_STANDARD, decode_standard
from app.gate.reasons import Rejected
from app.gate.strict_json import JSONRefused, loads_object

ABSENT: Final = object()  # a member that is not there, as null is

_HEADER_MEMBERS: Final = frozenset(("alg", "kid", "typ"))
_HEADERS_REMEMBERED: Final = 1024
_WORD: Final = re.compile(r"[A-Za-z0-9_#-]{1,32}")

# Decoded sizes as lengths of base64url.
_HEADER_MAX_CHARACTERS: Final = -(-limits.TOKEN_HEADER_MAX_BYTES * 4 // 3)
_CLAIMS_MAX_CHARACTERS: Final = -(-limits.TOKEN_CLAIMS_MAX_BYTES * 4 // 3)

Header = tuple[Any, Any, Any, str | None]  # alg, kid, typ, and the first member that has no place there
JWS = tuple[bytes, Header | JSONRefused, bytes, bytes]  # signing input, header, payload, signature


class UnverifiedToken(NamedTuple):
    """What a token says of itself. Anyone can write this."""

    unverified_header: dict[str, Any]
    unverified_claims: dict[str, Any]


def read_jws(unverified_token: str) -> JWS | Rejected:
    """The parts of a token, decoded. The header may be a refusal: the claims are looked at first."""
    # One character is at least one byte, so that a huge text is refused by its length alone.
    if len(unverified_token) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    try:
        presented = unverified_token.encode("ascii")
    except UnicodeEncodeError:
        return _malformed_or_too_large(unverified_token)
    segments = presented.translate(TO_STANDARD).split(b".")
    if len(segments) != 3:
        return Rejected("token_malformed", f"{len(segments)} parts instead of three")
    header_segment, payload_segment, signature_segment = segments
    if len(header_segment) > _HEADER_MAX_CHARACTERS:
        return Rejected("token_too_large", f"a header of more than {limits.TOKEN_HEADER_MAX_BYTES} bytes")
    if len(payload_segment) > _CLAIMS_MAX_CHARACTERS:
        return Rejected("token_too_large", f"claims of more than {limits.TOKEN_CLAIMS_MAX_BYTES} bytes")
    header = _header(header_segment)
    payload = decode_standard(payload_segment)
    signature = decode_standard(signature_segment)
    if header is None or not payload or not signature:
        return Rejected("token_malformed", "a part is empty or not strict base64url")
    return presented[: presented.rindex(b".")], header, payload, signature


@lru_cache(maxsize=_HEADERS_REMEMBERED)
def _header(segment: bytes) -> Header | JSONRefused | None:
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
    return members.get("alg"), members.get("kid", ABSENT), members.get("typ"), named


def _malformed_or_too_large(unverified_token: str) -> Rejected:
    if len(unverified_token.encode("utf-8", "surrogatepass")) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    return Rejected("token_malformed", "characters beyond ASCII")


def parse_unverified(token: str) -> UnverifiedToken | Rejected:
    """Read a token for people to look at. Nothing is verified: neither who made it nor whether it was altered."""
    if len(token) > limits.TOKEN_MAX_BYTES:
        return Rejected("token_too_large", f"more than {limits.TOKEN_MAX_BYTES} bytes")
    segments = token.encode("utf-8", "surrogatepass").translate(TO_STANDARD).split(b".")
    decoded = [decode_standard(segment) for segment in segments]
    if len(decoded) != 3 or decoded[0] is None or decoded[1] is None or decoded[2] is None:
        return Rejected("token_malformed", "not three parts of strict base64url")
    try:
        return UnverifiedToken(loads_object(decoded[0]), loads_object(decoded[1]))
    except JSONRefused as refused:
        return Rejected("token_json_malformed", refused.detail)


def unverified_claims(token: str) -> dict[str, Any]:
    """What a token says of itself, for hints; nothing where no gate could read it."""
    read = read_jws(token)
    try:
        return {} if isinstance(read, Rejected) else loads_object(read[2])
    except JSONRefused:
        return {}
