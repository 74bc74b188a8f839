"""Reference tokens: a handle that says nothing, and the table of what handles stand for.

A handle is `ref:` and 256 random bits, and only its SHA-256 stands anywhere. It stands for a grant: the claims of a
trigger token, with that hash among them, signed like any token. So whoever can write the topic `grants` and has no key
makes handles stand for nothing, and for nothing else.

Nothing in the table is verified: a grant is worth what `token.read_signed` and `token.accept` say of it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

import msgspec
import orjson

from app.gate import limits
from app.gate.base64url import decode

HANDLE_START: Final = "ref:"
HANDLE_BYTES: Final = 32
GRANT_TYP: Final = "grant+jwt"  # of the JWS a handle stands for; it is never presented itself
HASH_CLAIM: Final = "handle_sha256"  # of a grant: the handle it was signed for, in lower-case hex
LIFETIME_MAX_MS: Final = limits.WEBHOOK_LIFETIME_MAX_S * 1000
KEPT_MIN: Final = 1024  # fewer are not looked through for what has expired

# 32 bytes are 43 characters, and the spare bits of the last are zero: a handle is spelt in one way.
_HANDLE: Final = re.compile(r"ref:[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_KEY: Final = re.compile(rb"[0-9a-f]{64}")


def is_handle(text: str) -> bool:
    """Whether it is spelt as a handle; any other text that begins so is nothing at all."""
    return _HANDLE.fullmatch(text) is not None


def handle_digest(handle: str) -> bytes:
    """SHA-256 of a handle: the only thing that is ever stored or asked for."""
    return sha256(handle.encode()).digest()


def grant_key(digest: bytes) -> bytes:
    """The key of its record on the topic `grants`."""
    return digest.hex().encode()


class _Entry(msgspec.Struct, frozen=True, gc=False):
    jws: str
    until_ms: int  # broker's time; after that no trigger can be judged by it


class Grants:
    """The table, built by replaying the topic: `apply` alone changes it.

    It keeps what may still open something, and for a while what has expired, whose bearers are told so. What has
    expired is known by the broker's clock, as the newest record's append time shows it: no clock of ours forgets any.
    Nothing stays for longer than the longest life of a token after it was written, whatever it says.
    """

    __slots__ = ("_entries", "_look_through_at", "_slack_ms", "_taken_away")

    def __init__(self, slack_s: int = limits.GRACE_S + limits.QUEUE_AGE_CAP_S) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._slack_ms = slack_s * 1000  # after exp: the grace and the longest wait of a trigger
        self._look_through_at = KEPT_MIN
        self._taken_away = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def taken_away(self) -> int:
        """How often a grant that was there was removed or replaced: what was remembered of it holds no longer."""
        return self._taken_away

    def get(self, digest: bytes) -> str | None:
        """The unverified grant of a handle, a JWS in compact form."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.jws

    def apply(self, key: bytes | None, value: bytes | None, appended_at_ms: int) -> str | None:
        """Take in one record; a tombstone removes, and so does what cannot be read. Returns a complaint about that."""
        if key is None or not _KEY.fullmatch(key):
            return "the key is no SHA-256 in lower-case hex: it names no handle"
        digest = bytes.fromhex(key.decode())
        entry = complaint = None
        if value is not None:
            exp_s = _unverified_exp_s(value)
            if exp_s is None:
                complaint = "the value is no JWS whose claims have an exp: the handle stands for nothing"
            else:
                until_ms = min(exp_s * 1000, appended_at_ms + LIFETIME_MAX_MS)
                entry = _Entry(value.decode(), until_ms + self._slack_ms)
        before = self._entries.get(digest)
        if before is not None and (entry is None or entry.jws != before.jws):
            self._taken_away += 1
        if entry is None:
            self._entries.pop(digest, None)
        else:
            self._entries[digest] = entry
            if len(self._entries) >= self._look_through_at:
                self._forget_before(appended_at_ms)
        return complaint

    def _forget_before(self, now_ms: int) -> None:
        """Now and then, so that each record costs little, and never more than twice what is needed is kept."""
        self._entries = {digest: entry for digest, entry in self._entries.items() if entry.until_ms >= now_ms}
        self._look_through_at = max(KEPT_MIN, 2 * len(self._entries))


def _unverified_exp_s(value: bytes) -> int | None:
    """When a grant says that it expires. Whoever can write the topic can say so: it only decides how long it stays."""
    if len(value) > limits.TOKEN_MAX_BYTES or not value.isascii() or value.count(b".") != 2:
        return None
    try:
        claims = orjson.loads(decode(value.split(b".")[1].decode()) or b"")
    except ValueError:
        return None
    exp = claims.get("exp") if type(claims) is dict else None
    return exp if type(exp) is int and 0 < exp < limits.NUMERIC_DATE_MAX_S else None


NO_GRANTS: Final = Grants()
