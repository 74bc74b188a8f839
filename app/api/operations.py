"""What the routes say of themselves, as OpenAPI has it; `document.py` makes the document of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.api import exchange, problems
from app.api.receipts import EMITTER_STREAMS_MAX
from app.gate import limits

COMPONENTS: Final = "#/components/schemas/"
OPERATION: Final = "operation"
JSON, JWKS, EVENTS, HTML, PROBLEM = (
    "application/json", "application/jwk-set+json", "text/event-stream", "text/html", problems.MEDIA_TYPE,
)  # fmt: skip

Operation = Mapping[str, Any]


def operation(described: Operation) -> dict[str, Any]:
    """A route's `opt`."""
    return {OPERATION: described}


# ── parts ──


def _header(name: str, about: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": about, "schema": {"type": "string"} | schema}


def _content(media: str, schema: Any) -> dict[str, Any]:
    return {"content": {media: {"schema": schema}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": COMPONENTS + name}


def _refusals(*statuses: int) -> dict[str, Any]:
    return {str(status): {"description": _STATUS[status], **_content(PROBLEM, _ref("Problem"))} for status in statuses}


_STATUS: Final = {
    400: "malformed", 401: "no token, or one that is not honoured", 403: "the token does not permit this",
    404: "not there, or not yours", 408: "the body did not arrive in time", 409: "refused as a replay or a conflict",
    413: "too large", 415: "the body is not plain JSON", 422: "the parameters, or the key, do not fit",
    429: "too many failures, or more than one client may have; Retry-After says when",
    431: "headers too large", 500: "the deployment failed on this", 503: "not now; Retry-After says when",
}  # fmt: skip
METHOD_NOT_ALLOWED: Final[Operation] = {
    "description": "the path does not take that method",
    "headers": {"Allow": {"description": "those that it takes", "required": True, "schema": {"type": "string"}}},
    **_content(PROBLEM, _ref("Problem")),
}
# Which class of token is taken where: the names are those of the document's security schemes. Everything else there is
# answered by `wrong_client_class`.
_TOKEN: Final[list[dict[str, list[str]]]] = [{"bearer": []}]
_USER: Final[list[dict[str, list[str]]]] = [{"user": []}]
_HOST: Final[list[dict[str, list[str]]]] = [{"host": []}]
_KEY: Final = _header(
    "Idempotency-Key", "the same key starts one job; the same as `idempotency_key` over Kafka", minLength=1,
    maxLength=limits.IDEMPOTENCY_KEY_MAX_BYTES,
)  # fmt: skip
_TRIGGER_HEADERS: Final = [
    _KEY,
    _header("Prefer", "`wait=N`: answer with the receipt, if it is there within N seconds (RFC 7240)"),
    _header("Tollgate-Correlation-Id", "echoed in the receipt", minLength=1, maxLength=limits.CORRELATION_ID_MAX_BYTES),
    _header("Traceparent", "W3C trace context, carried to the job"),
]
_PARAMS: Final = {
    "required": False, "description": "the parameters, one JSON object; none is no parameters",
    **_content(JSON, {"type": "object"}),
}  # fmt: skip
_TRIGGER: Final = {
    "tags": ["triggers"],
    "security": _TOKEN,
    "requestBody": _PARAMS,
    "responses": {
        "202": {
            "description": "Kafka has it; the gate decides",
            "headers": {"Location": {"description": "of its receipt", "schema": {"type": "string"}}},
            **_content(JSON, _ref("Taken")),
        },
        "200": {"description": "the receipt, with `Prefer: wait`", **_content(JSON, _ref("Receipt"))},
        **_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 431, 500, 503),
    },
}

# ── operations ──

POST_TRIGGER: Final[Operation] = _TRIGGER | {
    "operationId": "trigger",
    "summary": "Trigger the one job that the token grants",
    "description": "The same decision as over Kafka. Without `Prefer: wait` only what needs no decision is refused.",
    "parameters": _TRIGGER_HEADERS,
}
POST_TRIGGER_FOR_JOB: Final[Operation] = _TRIGGER | {
    "operationId": "triggerJob",
    "summary": "Trigger a job",
    "description": "The name of a job may hold slashes, which stand as they are or as %2F.",
    "parameters": [
        {"name": "job", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
        *_TRIGGER_HEADERS,
    ],
}
GET_RECEIPT: Final[Operation] = {
    "operationId": "receipt",
    "tags": ["receipts"],
    "summary": "What became of a trigger of yours",
    "description": "As long as the triggers topic keeps the trigger: a day, unless ops set otherwise.",
    "security": [*_TOKEN, *_USER],
    "parameters": [
        {
            "name": "trigger_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
        }
    ],
    "responses": {
        "200": {"description": "the receipt", **_content(JSON, _ref("Receipt"))},
        **_refusals(400, 401, 403, 404, 431, 500, 503),
    },
}
GET_STREAM: Final[Operation] = {
    "operationId": "receipts",
    "tags": ["receipts"],
    "summary": "Your receipts as they come (server-sent events)",
    "description": "Events `receipt`, whose data is a receipt; `gap` when Last-Event-ID lies too far back. "
    f"It ends when the token is no longer honoured. An emitter may have {EMITTER_STREAMS_MAX} open at one instance.",
    "security": [*_TOKEN, *_USER],
    "parameters": [_header("Last-Event-ID", "the id of the last event that was read: nothing after it is missed")],
    "responses": {
        "200": {"description": "a stream without end", **_content(EVENTS, {"type": "string"})},
        **_refusals(400, 401, 403, 431, 500, 503),
    },
}
POST_EXPLAIN: Final[Operation] = {
    "operationId": "explain",
    "tags": ["triggers"],
    "summary": "What would become of a trigger, check by check; nothing is written",
    "security": _TOKEN,
    "requestBody": {"required": False, **_content(JSON, _ref("TriggerLessToken"))},
    "responses": {
        "200": {"description": "every check in its order", **_content(JSON, _ref("Explanation"))},
        **_refusals(400, 401, 403, 408, 413, 415, 431, 500, 503),
    },
}
GET_JWKS: Final[Operation] = {
    "operationId": "jwks",
    "tags": ["keys"],
    "summary": "The public keys that tokens of this deployment are signed with (RFC 7517)",
    "responses": {"200": {"description": "a JWK Set", **_content(JWKS, _ref("JWKSet"))}, **_refusals(404, 431, 500)},
}


def _said(what: str) -> dict[str, str]:
    return {"type": "string", "description": what}


_CLIENT: Final[list[dict[str, list[str]]]] = [{"client": []}, {"assertion": []}]
_CLIENT_OR_FORM: Final[list[dict[str, list[str]]]] = [{"client": []}, {}]  # or a secret or an assertion in the form
_CLIENT_FORM: Final = {
    "client_id": _said("the identity, if it is not in the header"), "client_secret": _said("with it"),
    "client_assertion": _said("instead: a JWT signed with the client's key (RFC 7523)"),
    "client_assertion_type": {"const": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
}  # fmt: skip


def _form(*required: str, **members: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": list(required), "properties": {**members, **_CLIENT_FORM}}
    return {"required": True, **_content("application/x-www-form-urlencoded", schema)}


def _oauth_errors(*statuses: int) -> dict[str, Any]:
    """Errors as OAuth says them; what is no matter of OAuth, and what may pass, is a problem."""
    errors = {
        str(status): {
            "description": _STATUS[status],
            "content": {JSON: {"schema": _ref("OAuthError")}, PROBLEM: {"schema": _ref("Problem")}},
        }
        for status in statuses
    }
    return errors | _refusals(408, 413, 431, 500, 503)


_TEXT: Final = {"type": "string"}
_TOKEN_TYPE: Final = {"enum": list(exchange.TYPES)}
POST_TOKEN: Final[Operation] = {
    "operationId": "token",
    "tags": ["authority"],
    "summary": "A trigger token for a client (RFC 6749 section 4.4, RFC 9396), or for whom it acts (RFC 8693)",
    "security": _CLIENT_OR_FORM,
    "requestBody": _form(
        "grant_type", grant_type={"enum": ["client_credentials", exchange.GRANT_TYPE]},
        subject_token=_said("of whom it acts for; an exchange needs it and its type"), subject_token_type=_TOKEN_TYPE,
        requested_token_type=_TOKEN_TYPE,
        audience=_said("of this deployment's tokens, if any is named; or resource"),
        scope=_said("job:NAME, several with spaces between; or authorization_details"),
        authorization_details=_said("JSON: one object of type job_trigger"),
        uses={"enum": ["once", "many"], "default": "once"},
        lifetime_s={"type": "string", "pattern": "^[0-9]{1,9}$",
                    "description": "seconds; left out: 300, or what the roles allow below that"},
        idempotency_key=_said("goes into the token"),
        subject=_said("whom it speaks for; left out: the client, or the subject of subject_token"),
    ),
    "responses": {"200": {"description": "the token", **_content(JSON, _ref("IssuedToken"))},
                  **_oauth_errors(400, 401, 429)},
}  # fmt: skip
POST_INTROSPECT: Final[Operation] = {
    "operationId": "introspect",
    "tags": ["authority"],
    "summary": "Whether a token would be honoured now, and what it says (RFC 7662)",
    "description": "A one-shot token that has started its job is not active. Where its lane has decided too much since "
    "it was issued for that to be read within 5 s, the answer is 503.",
    "security": _CLIENT_OR_FORM,
    "requestBody": _form("token", token=_said("or a handle"), token_type_hint=_said("ignored: tokens tell their type")),
    "responses": {"200": {"description": "`active`, and only for one that is, the rest",
                          **_content(JSON, {"type": "object", "required": ["active"],
                                            "properties": {"active": {"type": "boolean"}}})},
                  **_oauth_errors(400, 401, 429)},
}  # fmt: skip
POST_REVOKE: Final[Operation] = {
    "operationId": "revoke",
    "tags": ["authority"],
    "summary": "Take a token of the client's back (RFC 7009)",
    "description": "200 means that its revocation is written, that no gate will ever take it, or that it is of another "
    "organisation; 503, that it may be good and its key is not known here.",
    "security": _CLIENT_OR_FORM,
    "requestBody": _form("token", token=_said("or a handle"), token_type_hint=_said("ignored: tokens tell their type")),
    "responses": {"200": {"description": "it is not honoured any more, or never was"},
                  **_oauth_errors(400, 401, 429)},
}  # fmt: skip
GET_METADATA: Final[Operation] = {
    "operationId": "metadata",
    "tags": ["authority"],
    "summary": "Where the OAuth endpoints are and what they take (RFC 8414)",
    "responses": {"200": {"description": "metadata", **_content(JSON, {"type": "object"})}, **_refusals(404, 431, 500)},
}
POST_TOKENS: Final[Operation] = {
    "operationId": "issueToken",
    "tags": ["authority"],
    "summary": "Issue a token, as far as the client's roles allow",
    "description": "Classes user and host are for a credential of a user or host itself; a user token gets trigger "
    "tokens that end no later than it does.",
    "security": [*_CLIENT, *_USER],
    "parameters": [_header("Idempotency-Key", "goes into the token", minLength=1, maxLength=256)],
    "requestBody": {"required": True, **_content(JSON, _ref("TokenWanted"))},
    "responses": {"201": {"description": "the token, this once", **_content(JSON, {"type": "object"})},
                  **_oauth_errors(400, 401, 429), **_refusals(403, 415)},
}  # fmt: skip
GET_TOKENS: Final[Operation] = {
    "operationId": "tokens",
    "tags": ["authority"],
    "summary": "The client's tokens that may still be out, by fingerprint",
    "description": "Revoked ones are left out, and one-shot tokens that have started their job, unless very much was "
    "decided since they were issued: introspection tells in any case.",
    "security": [*_CLIENT, *_USER],
    "parameters": [
        {"name": name, "in": "query", "schema": _TEXT, "description": f"only of this {name}"}
        for name in ("identity", "subject", "class", "job")
    ]
    + [{"name": "revoked", "in": "query", "schema": {"enum": ["true", "false"]}, "description": "true: also those that "
        "are revoked"}],
    "responses": {"200": {"description": "newest first; `more` when some were left out", **_content(JSON, {
        "type": "object", "required": ["tokens", "more"],
        "properties": {"tokens": {"type": "array", "items": _ref("ListedToken")}, "more": {"type": "boolean"}},
    })}, **_oauth_errors(400, 401, 429), **_refusals(403)},
}  # fmt: skip
POST_REVOCATIONS: Final[Operation] = {
    "operationId": "addRevocation",
    "tags": ["authority"],
    "summary": "Take back one token of the client's, or all that speak for it",
    "security": [*_CLIENT, *_USER],
    "requestBody": {"required": True, **_content(JSON, _ref("RevocationWanted"))},
    "responses": {"201": {"description": "gates honour it within a second", **_content(JSON, {"type": "object"})},
                  **_oauth_errors(400, 401, 429), **_refusals(403, 415)},
}  # fmt: skip
_WHO: Final = {
    "type": "object",
    "required": ["identity", "kind", "issuer", "org_id", "roles", "token_class", "jti", "expires_at_s"],
}
GET_ME: Final[Operation] = {
    "operationId": "me",
    "tags": ["authority"],
    "summary": "Whom a user token speaks for, and until when",
    "security": _USER,
    "responses": {"200": {"description": "the identity as it is now", **_content(JSON, _WHO)},
                  **_refusals(400, 401, 403, 431, 500, 503)},
}  # fmt: skip
GET_HOST: Final[Operation] = {
    "operationId": "host",
    "tags": ["authority"],
    "summary": "Whom a host's token speaks for, its platform and level, and until when",
    "security": _HOST,
    "responses": {"200": {"description": "the identity as it is now", **_content(JSON, _WHO)},
                  **_refusals(400, 401, 403, 431, 500, 503)},
}  # fmt: skip
GET_DOCUMENT: Final[Operation] = {
    "operationId": "document",
    "tags": ["documents"],
    "summary": "This description (OpenAPI 3.1)",
    "responses": {
        "200": {"description": "an OpenAPI document", **_content(JSON, {"type": "object"})},
        **_refusals(431),
    },
}
GET_DOCS: Final[Operation] = {
    "operationId": "docs",
    "tags": ["documents"],
    "summary": "This description as a page",
    "responses": {
        "200": {"description": "a page without scripts", **_content(HTML, {"type": "string"})},
        **_refusals(431),
    },
}
