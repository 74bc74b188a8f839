"""RFC 7662 (introspection) and RFC 7009 (revocation), section by section, over HTTP at a door with a gate behind it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest

from tests.api.authorities import ISSUER, Authority, signing, trusted
from tests.api.conftest import Deployment
from tests.support.doors import PLAIN, Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
INTROSPECT, REVOKE = "/oauth/introspect", "/oauth/revoke"
Client = tuple[str, str]
Options = dict[str, Any]  # of an httpx request


class Place:
    """A door, clients of it, and tokens in every state."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.client, self.other = authority.identity(), authority.identity()
        self.stranger = authority.identity(org_id="another-tenant")
        self.live = authority.token(self.client, uses="many")
        self.of_other = authority.token(self.other, uses="many")
        self.of_stranger = authority.token(self.stranger, uses="many")
        self.user, self.host = self._person("u", "user"), self._person("host", "host")
        self.assertion = signing(authority, authority.identity(secret=False)[0])

    def _person(self, kind: str, token_class: str) -> Client:
        named, authority = secrets.token_hex(4), self.authority
        allow = f'{{ jobs = ["{JOB}"], classes = ["{token_class}"], max_lifetime_s = 3600 }}'
        authority.apply("policy", f"[roles.{kind}{named}]\nallow = [{allow}]\n[platforms.p{named}]\nlevel = 1\n")
        of = f'platform = "p{named}"\n' if kind == "host" else ""
        authority.apply("identities", f'[identities."{kind}:{named}"]\nroles = ["{kind}{named}"]\n{of}')
        return f"{kind}:{named}", authority.tollgate("identities", "rotate", f"{kind}:{named}")

    def made(self, client: Client | None = None, **wanted: Any) -> str:
        """A new token by POST /v1/tokens: a webhook token of the client, or what is wanted."""
        url = f"{self.authority.url}/v1/tokens"
        body = {"lifetime_s": 600} | (wanted or {"jobs": [JOB], "uses": "many"})
        deadline = time.monotonic() + 20
        while (
            answer := httpx.post(url, json=body, auth=client or self.client, timeout=40, **PLAIN)
        ).status_code != 201:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.2)
        token: str = answer.json()["token"]
        return token

    def handle(self) -> str:
        return self.made(jobs=[JOB], uses="many", reference=True)

    def revoked(self) -> str:
        token = self.made()
        assert self.authority.ask(self.client, REVOKE, token=token).status_code == 200
        self.until_gone(token, self.client)
        return token

    def used(self) -> str:
        token = self.made(jobs=[JOB], uses="once")
        assert self.verdict(token) == "accepted"
        return token

    def expired(self) -> str:
        return self.authority.deployment.issuer.token(iat=1_600_000_000, nbf=1_600_000_000, exp=1_600_000_600)

    def forged(self) -> str:
        message, _, signature = self.live.rpartition(".")
        return f"{message}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"

    def active(self, token: str, client: Client) -> bool:
        told: bool = self.authority.ask(client, INTROSPECT, token=token).json()["active"]
        return told

    def until_gone(self, token: str, client: Client) -> None:
        deadline = time.monotonic() + 20
        while self.active(token, client):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def verdict(self, token: str) -> str:
        emitter = Emitter(self.authority.url, token)
        receipt = emitter.decided(JOB)
        emitter.close()
        return receipt["reason"] or receipt["outcome"]


@pytest.fixture(scope="module")
def place(deployment: Deployment) -> Place:
    authority = trusted(deployment)
    authority.apply(
        "trust",
        f'[trust."{ISSUER}"]\njwks = "{deployment.directory}/published.json"\norgs = ["dev", "another-tenant"]\n'
        'classes = ["trigger", "user", "host"]\nsubjects = ["svc:*", "u:*", "host:*"]\njobs = ["reports/*"]\n'
        "max_lifetime_s = 86400\n",
    )
    made = Place(authority)
    deadline = time.monotonic() + 20
    while not (made.active(made.made(made.user, token_class="user"), made.user)
               and made.active(made.of_stranger, made.stranger)):  # fmt: skip
        assert time.monotonic() < deadline
    return made


class Case(NamedTuple):
    """One sentence of a section: a request, the status of its answer, and what else must hold of it."""

    section: str
    send: Callable[[Place], Options]
    status: int
    holds: Callable[[httpx.Response, Place, Options], None]
    method: str = "POST"


def answered(place: Place, path: str, case: Case) -> None:
    options = case.send(place)
    answer = httpx.request(case.method, place.authority.url + path, **({"timeout": 40} | options), **PLAIN)
    assert answer.status_code == case.status, answer.text
    if case.status != 405:
        assert answer.headers["cache-control"] == "no-store"
    case.holds(answer, place, options)


# ── what holds of an answer ──


def error(code: str) -> Callable[[httpx.Response, Place, Options], None]:
    """RFC 6749 section 5.2: a JSON object; of a client that proved nothing, with the challenge."""

    def holds(answer: httpx.Response, _: Place, __: Options) -> None:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"] == code
        assert isinstance(answer.json()["error_description"], str)
        assert ("www-authenticate" in answer.headers) is (answer.status_code == 401)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Basic realm=")

    return holds


def only_post(answer: httpx.Response, _: Place, __: Options) -> None:
    assert "POST" in answer.headers["allow"]
    assert "GET" not in answer.headers["allow"]


MEMBERS = {
    "scope": str, "client_id": str, "token_type": str, "exp": int, "iat": int, "nbf": int, "sub": str, "aud": str,
    "iss": str, "jti": str,
}  # fmt: skip


def active(answer: httpx.Response, place: Place, _: Options) -> None:
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told["active"] is True
    for name in ("token_type", "exp", "iat", "nbf", "sub", "aud", "iss", "jti"):
        assert name in told
    for name in told.keys() & MEMBERS.keys():
        assert type(told[name]) is MEMBERS[name], name
    assert told["iss"] == ISSUER
    assert told["aud"] == f"tollgate:{place.authority.deployment.prefix}"
    assert told["token_type"] == "Bearer"
    assert told["nbf"] <= told["iat"] < told["exp"]
    assert told["exp"] > time.time()
    for token in (place.live, place.client[1]):
        assert token not in answer.text


def active_trigger(answer: httpx.Response, place: Place, options: Options) -> None:
    active(answer, place, options)
    told = answer.json()
    assert (told["scope"], told["sub"]) == (f"job:{JOB}", place.client[0])
    if "client_id" in told:
        assert told["client_id"] == place.client[0]


def inactive(answer: httpx.Response, _: Place, __: Options) -> None:
    """And nothing else, not even why."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"active": False}


def gone(answer: httpx.Response, place: Place, options: Options) -> None:
    """The token is not honoured any more, at the door or at the gate."""
    assert answer.content == b""
    token = options["data"]["token"]
    client = options.get("auth") or place.client
    place.until_gone(token, client)
    if client[0].startswith("svc:"):
        assert place.verdict(token) == "token_revoked"


def untouched(code: str) -> Callable[[httpx.Response, Place, Options], None]:
    def holds(answer: httpx.Response, place: Place, options: Options) -> None:
        error(code)(answer, place, options)
        assert place.active(place.live, place.client)
        assert place.active(place.of_other, place.other)

    return holds


def nothing(answer: httpx.Response, place: Place, _: Options) -> None:
    assert answer.content == b""
    assert place.active(place.live, place.client)


# ── requests ──


def form(token: Callable[[Place], str] = lambda place: place.live, **more: Any) -> Callable[[Place], Options]:
    return lambda place: {"data": {"token": token(place), **more}, "auth": place.client}


def sent(**options: Any) -> Callable[[Place], Options]:
    """By the client, whatever it is; `TOKEN` stands for its token."""

    def of(place: Place) -> Options:
        return {"auth": place.client} | {
            name: {each: place.live if said == "TOKEN" else said for each, said in given.items()}
            if isinstance(given, dict) else given
            for name, given in options.items()
        }  # fmt: skip

    return of


def of_person(kind: str, token_class: str) -> Callable[[Place], Options]:
    def of(place: Place) -> Options:
        client: Client = getattr(place, kind)
        return {"data": {"token": place.made(client, token_class=token_class)}, "auth": client}

    return of


def by(credential: Callable[[Place], Options], token: Callable[[Place], str]) -> Callable[[Place], Options]:
    """The credential in the form, in headers or by Basic."""

    def of(place: Place) -> Options:
        shown = credential(place)
        return shown | {"data": {"token": token(place)} | shown.get("data", {})}

    return of


def live(place: Place) -> str:
    return place.live


FORM = "application/x-www-form-urlencoded"
# What both endpoints say of a request that is none, in the same words. RFC 7009 section 2.1 is RFC 7662 section 2.1.
NO_REQUEST = {
    "GET is no way to ask": Case("2.1", sent(params={"token": "TOKEN"}), 405, only_post, "GET"),
    "PUT is no way to ask": Case("2.1", sent(data={"token": "TOKEN"}), 405, only_post, "PUT"),
    "the query holds no parameters": Case(
        "2.1", sent(params={"token": "TOKEN"}, data={"x": "1"}), 400, untouched("invalid_request")
    ),
    "JSON is no form": Case("2.1", sent(json={"token": "TOKEN"}), 400, untouched("invalid_request")),
    "multipart is no form": Case("2.1", sent(files={"token": "TOKEN"}), 400, untouched("invalid_request")),
    "text is no form": Case("2.1", sent(content=b"token=x", headers={"content-type": "text/plain"}), 400,
                            untouched("invalid_request")),
    "no body": Case("2.1", sent(content=b"", headers={"content-type": FORM}), 400, untouched("invalid_request")),
    "token is required": Case("2.1", sent(data={"token_type_hint": "access_token"}), 400, untouched("invalid_request")),
    "an empty token is none": Case("2.1", sent(data={"token": ""}), 400, untouched("invalid_request")),
    "token twice": Case("2.1 (RFC 6749 3.2)", lambda place: {"data": {"token": [place.live, "x"]}, "auth": place.client},
                        400, untouched("invalid_request")),
    "a hint twice": Case("2.1 (RFC 6749 3.2)", form(token_type_hint=["access_token", "refresh_token"]), 400,
                         untouched("invalid_request")),
    "no credential": Case("2.1", by(lambda _: {}, live), 401, untouched("invalid_client")),
    "a name alone": Case("2.1", by(lambda place: {"data": {"client_id": place.client[0]}}, live), 401,
                         untouched("invalid_client")),
    "a wrong secret": Case("2.1", by(lambda place: {"auth": (place.client[0], place.other[1])}, live), 401,
                           untouched("invalid_client")),
    "a wrong secret in the form": Case(
        "2.1", by(lambda place: {"data": {"client_id": place.other[0], "client_secret": place.client[1]}}, live), 401,
        untouched("invalid_client")),
    "a client_id that is not the credential's": Case(
        "2.1", by(lambda place: {"auth": place.client, "data": {"client_id": place.other[0]}}, live), 401,
        untouched("invalid_client")),
    "two credentials": Case(
        "2.1 (RFC 6749 2.3)", by(lambda place: {"auth": place.client, "data": {"client_secret": place.client[1]}}, live),
        400, untouched("invalid_request")),
    "the token itself is no credential": Case(
        "2.1", by(lambda place: {"headers": {"authorization": f"Bearer {place.live}"}}, live), 401,
        untouched("invalid_client")),
}  # fmt: skip

OF_7662 = NO_REQUEST | {
    "a live token": Case("2.2", form(), 200, active_trigger),
    "a handle": Case("2.2", form(Place.handle), 200, active_trigger),
    "a user's token": Case("2.2", of_person("user", "user"), 200, active),
    "a host's token": Case("2.2", of_person("host", "host"), 200, active),
    "another client's, of one organisation": Case("2.2", form(lambda place: place.of_other), 200, active),
    "a hint that is right": Case("2.1", form(token_type_hint="access_token"), 200, active_trigger),
    "a hint that is wrong": Case("2.1", form(token_type_hint="refresh_token"), 200, active_trigger),
    "a hint that nobody knows": Case("2.1", form(token_type_hint="cookie"), 200, active_trigger),
    "an empty hint": Case("2.1", form(token_type_hint=""), 200, active_trigger),
    "an unknown parameter": Case("2.1", form(resource_server="x"), 200, active_trigger),
    "a charset beside the form": Case(
        "2.1", lambda place: {"content": f"token={place.live}".encode(), "auth": place.client,
                              "headers": {"content-type": f"{FORM}; charset=UTF-8"}}, 200, active_trigger),
    "whatever is accepted, JSON is answered": Case(
        "2.2", lambda place: form()(place) | {"headers": {"accept": "application/jwt"}}, 200, active_trigger),
    "client_secret_post": Case(
        "2.1", by(lambda place: {"data": dict(zip(("client_id", "client_secret"), place.client, strict=True))}, live),
        200, active_trigger),
    "private_key_jwt": Case("2.1", by(lambda place: {"data": place.assertion()}, live), 200, active_trigger),
    "garbage": Case("2.2", form(lambda _: "mF_9.B5f-4.1JqM"), 200, inactive),
    "one of a form that is nobody's": Case("2.2", form(lambda _: "2YotnFZFEjr1zCsicMWpAA"), 200, inactive),
    "not even ASCII": Case("2.2", form(lambda _: "jeton-é-\x00"), 200, inactive),
    "a handle that nobody was given": Case("2.2", form(lambda _: "ref:" + "A" * 43), 200, inactive),
    "an altered one": Case("4", form(Place.forged), 200, inactive),
    "an expired one": Case("4", form(Place.expired), 200, inactive),
    "a revoked one": Case("4", form(Place.revoked), 200, inactive),
    "a one-shot one that was used": Case("2.2", form(Place.used), 200, inactive),
    "one of another organisation": Case("2.2", form(lambda place: place.of_stranger), 200, inactive),
    "of another deployment": Case(
        "4", form(lambda place: place.authority.deployment.issuer.token(aud="tollgate:x.")), 200, inactive),
    "of an issuer that nobody trusts": Case(
        "4", form(lambda place: place.authority.deployment.issuer.token(iss="https://nobody.test")), 200, inactive),
    "not valid yet": Case(
        "4", form(lambda place: place.authority.deployment.issuer.token(nbf=int(time.time()) + 600)), 200, inactive),
}  # fmt: skip

OF_7009 = NO_REQUEST | {
    "a token of the client": Case("2.1", form(Place.made), 200, gone),
    "a handle": Case("2.2.1", form(Place.handle), 200, gone),
    "a user's token": Case("2.2.1", of_person("user", "user"), 200, gone),
    "a host's token": Case("2.2.1", of_person("host", "host"), 200, gone),
    "a hint that is right": Case("2.1", form(Place.made, token_type_hint="access_token"), 200, gone),
    "a hint that is wrong": Case("2.1", form(Place.made, token_type_hint="refresh_token"), 200, gone),
    "a hint that nobody knows": Case("2.2", form(Place.made, token_type_hint="cookie"), 200, gone),
    "an unknown parameter": Case("2.1", form(Place.made, reason="x"), 200, gone),
    "a callback of scripts is not called": Case("2.3", form(Place.made, callback="package.myCallback"), 200, gone),
    "client_secret_post": Case(
        "2.1", by(lambda place: {"data": dict(zip(("client_id", "client_secret"), place.client, strict=True))}, Place.made),
        200, gone),
    "once more": Case("2.2", form(Place.revoked), 200, gone),
    "garbage": Case("2.2", form(lambda _: "45ghiukldjahdnhzdauz"), 200, nothing),
    "garbage that is said to be a refresh token": Case(
        "2.2", form(lambda _: "45ghiukldjahdnhzdauz", token_type_hint="refresh_token"), 200, nothing),
    "a handle that nobody was given": Case("2.2", form(lambda _: "ref:" + "A" * 43), 200, nothing),
    "an altered one": Case("2.2", form(Place.forged), 200, nothing),
    "an expired one": Case("2.2", form(Place.expired), 200, nothing),
    "another client's, of one organisation": Case(
        "2.1", form(lambda place: place.of_other), 400, untouched("unauthorized_client")),
}  # fmt: skip


def named(cases: dict[str, Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case.section}: {what}") for what, case in cases.items()]


@pytest.mark.parametrize("case", named(OF_7662))
def test_introspection_is_as_rfc_7662_has_it(place: Place, case: Case) -> None:
    answered(place, INTROSPECT, case)


@pytest.mark.parametrize("case", named(OF_7009))
def test_revocation_is_as_rfc_7009_has_it(place: Place, case: Case) -> None:
    answered(place, REVOKE, case)


@pytest.mark.parametrize("which", ["introspection", "revocation"])
def test_the_metadata_says_where_and_how(place: Place, which: str) -> None:
    """RFC 8414 section 2, as RFC 7662 section 3 and RFC 7009 section 3 leave it to discovery."""
    told = httpx.get(f"{place.authority.url}/.well-known/oauth-authorization-server", **PLAIN).json()
    path = INTROSPECT if which == "introspection" else REVOKE
    assert told[f"{which}_endpoint"] == place.authority.url + path
    methods = told[f"{which}_endpoint_auth_methods_supported"]
    assert methods == ["client_secret_basic", "client_secret_post", "private_key_jwt"]
    assert "none" not in told[f"{which}_endpoint_auth_signing_alg_values_supported"]
