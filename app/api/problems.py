"""Refusals over HTTP: problem+json (RFC 9457), derived from the gate's table of reasons and the door's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from app.gate.reasons import BY_CODE

MEDIA_TYPE: Final = "application/problem+json"
TYPE: Final = "urn:tollgate:problem:"  # and the code
RETRY_AFTER_S: Final = 1
INVALID_TOKEN: Final = 'Bearer error="invalid_token"'  # noqa: S105 - RFC 6750 section 3


class Fault(NamedTuple):
    """What the door itself refuses or cannot do, before any gate has seen it."""

    code: str
    http_status: int
    meaning: str
    remedy: str
    transient: bool = False


FAULTS: Final = (
    Fault("not_found", 404, "there is nothing at this address", "see /openapi.json"),
    Fault("method_not_allowed", 405, "this address does not take that method", "use one that the header Allow names"),
    Fault("request_malformed", 400, "the request does not fit its description", "see /openapi.json"),
    Fault("media_type_unsupported", 415, "the body is not plain JSON",
          "send Content-Type: application/json, not encoded"),
    Fault("headers_too_large", 431, "the request's headers exceed the limit", "send fewer and shorter headers"),
    Fault("body_too_slow", 408, "the body did not arrive in time", "send the request again", transient=True),
    Fault("receipt_unknown", 404, "no receipt of yours has this trigger id",
          "it may not be decided yet, or be another's, or past retention", transient=True),
    Fault("search_exhausted", 503, "the receipt was not found in the time a request may take",
          "ask the operators, who have `tollgate receipts`"),
    Fault("event_id_malformed", 400, "Last-Event-ID is none that this stream has given", "leave it out to begin now"),
    Fault("platform_unknown", 403, "the host's platform is not the one of its token, or not in the registry",
          "get a token for the platform it is of now"),
    Fault("issue_denied", 403, "the client may not have this token issued", "the member denial names the reason"),
    Fault("revocation_denied", 403, "the token is not the client's, or not out", "ops: `tollgate token revoke`"),
    Fault("client_too_fast", 429, "the client has more issued, taken back or refused than it may in a second",
          "wait as Retry-After says; ops: serve.client_requests_per_s", transient=True),
    Fault("client_has_too_many", 429, "as many tokens of the client are out as it may have",
          "let some expire, ask for shorter lifetimes, or for one token of many uses; ops: serve.client_tokens_max",
          transient=True),
    Fault("keys_unpublished", 404, "no public keys are published here", "ops: `tollgate keys generate`"),
    Fault("keys_unavailable", 503, "the signing keys cannot be used now; nothing was issued",
          "send it again; ops: the door's log says why, and `tollgate keys list`", transient=True),
    Fault("kafka_unavailable", 503, "Kafka did not take it; nothing was written", "send it again",
          transient=True),
    Fault("outcome_unknown", 503, "Kafka did not say in time whether it has what was asked for: it may still count",
          "send it again: a trigger with the same Idempotency-Key, which starts one job only", transient=True),
    Fault("overloaded", 503, "too much is under way here", "send it again", transient=True),
    Fault("not_ready", 503, "the view of keys, registry and revocations is not up to date", "send it again",
          transient=True),
    Fault("stopping", 503, "this instance is being stopped", "send it again", transient=True),
    Fault("internal_error", 500, "the door failed on this request; its log has the error", "tell the operators"),
)  # fmt: skip
OF_CLIENTS: Final = frozenset(("issue_denied", "revocation_denied"))  # told to clients, which show no bearer token
_FAULTS: Final = {fault.code: fault for fault in FAULTS}


class Problem(Exception):  # noqa: N818 - the field's word
    """A refusal on its way out; `code` is one of the reasons or of the faults above."""

    def __init__(
        self, code: str, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(code)
        self.code, self.detail, self.members = code, detail, members
        self.told = _FAULTS.get(code) or BY_CODE[code]
        self.status = self.told.http_status
        self.headers = {**_headers(self.status, code, transient=self.told.transient), **(headers or {})}

    def body(self) -> bytes:
        told = self.told
        document = {
            "type": TYPE + self.code, "title": told.meaning, "status": self.status, "detail": self.detail,
            "reason": self.code, "remedy": told.remedy, "transient": told.transient, **self.members,
        }  # fmt: skip
        return orjson.dumps({name: value for name, value in document.items() if value is not None})


def _headers(status: int, code: str, *, transient: bool) -> dict[str, str]:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if transient or status == 503 else {}
    match status:
        case 401:  # RFC 6750 section 3: no error code where no token was shown
            headers["WWW-Authenticate"] = "Bearer" if code == "token_missing" else INVALID_TOKEN
        case 403 if code not in OF_CLIENTS:
            headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    return headers


SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "reason", "remedy", "transient"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "reason": {"type": "string", "enum": [*BY_CODE, *_FAULTS]},
        "remedy": {"type": "string"},
        "transient": {"type": "boolean", "description": "the same request may be answered otherwise later"},
        "denial": {"type": "string", "description": "why no token is issued"},
        "trigger_id": {"type": "string"},
        "receipt": {"$ref": "#/components/schemas/Receipt"},
    },
}
