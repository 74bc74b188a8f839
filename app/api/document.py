"""The OpenAPI 3.1 document, made of what the routes say of themselves: one that says nothing is not served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from app import __version__
from app.api import problems
from app.api.bodies import ListedToken, RevocationWanted, TokenWanted
from app.api.forms import ErrorCode
from app.api.operations import COMPONENTS, METHOD_NOT_ALLOWED, OPERATION
from app.gate.explain import Explanation
from app.gate.records import Receipt

_PATH_TYPE: Final = re.compile(r":[a-z]+}")


def document(app: Litestar) -> dict[str, Any]:
    """Of all routes. Raises KeyError for one that is not described."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, handler in described_routes(app):
        paths.setdefault(path, {})[method] = dict(handler.opt[OPERATION])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollgate",
            "version": __version__,
            "summary": "Token-gated job triggers: one trigger, one job, exactly once.",
            "description": "A path answers HEAD wherever it answers GET, and OPTIONS; a method that it does not take "
            "is 405, as the response MethodNotAllowed has it. The header Allow says which it takes.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": _schemas(),
            "responses": {"MethodNotAllowed": METHOD_NOT_ALLOWED},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "a trigger token"},
                "user": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "a user token"},
                "host": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "a host's token"},
                "client": {"type": "http", "scheme": "basic", "description": "an identity and its secret"},
                "assertion": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "a JWT signed with an identity's own key (RFC 7523 section 3), good for one "
                    "request: `iss` and `sub` its name, `aud` our issuer, `jti`, `exp` within five minutes",
                },
            },
        },
    }


def described_routes(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    """Path as OpenAPI writes it, method and handler; what Litestar adds of its own (OPTIONS) is left out."""
    for route in app.routes:
        handlers: Iterable[Any] = getattr(route, "route_handlers", ())
        for handler in handlers:
            for method in sorted(handler.http_methods):
                if method != "OPTIONS":
                    yield _PATH_TYPE.sub("}", route.path_format), method.lower(), handler


def _schemas() -> dict[str, Any]:
    kinds = [Receipt, Explanation, TokenWanted, RevocationWanted, ListedToken]
    _, made = msgspec.json.schema_components(kinds, ref_template=COMPONENTS + "{name}")
    text = {"type": "string"}
    return {
        **made,
        "OAuthError": {
            "type": "object", "required": ["error", "error_description"],
            "properties": {
                "error": {"enum": list(get_args(ErrorCode))}, "error_description": text,
                "reason": text | {"description": "our own code, where there is one"},
            },
        },
        "IssuedToken": {
            "type": "object", "required": ["access_token", "token_type", "expires_in", "authorization_details"],
            "properties": {"access_token": text, "token_type": {"const": "Bearer"}, "expires_in": {"type": "integer"},
                           "scope": text, "authorization_details": {"type": "array"}},
        },
        "Problem": problems.SCHEMA,
        "Taken": {
            "type": "object",
            "required": ["trigger_id", "appended_at_ms", "correlation_id"],
            "properties": {
                "trigger_id": {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
                "appended_at_ms": {"type": "integer", "description": "by the broker's clock"},
                "correlation_id": {"type": ["string", "null"]},
            },
        },
        "TriggerLessToken": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "job": text, "params": {"type": "object"}, "idempotency_key": text, "correlation_id": text,
                "params_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            },
        },
        "JWKSet": {
            "type": "object",
            "required": ["keys"],
            "properties": {"keys": {"type": "array", "items": {"type": "object", "required": ["kty", "kid"]}}},
        },
    }  # fmt: skip
