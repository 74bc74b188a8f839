"""Taking tokens out of bytes that a stranger sent: by what was presented, and by shape, parsed or not.

Over-redaction costs a reader a few characters, under-redaction hands a live token to every reader of a topic. So
whatever looks like a token (JWS and JWE in compact form, `ref:` handles) goes, also when it was cut, altered, escaped
or broken into lines; and so does a client's secret (`tgs_`), by which tokens are had. UUIDs, digests in hex, addresses
and dotted names stay.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from hashlib import sha256
from typing import Final

_MARK_DIGITS: Final = 16
_PIECE_MIN_BYTES: Final = 16  # shorter pieces of a token are of no use to anyone
_TOKEN_MIN_BYTES: Final = 8  # a "token" shorter than this is a word; replacing it everywhere would garble the rest
_LOOK_BACK_BYTES: Final = 8 * 1024
_PARTS_MAX: Final = 5  # of a JWE (RFC 7516 section 7.1); what has more is no token, and each would cost a search

_BASE64URL: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_B: Final = r"[A-Za-z0-9_-]"
_X: Final = r"[^A-Za-z0-9_-]"
# The first 12 characters of a JSON object in base64url: `{` and `"` or a space, then two times three bytes of ASCII.
# (Three bytes are ASCII when the top bit of each is zero: bits 5, 3 and 1 of the first three characters' values.)
_ASCII: Final = r"[A-Za-f][A-HQ-Xg-nw-z0-3][ABEFIJMNQRUVYZcdghklopstwx014589]" + _B
_HEADER: Final = rf"(?:e(?:y[ABIJ]|w[klop01]){_B}|IHsi|C[nX]si|DXsi)(?:{_ASCII}){{2}}"

# What a token is when nothing was done to it: any compact JWS or JWE (RFC 7515 and 7516, section 7.1) or a handle.
# (Lookbehinds stand after the letters they look behind: the search for those is then a scan for a byte.)
_LONG: Final = rf"{_B}{{{_PIECE_MIN_BYTES},}}+"
# (Every match takes the rest of its run along: tried again from each header in it, a long one would cost its square.)
_COMPACT_TEXT: Final = re.compile(rf"{_HEADER}{_B}*+(\.{_B}*+\.)?")
_HANDLE_TEXT: Final = re.compile(rf"ref:(?<![A-Za-z0-9]ref:){_LONG}")
_HANDLE: Final = re.compile(_HANDLE_TEXT.pattern.encode())
_SECRET_TEXT: Final = re.compile(rf"tgs_[0-9a-f]{{16}}_{_LONG}")  # as `authority/identities.py` makes them
_SECRET: Final = re.compile(_SECRET_TEXT.pattern.encode())

# What may follow in a token that something was done to: a piece after a dot with at most two odd bytes before it; or,
# after a line break, one odd byte (however escaped) or one character beyond ASCII, a piece long enough to matter.
_GAP: Final = rf"[=\s]{{0,8}}+(?:[\x80-\xff]{{1,4}}+|\\{{1,16}}+{_X}?|{_X})?[=\s]{{0,8}}+"
_DOT: Final = rf"(?={_X}{{0,2}}\.){_X}{{1,4}}+"
# (An altered byte may read as the start of an escape and swallow up to five characters of the piece.)
_REST: Final = rf"{_B}{{{_PIECE_MIN_BYTES - 5},}}+"
_MORE: Final = rf"(?:{_DOT}{_B}*+|{_GAP}(?:{_REST}|{_B}++(?:{_DOT}|{_GAP}){_REST}))*+"
# An untouched token of ours ends after its 64-byte signature; anything else takes along what follows closely.
_HEADED: Final = re.compile(rf"{_HEADER}(?:{_B}*+\.{_B}++\.{_B}{{86}}(?![A-Za-z0-9_.-])|{_B}*+{_MORE})".encode())
# base64 of base64: an encoded record, or the whole of a Basic authorization.
_TWICE: Final = re.compile(rf"ZXl[KB]{_LONG}".encode())
# Without a header to tell it by: long pieces around two dots.
_UNHEADED: Final = re.compile(rf"\.(?<={_B}{{{_PIECE_MIN_BYTES}}}\.){_B}*+\.{_LONG}{_MORE}".encode())
# What is left of one that was broken before its end: some of the claims, and a 64-byte signature.
_SIGNED_END: Final = re.compile(rf"\.{_B}{{86}}(?!{_B})".encode())
# What a JWS or JWE in JSON serialization cannot do without (RFC 7515 and 7516, section 7.2).
_IN_JSON: Final = re.compile(rf'"(?:signature|ciphertext)"\s{{0,8}}:\s{{0,8}}"({_LONG})'.encode())

# Escapes of JSON, of programs' literals and of addresses (also escaped twice), and the zeros of UTF-16.
_ESCAPE: Final = re.compile(
    rb"\x00+|\\(?<!\\\\)\\*+(?:u00([0-9A-Fa-f]{2})|x([0-9A-Fa-f]{2})|(u[0-9A-Fa-f]{4})|([nrtbf/\"]))|%(?:25)*+([0-9A-Fa-f]{2})"
)


def token_shaped(text: str) -> bool:
    """Whether `text` holds something that is, by its shape, a token, or a client's secret."""
    if "." not in text and "ref:" not in text and "tgs_" not in text:
        return False
    return (
        any(found[1] for found in _COMPACT_TEXT.finditer(text))
        or _HANDLE_TEXT.search(text) is not None
        or _SECRET_TEXT.search(text) is not None
    )


def redact(data: bytes, token: bytes | None) -> tuple[bytes, list[bytes]]:
    """`data` with the presented token, and whatever else is shaped like one, replaced; and what was taken out.

    A replacement names the SHA-256 of what stood there: for a token as presented, the start of its fingerprint.
    """
    return _redact_plain(data, token) or _redact_closely(data, token)


# Without any of these, and without the presented token or a part of it, no pattern below can match.
_SUSPICIOUS: Final = (b".", b"%", b"\\", b"\0", b"ref:", b"tgs_", b"ZXl", b'"signature"', b'"ciphertext"')
_SUSPICIOUS_TEXT: Final = tuple(mark.decode() for mark in _SUSPICIOUS)
_AFTER_A_MEMBER: Final = (b'",', b'"}')


def _redact_plain(data: bytes, token: bytes | None) -> tuple[bytes, list[bytes]] | None:
    """The same for bytes whose only token is the presented one, in quotes or not there; None for any doubt."""
    if len(data) < _PIECE_MIN_BYTES and _is_word(data, token):
        return data, []
    rest, taken = data, []
    if token is not None and len(token) >= _TOKEN_MIN_BYTES:
        before, found, after = data.partition(token)
        if found:
            if before[-1:] != b'"' or after[:2] not in _AFTER_A_MEMBER:
                return None
            rest, taken = before + after, [token]
            if token in rest:
                return None
        if len(rest) >= _PIECE_MIN_BYTES and any(part in rest for part in _parts(token)):
            return None
    for mark in _SUSPICIOUS:
        if mark in rest:
            return None
    if not taken:
        return data, []
    return before + _mark(taken[0]) + after, taken


def redact_presented(data: bytes, token: str, fingerprint: str, others: str) -> tuple[bytes, list[bytes]] | None:
    """The same for a trigger whose value is an object of texts: the verified token, and `others`, which holds every
    other text and name in it as a reader sees them. None for any doubt.
    """
    for mark in _SUSPICIOUS_TEXT:
        if mark in others:
            return None
    if len(others) >= _PIECE_MIN_BYTES:
        for part in token.split("."):
            if len(part) >= _PIECE_MIN_BYTES and part in others:
                return None
    presented = token.encode()
    start = data.find(presented[:_PIECE_MIN_BYTES])
    end = start + len(presented)
    if data[start:end] != presented or data[start - 1 : start] != b'"' or data[end : end + 2] not in _AFTER_A_MEMBER:
        return None
    return data[:start] + _known_mark(fingerprint) + data[end:], [presented]


def _parts(token: bytes) -> set[bytes]:
    """The parts of a token that are of use to anyone; none of a text with more of them than any token has."""
    parts = token.split(b".", _PARTS_MAX)
    return {part for part in parts if len(part) >= _PIECE_MIN_BYTES} if len(parts) <= _PARTS_MAX else set()


def _is_word(data: bytes, token: bytes | None) -> bool:
    """Whether it is too short for anything but a short presented token, and holds no odd byte."""
    return (token is None or len(token) > len(data)) and not data.translate(None, _BASE64URL)


def _mark(removed: bytes) -> bytes:
    return _known_mark(sha256(removed).hexdigest())


def _known_mark(digest: str) -> bytes:
    return b"[redacted sha256:%b]" % digest[:_MARK_DIGITS].encode()


def _redact_closely(data: bytes, token: bytes | None) -> tuple[bytes, list[bytes]]:
    seen, origins = _unescape(data)
    spans = sorted([*_presented(seen, token), *_shaped(seen)])
    if not spans:
        return data, []
    kept: list[bytes] = []
    taken: list[bytes] = []
    at = 0
    for start, end in _merge(spans):
        start, end = origins(start), origins(end)  # noqa: PLW2901
        removed = data[start:end]
        taken.append(removed)
        kept += (data[at:start], _mark(removed))
        at = end
    kept.append(data[at:])
    return b"".join(kept), taken


Span = tuple[int, int]


def _presented(seen: bytes, token: bytes | None) -> list[Span]:
    """Where the token itself stands, whole or one of its parts."""
    if token is None or len(token) < _TOKEN_MIN_BYTES:
        return []
    spans: list[Span] = []
    pieces = [token, *_parts(token.partition(b".")[2])]
    if not token.isascii():  # what JSON escaped came out of _unescape as one byte for each UTF-16 unit
        units = token.decode("utf-8", "replace").encode("utf-16-be")
        pieces.append(bytes(min(high << 8 | low, 0xFF) for high, low in zip(units[::2], units[1::2], strict=True)))
    for piece in pieces:
        at = seen.find(piece)
        while at >= 0:
            spans.append((at, at + len(piece)))
            at = seen.find(piece, at + len(piece))
    return spans


def _shaped(seen: bytes) -> list[Span]:
    """Where something shaped like a token stands. A header without a dot near it is somebody's base64 of JSON."""
    spans = [found.span() for found in _HEADED.finditer(seen) if b"." in found[0]]
    spans += [found.span() for shape in (_TWICE, _HANDLE, _SECRET) for found in shape.finditer(seen)]
    spans += [found.span(1) for found in _IN_JSON.finditer(seen)]
    for shape in (_UNHEADED, _SIGNED_END):
        at = 0
        for found in shape.finditer(seen):
            before = seen[max(at, found.start() - _LOOK_BACK_BYTES) : found.start()]
            at = found.end()
            spans.append((found.start() - len(before) + len(before.rstrip(_BASE64URL)), at))
    return spans


def _merge(spans: list[Span]) -> list[Span]:
    merged = [spans[0]]
    for start, end in spans[1:]:
        if start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class _Origins:
    """From places in unescaped bytes to the places they came from."""

    def __init__(self, places: list[int], shifts: list[int]) -> None:
        self._places = places  # in the unescaped bytes, just after each escape
        self._shifts = shifts  # by how much the original is longer up to there

    def __call__(self, place: int) -> int:
        return place + self._shifts[bisect_right(self._places, place) - 1]


def _unescape(data: bytes) -> tuple[bytes, _Origins]:
    """Bytes as a reader would see them. Every escape becomes at most one byte; one that is not ASCII becomes 0xFF."""
    if b"\\" not in data and b"%" not in data and b"\0" not in data:
        return data, _Origins([0], [0])
    out: list[bytes] = []
    places, shifts = [0], [0]
    at = length = shift = 0
    for found in _ESCAPE.finditer(data):
        start, end = found.span()
        byte = _byte_of(found)
        out += (data[at:start], byte)
        length += start - at + len(byte)
        shift += end - start - len(byte)
        places.append(length)
        shifts.append(shift)
        at = end
    out.append(data[at:])
    return b"".join(out), _Origins(places, shifts)


_PLAIN: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b" ", b"f": b" "}


def _byte_of(found: re.Match[bytes]) -> bytes:
    digits = found[1] or found[2] or found[5]
    if digits:
        return bytes((int(digits, 16),))
    if found[3]:
        return b"\xff"
    if found[4]:
        return _PLAIN.get(found[4], found[4])
    return b""
