"""Requests made up from the OpenAPI document, good and bad: none makes the door fail, each answer is as described."""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import openapi
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.authorities import ISSUER, Authority, trusted
from tests.api.conftest import Deployment
from tests.support.doors import PLAIN
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
EXAMPLES = 40  # of each operation, good and bad ones each
EXAMPLES_WITH_RIGHTS = 25  # likewise, of the operations for whom the credential is
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip
ENDLESS = "/v1/receipts/stream"
CLIENT_MEMBERS = ("client_id", "client_secret", "client_assertion", "client_assertion_type")


class Shown(NamedTuple):
    """A credential, and what a request may say that its bearer is granted: else next to no made-up one would be."""

    headers: dict[str, str]
    good: Mapping[str, Any] = {}


# ── who asks ──


def nobody(_: Deployment) -> Shown:
    return Shown({})


def emitter(deployment: Deployment) -> Shown:
    return Shown(bearer(deployment.issuer.token()))


def client(deployment: Deployment) -> Shown:
    authority = trusted(deployment)
    who = authority.identity("reports/*")
    token = authority.token(who, uses="many")
    good = {
        "jobs": [JOB], "lifetime_s": 60, "uses": "many", "subject": who[0], "grant_type": "client_credentials",
        "scope": f"job:{JOB}", "token": token, "token_class": "trigger", "bound_to": f"job/{JOB}", "selector": "subject",
        "value": who[0], "audience": f"tollgate:{deployment.prefix}",
    }  # fmt: skip
    return Shown({"authorization": "Basic " + base64.b64encode(":".join(who).encode()).decode()}, good)


def user(deployment: Deployment) -> Shown:
    name, token = person(deployment, "u", "user")
    good = {
        "jobs": [JOB], "lifetime_s": 60, "uses": "many", "subject": name, "token_class": "trigger", "selector": "jti",
        "bound_to": f"job/{JOB}",
    }  # fmt: skip
    return Shown(bearer(token), good)


def host(deployment: Deployment) -> Shown:
    return Shown(bearer(person(deployment, "host", "host")[1]))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def person(deployment: Deployment, kind: str, token_class: str) -> tuple[str, str]:
    """Name and token of a new user or host, who may have trigger tokens too."""
    authority, named = Authority(deployment), secrets.token_hex(4)
    authority.apply(
        "trust",
        f'[trust."{ISSUER}"]\njwks = "{deployment.directory}/published.json"\norgs = ["dev"]\n'
        'classes = ["trigger", "user", "host"]\nsubjects = ["svc:*", "u:*", "host:*"]\njobs = ["reports/*"]\n'
        "max_lifetime_s = 86400\n",
    )
    allow = f'{{ jobs = ["{JOB}"], classes = ["{token_class}", "trigger"], max_lifetime_s = 3600 }}'
    authority.apply("policy", f"[roles.{kind}{named}]\nallow = [{allow}]\n[platforms.p{named}]\nlevel = 1\n")
    of = f'platform = "p{named}"\n' if kind == "host" else ""
    authority.apply("identities", f'[identities."{kind}:{named}"]\nroles = ["{kind}{named}"]\n{of}')
    secret = authority.tollgate("identities", "rotate", f"{kind}:{named}")
    wanted, by = {"token_class": token_class, "lifetime_s": 3600}, (f"{kind}:{named}", secret)
    path = "/v1/me" if kind == "u" else "/v1/host"
    deadline = time.monotonic() + 20
    with httpx.Client(base_url=authority.url, timeout=40, **PLAIN) as http:
        while True:
            issued = http.post("/v1/tokens", json=wanted, auth=by)
            if issued.status_code == 201 and http.get(path, headers=bearer(issued.json()["token"])).status_code == 200:
                return by[0], issued.json()["token"]
            assert time.monotonic() < deadline, issued.text
            time.sleep(0.2)


# As the document names the security schemes, but for those who try everything.
EVERYWHERE: dict[str, Callable[[Deployment], Shown]] = {"nobody": nobody, "emitter": emitter}
WITH_RIGHTS: dict[str, Callable[[Deployment], Shown]] = {"client": client, "user": user, "host": host}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("who", EVERYWHERE | WITH_RIGHTS)
def test_no_request_makes_the_door_fail(deployment: Deployment, mode: GenerationMode, who: str) -> None:
    url = f"{deployment.doors[0].url}/openapi.json"
    schema, described = openapi.from_url(url), httpx.get(url, **PLAIN).json()["paths"]
    shown = (EVERYWHERE | WITH_RIGHTS)[who](deployment)
    tried: Counter[int] = Counter()
    for operation in (each.ok() for each in schema.get_all_operations()):
        taken = {name for each in described[operation.path][operation.method].get("security", ()) for name in each}
        if operation.path == ENDLESS and who != "nobody":
            continue
        if who in EVERYWHERE:
            _try(operation, mode, shown, EXAMPLES, tried)
        elif who in taken:
            _try(operation, mode, shown, EXAMPLES_WITH_RIGHTS, tried)
    assert sum(tried.values()) > (100 if who in EVERYWHERE else 10)
    if who in WITH_RIGHTS and mode is GenerationMode.POSITIVE:
        assert tried[200] + tried[201] > 10, tried
    assert not [event for event in deployment.doors[0].events() if event["event"] == "serve_error"]


def _try(operation: Any, mode: GenerationMode, shown: Shown, examples: int, tried: Counter[int]) -> None:
    @settings(max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), granted=st.booleans())
    def run(case: Any, granted: bool) -> None:
        if granted and shown.good and isinstance(case.body, dict):
            case.body = {
                name: shown.good.get(name, said) for name, said in case.body.items() if name not in CLIENT_MEMBERS
            }
        answer = case.call(headers=shown.headers, timeout=40)
        tried[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing of it can be wrong
        run()
