"""How a client proves who it is: one way, told alike when it fails, and not for ever."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from app.api import clients
from app.api.clients import Clients, Presented, presented_by
from app.api.forms import OAuthError
from app.api.problems import Problem
from app.authority.identities import Identity, identity_key, keep_secret, secret_text
from app.authority.rights import Rights
from tests.api.closed import closed_door

ISSUER = "https://issuer.example"
SECRET = secret_text("00" * 8, bytes(32))


class Asking:
    """As much of a request as is looked at."""

    def __init__(self, address: str = "192.0.2.1", reached: str = "192.0.2.9") -> None:
        self.scope = {"server": (reached, 8080), "scheme": "http"}
        self.client = type("Address", (), {"host": address})()


def basic(name: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


@pytest.fixture
def known() -> Clients:
    identity = Identity("svc:ci", 1, "service", ISSUER, "acme", credentials=(keep_secret(SECRET, bytes(16), 0),))
    rights = Rights.of({identity_key("svc:ci"): msgspec.json.encode(identity)})
    return Clients(rights, ISSUER, None, 60)


async def told(known: Clients, headers: dict[str, str], asking: Any = None, **form: str) -> str | tuple[int, str, str]:
    try:
        return (await known.authenticate(asking or Asking(), headers, form)).identity.name
    except OAuthError as error:
        return error.status, error.error, error.description


async def test_a_secret_proves_its_client_however_its_name_is_encoded(known: Clients) -> None:
    assert await told(known, basic("svc:ci", SECRET)) == "svc:ci"
    assert await told(known, basic("svc%3Aci", SECRET)) == "svc:ci"
    assert await told(known, {}, client_id="svc:ci", client_secret=SECRET) == "svc:ci"


async def test_whatever_is_wrong_is_told_alike(known: Clients) -> None:
    failed = {
        await told(known, basic("svc:ci", SECRET[:-1])), await told(known, basic("svc:nobody", SECRET)),
        await told(known, basic("", "")), await told(known, {}, client_id="svc:ci", client_secret="x"),
        await told(known, {}, client_assertion="x", client_assertion_type=clients.ASSERTION_TYPE),
    }  # fmt: skip
    assert failed == {(401, "invalid_client", "no such client, or not its credential")}


async def test_a_disabled_identity_proves_nothing_and_is_told_as_little(known: Clients) -> None:
    change(known, disabled=True)
    assert await told(known, basic("svc:ci", SECRET)) == await told(known, basic("svc:nobody", SECRET))
    change(known, disabled=False)
    assert await told(known, basic("svc:ci", SECRET)) == "svc:ci"


async def test_a_view_that_is_behind_proves_nobody(known: Clients) -> None:
    known.complaint = lambda: "registry was last confirmed 9.0 s ago"
    with pytest.raises(Problem) as refused:
        await told(known, basic("svc:ci", SECRET))
    assert (refused.value.status, refused.value.code) == (503, "not_ready")


def test_a_door_that_has_not_read_who_there_is_asks_to_come_again(tmp_path: Path) -> None:
    with closed_door(tmp_path) as door:
        for path in ("/oauth/token", "/oauth/introspect", "/oauth/revoke"):
            answer = httpx.post(door.url + path, data={"token": "x"}, auth=("svc:ci", SECRET))
            assert (answer.status_code, answer.json()["reason"]) == (503, "not_ready")
            assert answer.headers["retry-after"]


def change(known: Clients, **changed: Any) -> None:
    there = known._rights.identities["svc:ci"]
    known._rights.apply(identity_key("svc:ci"), msgspec.json.encode(msgspec.structs.replace(there, **changed)))


@pytest.mark.parametrize(
    ("headers", "form"),
    [
        ({}, {}), ({}, {"client_id": "svc:ci"}), ({"authorization": "Bearer x"}, {}), ({"authorization": "Basic ?"}, {}),
        ({"authorization": "Basic YQ=="}, {}), (basic("svc:ci", SECRET), {"client_id": "svc:other"}),
    ],
)  # fmt: skip
def test_one_way_to_prove_it_and_no_other(headers: dict[str, str], form: dict[str, str]) -> None:
    with pytest.raises(OAuthError) as refused:
        presented_by(headers, form)
    assert (refused.value.status, refused.value.error) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("headers", "form"),
    [(basic("svc:ci", SECRET), {"client_secret": SECRET}), ({}, {"client_secret": "x", "client_assertion": "y"})],
)
def test_two_ways_at_once_are_no_request(headers: dict[str, str], form: dict[str, str]) -> None:
    with pytest.raises(OAuthError) as refused:
        presented_by(headers, form)
    assert (refused.value.status, refused.value.error) == (400, "invalid_request")


def test_one_client_s_assertions_silence_no_other(known: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ASSERTIONS_MAX", 3)
    assert not any(known._was_shown("svc:busy", f"j{number}", 1_000, 900) for number in range(3))
    with pytest.raises(Problem) as refused:
        known._was_shown("svc:busy", "j3", 1_000, 900)
    assert refused.value.code == "overloaded"
    assert known._was_shown("svc:busy", "j2", 1_000, 900)
    assert not known._was_shown("svc:ci", "j3", 1_000, 900)
    assert not known._was_shown("svc:busy", "j3", 2_000, 1_061)  # the first are over, and their places free
    assert known._shown_by == {"svc:busy": 1}


def test_a_secret_may_hold_no_colon_so_a_name_may() -> None:
    assert presented_by(basic("svc:team:ci", SECRET), {}) == Presented("svc:team:ci", SECRET, None, "00" * 8)


async def test_who_fails_often_is_told_to_wait_and_for_how_long(known: Clients) -> None:
    for _ in range(clients.FAILURES_MAX):
        assert (await told(known, basic("svc:ci", "wrong")))[0] == 401
    with pytest.raises(OAuthError) as refused:
        await known.authenticate(Asking(), basic("svc:ci", "wrong"), {})  # type: ignore[arg-type]
    assert (refused.value.status, refused.value.error) == (429, "invalid_client")
    assert clients.WINDOW_S - 10 < int(refused.value.response().headers["Retry-After"]) <= clients.WINDOW_S
    assert (await told(known, basic("svc:ci", "wrong"), Asking("192.0.2.2")))[0] == 401  # another address
    assert (await told(known, basic("svc:ci", SECRET[:-1] + "B")))[0] == 401  # another credential
    for failures in known._failures.values():
        failures.extend([-clients.WINDOW_S] * clients.FAILURES_MAX)  # long ago
    assert (await told(known, basic("svc:ci", "wrong")))[0] == 401


async def test_nobody_s_failures_lock_an_honest_client_out(known: Clients) -> None:
    """However many, from its own address, in its own name and even by its own credential's id."""
    for wrong in ("wrong", SECRET[:-1] + "B", secret_text("11" * 8, bytes(32))):
        for _ in range(3 * clients.FAILURES_MAX):
            assert (await told(known, basic("svc:ci", wrong)))[0] in (401, 429)
    assert await told(known, basic("svc:ci", SECRET)) == "svc:ci"


async def test_failures_that_are_told_to_wait_leave_no_record(known: Clients) -> None:
    recorded: list[str] = []

    async def record(claimed: str) -> None:
        recorded.append(claimed)

    known.on_failure = record
    for _ in range(3 * clients.FAILURES_MAX):
        await told(known, basic("svc:ci", "wrong"))
    assert recorded == ["svc:ci"] * clients.FAILURES_MAX


async def test_a_refusal_costs_one_hash_whether_or_not_the_client_exists(
    known: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.authority import identities

    hashed: list[int] = []
    digest = identities._digest
    monkeypatch.setattr(identities, "_digest", lambda *given: hashed.append(1) or digest(*given))
    for headers in (basic("svc:ci", "wrong"), basic("svc:nobody", "wrong"), basic("svc:nobody", SECRET)):
        hashed.clear()
        assert (await told(known, headers))[0] == 401
        assert len(hashed) == 1


@pytest.mark.parametrize(
    ("reached", "audiences"),
    [
        ("192.0.2.9", {ISSUER}),
        ("127.0.0.1", {ISSUER, *(f"http://127.0.0.1:8080{path}" for path in ("", "/oauth/token", "/oauth/revoke"))}),
        ("::1", {ISSUER, *(f"http://[::1]:8080{path}" for path in ("", "/oauth/token", "/oauth/revoke"))}),
    ],
)
def test_an_assertion_may_be_for_where_a_client_of_this_machine_has_reached_us(
    known: Clients, reached: str, audiences: set[str]
) -> None:
    asking: Any = Asking(reached=reached)
    assert known._named_at(asking.scope | {"path": "/oauth/revoke"}) == audiences
