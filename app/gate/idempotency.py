"""Idempotency: the one identity of a trigger that must not run twice, its home lane, and what a hit means."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from murmurhash2 import murmurhash2

from app.gate.policy import Authorized
from app.gate.reasons import Rejected
from app.gate.token import Claims
from app.gate.trigger import Trigger

IDENTITY_BYTES: Final = 16
ENTRY_VERSION: Final = 1
# version, run id, fingerprint, jti digest, source partition and offset, append time, end of the window
_ENTRY: Final = struct.Struct(">B16s16s8sIQQQ")
ENTRY_BYTES: Final = _ENTRY.size
_MURMUR2_SEED: Final = 0x9747B28C  # org.apache.kafka.common.utils.Utils.murmur2


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What must not run twice: a 128-bit digest, and the text that decides its home lane."""

    digest: bytes
    home_by: str


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One row of the dedup table: the first trigger of an identity and the run it became."""

    run_id: bytes  # 16 bytes
    fingerprint: bytes  # 16 bytes
    jti_digest: bytes  # 8 bytes
    partition: int
    offset: int
    appended_at_ms: int
    expires_at_ms: int  # end of the window in which a later trigger is a hit

    def pack(self) -> bytes:
        return _ENTRY.pack(
            ENTRY_VERSION, self.run_id, self.fingerprint, self.jti_digest,
            self.partition, self.offset, self.appended_at_ms, self.expires_at_ms,
        )  # fmt: skip


def unpack(value: bytes) -> Entry:
    """An entry from the changelog or the local store. Raises ValueError for bytes that are not one."""
    if len(value) != ENTRY_BYTES or value[0] != ENTRY_VERSION:
        raise ValueError(f"not an idempotency entry of version {ENTRY_VERSION}: {len(value)} bytes")
    return Entry(*_ENTRY.unpack(value)[1:])


def expires_at_ms(value: bytes) -> int:
    """The end of the window of a packed entry, without unpacking the rest."""
    return int.from_bytes(value[-8:], "big")


def _digest(*parts: str) -> bytes:
    """BLAKE2b over length-prefixed parts, so that ("a", "bc") and ("ab", "c") differ. No normalisation."""
    joined = bytearray()
    for part in parts:
        raw = part.encode()
        joined += len(raw).to_bytes(4, "big") + raw
    return blake2b(joined, digest_size=IDENTITY_BYTES).digest()


def identify(claims: Claims, trigger: Trigger, authorized: Authorized) -> Identity | Rejected | None:
    """The identity of a trigger; None for a webhook trigger without a key, which is a new run by design.

    No key is ever derived from the body. The scope (organisation, issuer, subject, job) comes from verified claims
    only, so nobody can take another's key.
    """
    job = authorized.job
    beside = trigger.idempotency_key
    if beside is None and job.idempotency_from_ce_id:
        beside = trigger.ce_id
    key = claims.idempotency_key
    if trigger.idempotency_key_conflict or (key is not None and beside is not None and key != beside):
        return Rejected("idempotency_key_conflict")
    if claims.uses == "once":
        if key is None:
            if beside is not None:
                return Rejected("idempotency_key_not_in_token")
            return Identity(_digest("jti", claims.iss, claims.jti), claims.jti)
    elif key is None:
        if beside is None:
            return None
        key = beside
    return Identity(_digest("key", claims.org_id, claims.iss, claims.sub, job.name, key), key)


def fingerprint(authorized: Authorized) -> bytes:
    """What makes two requests the same: the job and the params before defaults, not the token (RFC 8785 JSON)."""
    name = authorized.job.name.encode()
    return blake2b(len(name).to_bytes(4, "big") + name + authorized.requested_canonical, digest_size=16).digest()


def jti_digest(claims: Claims) -> bytes:
    return blake2b(claims.jti.encode(), digest_size=8).digest()


def window_end_ms(claims: Claims, window_s: int, appended_at_ms: int, grace_s: int) -> int:
    """Until when a later trigger of the same identity is a hit.

    The job's window from the append time, or for a one-shot token until its exp and grace, whichever is longer.
    """
    end = appended_at_ms + window_s * 1000
    if claims.uses == "once":
        return max(end, (claims.exp + grace_s) * 1000)
    return end


Hit = Literal["same_source", "duplicate", "token_already_used", "idempotency_key_reused"]


def compare(new: Entry, old: Entry) -> Hit | None:
    """What an entry of the same identity means for a new trigger; None when their windows do not meet.

    The earlier of the two says how long it counts: handoffs may bring an older trigger after a younger one.
    """
    if new.partition == old.partition and new.offset == old.offset:
        return "same_source"
    earlier, later = (old, new) if old.appended_at_ms <= new.appended_at_ms else (new, old)
    if later.appended_at_ms > earlier.expires_at_ms:
        return None
    if new.fingerprint == old.fingerprint:
        return "duplicate"
    return "token_already_used" if new.jti_digest == old.jti_digest else "idempotency_key_reused"


def home_lane(home_by: str, lanes: int) -> int:
    """The lane whose table holds an identity: where Java's default partitioner puts a record with this key."""
    return int(murmurhash2(home_by.encode(), _MURMUR2_SEED) & 0x7FFFFFFF) % lanes
