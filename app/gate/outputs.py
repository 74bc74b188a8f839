"""The outputs: what each verdict becomes on each topic. `schemas/` describes the same records for readers.

Receipts carry a detail only when the token verified, and never params or the idempotency key. Dead letters never
carry a token: what was taken out travels only sealed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import msgspec

from app.gate import limits
from app.gate.canonical import canonical
from app.gate.decide import Accepted, Admitted, Presented, Refused, Source
from app.gate.policy import Authorized
from app.gate.reasons import Rejected
from app.gate.records import (
    UNREADABLE,
    AuditRecord,
    Checkpoint,
    Handoff,
    HandoffTrigger,
    InsecureReceipt,
    JobRecord,
    Presentation,
    Receipt,
    Redacted,
    TriggerReference,
)  # fmt: skip
from app.gate.token import fingerprint
from app.gate.trigger import Trigger

Headers = tuple[tuple[str, bytes], ...]
DEAD_LETTER_VALUE_MAX_BYTES: Final = 1 << 20  # a larger value, as from a decompression, is told by its digest
_encode = msgspec.json.Encoder().encode
_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode
_decode_handoff = msgspec.json.Decoder(Handoff).decode
_decode_params = msgspec.json.Decoder(dict[str, Any]).decode
_decode_redacted = msgspec.json.Decoder(Redacted).decode


class Out(msgspec.Struct, frozen=True, gc=False):
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


# ── what a verdict becomes ──────────────────────────────────────────────────────────────────────────────────────


def job(verdict: Accepted, stamp: Stamp) -> Out:
    """The record workers run."""
    admitted, run_id = verdict.admitted, verdict.run_id
    definition, standing, source = admitted.authorized.job, admitted.standing, admitted.source
    trigger = admitted.trigger
    record = JobRecord(
        run_id, definition.name, definition.version, admitted.token.claims.org_id, _params(admitted.authorized),
        standing.identity, standing.reference,
        TriggerReference(
            source.trigger_id, stamp.place.triggers_topic, source.partition, source.offset, source.appended_at_ms
        ),
        trigger.correlation_id, stamp.now_ms, definition.timeout_s,
    )  # fmt: skip
    headers = stamp.event_headers(b"tollgate.job.v1", definition.name, trigger.traceparent)
    return Out(run_id.encode(), _encode(record), headers, True)


def receipt(
    request: Presented, stamp: Stamp, outcome: str, job_name: str | None, run_id: str | None = None,
    rejected: Rejected | None = None,
) -> Out:  # fmt: skip
    """The emitter's answer."""
    token, trigger = request.token, request.trigger
    trigger_id = request.source.trigger_id
    code = detail = correlation_id = traceparent = None
    if rejected is not None:
        code = rejected.code
        detail = rejected.detail if token is not None else None
    if trigger is not None:
        correlation_id, traceparent = trigger.correlation_id, trigger.traceparent
    record = (InsecureReceipt if token is not None and token.insecure else Receipt)(
        trigger_id,
        correlation_id,
        request.emitter,
        outcome,
        run_id,
        job_name,
        code,
        detail,
        stamp.now_ms,
        None if token is None else token.claims.token_class,
    )
    headers = stamp.event_headers(b"tollgate.receipt.v1", job_name, traceparent)
    return Out(trigger_id.encode(), _encode(record), headers, True)


def presentation(
    request: Presented, outcome: str, job_name: str | None, run_id: str | None = None, rejected: Rejected | None = None
) -> Presentation:
    """The audit's line for this presentation of a token."""
    token, trigger_id = request.token, request.source.trigger_id
    stage = code = None
    if rejected is not None:
        stage, code = rejected.reason.stage.value, rejected.code
    if token is None:
        return Presentation(
            trigger_id, None, None, None, _fingerprint(request), job_name, outcome, stage, code, run_id, False
        )
    claims = token.claims
    return Presentation(
        trigger_id, claims.iss, claims.sub, claims.jti, token.fingerprint, job_name, outcome, stage, code, run_id,
        request.within_grace, claims.actors, claims.token_class,
    )  # fmt: skip


def dead_letter(
    refused: Refused, original: Redacted, sealed: str | None, stamp: Stamp, came_by: str | None = None
) -> Out:
    """The rejected trigger as it came, less every token, with the audit reason in headers.

    `came_by` is the topic it stands on, if not that of triggers.
    """
    place = stamp.place
    topic = (came_by or place.triggers_topic).encode()
    source, rejected = refused.request.source, refused.rejected
    reason = rejected.reason
    detail = _printable(rejected.detail or reason.meaning)
    value = original.value
    added: list[tuple[str, bytes]] = [
        ("tollgate-stage", reason.stage.value.encode()),
        ("tollgate-reason", reason.code.encode()),
        ("tollgate-detail", detail.encode()),
        ("tollgate-topic", topic),
        ("tollgate-partition", b"%d" % source.partition),
        ("tollgate-offset", b"%d" % source.offset),
        ("tollgate-timestamp", b"%d" % source.appended_at_ms),
        ("tollgate-decided-at", b"%d" % stamp.now_ms),
        ("tollgate-replay-count", b"0"),
        ("tollgate-version", place.version.encode()),
        # The family Kafka Streams writes (KIP-1034), which existing viewers show.
        ("__streams.errors.exception", reason.code.encode()),
        ("__streams.errors.message", detail.encode()),
        ("__streams.errors.topic", topic),
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
    return Out(original.key, value, original.headers + tuple(added))


def handoff(
    admitted: Admitted, original: Redacted, sealed: str | None, registry_offset: int, revocations_offset: int
) -> Out:
    """The verified facts, keyed by the identity, for the home lane's partition."""
    identity, token, trigger, source = admitted.identity, admitted.token, admitted.trigger, admitted.source
    assert identity is not None  # without an identity a trigger is at home where it is  # noqa: S101
    authorized = admitted.authorized
    asked = authorized.requested_canonical if authorized.requested is trigger.params else canonical(trigger.params)
    record = Handoff(
        HandoffTrigger(
            source.trigger_id, source.partition, source.offset, source.appended_at_ms, trigger.correlation_id,
            trigger.idempotency_key, trigger.params_sha256, trigger.ce_id, trigger.ce_source,
        ),
        authorized.job.name, msgspec.Raw(asked),
        admitted.standing.claims_json(), token.fingerprint, token.insecure, identity.digest.hex(), registry_offset,
        revocations_offset, msgspec.Raw(_encode(original)), sealed, trigger.traceparent,
    )  # fmt: skip
    return Out(identity.digest, _encode(record))


def read_handoff(value: bytes) -> tuple[Handoff, Source, Trigger]:
    """A handoff as `readmit` wants it; its claims and the original are read when they are needed.

    Raises one of UNREADABLE for what no gate has written.
    """
    record = _decode_handoff(value)
    origin = record.trigger
    source = Source(origin.partition, origin.offset, origin.appended_at_ms, origin.id)
    params = bytes(record.params)
    trigger = Trigger(
        record.job, _decode_params(params), "", origin.idempotency_key, origin.correlation_id, origin.params_sha256,
        record.traceparent, origin.ce_id, False, origin.ce_source, params,
    )  # fmt: skip
    return record, source, trigger


def read_original(record: Handoff) -> Redacted:
    """What a dead letter of a handoff shows; nothing, where it is not what a gate writes."""
    try:
        return _decode_redacted(record.redacted)
    except UNREADABLE:
        return Redacted(None, None, ())


def audit(record: AuditRecord) -> Out:
    return Out(b"%d" % record.lane, _encode(record))


def digest(value: bytes | None) -> str:
    """What the next audit record says of this one."""
    return sha256(value or b"").hexdigest()


def checkpoint(record: Checkpoint) -> Out:
    return Out(b"%d" % record.lane, _encode(record))


def read_checkpoint(value: bytes) -> Checkpoint:
    """Raises one of UNREADABLE for bytes that are not a checkpoint."""
    return _decode_checkpoint(value)


def _params(authorized: Authorized) -> msgspec.Raw:
    """What the job runs with, written once: the canonical bytes serve when no default was added."""
    if authorized.params is authorized.requested:
        return msgspec.Raw(authorized.requested_canonical)
    return msgspec.Raw(_encode(authorized.params))


# ── leaves ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fingerprint(request: Presented) -> str | None:
    if request.token is not None:
        return request.token.fingerprint
    if request.trigger is not None:
        return fingerprint(request.trigger.unverified_token)
    return None


def _printable(text: str) -> str:
    """A stranger's words in one line: control and bidirectional characters escaped, cut to the limit."""
    short = text[: limits.DETAIL_MAX_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
