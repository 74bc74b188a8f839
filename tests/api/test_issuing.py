"""Tokens over HTTP as the command line makes them: handles, bindings, and what nobody is told before they may issue."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import httpx
import pytest

from tests.api.authorities import Authority, trusted
from tests.api.conftest import Deployment
from tests.cli.program import tollgate
from tests.support import reader
from tests.support.doors import PLAIN, Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
Client = tuple[str, str]


@pytest.fixture(scope="module")
def authority(deployment: Deployment) -> Authority:
    return trusted(deployment)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Client:
    made = authority.identity("reports/*")
    authority.token(made)
    return made


@pytest.fixture
def bound_job(authority: Authority) -> str:
    """A job of its own, which the doors know."""
    name = f"reports/{secrets.token_hex(4)}"
    authority.apply("jobs", f'[jobs."{name}"]\n')
    return name


def ask(authority: Authority, client: Client, door: int = 0, **body: Any) -> httpx.Response:
    wanted = {"jobs": [JOB], "lifetime_s": 600, "uses": "many"} | body
    return httpx.post(
        f"{authority.deployment.doors[door].url}/v1/tokens", json=wanted, auth=client, timeout=40, **PLAIN
    )


def issued(authority: Authority, client: Client, **body: Any) -> dict[str, Any]:
    """Once what it names is known to the door."""
    deadline = time.monotonic() + 20
    while (answer := ask(authority, client, **body)).status_code != 201:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    told: dict[str, Any] = answer.json()
    return told


def decided(authority: Authority, token: str, job: str = JOB) -> str:
    emitter = Emitter(authority.url, token)
    receipt = emitter.decided(job)
    emitter.close()
    return receipt["reason"] or receipt["outcome"]


def until(reason: str, authority: Authority, token: str, job: str = JOB) -> None:
    deadline = time.monotonic() + 20
    while decided(authority, token, job) != reason:
        assert time.monotonic() < deadline


def listed(authority: Authority, client: Client, door: int = 0) -> set[str]:
    answer = httpx.get(f"{authority.deployment.doors[door].url}/v1/tokens", auth=client)
    return {row["jti"] for row in answer.json()["tokens"]}


@pytest.mark.parametrize("key", [None, "order-7"])
def test_a_one_shot_token_is_listed_until_it_has_started_its_job(
    authority: Authority, client: Client, key: str | None
) -> None:
    used, unused, many = (
        issued(authority, client, uses=uses, idempotency_key=key) for uses in ("once", "once", "many")
    )
    jtis = {each["jti"] for each in (used, unused, many)}
    deadline = time.monotonic() + 20
    while not jtis <= listed(authority, client):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Of two with one key only the one that was shown is gone.
    assert decided(authority, used["token"]) == "accepted"
    assert decided(authority, many["token"]) == ("accepted" if key is None else "duplicate")
    for door in (0, 1):
        assert jtis & listed(authority, client, door) == {unused["jti"], many["jti"]}


def test_a_handle_is_as_good_as_a_token_at_once_and_stands_nowhere(authority: Authority, client: Client) -> None:
    told = issued(authority, client, reference=True, params={"region": "eu"})
    handle, digest = told["token"], hashlib.sha256(told["token"].encode()).hexdigest()
    assert handle.startswith("ref:")
    assert told["token_fingerprint"] == digest[:32]
    assert decided(authority, handle) == "accepted"
    assert authority.ask(client, "/oauth/introspect", token=handle).json()["jti"] == told["jti"]
    deployment = authority.deployment
    for topic in ("grants", "issuance", "audit", "receipts", "jobs"):
        for read in reader.read_topic(deployment.bootstrap, deployment.prefix + topic).records:
            assert handle[4:].encode() not in (read.key or b"") + (read.value or b"")
    assert all(handle not in door.log_file.read_text() for door in deployment.doors)
    revoked = {"selector": "jti", "value": told["jti"]}
    deadline = time.monotonic() + 10
    while httpx.post(f"{authority.url}/v1/revocations", json=revoked, auth=client).status_code != 201:
        assert time.monotonic() < deadline
    until("token_revoked", authority, handle)


def test_a_bound_token_dies_with_its_object_and_is_listed_no_longer(
    authority: Authority, client: Client, bound_job: str
) -> None:
    names = {"jobs": [bound_job], "bound_to": f"job/{bound_job}"}
    token, handle = issued(authority, client, **names), issued(authority, client, **names, reference=True)
    free = issued(authority, client)
    both = {token["jti"], handle["jti"]}
    deadline = time.monotonic() + 10
    while not both | {free["jti"]} <= listed(authority, client, door=1):
        assert time.monotonic() < deadline
    for each in (token, handle):
        until("accepted", authority, each["token"], bound_job)
    authority.tollgate("jobs", "remove", bound_job)
    for each in (token, handle):
        until("bound_object_gone", authority, each["token"], bound_job)
    authority.apply("jobs", f'[jobs."{bound_job}"]\n')  # under its name, and another
    for door in (0, 1):
        deadline = time.monotonic() + 10
        while both & listed(authority, client, door):
            assert time.monotonic() < deadline
        assert free["jti"] in listed(authority, client, door)


def test_only_who_may_issue_is_told_whether_the_object_is_there(
    authority: Authority, client: Client, bound_job: str
) -> None:
    missing = ask(authority, client, bound_to="job/reports/never")
    assert (missing.status_code, missing.json()["reason"], missing.json()["denial"]) == (
        403, "issue_denied", "bound_object_gone",
    )  # fmt: skip
    assert authority.issuance(client[0])[-1]["reason"] == "bound_object_gone"
    answers = [
        ask(authority, client, jobs=["payroll/run"], bound_to=f"job/{name}") for name in (bound_job, "reports/never")
    ]
    assert [answer.json()["denial"] for answer in answers] == ["job_not_granted"] * 2
    assert answers[0].text == answers[1].text


def test_the_command_reads_no_object_for_who_has_not_proved_to_be_somebody(
    authority: Authority, client: Client, bound_job: str
) -> None:
    secret = authority.deployment.directory / "client.secret"
    words = ("token", "issue", "--as", client[0], "--secret-file", str(secret), "--ttl", "5m", "--bound-to")
    said = {}
    for shown in (client[1][:-3] + "AAA", client[1]):
        secret.write_text(shown)
        for name in (bound_job, "reports/never"):
            said[shown == client[1], name] = tollgate(
                authority.deployment.env, *words, f"job/{name}", "--job", bound_job
            )
    wrong = [said[False, name] for name in (bound_job, "reports/never")]
    assert [each.code for each in wrong] == [4, 4]
    assert wrong[0].err == wrong[1].err
    assert said[True, "reports/never"].code == 4
    assert "bound_object_gone" in said[True, "reports/never"].err
    assert authority.issuance(client[0])[-1]["reason"] == "bound_object_gone"
    assert said[True, bound_job].code == 0
    until("accepted", authority, said[True, bound_job].out.strip(), bound_job)
