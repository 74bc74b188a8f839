"""What an emitter publishes: the records of `tollgate emit` and of the HTTP door, with the key that leads them home."""

from __future__ import annotations

import json
import uuid
from enum import StrEnum
from typing import Any, Final, NamedTuple

from app.gate.jws import unverified_claims
from app.gate.trigger import AUTHORIZATION, CONTENT_TYPE, CORRELATION, JOB, KEY

TRACEPARENT: Final = "traceparent"


class Form(StrEnum):
    """The three forms in which a trigger may arrive."""

    JSON = "json"
    HEADERS = "headers"
    CLOUDEVENT = "cloudevent"


class Emission(NamedTuple):
    """What to send."""

    form: Form
    job: str | None  # None, which only the form JSON can: the one the token grants
    params: dict[str, Any]
    idempotency_key: str | None
    correlation_id: str | None
    record_key: str | None  # None: its home's
    traceparent: str | None = None


class Trigger(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    correlation_id: str | None


def trigger_of(emission: Emission, token: str) -> Trigger:
    """The record. Raises ValueError for a form that needs a job and has none."""
    headers: list[tuple[str, str | None]] = []
    body: dict[str, Any] = emission.params
    if emission.form is Form.JSON:
        members = {"job": emission.job, "params": emission.params, "idempotency_key": emission.idempotency_key,
                   "correlation_id": emission.correlation_id, "token": token}  # fmt: skip
        body = {name: value for name, value in members.items() if value is not None}
    else:
        if emission.job is None:
            raise ValueError(f"the form {emission.form} needs a job: it is what marks the value as parameters")
        if emission.form is Form.HEADERS:
            headers = [(JOB, emission.job)]
        else:
            headers = [("ce_specversion", "1.0"), ("ce_id", str(uuid.uuid4())), ("ce_source", "/tollgate/emit"),
                       ("ce_type", "tollgate.trigger.v1"), ("ce_subject", emission.job),
                       (CONTENT_TYPE, "application/json")]  # fmt: skip
        headers += [(AUTHORIZATION, f"Bearer {token}"), (KEY, emission.idempotency_key),
                    (CORRELATION, emission.correlation_id)]  # fmt: skip
    headers.append((TRACEPARENT, emission.traceparent))
    record_key = emission.record_key or home_of(token, emission.idempotency_key)
    return Trigger(
        None if record_key is None else record_key.encode("utf-8", "surrogateescape"),
        json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape"),
        [(name, value.encode("utf-8", "surrogateescape")) for name, value in headers if value is not None],
        emission.correlation_id,
    )


def home_of(token: str, idempotency_key: str | None) -> str | None:
    """The Kafka key under which a Java or aiokafka producer puts the trigger into its home partition.

    A hint only: the token is read without verifying it, and the gate finds the home of any trigger.
    """
    claims = unverified_claims(token)
    jti = claims.get("jti") if claims.get("uses") == "once" else None
    candidates = (claims.get("idempotency_key"), idempotency_key, jti)
    return next((candidate for candidate in candidates if isinstance(candidate, str) and candidate), None)
