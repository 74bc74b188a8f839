"""The OAuth endpoints: a token for a client (RFC 6749 section 4.4) or for whom it acts (RFC 8693), introspection (RFC
7662), revocation (RFC 7009) and what says where they are (RFC 8414). What may be issued is decided by `app/authority/`,
and by nothing here.
"""

from __future__ import annotations

import time
from typing import Any, Final, get_args

import msgspec
import orjson
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from app.api import exchange
from app.api import operations as described
from app.api.caller import Caller, verified_as
from app.api.clients import Client
from app.api.forms import NO_STORE, ErrorCode, Form, OAuthError, form_of, required
from app.api.issuing import Issuing, Wanted
from app.api.problems import Problem
from app.api.requests import TOKEN, answer, headers_of, own_address
from app.api.revocable import revocable
from app.api.service import Service
from app.authority.decide import DENIALS, Denied
from app.authority.identities import CLIENT_ALGORITHMS
from app.authority.records import Issued
from app.gate.claims import GRANT_TYPE, Claims, HostClaims, Uses, nested
from app.gate.quick import TRIGGER_ACTION
from app.gate.strict_json import JSONRefused, loads_object
from app.gate.token import CLASSES, EVERY_CLASS, USER_CLASSES, Classes
from app.issuer.mint import Minted

INTROSPECT, REVOKE = "/oauth/introspect", "/oauth/revoke"
METADATA: Final = "/.well-known/oauth-authorization-server"
GRANT_TYPES: Final = ("client_credentials", exchange.GRANT_TYPE)
LIFETIME_DEFAULT_S: Final = 300  # the field's clients do not say; `lifetime_s` does
JOB_SCOPE: Final = "job:"  # and the job's name: for clients that know scopes and no authorization_details
AUTH_METHODS: Final = ("client_secret_basic", "client_secret_post", "private_key_jwt")
_GRANT: Final = frozenset(("type", "actions", "jobs", "params", "params_sha256"))
# What /v1/tokens takes, or a grant: whoever says it here would get a token that does more.
_ELSEWHERE: Final = frozenset(("bound_to", "class", "jobs", "params", "params_sha256", "reference", "token_class"))
# Why a well-formed request is for more than the client may have; by any other code, nobody could have it.
_TOO_MUCH: Final = frozenset((*(each.code for each in DENIALS), "scope_too_broad", "ttl_too_long", "identity_disabled"))


def routes(service: Service, issuing: Issuing) -> list[HTTPRouteHandler]:
    """Token, introspection, revocation, metadata."""

    @post(TOKEN, status_code=200, opt=described.operation(described.POST_TOKEN))
    async def token(request: Request[Any, Any, Any]) -> ASGIResponse:
        client, form = await _client(service, request)
        told: dict[str, Any] = {}
        wanted: Wanted | None = None  # as far as it could be read
        try:
            match required(form, "grant_type"):
                case "client_credentials":
                    wanted = _wanted(service, form)
                case exchange.GRANT_TYPE:
                    wanted = _wanted(service, form)
                    given = await _handed_over(service, client, form)
                    wanted = wanted._replace(jobs=wanted.jobs or given.grant.jobs, subject=wanted.subject or given.sub)
                    wanted = exchange.narrowed(given, wanted, int(time.time()), client.identity.name)
                    told = {"issued_token_type": exchange.issued_type(form)}
                case _:
                    raise OAuthError("unsupported_grant_type", f"grant_type is one of {', '.join(GRANT_TYPES)}")
        except OAuthError as error:
            await issuing.refused(client, error.reason or error.error, error.description, wanted)
            raise
        made = await issuing.issue(client, wanted)
        if isinstance(made, Denied):
            code = _error_of(made.code, form["grant_type"])
            raise OAuthError(code, made.words, made.code, 401 if code == "invalid_client" else 400)
        return answer(orjson.dumps(_issued(made) | told), headers=NO_STORE)

    @post(INTROSPECT, status_code=200, opt=described.operation(described.POST_INTROSPECT))
    async def introspect(request: Request[Any, Any, Any]) -> ASGIResponse:
        client, form = await _client(service, request)
        caller = await _verified(service, required(form, "token"), EVERY_CLASS)
        body: dict[str, Any] = {"active": False}
        # Of tokens of another organisation a client learns nothing (RFC 7662 section 4); a used one-shot one is gone.
        if (
            isinstance(caller, Caller)
            and caller.claims.org_id == client.identity.org_id
            and caller.fault(service.tables.world, grace=False) is None
            and not await service.used.was(caller.claims, client.identity.name)
        ):
            body = _told(caller.claims, service.tables.world.audience, issuing.of(caller.claims.jti))
        return answer(orjson.dumps(body), headers=NO_STORE)

    @post(REVOKE, status_code=200, opt=described.operation(described.POST_REVOKE))
    async def revoke(request: Request[Any, Any, Any]) -> ASGIResponse:
        client, form = await _client(service, request)
        found = await revocable(service, issuing, required(form, "token"))
        # Whether another organisation's is live is not the client's to know: it is told as of one that is not.
        if found is not None and found.org_id == client.identity.org_id:
            name = client.identity.name
            if found.iss != service.settings.issuer.issuer or name not in found.owners:
                words = "the token was not issued to this client"
                await issuing.refused(client, "revocation_denied", words)
                raise OAuthError("unauthorized_client", words)
            await issuing.revoke("jti", found.jti, name, "revoked by its client")
        return answer(b"", headers=NO_STORE)

    @get(METADATA, opt=described.operation(described.GET_METADATA))
    async def metadata(request: Request[Any, Any, Any]) -> ASGIResponse:
        return answer(orjson.dumps(_metadata(service, request)), headers=NO_STORE)

    return [token, introspect, revoke, metadata]


async def _client(service: Service, request: Request[Any, Any, Any]) -> tuple[Client, Form]:
    headers = headers_of(request.scope)
    form = await form_of(headers, request.receive)
    return await service.clients.authenticate(request, headers, form), form


async def _verified(service: Service, unverified_token: str, classes: Classes) -> Caller | str:
    """Whose token it is, honoured or not, or by which code it is nobody's. Raises Problem when that cannot be told."""
    try:
        return Caller((await verified_as(service.tables, unverified_token, classes)).claims, "")
    except Problem as problem:
        if problem.status == 503:
            raise
        return problem.code


# ── what is asked for ──


async def _handed_over(service: Service, client: Client, form: Form) -> Claims:
    """What the token that is to be exchanged says. Raises OAuthError."""
    caller = await _verified(service, exchange.subject_token_of(form), CLASSES)
    if isinstance(caller, str):
        raise _not_honoured(caller)
    # First whose it is: of another organisation's token a client learns nothing, not even whether it is honoured.
    if caller.claims.iss != service.settings.issuer.issuer or caller.claims.org_id != client.identity.org_id:
        raise OAuthError("invalid_request", "the token handed over is not of this issuer and organisation")
    refused = caller.fault(service.tables.world, grace=False)
    if refused is not None:
        raise _not_honoured(refused.code)
    return caller.claims


def _not_honoured(code: str) -> OAuthError:
    return OAuthError("invalid_request", "the token handed over is not honoured here", code)


def _error_of(denial: str, grant_type: str) -> ErrorCode:
    """How OAuth says why no token is issued."""
    if denial == "client_unauthenticated":  # no more: who it was when it asked is gone
        return "invalid_client"
    if denial == "subject_not_granted" and grant_type == exchange.GRANT_TYPE:
        return "invalid_request"  # of the token handed over (RFC 8693 section 2.2.2)
    return "invalid_scope" if denial in _TOO_MUCH else "invalid_request"


def _wanted(service: Service, form: Form) -> Wanted:
    """Parameters that are not known are ignored (RFC 6749 section 3.2), but not what would have narrowed the token."""
    elsewhere = _ELSEWHERE & form.keys()
    if elsewhere:
        raise OAuthError(
            "invalid_request", f"{min(elsewhere)} is not taken here: see authorization_details, /v1/tokens"
        )
    audience = service.settings.audience
    if not {form.get("audience", audience), form.get("resource", audience)} <= {audience}:
        raise OAuthError("invalid_target", f"tokens of this deployment are for {audience}")
    uses = form.get("uses", "once")
    if uses not in get_args(Uses):
        raise OAuthError("invalid_request", "uses is once or many")
    lifetime = form.get("lifetime_s", str(LIFETIME_DEFAULT_S))
    if not (lifetime.isascii() and lifetime.isdigit() and len(lifetime) < 10):
        raise OAuthError("invalid_request", "lifetime_s is a number of seconds")
    grant = _grant(form["authorization_details"]) if "authorization_details" in form else {}
    jobs = grant.get("jobs", _jobs_of(form.get("scope", "")))
    return Wanted(
        tuple(jobs), "many" if uses == "many" else "once", int(lifetime), form.get("subject"), grant.get("params", {}),
        grant.get("params_sha256"), form.get("idempotency_key"), shorter_will_do="lifetime_s" not in form,
    )  # fmt: skip


def _jobs_of(scope: str) -> list[str]:
    jobs = scope.split()
    if not all(job.startswith(JOB_SCOPE) for job in jobs):
        raise OAuthError("invalid_scope", f"a scope is {JOB_SCOPE} and the name of a job")
    return [job.removeprefix(JOB_SCOPE) for job in jobs]


def _grant(text: str) -> dict[str, Any]:
    """The one grant of authorization_details (RFC 9396), as the token will hold it."""
    try:
        # The strict parser reads objects: a list is read as the one member of one.
        read = loads_object(b'{"details":' + text.encode() + b"}")
    except (JSONRefused, UnicodeEncodeError):
        raise OAuthError("invalid_authorization_details", "not strict JSON") from None
    if len(read) != 1:  # the text has closed the list and gone on
        raise OAuthError("invalid_authorization_details", "not strict JSON")
    details = read["details"]
    if not (isinstance(details, list) and len(details) == 1 and isinstance(details[0], dict)):
        raise OAuthError("invalid_authorization_details", "not a list of exactly one object")
    grant: dict[str, Any] = details[0]
    jobs, params = grant.get("jobs"), grant.get("params", {})
    if grant.get("type") != GRANT_TYPE or not grant.keys() <= _GRANT:
        raise OAuthError("invalid_authorization_details", f"not of type {GRANT_TYPE}, or with an unknown member")
    if grant.get("actions", [TRIGGER_ACTION]) != [TRIGGER_ACTION]:
        raise OAuthError("invalid_authorization_details", f"actions is [{TRIGGER_ACTION}]")
    if not (isinstance(jobs, list) and all(isinstance(job, str) for job in jobs) and isinstance(params, dict)):
        raise OAuthError("invalid_authorization_details", "jobs is a list of names, params an object")
    if not isinstance(grant.get("params_sha256", ""), str):
        raise OAuthError("invalid_authorization_details", "params_sha256 is a text")
    return grant


# ── what is told ──


def details_of(claims: Claims) -> list[dict[str, Any]]:
    """A token's grant as authorization_details."""
    grant: dict[str, Any] = {"type": GRANT_TYPE, "actions": list(claims.grant.actions), "jobs": list(claims.grant.jobs)}
    if claims.grant.params:
        grant["params"] = claims.grant.params
    if claims.grant.params_sha256 is not None:
        grant["params_sha256"] = claims.grant.params_sha256
    bound_to = claims.grant.bound_to
    if bound_to is not None:
        grant["bound_to"] = {name: of for name, of in msgspec.structs.asdict(bound_to).items() if of is not None}
    return [grant]


def _issued(made: Minted) -> dict[str, Any]:
    claims = made.claims
    return {
        "access_token": made.token, "token_type": "Bearer", "expires_in": claims.exp - claims.iat,
        "scope": " ".join(JOB_SCOPE + job for job in claims.grant.jobs), "authorization_details": details_of(claims),
    }  # fmt: skip


def _told(claims: Claims, audience: str, record: Issued | None) -> dict[str, Any]:
    """What introspection says of a live token; the client that asked for it, where that is on record."""
    told = {
        "active": True, "iss": claims.iss, "sub": claims.sub, "aud": audience, "token_type": "Bearer",
        "jti": claims.jti, "iat": claims.iat, "nbf": claims.nbf, "exp": claims.exp, "org_id": claims.org_id,
        "class": claims.token_class,
    }  # fmt: skip
    if record is not None:
        told["client_id"] = record.identity
    if isinstance(claims, HostClaims):
        return told | {"platform": claims.platform, "level": claims.level}
    if claims.token_class in USER_CLASSES.values():
        return told
    act = nested(claims.actors)
    scope = " ".join(JOB_SCOPE + job for job in claims.grant.jobs)
    told |= {"scope": scope, "uses": claims.uses, "authorization_details": details_of(claims)}
    return told if act is None else told | {"act": act}


def _metadata(service: Service, request: Request[Any, Any, Any]) -> dict[str, Any]:
    base = service.settings.serve.public_url or _base_of(request)
    return {
        "issuer": service.settings.issuer.issuer,
        "token_endpoint": base + TOKEN,
        "introspection_endpoint": base + INTROSPECT,
        "revocation_endpoint": base + REVOKE,
        "jwks_uri": base + "/.well-known/jwks.json",
        "response_types_supported": [],
        "grant_types_supported": list(GRANT_TYPES),
        **{
            f"{endpoint}_endpoint_auth_methods_supported": list(AUTH_METHODS)
            for endpoint in ("token", "introspection", "revocation")
        },
        **{
            f"{endpoint}_endpoint_auth_signing_alg_values_supported": list(CLIENT_ALGORITHMS)
            for endpoint in ("token", "introspection", "revocation")
        },
        "authorization_details_types_supported": [GRANT_TYPE],
        "service_documentation": base + "/docs",
    }


def _base_of(request: Request[Any, Any, Any]) -> str:
    """Without a public_url, who asks on this machine is told its own address, and nobody anything else.

    Which name and scheme others reach us by, a Host header does not prove: secrets would be sent to wherever it says,
    and in clear behind a proxy that ends TLS.
    """
    own = own_address(request.scope)
    named = request.headers.get("host", "").replace("localhost:", "127.0.0.1:")
    if own is None or named != own.partition("://")[2]:
        raise Problem("not_found", "ops: set serve.public_url, for where clients reach this is not known")
    return own
