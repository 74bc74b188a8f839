"""Idempotency: the one identity of a trigger that must not run twice, its home lane, and what a hit means."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from murmurhash2 import murmurhash2

from app.gate.policy import Job
from app.gate.reasons import Rejected
from app.gate.token import Claims
from app.gate.trigger import Trigger

IDENTITY_BYTES: Final = 16
ENTRY_VERSION: Final = 1
# version, run id, fingerprint, jti digest, source partition and offset, append time, end of the window
_ENTRY: Final = struct.Struct(">B16s16s8sIQQQ")
ENTRY_BYTES: Final = _ENTRY.size
JTI_DIGEST_BYTES: Final = 8
_LENGTH: Final = struct.Struct(">I")
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


def pack(
    run_id: bytes, fingerprint: bytes, jti: bytes, partition: int, offset: int, appended_at_ms: int, expires_ms: int
) -> bytes:
    """An entry as the changelog and the local store hold it."""
    return _ENTRY.pack(ENTRY_VERSION, run_id, fingerprint, jti, partition, offset, appended_at_ms, expires_ms)


def unpack(value: bytes) -> Entry:
    """An entry from the changelog or the local store. Raises ValueError for bytes that are not one."""
    if len(value) != ENTRY_BYTES or value[0] != ENTRY_VERSION:
        raise ValueError(f"not an idempotency entry of version {ENTRY_VERSION}: {len(value)} bytes")
    return Entry(*_ENTRY.unpack(value)[1:])


def expires_at_ms(value: bytes) -> int:
    """The end of the window of a packed entry, without unpacking the rest."""
    return int.from_bytes(value[-8:], "big")


def _prefixed(*parts: str) -> bytes:
    """Parts with their lengths before them, so that ("a", "bc") and ("ab", "c") differ. No normalisation."""
    joined = b""
    for part in parts:
        raw = part.encode()
        joined += _LENGTH.pack(len(raw)) + raw
    return joined


def scope(claims: Claims, job: Job) -> bytes:
    """What an idempotency key is unique within: organisation, issuer, subject and job, all of them verified."""
    return _key_scope(claims, job.name)


def _key_scope(claims: Claims, job_name: str) -> bytes:
    return _prefixed("key", claims.org_id, claims.iss, claims.sub, job_name)


def identify(claims: Claims, trigger: Trigger, job: Job, key_scope: bytes, of_jti: bytes) -> Identity | Rejected | None:
    """The identity of a trigger; None for a webhook trigger without a key, which is a new run by design.

    No key is ever derived from the body. `key_scope` and `of_jti` come from verified claims only, so nobody can take
    another's key.
    """
    beside = trigger.idempotency_key
    if beside is None and job.idempotency_from_ce_id:
        beside = trigger.ce_id
    key = claims.idempotency_key
    if trigger.idempotency_key_conflict or (key is not None and beside is not None and key != beside):
        return Rejected("idempotency_key_conflict")
    if key is None:
        if claims.uses == "once":
            if beside is not None:
                return Rejected("idempotency_key_not_in_token")
            return Identity(of_jti, claims.jti)
        if beside is None:
            return None
        key = beside
        if trigger.idempotency_key is None:
            # A CloudEvents id is unique only together with its source (CloudEvents 1.0, section 3.1.1).
            key_scope += _prefixed("ce_source", trigger.ce_source or "")
    return _of_key(key_scope, key)


def of_one_shot(claims: Claims) -> Identity | None:
    """The one identity that a one-shot token acts for, for it grants one job; None: it is none."""
    if claims.uses != "once" or len(claims.grant.jobs) != 1:
        return None
    if claims.idempotency_key is None:
        return Identity(jti_identity(jti_scope(claims.iss), claims.jti), claims.jti)
    return _of_key(_key_scope(claims, claims.grant.jobs[0]), claims.idempotency_key)


def _of_key(key_scope: bytes, key: str) -> Identity:
    raw = key.encode()
    return Identity(_digest(key_scope + _LENGTH.pack(len(raw)) + raw), key)


def _digest(joined: bytes) -> bytes:
    return blake2b(joined, digest_size=IDENTITY_BYTES).digest()


def request_scope(job: Job) -> bytes:
    """What params belong to."""
    return _prefixed(job.name)


def fingerprint(of_job: bytes, requested_canonical: bytes) -> bytes:
    """What makes two requests the same: the job and the params before defaults, not the token (RFC 8785 JSON)."""
    return _digest(of_job + requested_canonical)


def jti_scope(iss: str) -> bytes:
    """What a jti is unique within: its issuer."""
    return _prefixed("jti", iss)


def jti_identity(of_issuer: bytes, jti: str) -> bytes:
    """The identity of a one-shot token without a key; its start tells whether two triggers had the same token."""
    raw = jti.encode()
    return _digest(of_issuer + _LENGTH.pack(len(raw)) + raw)


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
    """What an entry of the same identity means for a new trigger; None when the entry's window was over.

    A trigger that was appended before the one that is there (handoffs may bring it late) is always a hit: it is the
    earlier try of what has run since. As a run of its own it would leave no entry, and its next repeat would run, too.
    """
    if new.partition == old.partition and new.offset == old.offset:
        return "same_source"
    if new.appended_at_ms > old.expires_at_ms:
        return None
    if new.fingerprint == old.fingerprint:
        return "duplicate"
    return "token_already_used" if new.jti_digest == old.jti_digest else "idempotency_key_reused"


def home_lane(home_by: str, lanes: int) -> int:
    """The lane whose table holds an identity: where Java's default partitioner puts a record with this key."""
    number: int = murmurhash2(home_by.encode(), _MURMUR2_SEED)
    return (number & 0x7FFFFFFF) % lanes
