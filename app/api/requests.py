"""What the door reads of a request: the headers that decide something, once each, and a body within its limits."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import HTTPScope, Receive

from app.api.problems import MEDIA_TYPE, Problem
from app.gate.strict_json import JSONRefused, loads_object

BODY_TIMEOUT_S: Final = 20.0
SMALL_BYTES: Final = 16_384  # of a body that every request may have: what a connection takes for headers, too
JSON: Final = "application/json"
TOKEN: Final = "/oauth/token"  # noqa: S105 - a path
_READ: Final = frozenset({
    b"authorization", b"idempotency-key", b"tollgate-correlation-id", b"traceparent", b"content-type",
    b"content-encoding", b"content-length", b"last-event-id",
})  # fmt: skip
_PLAIN_JSON: Final = re.compile(r"application/json[ \t]*(;.*)?", re.IGNORECASE)
_WAIT: Final = re.compile(r'(?:^|[,;])[ \t]*wait[ \t]*=[ \t]*"?([0-9]{1,9})"?[ \t]*(?=$|[,;])', re.IGNORECASE)

Headers = dict[str, str]


def headers_of(scope: HTTPScope) -> Headers:
    """The headers that decide something, by lower-case name. One given twice is refused, never chosen from."""
    found: Headers = {}
    for name, raw in scope["headers"]:
        if name in _READ:
            text = name.decode()
            if text in found:
                raise Problem("header_repeated", f"{text} is given more than once")
            try:
                found[text] = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise Problem("headers_malformed", f"{text} is not UTF-8 text") from None
    return found


def own_address(scope: HTTPScope) -> str | None:
    """Where a client on this machine has reached us, as the socket says; None: it came from elsewhere."""
    host, port = scope["server"] or ("", None)
    try:
        if not ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:
        return None
    return f"{scope['scheme']}://[{host}]:{port}" if ":" in host else f"{scope['scheme']}://{host}:{port}"


def bearer_token(headers: Headers) -> str:
    """The token of `Authorization: Bearer …` (RFC 6750 section 2.1), unverified."""
    if "authorization" not in headers:
        raise Problem("token_missing")
    scheme, _, rest = headers["authorization"].partition(" ")
    token = rest.strip(" ")
    if not token or " " in token or scheme.lower() != "bearer":
        raise Problem("authorization_malformed")
    return token


def wait_of(scope: HTTPScope) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240 section 4.3). A preference that cannot be read is none."""
    for name, raw in scope["headers"]:
        if name == b"prefer":
            found = _WAIT.search(raw.decode("latin-1"))
            if found is not None:
                return int(found[1])
    return None


def tail_of_path(scope: HTTPScope, prefix: str) -> str | None:
    """What stands behind `prefix` in the path as it was sent: routing would take `a//b` for `a/b`."""
    raw = scope["raw_path"].removeprefix(prefix.encode())
    try:
        return unquote_to_bytes(raw).decode("utf-8") or None
    except UnicodeDecodeError:
        raise Problem("request_malformed", "the path is not UTF-8") from None


class Bodies:
    """A limit on the bytes of all bodies that are under way at once, but for the first SMALL_BYTES of each.

    So whoever sends much, a token nobody has looked at in hand, delays no one who sends little.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    @contextmanager
    def counted(self, receive: Receive) -> Iterator[Receive]:
        """`receive` of one request. It raises Problem `overloaded` beyond the limit; at the end none is under way."""
        came = counted = 0

        async def told() -> Any:
            nonlocal came, counted
            message: Any = await receive()
            came += len(message.get("body", b""))
            more = max(came - SMALL_BYTES, 0) - counted
            if more > self._left:
                raise Problem("overloaded", "too many large bodies are under way")
            self._left -= more
            counted += more
            return message

        try:
            yield told
        finally:
            self._left += counted


async def object_of(headers: Headers, receive: Receive, max_bytes: int) -> dict[str, Any]:
    """The body as one strict JSON object, read by the gate's own parser; no body is an object without members."""
    if "content-encoding" in headers or not _PLAIN_JSON.fullmatch(headers.get("content-type", JSON)):
        raise Problem("media_type_unsupported")
    raw = await body_of(headers, receive, max_bytes)
    if not raw:
        return {}
    try:
        return loads_object(raw)
    except JSONRefused as refused:
        raise Problem(refused.record_code, refused.detail) from None


async def body_of(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    """The body, whole, in time and within its limit."""
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise Problem("record_too_large", f"a body may have {max_bytes} bytes")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise Problem("body_too_slow") from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    message: Any = await receive()
    raw: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(raw) > max_bytes:
            raise Problem("record_too_large", f"a body may have {max_bytes} bytes")
        return raw
    parts, size = [raw], len(raw)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem("request_malformed", "the body ends early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise Problem("record_too_large", f"a body may have {max_bytes} bytes")
    return b"".join(parts)


def answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None, media: str = JSON) -> ASGIResponse:
    """A response whose body is written already."""
    return ASGIResponse(body=body, status_code=status, headers={"content-type": media, **(headers or {})})


def problem_answer(problem: Problem) -> ASGIResponse:
    return answer(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


def problem_response(problem: Problem) -> Response[bytes]:
    """The same, as the framework wants it of an exception's handler."""
    return Response(problem.body(), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE)
