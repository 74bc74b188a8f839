"""Strict base64url (RFC 4648 section 5, RFC 7515 section 2): one text for each value, or a refusal.

No padding, no whitespace, nothing of the other alphabet, and the spare bits of the last character are zero; so a
token cannot be spelt in two ways, which would make it look like two tokens.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

# '-' and '_' become '+' and '/', what is not base64url becomes '!', which the strict decoder refuses. '.' stays, so
# that a whole token can be translated before it is split.
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_STANDARD: Final = _ALPHABET[:62] + b"+/"
_KEPT: Final = dict(zip(_ALPHABET + b".", _STANDARD + b".", strict=True))
TO_STANDARD: Final = bytes(_KEPT.get(byte, ord("!")) for byte in range(256))

# By length modulo 4: the padding, and the last characters whose spare bits are zero (RFC 4648 section 3.5).
_PADDING: Final = (b"", None, b"==", b"=")
_LAST: Final = (_STANDARD, b"", _STANDARD[::16], _STANDARD[::4])


def decode_standard(segment: bytes) -> bytes | None:
    """Decode a segment that went through TO_STANDARD; None when it is not strict."""
    remainder = len(segment) & 3
    padding = _PADDING[remainder]
    if padding is None or (remainder and segment[-1] not in _LAST[remainder]):
        return None
    try:
        return binascii.a2b_base64(segment + padding, strict_mode=True)
    except binascii.Error:
        return None


def decode(text: str) -> bytes | None:
    """The bytes `text` stands for; None when it is not strict base64url."""
    try:
        segment = text.encode("ascii")
    except UnicodeEncodeError:
        return None
    return None if b"." in segment else decode_standard(segment.translate(TO_STANDARD))


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
