"""Bearers of the tokens of users and hosts: who they are, as the registry has it now, and what it tells them.

Which class of token is taken where, the routes say in their descriptions; each is verified as of that class and of no
other, so one in another's place is `wrong_client_class` whatever else is wrong with it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from app.api import operations as described
from app.api.caller import Caller, identify
from app.api.clients import ASSERTION_TYPE, Client
from app.api.forms import NO_STORE, OAuthError
from app.api.problems import INVALID_TOKEN, Problem
from app.api.requests import Headers, answer, bearer_token, headers_of
from app.api.service import Service
from app.authority.assertion import is_assertion
from app.authority.identities import Identity
from app.gate.claims import HostClaims
from app.gate.token import HOST_CLASSES, USER_CLASSES, Classes

ME: Final = "/v1/me"
HOST: Final = "/v1/host"


def routes(service: Service) -> list[HTTPRouteHandler]:
    """What a user and a host are told of themselves."""

    @get(ME, opt=described.operation(described.GET_ME))
    async def me(request: Request[Any, Any, Any]) -> ASGIResponse:
        caller, identity = await _identified(service, headers_of(request.scope), USER_CLASSES)
        return answer(orjson.dumps(_told(caller, identity)), headers=NO_STORE)

    @get(HOST, opt=described.operation(described.GET_HOST))
    async def host(request: Request[Any, Any, Any]) -> ASGIResponse:
        caller, identity = await _identified(service, headers_of(request.scope), HOST_CLASSES)
        claims = caller.claims
        platform = service.rights.platforms.get(identity.platform or "")
        if not isinstance(claims, HostClaims) or platform is None or platform.name != claims.platform:
            raise Problem("platform_unknown")
        # A platform that is trusted less now makes tokens that are out worth less; one trusted more, no more.
        told = {"platform": platform.name, "level": min(claims.level, platform.level)}
        return answer(orjson.dumps(_told(caller, identity) | told), headers=NO_STORE)

    return [me, host]


async def client_of(service: Service, request: Request[Any, Any, Any], headers: Headers) -> Client:
    """Who asks for tokens: a client by its secret or its key, or a user by the token of its login.

    A request without a form has no parameter for an assertion (RFC 7523), so it comes as a bearer token does.
    """
    if headers.get("authorization", "").partition(" ")[0].lower() != "bearer":
        return await service.clients.authenticate(request, headers, {})
    shown = bearer_token(headers)
    if is_assertion(shown):
        form = {"client_assertion": shown, "client_assertion_type": ASSERTION_TYPE}
        try:
            return await service.clients.authenticate(request, {}, form)
        except OAuthError as error:
            error.challenge = INVALID_TOKEN  # of the scheme it came by
            raise
    caller, identity = await _identified(service, headers, USER_CLASSES)
    ours = service.settings.issuer.issuer
    if caller.claims.iss != ours:  # what is issued here is in our name, and taken back as ours
        raise Problem("issuer_untrusted", f"who asks for tokens here, has logged in at {ours}")
    return Client(identity, caller.claims.jti, caller.claims)


async def _identified(service: Service, headers: Headers, classes: Classes) -> tuple[Caller, Identity]:
    caller = await identify(service.tables, bearer_token(headers), classes)
    identity = service.rights.known(caller.claims.sub, caller.claims.iss)
    if identity is None:
        raise Problem("identity_disabled", "there is no identity of that name")
    if identity.kind != caller.claims.token_class:
        raise Problem("wrong_client_class", f"{identity.name} is a {identity.kind}")
    return caller, identity


def _told(caller: Caller, identity: Identity) -> dict[str, Any]:
    claims = caller.claims
    return {
        "identity": identity.name, "kind": identity.kind, "issuer": identity.issuer, "org_id": identity.org_id,
        "roles": msgspec.to_builtins(identity.roles), "token_class": claims.token_class, "jti": claims.jti,
        "expires_at_s": claims.exp,
    }  # fmt: skip
