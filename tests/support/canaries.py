"""Every token, handle and client secret that tests made or saw, and whether one of them stands in some bytes.

Of each the part is looked for without which it is worth nothing: a token's signature, a handle's and a secret's random
characters; as it is, as the bytes it stands for, and of both in hex and in base64 at every alignment, and in UTF-16.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

_NO_MORE: Final = rb"(?![A-Za-z0-9_-])"
_BEGINS: Final = rb"(?<![A-Za-z0-9_-])"
_KINDS: Final = {
    "handle": re.compile(_BEGINS + rb"ref:([A-Za-z0-9_-]{43})" + _NO_MORE),
    "client secret": re.compile(_BEGINS + rb"tgs_[0-9a-f]{16}_([A-Za-z0-9_-]{43})" + _NO_MORE),
    "token": re.compile(_BEGINS + rb"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.([A-Za-z0-9_-]{43,})"),
    "signature": re.compile(_BEGINS + rb"([A-Za-z0-9_-]{86})" + _NO_MORE),  # of ES256 and EdDSA, whatever is before it
}
_JWS: Final = re.compile(rb"(eyJ[A-Za-z0-9_-]*)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_GRANT: Final = b'"grant+jwt"'
_BASIC: Final = re.compile(rb"Basic ([A-Za-z0-9+/=]{40,})")
_LETTERS_MIN: Final = 8  # fewer different ones are made by hand: `ref:AAAA…` is nobody's, and 32 zeros are anybody's
_WINDOW_BYTES: Final = 20
_STEP_BYTES: Final = 4  # data is looked at every so many bytes: a form has a window at one of so many offsets


class Record(Protocol):
    """A record of Kafka, as our readers have it."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Iterable[tuple[str, bytes | None]]: ...


class Canaries:
    """A set of secrets that grows, and a search for all of them at once."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, str] = {}  # by secret part
        self._forms: dict[bytes, bytes] = {}  # what is looked for → whose form it is
        self._windows: dict[bytes, frozenset[tuple[int, int]]] = {}  # → where in a form it is, and how long that is
        self._shared: dict[frozenset[tuple[int, int]], frozenset[tuple[int, int]]] = {}

    @property
    def kinds(self) -> Counter[str]:
        """How many there are of each kind."""
        return Counter(self._kinds.values())

    def note(self, *texts: str | bytes | None) -> None:
        """Keep every token, handle and secret in these: whatever was sent, answered or printed."""
        for text in texts:
            data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text or b""
            for each in (data, unquote_to_bytes(data) if b"%" in data else b"", *_of_basic(data)):
                told = _JWS.sub(_unless_grant, each)
                for kind, pattern in _KINDS.items():
                    for secret in pattern.findall(told):
                        self._keep(secret, kind)

    def found_in(self, data: bytes) -> list[str]:
        """What is in there, by kind and fingerprint: a message of a failed test shows no secret either."""
        found: dict[str, None] = {}
        windows, size = self._windows, _WINDOW_BYTES
        for at in range(0, len(data) - size + 1, _STEP_BYTES):
            for offset, length in windows.get(data[at : at + size], ()):
                secret = self._forms.get(data[max(at - offset, 0) : at - offset + length])
                if secret is not None and at >= offset:
                    found[f"{self._kinds[secret]} {sha256(secret).hexdigest()[:12]}"] = None
        return list(found)

    def leaks(self, places: Mapping[str, Iterable[bytes]]) -> dict[str, list[str]]:
        """The places that hold any, with what they hold."""
        held = {name: [each for data in parts for each in self.found_in(data)] for name, parts in places.items()}
        return {name: found for name, found in held.items() if found}

    def _keep(self, secret: bytes, kind: str) -> None:
        if secret in self._kinds or len(set(secret)) < _LETTERS_MIN:
            return
        if kind in {"token", "signature"} and _is_text(secret):
            return  # a piece of a header or of claims, which by its place or length is taken for one
        self._kinds[secret] = kind
        for form in _forms(secret):
            self._forms[form] = secret
            for offset in range(_STEP_BYTES):
                window = form[offset : offset + _WINDOW_BYTES]
                places = self._windows.get(window, frozenset()) | {(offset, len(form))}
                self._windows[window] = self._shared.setdefault(places, places)


def of_record(record: Record) -> bytes:
    """All that a record holds, which is searched at once."""
    parts = [record.key or b"", record.value or b""]
    for name, content in record.headers:
        parts += [name.encode(), content or b""]
    return b"\n".join(parts)


def _unless_grant(jws: re.Match[bytes]) -> bytes:
    """What stands on `grants` for who reads it is no secret, and no token to whoever presents it."""
    return b"" if _GRANT in _decoded(jws[1]) else jws[0]


def _is_text(secret: bytes) -> bool:
    """Whether it is text in base64url, wherever that was cut: an attack may have put anything between its characters.

    Of random bytes as many as a signature's are all below 128 once in a billion times.
    """
    return any(_decoded(secret[cut : cut + (len(secret) - cut) // 4 * 4]).isascii() for cut in range(4))


def _decoded(secret: bytes) -> bytes:
    """The bytes it stands for; of what is no base64url, itself."""
    return base64.urlsafe_b64decode(secret + b"=" * (-len(secret) % 4)) if len(secret) % 4 != 1 else secret


def _forms(secret: bytes) -> Iterator[bytes]:
    for data in (secret, _decoded(secret)):
        yield data
        yield data.hex().encode()
        yield data.hex().upper().encode()
        for shift in range(3):
            # What stands before it, as many bytes as fill no whole character, changes the first characters.
            encoded = base64.b64encode(bytes(shift) + data)[(0, 2, 3)[shift] :]
            whole = encoded.rstrip(b"=")[:-1]  # likewise the last, and what stands after it
            yield whole
            yield whole.translate(bytes.maketrans(b"+/", b"-_"))
    yield secret.decode().encode("utf-16-le")


def _of_basic(data: bytes) -> Iterator[bytes]:
    for encoded in _BASIC.findall(data):
        yield unquote_to_bytes(base64.b64decode(encoded + b"=" * (-len(encoded) % 4)))
