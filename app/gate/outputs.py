"""The outputs: what each verdict becomes on each topic. `schemas/` describes the same records for readers.

Receipts carry a detail only when the token verified, and never params or the idempotency key. Dead letters never
carry a token: what was taken out travels only sealed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import msgspec

from app.gate import limits
from app.gate.decide import Accepted, Admitted, Refused, Request, Source
from app.gate.policy import Authorized
from app.gate.reasons import Rejected
from app.gate.redact import redact
from app.gate.token import Claims, VerifiedToken
from app.gate.trigger import Record, Trigger

Headers = tuple[tuple[str, bytes], ...]
# What was taken out of a record, bound to its trigger id and content → JWE compact; None without a sealing key.
Seal = Callable[[Sequence[bytes], str, bytes], str | None]

DEAD_LETTER_VALUE_MAX_BYTES: Final = 1 << 20  # a larger value, as from a decompression, is told by its digest
_HEADER_NAME_MAX: Final = 64
_encode = msgspec.json.Encoder().encode


class Out(msgspec.Struct, frozen=True):
    """One record to write: key, value and headers. An `event` has its key as one header more, `ce_id`."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    event: bool = False


class Place(msgspec.Struct, frozen=True):
    """The deployment a lane writes for: what outputs say about where they come from."""

    triggers_topic: str
    source: str  # ce_source
    version: str  # of the software


class Stamp:
    """When and where a transaction's outputs are made, with the headers that many of them share."""

    def __init__(self, place: Place, now_ms: int) -> None:
        self.place, self.now_ms = place, now_ms
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        self._now_text = now.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
        self._shared: dict[tuple[bytes, str | None], Headers] = {}

    def event_headers(self, event_type: bytes, subject: str | None, traceparent: str | None) -> Headers:
        """CloudEvents 1.0, Kafka binding, binary mode; `ce_id` is each record's own."""
        headers = self._shared.get((event_type, subject))
        if headers is None:
            headers = (
                ("ce_specversion", b"1.0"),
                ("ce_source", self.place.source.encode()),
                ("ce_type", event_type),
                ("ce_time", self._now_text),
                ("content-type", b"application/json"),
            )
            if subject is not None:
                headers += (("ce_subject", subject.encode()),)
            self._shared[(event_type, subject)] = headers
        if traceparent is not None:
            return (*headers, ("traceparent", traceparent.encode()))
        return headers


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


class JobRecord(msgspec.Struct, frozen=True):
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


class Receipt(msgspec.Struct, frozen=True, omit_defaults=False):
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


class InsecureReceipt(Receipt, frozen=True):
    """A receipt for a token that was verified with a development secret."""

    insecure: bool = True


class Presentation(msgspec.Struct, frozen=True, gc=False):
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


class Redacted(msgspec.Struct, frozen=True):
    """A record as it came less every token: what a dead letter shows. Bytes as base64."""

    key: str | None
    value: str | None
    headers: list[tuple[str, str]]


class HandoffTrigger(msgspec.Struct, frozen=True):
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


class Handoff(msgspec.Struct, frozen=True):
    """handoffs: a verified trigger on its way to its home lane. Never a token."""

    trigger: HandoffTrigger
    job: str
    params: dict[str, Any]
    claims: Claims
    token_fingerprint: str
    insecure: bool
    identity: str
    registry_offset: int
    revocations_offset: int
    redacted: Redacted
    sealed: str | None
    traceparent: str | None


_decode_handoff = msgspec.json.Decoder(Handoff).decode
_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode


# ── what a verdict becomes ──────────────────────────────────────────────────────────────────────────────────────


def job(verdict: Accepted, stamp: Stamp) -> Out:
    """The record workers run."""
    admitted = verdict.admitted
    request, definition = admitted.request, admitted.authorized.job
    token, source = admitted.token, request.source
    trigger = _trigger(request)
    claims = token.claims
    record = JobRecord(
        verdict.run_id, definition.name, definition.version, claims.org_id, _params(admitted.authorized),
        IssuerAndSubject(claims.iss, claims.sub),
        TokenReference(claims.jti, claims.kid, token.fingerprint),
        TriggerReference(
            source.trigger_id, stamp.place.triggers_topic, source.partition, source.offset, source.appended_at_ms
        ),
        trigger.correlation_id, stamp.now_ms, definition.timeout_s,
    )  # fmt: skip
    headers = stamp.event_headers(b"tollgate.job.v1", definition.name, trigger.traceparent)
    return Out(verdict.run_id.encode(), _encode(record), headers, event=True)


def receipt(
    request: Request, stamp: Stamp, *, outcome: str, job_name: str | None, run_id: str | None = None,
    rejected: Rejected | None = None,
) -> Out:  # fmt: skip
    """The emitter's answer."""
    token, trigger = request.token, request.trigger
    trigger_id = request.source.trigger_id
    code = detail = None
    if rejected is not None:
        code = rejected.code
        detail = rejected.detail if token is not None else None
    record = (InsecureReceipt if token is not None and token.insecure else Receipt)(
        trigger_id, trigger.correlation_id if trigger is not None else None, request.emitter, outcome, run_id, job_name,
        code, detail, stamp.now_ms,
    )  # fmt: skip
    traceparent = trigger.traceparent if trigger is not None else None
    headers = stamp.event_headers(b"tollgate.receipt.v1", job_name, traceparent)
    return Out(trigger_id.encode(), _encode(record), headers, event=True)


def presentation(
    request: Request, *, outcome: str, job_name: str | None, run_id: str | None = None,
    rejected: Rejected | None = None,
) -> Presentation:  # fmt: skip
    """The audit's line for this presentation of a token."""
    token = request.token
    stage = code = None
    if rejected is not None:
        stage, code = rejected.reason.stage.value, rejected.code
    if token is None:
        return Presentation(
            request.source.trigger_id, None, None, None, _fingerprint(request), job_name, outcome, stage, code, run_id,
            within_grace=False,
        )  # fmt: skip
    claims = token.claims
    return Presentation(
        request.source.trigger_id, claims.iss, claims.sub, claims.jti, token.fingerprint, job_name, outcome, stage,
        code, run_id, request.within_grace,
    )  # fmt: skip


def dead_letter(refused: Refused, original: Redacted, sealed: str | None, stamp: Stamp) -> Out:
    """The rejected trigger as it came, less every token, with the audit reason in headers."""
    place = stamp.place
    source, rejected = refused.request.source, refused.rejected
    reason = rejected.reason
    detail = _printable(rejected.detail or reason.meaning)
    value = None if original.value is None else base64.b64decode(original.value)
    key = None if original.key is None else base64.b64decode(original.key)
    added: list[tuple[str, bytes]] = [
        ("tollgate-stage", reason.stage.value.encode()),
        ("tollgate-reason", reason.code.encode()),
        ("tollgate-detail", detail.encode()),
        ("tollgate-topic", place.triggers_topic.encode()),
        ("tollgate-partition", b"%d" % source.partition),
        ("tollgate-offset", b"%d" % source.offset),
        ("tollgate-timestamp", b"%d" % source.appended_at_ms),
        ("tollgate-decided-at", b"%d" % stamp.now_ms),
        ("tollgate-replay-count", b"0"),
        ("tollgate-version", place.version.encode()),
        # The family Kafka Streams writes (KIP-1034), which existing viewers show.
        ("__streams.errors.exception", reason.code.encode()),
        ("__streams.errors.message", detail.encode()),
        ("__streams.errors.topic", place.triggers_topic.encode()),
        ("__streams.errors.partition", b"%d" % source.partition),
        ("__streams.errors.offset", b"%d" % source.offset),
    ]
    fingerprint = _fingerprint(refused.request)
    if fingerprint is not None:
        added.append(("tollgate-token-fingerprint", fingerprint.encode()))
    if sealed is not None:
        added.append(("tollgate-sealed", sealed.encode()))
    if refused.first_run_id is not None:
        added.append(("tollgate-first-run-id", refused.first_run_id.encode()))
    if value is not None and len(value) > DEAD_LETTER_VALUE_MAX_BYTES:
        added.append(("tollgate-value-sha256", sha256(value).hexdigest().encode()))
        added.append(("tollgate-value-bytes", b"%d" % len(value)))
        value = None
    originals = tuple((name, base64.b64decode(content)) for name, content in original.headers)
    return Out(key, value, originals + tuple(added))


def handoff(
    admitted: Admitted, original: Redacted, sealed: str | None, registry_offset: int, revocations_offset: int
) -> Out:
    """The verified facts, keyed by the identity, for the home lane's partition."""
    request, identity = admitted.request, admitted.identity
    assert identity is not None  # without an identity a trigger is at home where it is  # noqa: S101
    token, trigger, source = _token(request), _trigger(request), request.source
    record = Handoff(
        HandoffTrigger(
            source.trigger_id, source.partition, source.offset, source.appended_at_ms, trigger.correlation_id,
            trigger.idempotency_key, trigger.params_sha256, trigger.ce_id, trigger.ce_source,
        ),
        admitted.authorized.job.name, trigger.params, token.claims, token.fingerprint, token.insecure,
        identity.digest.hex(), registry_offset, revocations_offset, original, sealed, trigger.traceparent,
    )  # fmt: skip
    return Out(identity.digest, _encode(record))


def read_handoff(value: bytes) -> tuple[Handoff, Source, Trigger, VerifiedToken]:
    """A handoff as `readmit` wants it. Raises msgspec.DecodeError for what no gate has written."""
    record = _decode_handoff(value)
    origin = record.trigger
    source = Source(origin.partition, origin.offset, origin.appended_at_ms, origin.id)
    trigger = Trigger(
        record.job, record.params, "", origin.idempotency_key, origin.correlation_id, origin.params_sha256,
        record.traceparent, origin.ce_id, False, origin.ce_source,
    )  # fmt: skip
    return record, source, trigger, VerifiedToken(record.claims, record.token_fingerprint, record.insecure)


def audit(record: AuditRecord) -> Out:
    return Out(b"%d" % record.lane, _encode(record))


def digest(value: bytes | None) -> str:
    """What the next audit record says of this one."""
    return sha256(value or b"").hexdigest()


def checkpoint(record: Checkpoint) -> Out:
    return Out(b"%d" % record.lane, _encode(record))


def read_checkpoint(value: bytes) -> Checkpoint:
    """Raises msgspec.DecodeError for bytes that are not a checkpoint."""
    return _decode_checkpoint(value)


# ── taking tokens out ───────────────────────────────────────────────────────────────────────────────────────────

# Headers of the original that a dead letter keeps by name; others are kept when their names are plain and not ours.
_DROPPED_NAMES: Final = ("authorization", "proxy-authorization", "cookie", "x-api-key")
_KEPT_OF_OURS: Final = ("tollgate-job", "tollgate-correlation-id")


def original(record: Record, unverified_token: str | None, seal: Seal) -> tuple[Redacted, str | None]:
    """The record less its tokens, and what was taken out, sealed to ops."""
    token = unverified_token.encode() if unverified_token else None
    taken: list[bytes] = []

    def clean(data: bytes | None) -> str | None:
        if data is None:
            return None
        kept, removed = redact(data, token)
        taken.extend(removed)
        return base64.b64encode(kept).decode()

    key, value = clean(record.key), clean(record.value)
    headers: list[tuple[str, str]] = []
    for name, content in record.headers[: limits.HEADERS_MAX]:
        if name.lower() in _DROPPED_NAMES:
            taken.append(content or b"")
        elif _kept(name):
            headers.append((name, clean(content or b"") or ""))
    if sum(len(name) + len(content) for name, content in headers) > limits.HEADERS_MAX_BYTES * 4 // 3:
        headers = []  # told by the reason; the value still says what it was
    trigger_id = f"{record.partition}-{record.offset}"
    return Redacted(key, value, headers), seal(taken, trigger_id, record.value or b"") if taken else None


def _kept(name: str) -> bool:
    lower = name.lower()
    if lower.startswith("tollgate-"):
        return lower in _KEPT_OF_OURS
    return len(name) <= _HEADER_NAME_MAX and name.isascii() and name.isprintable() and not lower.startswith("__")


def _params(authorized: Authorized) -> msgspec.Raw:
    """What the job runs with, written once: the canonical bytes serve when no default was added."""
    if authorized.params is authorized.requested:
        return msgspec.Raw(authorized.requested_canonical)
    return msgspec.Raw(_encode(authorized.params))


# ── leaves ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fingerprint(request: Request) -> str | None:
    if request.token is not None:
        return request.token.fingerprint
    if request.trigger is not None:
        return sha256(request.trigger.unverified_token.encode()).hexdigest()[:32]
    return None


def _printable(text: str) -> str:
    """A stranger's words in one line: control and bidirectional characters escaped, cut to the limit."""
    short = text[: limits.DETAIL_MAX_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def _token(request: Request) -> VerifiedToken:
    assert request.token is not None  # noqa: S101
    return request.token


def _trigger(request: Request) -> Trigger:
    assert request.trigger is not None  # noqa: S101
    return request.trigger
