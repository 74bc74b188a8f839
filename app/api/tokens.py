"""Tokens and revocations for those who may have them: issue, list what is still out, take back.

A client is authenticated by HTTP Basic, or by an assertion as bearer token; a person shows the user token of a login.
Either sees and takes back its own tokens alone: those it asked for and those that speak for it.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
import orjson
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from app.api import operations as described
from app.api.bearers import client_of
from app.api.bodies import ListedToken, RevocationWanted, TokensAsked, TokenWanted
from app.api.clients import Client
from app.api.forms import NO_STORE
from app.api.issuing import Issuing, Wanted
from app.api.problems import Problem
from app.api.requests import answer, headers_of, object_of
from app.api.service import Service
from app.authority.decide import Denied
from app.authority.records import Issued
from app.authority.revoking import reason_fault
from app.gate.claims import Claims, Delegation, Grant, Uses

TOKENS, REVOCATIONS = "/v1/tokens", "/v1/revocations"
LISTED_MAX: Final = 1_000
T = TypeVar("T")


def routes(service: Service, issuing: Issuing) -> list[HTTPRouteHandler]:
    """Issue, list, revoke."""

    @post(TOKENS, status_code=201, opt=described.operation(described.POST_TOKENS))
    async def issue(request: Request[Any, Any, Any]) -> ASGIResponse:
        client, body = await _asked(service, request, TokenWanted)
        header_key = headers_of(request.scope).get("idempotency-key")
        if header_key is not None and body.idempotency_key not in (None, header_key):
            raise Problem("idempotency_key_conflict")
        made = await issuing.issue(
            client,
            Wanted(
                tuple(body.jobs), body.uses, body.lifetime_s, body.subject, body.params, body.params_sha256,
                body.idempotency_key if header_key is None else header_key, reference=body.reference,
                bind_to=body.bound_to, token_class=body.token_class,
            ),
        )  # fmt: skip
        if isinstance(made, Denied):
            raise Problem("issue_denied", made.words, denial=made.code)
        claims = made.claims
        told = {
            "token": made.token, "token_fingerprint": made.fingerprint, "jti": claims.jti, "subject": claims.sub,
            "token_class": claims.token_class, "jobs": list(claims.grant.jobs),
            "uses": claims.uses if claims.grant.jobs else None, "expires_at_s": claims.exp,
        }  # fmt: skip
        return answer(orjson.dumps(told), 201, NO_STORE)

    @get(TOKENS, opt=described.operation(described.GET_TOKENS))
    async def live(request: Request[Any, Any, Any]) -> ASGIResponse:
        client = await client_of(service, request, headers_of(request.scope))
        asked = _queried(request)
        objects = service.tables.world.objects
        found = [
            each for each in issuing.live(client.identity.name)
            if asked.fits(each) and (each.bound_to is None or not each.bound_to.is_gone(objects))
        ]  # fmt: skip
        found.sort(key=lambda each: each.issued_at_ms, reverse=True)
        listed = ((each, _listed(service, each)) for each in found)
        shown = list(
            islice((pair for pair in listed if asked.revoked == "true" or not pair[1].revoked), LISTED_MAX + 1)
        )
        used = await service.used.among((each for each, _ in shown[:LISTED_MAX]), client.identity.name)
        rows = [row for each, row in shown[:LISTED_MAX] if each.jti not in used]
        return answer(msgspec.json.encode({"tokens": rows, "more": len(shown) > LISTED_MAX}), headers=NO_STORE)

    @post(REVOCATIONS, status_code=201, opt=described.operation(described.POST_REVOCATIONS))
    async def revoke(request: Request[Any, Any, Any]) -> ASGIResponse:
        client, body = await _asked(service, request, RevocationWanted)
        name = client.identity.name
        record = issuing.of(body.value) if body.selector == "jti" else None
        if record is not None and record.issuer != service.settings.issuer.issuer:
            record = None  # another issuer's of this deployment: in our name nothing of it can be revoked
        own = body.value == name if record is None else name in (record.identity, record.subject)
        if client.until_s is not None and body.selector == "jti" and body.value == client.credential_id:
            own = True  # the very token it is asked with: a login ends itself, wherever its record has got to
        elif body.selector == "jti" and record is None:
            own = False
        if not own:
            problem = Problem("revocation_denied")
            await issuing.refused(client, problem.code, problem.told.meaning)
            raise problem
        fault = reason_fault(body.reason)
        if fault is not None:
            raise Problem("request_malformed", fault)
        told = await issuing.revoke(body.selector, body.value, name, body.reason)
        return answer(orjson.dumps(told), 201)

    return [issue, live, revoke]


async def _asked(service: Service, request: Request[Any, Any, Any], kind: type[T]) -> tuple[Client, T]:
    """The client, and the body as one of our types; a member that is unknown or of another type is refused."""
    headers = headers_of(request.scope)
    # The body first, which may take its time: who has proved to be somebody is judged as it is at the end of it.
    with service.bodies.counted(request.receive) as receive:
        members = await object_of(headers, receive, service.settings.serve.body_max_bytes)
    client = await client_of(service, request, headers)
    return client, _of_type(members, kind)


def _queried(request: Request[Any, Any, Any]) -> TokensAsked:
    """A parameter that is unknown or given twice is refused, as a member of a body is: it might have narrowed it."""
    given = list(request.query_params.multi_items())
    if len({name for name, _ in given}) != len(given):
        raise Problem("request_malformed", "a parameter is given more than once")
    return _of_type(dict(given), TokensAsked)


def _of_type(members: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        raise Problem("request_malformed", _printable(str(error))) from None


def _listed(service: Service, each: Issued) -> ListedToken:
    uses: Uses = each.uses or "once"
    revoked = service.tables.world.revocations.covers(
        Claims(
            each.issuer, each.kid, each.subject, each.org_id, each.jti, each.issued_at_ms // 1000, 0, each.expires_at_s,
            uses, each.token_class, Grant((), each.jobs, {}), None, Delegation(each.actors, each.parents),
        )
    )  # fmt: skip
    return ListedToken(
        each.token_fingerprint, each.jti, each.identity, each.subject, each.org_id, each.token_class, each.uses,
        each.jobs, each.issued_at_ms, each.expires_at_s, revoked,
    )  # fmt: skip


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])
