"""The records a gate writes, as types; `schemas/` describes the same for readers. Fields are only ever added."""

from __future__ import annotations

from typing import Final

import msgspec

# What reading a record may raise: the last, for a deep nest in a member that msgspec would pass over.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

NO_AUDIT_YET: Final = "0" * 64  # the head of a lane's chain before its first audit record


class TriggerReference(msgspec.Struct, frozen=True, gc=False):
    id: str
    topic: str
    partition: int
    offset: int
    appended_at_ms: int


class IssuerAndSubject(msgspec.Struct, frozen=True, gc=False):
    issuer: str
    subject: str


class TokenReference(msgspec.Struct, frozen=True, gc=False):
    jti: str
    kid: str
    fingerprint: str


class JobRecord(msgspec.Struct, frozen=True, gc=False):
    """jobs: enough to run it and to know why one may."""

    run_id: str
    job: str
    definition_version: int
    org_id: str
    params: msgspec.Raw
    identity: IssuerAndSubject
    token: TokenReference
    trigger: TriggerReference
    correlation_id: str | None
    accepted_at_ms: int
    timeout_s: int
    start_by_ms: int | None = None
    attempt: int = 1


class Receipt(msgspec.Struct, frozen=True, omit_defaults=False, gc=False):
    """receipts: one per trigger; says nothing a stranger may not know."""

    trigger_id: str
    correlation_id: str | None
    emitter: str | None
    outcome: str
    run_id: str | None
    job: str | None
    reason: str | None
    detail: str | None
    decided_at_ms: int
    token_class: str | None = None  # verified


class InsecureReceipt(Receipt, frozen=True, gc=False):
    """A receipt for a token that was verified with a development secret."""

    insecure: bool = True


class Presentation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """audit: one presentation of a token."""

    trigger_id: str
    issuer: str | None
    subject: str | None
    jti: str | None
    token_fingerprint: str | None
    job: str | None
    outcome: str
    stage: str | None
    reason: str | None
    run_id: str | None
    within_grace: bool
    actors: tuple[str, ...] = ()  # who acted for the subject, the last first; left out where nobody did
    token_class: str | None = None  # verified


class AuditRecord(msgspec.Struct, frozen=True):
    """audit: every presentation of one transaction of one lane, chained to the record before."""

    lane: int
    sequence: int
    previous_sha256: str
    presentations: list[Presentation]


class Gap(msgspec.Struct, frozen=True):
    """Records of a lane that were never decided, and who chose to go on without them."""

    topic: str
    from_offset: int
    to_offset: int
    by: str
    reason: str


class GapRecord(AuditRecord, frozen=True):
    """audit: an accepted gap, in the lane's chain like any other record."""

    gaps: list[Gap] = []


class Checkpoint(msgspec.Struct, frozen=True):
    """checkpoints: where a lane stands. Commits with what it describes, so the two cannot disagree."""

    lane: int
    lanes: int
    birth_id: str
    sequence: int
    triggers_offset: int
    handoffs_offset: int
    lane_clock_ms: int
    audit_head_sha256: str


class Redacted(msgspec.Struct, frozen=True, gc=False):
    """A record as it came less every token: what a dead letter shows. In JSON, bytes are base64."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class HandoffTrigger(msgspec.Struct, frozen=True, gc=False):
    """The trigger's coordinates and what the emitter asked for, for the home lane to judge again."""

    id: str
    partition: int
    offset: int
    appended_at_ms: int
    correlation_id: str | None
    idempotency_key: str | None
    params_sha256: str | None
    ce_id: str | None
    ce_source: str | None


class Handoff(msgspec.Struct, frozen=True, gc=False):
    """handoffs: a verified trigger on its way to its home lane. Never a token."""

    trigger: HandoffTrigger
    job: str
    params: msgspec.Raw  # canonical JSON (RFC 8785)
    claims: msgspec.Raw  # `Claims`
    token_fingerprint: str
    insecure: bool
    identity: str
    registry_offset: int
    revocations_offset: int
    redacted: msgspec.Raw  # `Redacted`
    sealed: str | None
    traceparent: str | None
