"""The trigger: a Kafka record becomes one request to start one job, or a refusal. Nothing here is verified yet.

Three forms:

1. *plain*: the value is an object of `job`, `params`, `idempotency_key`, `correlation_id`, `params_sha256` and
   `token`, and of nothing else.
2. *headers*: `authorization: Bearer …`. With a job header (`tollgate-job`, or `ce_subject`) the whole value is the
   params, and no value (null) is no params; without one the value is form 1 less its token. `idempotency-key` and
   `tollgate-correlation-id` may stand beside either form.
3. *CloudEvents 1.0*, binary (`ce_*` headers) or structured (content type `application/cloudevents+json`; or neither
   `ce_specversion` nor a job header, and an object with `specversion`). The subject names the job, and then the data
   is the params; without subject (and `tollgate-job`) the data is form 1. `type` and `source` must be there and name
   nothing. Extension attributes are passed over, batches and data other than JSON refused.

Header names that decide something count in any case (`Idempotency-Key` passed over would start a job twice); given
twice, in whatever cases, the record is refused. Every other header is passed over, `tollgate-*` included. Two places
that disagree are refused, never chosen from; two tokens even when they are equal.

The token is the `authorization` header without its scheme, or the member `token` of form 1: of the value, or of
`data` in a structured event. Redaction empties those places of everything shaped like a token or a part of one.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from app.gate import limits
from app.gate.quick import quick_trigger
from app.gate.reasons import Rejected
from app.gate.redact import token_shaped
from app.gate.strict_json import JSONRefused, loads_object

AUTHORIZATION: Final = "authorization"
JOB: Final = "tollgate-job"
KEY: Final = "idempotency-key"
CORRELATION: Final = "tollgate-correlation-id"
CONTENT_TYPE: Final = "content-type"
_REQUIRED: Final = ("specversion", "id", "source", "type")  # CloudEvents 1.0 section 3.1
_CE_REQUIRED: Final = frozenset("ce_" + name for name in _REQUIRED)
DECIDING_HEADERS: Final = frozenset({AUTHORIZATION, JOB, KEY, CORRELATION, CONTENT_TYPE, "ce_subject", *_CE_REQUIRED})
_TRACE_HEADERS: Final = ("traceparent", "ce_traceparent")  # never a reason to refuse
_READ: Final = DECIDING_HEADERS | set(_TRACE_HEADERS)

MEMBERS: Final = frozenset({"job", "params", "idempotency_key", "correlation_id", "params_sha256", "token"})
# CloudEvents JSON format section 2 and 3; a member that is no attribute of ours is an extension, of a simple type.
_EVENT_DATA: Final = frozenset({"data", "data_base64"})

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # controls and bidi
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")  # version 00 alone
_JSON_TYPE: Final = re.compile(r"(application|text)/([a-z0-9.+-]+\+)?json *(;.*)?", re.IGNORECASE)
_CLOUDEVENTS: Final = "application/cloudevents"
_STRUCTURED_TYPE: Final = re.compile(r"application/cloudevents\+json *(;.*)?")
_EXTENSION: Final = re.compile(r"[a-z0-9]{1,64}")
_SHOWABLE: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")  # a name that may stand in a detail: no token fits it


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of the triggers topic as the broker holds it."""

    partition: int
    offset: int
    appended_at_ms: int
    log_append_time: bool  # the record's own timestamp type, not the topic's setting
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    batch_fault: str | None = None  # why its batch was not read, as a reason; then nothing of the record is known


class Trigger(msgspec.Struct, frozen=True, gc=False):
    """A parsed trigger; its token is still unverified, so everything here is a stranger's word."""

    job: str | None  # None: the one the token grants
    params: dict[str, Any]
    unverified_token: str
    idempotency_key: str | None  # beside the token: header or member, agreeing
    correlation_id: str | None
    params_sha256: str | None
    traceparent: str | None  # W3C trace context, well-formed or None
    ce_id: str | None = None  # CloudEvents id: a key only where the job says so
    idempotency_key_conflict: bool = False  # header and member differ: refused in stage 4, where keys are judged
    ce_source: str | None = None  # CloudEvents: source and id together are unique, id alone need not be
    params_canonical: bytes | None = None  # RFC 8785, when parsing came by it


class _Refused(Exception):  # noqa: N818 - a refusal on its way to `parse`, which alone returns it
    def __init__(self, code: str, detail: str | None = None) -> None:
        self.rejected = Rejected(code, detail)


def parse(record: Record) -> Trigger | Rejected:
    """Read any of the three forms of a trigger. Of several faults the one earliest in `reasons.py` is named."""
    if not record.headers:
        plain = quick_trigger(record.value) if record.log_append_time else None
        if plain is not None:
            job, params, token, key, params_canonical = plain
            return Trigger(job, params, token, key, None, None, None, None, False, None, params_canonical)
    try:
        headers = _read_headers(record) if record.headers else _measure(record)
        if record.value is None:
            if JOB not in headers and "ce_subject" not in headers:
                return Rejected("value_missing")
            return _read(headers, {})
        return _read(headers, loads_object(record.value))
    except _Refused as refused:
        return refused.rejected
    except JSONRefused as refused_json:
        return Rejected(refused_json.record_code, refused_json.detail)


def _measure(record: Record) -> dict[str, str]:
    if record.value is not None and len(record.value) > limits.RECORD_MAX_BYTES:
        raise _Refused("record_too_large")
    if not record.log_append_time:
        raise _Refused("timestamp_type_invalid")
    return {}


def _read_headers(record: Record) -> dict[str, str]:
    """The headers that mean something, by their lower-case names."""
    found: dict[str, bytes | None] = {}
    repeated: list[str] = []
    size = 0
    for name, raw in record.headers:
        size += len(name) + (len(raw) if raw else 0)
        if name not in _READ:
            if not name.isascii():
                size += len(name.encode("utf-8", "surrogatepass")) - len(name)
            name = name.lower()  # noqa: PLW2901
            if name not in _READ:
                continue
        if name in found:
            repeated.append(name)
        found[name] = raw
    if size > limits.HEADERS_MAX_BYTES or size + len(record.value or b"") > limits.RECORD_MAX_BYTES:
        raise _Refused("record_too_large")
    if not record.log_append_time:
        raise _Refused("timestamp_type_invalid")
    if len(record.headers) > limits.HEADERS_MAX:
        raise _Refused("headers_malformed", f"more than {limits.HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for name, raw in found.items():
        try:
            headers[name] = str(raw, "utf-8")  # type: ignore[arg-type]
        except (UnicodeDecodeError, TypeError):
            if name in DECIDING_HEADERS:
                raise _Refused("headers_malformed", f"{name} is not UTF-8 text") from None
    for name in repeated:
        if name in DECIDING_HEADERS:
            raise _Refused("header_repeated", f"{name} is given more than once")
        headers.pop(name, None)
    return headers


def _read(headers: dict[str, str], value: dict[str, Any]) -> Trigger | Rejected:
    """The checks in the order of `reasons.py`, for whichever form the record has."""
    form = _form(headers, value) if headers or "specversion" in value else (None, None, None, value)
    job_header, subject, event, data = form
    # envelope_malformed
    if type(data) is not dict:
        return Rejected("envelope_malformed", "data is not an object")
    if job_header is None and subject is None:
        complaint = _envelope_fault(data)
        if complaint is not None:
            return Rejected("envelope_malformed", complaint)
        envelope, params, job = data, data.get("params"), data.get("job")
        if params is None:
            params = {}
    else:
        envelope, params, job = _NO_ENVELOPE, data, subject if job_header is None else job_header
    if job is not None and not _is_echoable(job, limits.JOB_NAME_MAX_BYTES):
        return Rejected("envelope_malformed", "job" + _NOT_ECHOABLE)
    correlation_id = envelope.get("correlation_id")
    if CORRELATION in headers:
        if correlation_id is not None and correlation_id != headers[CORRELATION]:
            return Rejected("envelope_malformed", "header and value give different correlation ids")
        correlation_id = headers[CORRELATION]
    if correlation_id is not None and not _is_echoable(correlation_id, limits.CORRELATION_ID_MAX_BYTES):
        return Rejected("envelope_malformed", "correlation_id" + _NOT_ECHOABLE)
    # cloudevent_malformed, job_conflict
    ce_id = ce_source = None
    if event is not None or (headers and not _CE_REQUIRED.isdisjoint(headers)):
        complaint = _event_fault(headers, event)
        if complaint is not None:
            return Rejected("cloudevent_malformed", complaint)
        ce_id = headers["ce_id"] if event is None else event["id"]
        ce_source = headers["ce_source"] if event is None else event["source"]
    if subject is not None and (job != subject or (event is not None and event.get("subject", subject) != subject)):
        return Rejected("job_conflict")
    # idempotency_key_malformed
    key, key_header = envelope.get("idempotency_key"), headers.get(KEY)
    if (key is not None or "idempotency_key" in envelope) and not _is_key(key):
        return Rejected("idempotency_key_malformed")
    if key_header is not None and not _is_key(key_header):
        return Rejected("idempotency_key_malformed")
    # token_missing, token_ambiguous, authorization_malformed
    token = envelope.get("token")
    if AUTHORIZATION in headers:
        if "token" in envelope:
            return Rejected("token_ambiguous")
        scheme, _, rest = headers[AUTHORIZATION].partition(" ")
        token = rest.lstrip(" ")
        if not token or " " in token or scheme.lower() != "bearer":  # RFC 9110 section 11.1: schemes in any case
            return Rejected("authorization_malformed")
    elif not token:
        return Rejected("token_missing")
    if params and holds_token(params):
        return Rejected("token_in_params")
    return Trigger(
        job, params, token, key_header if key is None else key, correlation_id, envelope.get("params_sha256"),
        _traceparent(headers, event) if headers or event else None, ce_id,
        key_header is not None and key is not None and key_header != key, ce_source,
    )  # fmt: skip


_NO_ENVELOPE: Final[dict[str, Any]] = {}
_NOT_ECHOABLE: Final = " is empty or too long, or holds a control character or a token"


def _form(headers: dict[str, str], value: dict[str, Any]) -> tuple[str | None, str | None, dict[str, Any] | None, Any]:
    """Which form it is: the job header, the subject, the structured event if it is one, and the data."""
    job_header, subject = headers.get(JOB), headers.get("ce_subject")
    says_structured = headers.get(CONTENT_TYPE, "").lower().startswith(_CLOUDEVENTS)
    looks_structured = job_header is None and subject is None and "specversion" in value
    if not says_structured and (not looks_structured or "ce_specversion" in headers):
        return job_header, subject, None, value
    # CloudEvents JSON format section 2.2: a null attribute is one left out
    event = {name: member for name, member in value.items() if member is not None}
    inner = event.get("subject")
    if subject is None and type(inner) is str:
        subject = inner
    return job_header, subject, event, event.get("data", {})


_TYPES: Final[dict[str, type]] = {name: dict if name == "params" else str for name in MEMBERS}


def _envelope_fault(envelope: dict[str, Any]) -> str | None:
    """Form 1: members we know, of the right types. The idempotency key has a reason of its own."""
    for name, member in envelope.items():
        if type(member) is not _TYPES.get(name) and name != "idempotency_key":
            if name in MEMBERS:
                return f"{name} is of the wrong type"
            return f"{f'member {name}' if _SHOWABLE.fullmatch(name) else 'a member'} is not one of a trigger's"
    digest = envelope.get("params_sha256")
    if digest is not None and _SHA256.fullmatch(digest) is None:
        return "params_sha256 is not 64 lower-case hex digits"
    return None


def _event_fault(headers: dict[str, str], event: dict[str, Any] | None) -> str | None:
    """What is wrong with the attributes of a CloudEvent; in structured mode headers may repeat them, truly."""
    if event is None:
        attributes: dict[str, Any] = {name: headers.get("ce_" + name) for name in _REQUIRED}
        subject: Any = headers.get("ce_subject")
    else:
        content_type = headers.get(CONTENT_TYPE, "").lower()
        if content_type.startswith(_CLOUDEVENTS) and not _STRUCTURED_TYPE.fullmatch(content_type):
            return "only single events in the JSON format are read"
        if "data_base64" in event or not _JSON_TYPE.fullmatch(str(event.get("datacontenttype", "application/json"))):
            return "the data is not JSON"
        for name, member in event.items():
            if name in MEMBERS:
                return f"{name} belongs into the data"
            if name not in _EVENT_DATA and (not _EXTENSION.fullmatch(name) or type(member) not in (str, int, bool)):
                return "an attribute's name or type is not one of CloudEvents"
            given = headers.get("ce_" + name) if name in _REQUIRED else None
            if given is not None and given != member:
                return f"ce_{name} and {name} differ"
        attributes = event
        subject = event.get("subject")
        if subject is not None and type(subject) is not str:
            return "subject is not text"
    for name in _REQUIRED:
        member = attributes.get(name)
        if not member or type(member) is not str:
            return f"{name} is missing"
    if attributes["specversion"] != "1.0":
        return "specversion is not 1.0"
    if not _is_key(attributes["id"]) or _UNPRINTABLE.search(attributes["source"]):
        return f"id is longer than {limits.IDEMPOTENCY_KEY_MAX_BYTES} bytes, or id or source holds a control character"
    return None


def _is_text(text: str, max_bytes: int) -> bool:
    """Not empty, within its limit, and without control or bidirectional-override characters."""
    if text.isascii():
        return 0 < len(text) <= max_bytes and text.isprintable()
    return 0 < len(text.encode()) <= max_bytes and not _UNPRINTABLE.search(text)


def _is_key(key: object) -> bool:
    return type(key) is str and _is_text(key, limits.IDEMPOTENCY_KEY_MAX_BYTES)


def _is_echoable(text: str, max_bytes: int) -> bool:
    """It goes into the receipt as it came, so it must not smuggle a token there."""
    return _is_text(text, max_bytes) and not token_shaped(text)


def _traceparent(headers: dict[str, str], event: dict[str, Any] | None) -> str | None:
    given: Any = headers.get("traceparent") or headers.get("ce_traceparent")
    if given is None and event is not None:
        given = event.get("traceparent")
    if type(given) is str and _TRACEPARENT.fullmatch(given):
        return given
    return None


def holds_token(value: Any) -> bool:
    """Whether a token stands anywhere in a JSON value: in a text, or in the name of a member."""
    kind = type(value)
    if kind is str:
        return token_shaped(value)
    if kind is dict:
        for name, member in value.items():
            if token_shaped(name) or (token_shaped(member) if type(member) is str else holds_token(member)):
                return True
        return False
    return kind is list and any(map(holds_token, value))
