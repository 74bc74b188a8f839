"""The two applications: the public one for emitters, the internal one for whoever runs this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import orjson
from litestar import HttpMethod, Litestar, Request, Response, get, route
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPResponseBodyEvent, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api import bearers, docs_page, keys, oauth, reading, tokens, triggers
from app.api import operations as described
from app.api.document import document as openapi_document
from app.api.forms import OAuthError
from app.api.problems import Problem
from app.api.requests import answer, problem_answer, problem_response
from app.api.service import Service
from app.gate.decide import internal_deny
from app.logs import Event, log
from app.telemetry import HTTP_SECONDS

# Which problem an exception of the framework is.
_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "record_too_large", 400: "request_malformed"}
_SECURITY: Final = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
TEXT: Final = "text/plain; charset=utf-8"
JOBS: Final = triggers.PATH.encode() + b"/"


def public(service: Service) -> ASGIApp:
    """Everything that is described at /openapi.json."""

    @get("/.well-known/jwks.json", opt=described.operation(described.GET_JWKS))
    async def jwks() -> ASGIResponse:
        return _keys(service)

    @get("/openapi.json", opt=described.operation(described.GET_DOCUMENT))
    async def openapi() -> ASGIResponse:
        return answer(document)

    @get("/docs", opt=described.operation(described.GET_DOCS))
    async def docs() -> ASGIResponse:
        return answer(page, headers={"Content-Security-Policy": docs_page.POLICY}, media="text/html; charset=utf-8")

    app = _application(
        [
            jwks,
            openapi,
            docs,
            *triggers.routes(service),
            *reading.routes(service),
            *bearers.routes(service),
            *_of_authority(service),
        ]
    )
    made = openapi_document(app)
    document, page = orjson.dumps(made), docs_page.page(made)
    return Edge(app, service.settings.serve.headers_max_bytes)


def _of_authority(service: Service) -> list[HTTPRouteHandler]:
    if service.issuing is None:
        return []
    return [*oauth.routes(service, service.issuing), *tokens.routes(service, service.issuing)]


def internal(service: Service) -> ASGIApp:
    """Probes, metrics, and keys that are nobody's business outside."""

    @get("/livez")
    async def livez() -> ASGIResponse:
        return answer(b"ok\n", media=TEXT)

    @get("/readyz")
    async def readyz() -> ASGIResponse:
        good, why = service.ready()
        return answer(f"{why}\n".encode(), 200 if good else 503, media=TEXT)

    @get("/metrics")
    async def metrics() -> ASGIResponse:
        return answer(generate_latest(), media=CONTENT_TYPE_LATEST)

    @get("/internal/jwks/task")
    async def task_jwks() -> ASGIResponse:
        return _keys(service)

    return Edge(_application([livez, readyz, metrics, task_jwks]), service.settings.serve.headers_max_bytes)


def _keys(service: Service) -> ASGIResponse:
    return answer(service.keys.document(), headers={"Cache-Control": keys.CACHE_CONTROL}, media=keys.MEDIA_TYPE)


def _application(handlers: Sequence[HTTPRouteHandler]) -> Litestar:
    return Litestar(
        [*_options(handlers), *handlers], openapi_config=None, logging_config=None, debug=False,
        exception_handlers={
            Problem: _problem, OAuthError: _of_oauth, HTTPException: _of_framework, Exception: _unexpected,
        },
    )  # fmt: skip


def _options(handlers: Sequence[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """What each path takes, of all its routes together: the framework tells of the first one."""
    taken: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            taken.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    return [_options_of(path, methods) for path, methods in taken.items()]


def _options_of(path: str, methods: Iterable[str]) -> HTTPRouteHandler:
    @route(path, http_method=HttpMethod.OPTIONS)
    async def options() -> ASGIResponse:
        return ASGIResponse(status_code=204, headers={"Allow": _allow(methods)})

    return options


def _allow(methods: Iterable[str]) -> str:
    """The header Allow: whatever takes GET takes HEAD."""
    named = set(methods)
    return ", ".join(sorted(named | {"HEAD"} if "GET" in named else named))


def _problem(_request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    return problem_response(problem)


def _of_oauth(_request: Request[Any, Any, Any], error: OAuthError) -> Response[bytes]:
    return error.response()


def _of_framework(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    code = _OF_STATUS.get(error.status_code)
    if code is None:
        return _unexpected(request, error)
    headers = {name.title(): value for name, value in (error.headers or {}).items()}
    if "Allow" in headers:
        headers["Allow"] = _allow(headers["Allow"].split(", "))
    return problem_response(Problem(code, headers=headers))


def _unexpected(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Of the error only its type and place: its text may hold a stranger's words, or a token."""
    log.error(Event.SERVE_ERROR, what=internal_deny(error).detail)
    return problem_response(Problem("internal_error"))


class Edge:
    """What every request passes: a limit on its headers, and what is measured and said of each answer."""

    def __init__(self, app: ASGIApp, headers_max_bytes: int) -> None:
        self._app, self._max = app, headers_max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:  # the server speaks nothing else
            return
        began = time.perf_counter()
        status = 0
        method = _method(scope)

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY]
            await send(message)

        app: Any = self._app
        if _size_of(scope) > self._max:
            app = problem_answer(Problem("headers_too_large", headers={"Connection": "close"}))
        elif not _is_plain(scope["raw_path"]):
            app = problem_answer(Problem("not_found"))
        if method == "HEAD":
            # A copy: the server, which has the original, sends no body of its own accord.
            scope = cast("HTTPScope", {**scope, "method": "GET"})
            receive, send = _headers_alone(send)
        try:
            await app(scope, receive, told)
        finally:
            if status:
                path = str(scope.get("path_template", "-"))
                HTTP_SECONDS.labels(method, path, status).observe(time.perf_counter() - began)


def _headers_alone(send: Send) -> tuple[Receive, Send]:
    """To answer HEAD as GET without its body (RFC 9110 section 9.3.2): a stream without end ends with its headers."""
    answered = asyncio.Event()

    async def gone() -> HTTPReceiveMessage:
        await answered.wait()
        return {"type": "http.disconnect"}

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)
            await send(end)
            answered.set()

    return gone, told


def _is_plain(path: bytes) -> bool:
    """Whether it is spelled as /openapi.json spells it, but for a job's name, which its handler reads.

    Routing would take other spellings for the same; a proxy that lets some paths through and not others would not.
    """
    if path.startswith(JOBS) and len(path) > len(JOBS):
        return True
    return b"%" not in path and b"//" not in path and (path == b"/" or not path.endswith(b"/"))


def _size_of(scope: HTTPScope) -> int:
    size = len(scope["raw_path"]) + len(scope["query_string"])
    for name, value in scope["headers"]:
        size += len(name) + len(value) + 4
    return size


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _method(scope: HTTPScope) -> str:
    """A label: a stranger's word is none."""
    return scope["method"] if scope["method"] in _METHODS else "-"
