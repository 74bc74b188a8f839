"""The OAuth endpoints of a door that has read everything: what each client is told of tokens, and what it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from app.api import exchange
from app.api.issuing import Issuing
from app.authority.identities import Identity, keep_secret, secret_text
from app.authority.roles import Allow, Role
from app.gate.revocation import revocation_record
from app.issuer.keystore import Keystore
from app.stream.topics import Topic
from tests.api.closed import listening, unconnected
from tests.api.test_caller import live, tables
from tests.api.test_issued import record
from tests.support.pure_world import JOBS, WORLD
from tests.support.tokens import ISS, token

SECRET = secret_text("00" * 8, bytes(32))
RULE = msgspec.structs.replace(WORLD.rules[ISS], orgs=("acme", "other"), subjects=("*",))
MANY = {"uses": "many"}


class Asked:
    """A door, its clients and what it has written: their names are svc:ci and svc:agent, and svc:stranger elsewhere."""

    def __init__(self, url: str, issuing: Issuing, written: list[tuple[Topic, dict[str, Any]]]) -> None:
        self._http, self.issuing, self.written = httpx.AsyncClient(base_url=url, verify=False), issuing, written

    async def post(self, path: str, name: str = "svc:ci", **form: str) -> httpx.Response:
        return await self._http.post(path, data=form, auth=(name, SECRET))

    async def get(self, path: str, name: str = "svc:ci", **query: str) -> httpx.Response:
        return await self._http.get(path, params=query or None, auth=(name, SECRET))

    async def revoke(self, name: str = "svc:ci", **body: str) -> httpx.Response:
        return await self._http.post("/v1/revocations", json=body, auth=(name, SECRET))

    async def exchanged(self, text: str, name: str = "svc:agent", **form: str) -> httpx.Response:
        form = {"grant_type": exchange.GRANT_TYPE, "subject_token": text, "subject_token_type": exchange.JWT} | form
        return await self.post("/oauth/token", name, **form)

    def denied(self) -> list[dict[str, Any]]:
        return [each for topic, each in self.written if topic is Topic.ISSUANCE and each["event"] == "issue_denied"]

    async def close(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def asking(directory: Path, monkeypatch: pytest.MonkeyPatch, **of_tables: Any) -> AsyncIterator[Asked]:
    service, written = unconnected(directory, issuer=ISS), list[tuple[Topic, dict[str, Any]]]()
    made = service.issuing
    assert made is not None
    service.tables = made._tables = tables(rule=RULE, **of_tables)
    service.clients.complaint = lambda: None

    async def append(topic: Topic, records: Any) -> None:
        written.extend((topic, json.loads(value)) for _, value in records)

    monkeypatch.setattr(made._issuer, "_append", append)
    monkeypatch.setattr(made, "_append", append)
    made._issuer._keys = keys = Keystore(directory / "keys", directory / "jwks.json")
    keys.generate("ES256", int(time.time()))
    made.rights.roles["r"] = Role("r", 1, (Allow(JOBS, subjects=("service:*",), max_lifetime_s=3_600),))
    credentials = (keep_secret(SECRET, bytes(16), 0),)
    for name, org_id in (("svc:ci", "acme"), ("svc:agent", "acme"), ("svc:stranger", "other")):
        made.rights.identities[name] = Identity(name, 1, "service", ISS, org_id, ("r",), credentials=credentials)
    async with listening(service) as url:
        asked = Asked(url, made, written)
        try:
            yield asked
        finally:
            await asked.close()


def ago(**times: int) -> str:
    """A webhook token whose times lie so many seconds from now."""
    now_s = int(time.time())
    lies = {"iat": -600, "nbf": -600, "exp": 600} | times
    return token(claims={name: now_s + by for name, by in lies.items()} | MANY)


# ── a token's own time ──


@pytest.mark.parametrize(
    ("times", "reason"),
    [({"exp": -1}, "token_expired"), ({"exp": 0}, "token_expired"), ({"exp": -59}, "token_expired"),
     ({"nbf": 30}, "token_not_yet_valid"), ({"iat": 30}, "token_not_yet_valid"), ({}, None)],
)  # fmt: skip
async def test_a_token_is_active_and_exchanged_in_its_own_time_and_not_in_the_gates_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: dict[str, int], reason: str | None
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        shown = ago(**times)
        told = (await door.post("/oauth/introspect", token=shown)).json()
        assert told["active"] is (reason is None)
        assert reason is None or told == {"active": False}
        answer = await door.exchanged(shown, lifetime_s="1")
        assert (answer.status_code, answer.json().get("reason")) == ((200, None) if reason is None else (400, reason))


# ── of another organisation ──


@pytest.mark.parametrize("times", [{}, {"exp": -1}, {"iat": -9_000_000, "nbf": -9_000_000, "exp": -8_000_000}])
async def test_of_another_organisations_token_nothing_is_told_live_or_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: dict[str, int]
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        shown = ago(**times)
        revoked = await door.post("/oauth/revoke", "svc:stranger", token=shown)
        assert (revoked.status_code, revoked.content) == (200, b"")
        assert not [each for topic, each in door.written if topic is Topic.REVOCATIONS]
        answer = await door.exchanged(shown, "svc:stranger")
        assert answer.status_code == 400
        assert answer.json() == {
            "error": "invalid_request",
            "error_description": "the token handed over is not of this issuer and organisation",
        }
        assert (await door.post("/oauth/introspect", "svc:stranger", token=shown)).json() == {"active": False}


async def test_of_its_own_organisations_token_a_client_is_told_that_it_is_another_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        answer = await door.post("/oauth/revoke", token=ago())
        assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client")


# ── authorization_details ──


async def test_authorization_details_are_one_list_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = json.dumps([{"type": "job_trigger", "jobs": [JOBS[0]]}])
    form = {"grant_type": "client_credentials"}
    async with asking(tmp_path, monkeypatch) as door:
        for text, status in ((details, 200), (f'{details},"x":1', 400), (f"{details}}}", 400), (f"{details},", 400)):
            answer = await door.post("/oauth/token", authorization_details=text, **form)
            assert answer.status_code == status
            assert status == 200 or answer.json()["error"] == "invalid_authorization_details"


# ── what a refusal leaves ──


@pytest.mark.parametrize(
    ("form", "reason", "jobs"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type", []), ({"grant_type": ""}, "invalid_request", []),
        ({"uses": "thrice"}, "invalid_request", []), ({"scope": "read"}, "invalid_scope", []),
        ({"audience": "elsewhere"}, "invalid_target", []),
        ({"authorization_details": "[]"}, "invalid_authorization_details", []),
        ({"scope": "job:payroll/run"}, "job_not_granted", ["payroll/run"]),
    ],
)  # fmt: skip
async def test_whatever_a_client_is_refused_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, str], reason: str, jobs: list[str]
) -> None:
    asked = {"grant_type": "client_credentials"} | form
    async with asking(tmp_path, monkeypatch) as door:
        assert (await door.post("/oauth/token", **asked)).status_code == 400
        (left,) = door.denied()
        assert (left["identity"], left["authenticated"], left["reason"]) == ("svc:ci", True, reason)
        assert left["jobs"] == jobs


async def test_the_record_of_a_refused_exchange_names_what_was_asked_for_and_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        one_shot, dead = token(claims=live()), ago(exp=-1)
        for form in (
            {"subject_token": one_shot},
            {"subject_token": dead, "scope": f"job:{JOBS[1]}", "lifetime_s": "7"},
        ):
            assert (await door.exchanged("", **form)).status_code == 400
        of_handed, of_asked = door.denied()
        assert (of_handed["reason"], of_handed["subject"], of_handed["jobs"]) == (
            "token_already_used", "service:ci", [JOBS[0]],
        )  # fmt: skip
        # Of a token that is not honoured nothing is taken: what was asked for is what the request says.
        assert (of_asked["reason"], of_asked["subject"], of_asked["jobs"], of_asked["lifetime_s"]) == (
            "token_expired", "svc:agent", [JOBS[1]], 7,
        )  # fmt: skip


async def test_who_would_take_back_what_is_not_its_own_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        assert (await door.post("/oauth/revoke", token=ago())).status_code == 400
        assert (await door.revoke(selector="subject", value="svc:agent")).status_code == 403
        assert (await door.revoke(selector="jti", value="another")).status_code == 403
        assert [(each["identity"], each["reason"]) for each in door.denied()] == [("svc:ci", "revocation_denied")] * 3


# ── what is listed ──


async def test_what_is_listed_is_live_and_fits_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        for jti, identity in (("a", "svc:ci"), ("b", "svc:agent"), ("c", "svc:ci")):
            door.issuing._take(record(jti, identity, uses="many", issuer=ISS))

        async def listed(**query: str) -> set[str]:
            return {row["jti"] for row in (await door.get("/v1/tokens", **query)).json()["tokens"]}

        world = door.issuing._tables.world
        world.revocations.apply(
            *revocation_record(ISS, "jti", "c", since_s=9_999_999_999, reason="", by="x", keep_until_s=0)
        )
        assert await listed() == await listed(revoked="false") == {"a", "b"}
        assert await listed(revoked="true") == {"a", "b", "c"}
        assert await listed(identity="svc:agent") == {"b"}
        assert await listed(identity="svc:ci", revoked="true") == {"a", "c"}
        assert await listed(job="reports/none") == await listed(**{"class": "user"}) == set()
        assert await listed(subject="svc:ci") == {"a", "b"}


@pytest.mark.parametrize("query", ["identiy=svc:ci", "org=acme", "job=a&job=b", "revoked=yes", "revoked=", "=x"])
async def test_a_listing_that_says_what_is_not_known_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        answer = await door.get(f"/v1/tokens?{query}")
        assert (answer.status_code, answer.json()["reason"]) == (400, "request_malformed")


async def test_a_token_of_another_issuer_of_this_deployment_is_not_this_ones_to_take_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(tmp_path, monkeypatch) as door:
        for jti, issuer in (("ours", ISS), ("theirs", "https://theirs.example")):
            door.issuing._take(record(jti, issuer=issuer))
        assert (await door.revoke(selector="jti", value="ours")).status_code == 201
        refused = await door.revoke(selector="jti", value="theirs")
        assert (refused.status_code, refused.json()["reason"]) == (403, "revocation_denied")
        assert [each["value"] for topic, each in door.written if topic is Topic.REVOCATIONS] == ["ours"]
