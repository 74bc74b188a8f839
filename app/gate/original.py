"""The original of a dead letter: a record as it came, less every token. What was taken out travels only sealed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from app.gate import limits
from app.gate.records import Redacted
from app.gate.redact import redact, redact_presented, token_shaped
from app.gate.trigger import Record, Trigger

# What was taken out of a record, bound to its trigger id and content → JWE compact; None without a sealing key.
Seal = Callable[[Sequence[bytes], str, bytes], str | None]

_HEADER_NAME_MAX: Final = 64
# Headers of the original that a dead letter keeps by name; others are kept when their names are plain and not ours.
_DROPPED_NAMES: Final = ("authorization", "proxy-authorization", "cookie", "x-api-key")
_KEPT_OF_OURS: Final = ("tollgate-job", "tollgate-correlation-id")


def original(record: Record, unverified_token: str | None, seal: Seal) -> tuple[Redacted, str | None]:
    """The record less its tokens, and what was taken out, sealed to ops."""
    token = unverified_token.encode() if unverified_token else None
    taken: list[bytes] = []

    def clean(data: bytes) -> bytes:
        kept, removed = redact(data, token)
        taken.extend(removed)
        return kept

    # What no dead letter shows and no handoff holds is not looked through: a batch may expand to far more than we take.
    key, value = record.key, record.value
    if key is not None and len(key) <= limits.KEY_SHOWN_MAX_BYTES:
        key = clean(key)
    if value is not None and len(value) <= limits.RECORD_MAX_BYTES:
        value = clean(value)
    headers = _clean_headers(record.headers, clean, taken) if record.headers else ()
    return _sealed(record, Redacted(key, value, headers), taken, seal)


def original_of_verified(record: Record, trigger: Trigger, fingerprint: str, seal: Seal) -> tuple[Redacted, str | None]:
    """The same for a trigger whose token verified, which is nearly always the plain form with nothing odd in it."""
    params, beside = trigger.params_canonical, trigger.idempotency_key
    if params is not None and record.value is not None and not record.headers:  # a quick reading did
        others = f"{params.decode()}{trigger.job}{beside}"
        done = redact_presented(record.value, trigger.unverified_token, fingerprint, others)
        if done is not None:
            value, taken = done
            key = record.key
            if key is not None and (beside is None or key != beside.encode()):
                key, more = redact(key, trigger.unverified_token.encode())
                taken = more + taken
            return _sealed(record, Redacted(key, value, ()), taken, seal)
    return original(record, trigger.unverified_token, seal)


def _sealed(record: Record, redacted: Redacted, taken: Sequence[bytes], seal: Seal) -> tuple[Redacted, str | None]:
    # A batch may expand to records far larger than the topic takes: what they become must fit all the same.
    if redacted.key is not None and len(redacted.key) > limits.KEY_SHOWN_MAX_BYTES:
        told = f"[key of {len(redacted.key)} bytes: sha256 {sha256(redacted.key).hexdigest()}]"
        redacted = Redacted(told.encode(), redacted.value, redacted.headers)
    if not taken or sum(map(len, taken)) > limits.SEALED_MAX_BYTES:
        return redacted, None
    return redacted, seal(taken, f"{record.partition}-{record.offset}", record.value or b"")


def _clean_headers(
    given: Sequence[tuple[str, bytes | None]], clean: Callable[[bytes], bytes], taken: list[bytes]
) -> tuple[tuple[str, bytes], ...]:
    headers: list[tuple[str, bytes]] = []
    if sum(len(name) + len(content or b"") for name, content in given) > limits.RECORD_MAX_BYTES:
        return ()
    for name, content in given[: limits.HEADERS_MAX]:
        if name.lower() in _DROPPED_NAMES:
            taken.append(content or b"")
        elif _kept(name):
            headers.append((name, clean(content or b"")))
    # As base64, in a handoff; beyond the limit they are told by the reason, and the value still says what it was.
    if sum(len(name) + (len(content) + 2) // 3 * 4 for name, content in headers) > limits.HEADERS_MAX_BYTES * 4 // 3:
        return ()
    return tuple(headers)


def _kept(name: str) -> bool:
    lower = name.lower()
    if lower.startswith("tollgate-"):
        return lower in _KEPT_OF_OURS
    plain = len(name) <= _HEADER_NAME_MAX and name.isascii() and name.isprintable() and not lower.startswith("__")
    return plain and not token_shaped(name)  # a handle is short enough
