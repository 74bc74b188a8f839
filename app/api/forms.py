"""Forms of OAuth: `application/x-www-form-urlencoded`, each parameter once (RFC 6749 section 3.2), and its errors."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import parse_qsl

import orjson
from litestar import Response
from litestar.types import Receive

from app.api.problems import RETRY_AFTER_S
from app.api.requests import JSON, Headers, body_of

FORM: Final = "application/x-www-form-urlencoded"
FORM_MAX_BYTES: Final = 65_536
PARAMETERS_MAX: Final = 32
BASIC: Final = 'Basic realm="tollgate", charset="UTF-8"'  # RFC 7617
NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 section 5.1

Form = dict[str, str]
# All that an endpoint of OAuth says here, by RFC 6749 section 5.2 and those that add to it: clients know no others.
ErrorCode = Literal[
    "invalid_request", "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
    "invalid_target",  # RFC 8693 section 2.2.2
    "invalid_authorization_details",  # RFC 9396 section 5
]  # fmt: skip


class OAuthError(Exception):
    """A refusal as OAuth says it, with our reason beside its code. What may pass (503) is a Problem, as elsewhere."""

    def __init__(
        self, error: ErrorCode, description: str, reason: str | None = None, status: int = 400,
        retry_after_s: int = RETRY_AFTER_S,
    ) -> None:  # fmt: skip
        super().__init__(error)
        self.retry_after_s = retry_after_s
        self.challenge = BASIC
        self.error, self.description, self.reason, self.status = error, description, reason, status

    def response(self) -> Response[bytes]:
        document = {"error": self.error, "error_description": _ascii(self.description), "reason": self.reason}
        headers = dict(NO_STORE)
        if self.status == 401:
            headers["WWW-Authenticate"] = self.challenge
        if self.status == 429:
            headers["Retry-After"] = str(self.retry_after_s)
        body = orjson.dumps({name: value for name, value in document.items() if value is not None})
        return Response(body, status_code=self.status, headers=headers, media_type=JSON)


async def form_of(headers: Headers, receive: Receive) -> Form:
    """The parameters. One without a value counts as left out (RFC 6749 section 3.2)."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != FORM or "content-encoding" in headers:
        raise OAuthError("invalid_request", f"send {FORM}")
    raw = await body_of(headers, receive, FORM_MAX_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )  # fmt: skip
    except ValueError:
        raise OAuthError("invalid_request", "the body is no form") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise OAuthError("invalid_request", "a parameter is given more than once")
    return {name: value for name, value in form.items() if value}


def required(form: Form, name: str) -> str:
    if name not in form:
        raise OAuthError("invalid_request", f"{name} is missing")
    return form[name]


def _ascii(text: str) -> str:
    """What an error_description may hold (RFC 6749 section 5.2)."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text)
