"""Tokens taken back, from outside: what holds when something fails meanwhile."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from tests.api.authorities import Authority, error
from tests.api.conftest import Deployment
from tests.api.test_authority import authority
from tests.cli.program import tollgate
from tests.support import reader
from tests.support.doors import Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
__all__ = ["authority"]


def until(ask: Callable[[], httpx.Response], status: int, within_s: float = 15) -> httpx.Response:
    deadline = time.monotonic() + within_s
    while (answer := ask()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    return answer


def limit(deployment: Deployment, topic: str, max_bytes: int | None) -> None:
    """Of a record batch of the topic; None: as it was made."""
    operation = AlterConfigOpType.DELETE if max_bytes is None else AlterConfigOpType.SET
    entry = ConfigEntry("max.message.bytes", str(max_bytes or ""), incremental_operation=operation)
    named = ConfigResource(ConfigResource.Type.TOPIC, deployment.prefix + topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap})
    for done in admin.incremental_alter_configs([named]).values():
        done.result()


@pytest.fixture
def one(authority: Authority) -> tuple[str, str]:
    client = authority.identity()
    authority.token(client)
    return client


@pytest.fixture
def narrow(deployment: Deployment) -> Iterator[None]:
    """A revocations topic that takes no record of ours, until `limit` says otherwise."""
    limit(deployment, "revocations", 100)
    try:
        yield
    finally:
        limit(deployment, "revocations", None)


def test_a_door_whose_write_failed_issues_and_revokes_again_once_kafka_takes_it(
    authority: Authority, one: tuple[str, str], narrow: None
) -> None:
    body = {"selector": "subject", "value": one[0]}

    def revoke() -> httpx.Response:
        return httpx.post(f"{authority.url}/v1/revocations", json=body, auth=one, timeout=40)

    refused = until(revoke, 503)
    assert refused.json()["reason"] == "outcome_unknown"
    assert refused.headers["retry-after"]
    until(lambda: authority.ask(one, scope=f"job:{JOB}"), 200)
    limit(authority.deployment, "revocations", None)
    until(revoke, 201)
    assert [revoke().status_code for _ in range(3)] == [201] * 3
    assert authority.ask(one, scope=f"job:{JOB}").status_code == 200
    until(lambda: httpx.get(f"{authority.deployment.doors[0].internal_url}/readyz"), 200)


def test_a_reason_is_a_short_sentence_and_never_a_token(authority: Authority, one: tuple[str, str]) -> None:
    token = authority.token(one)
    for reason in (token, f"lost: {one[1]}", "x" * 161, "two\nlines"):
        body = {"selector": "subject", "value": one[0], "reason": reason}
        refused = httpx.post(f"{authority.url}/v1/revocations", json=body, auth=one)
        assert (refused.status_code, refused.json()["reason"]) == (400, "request_malformed")
        assert token not in refused.text
    said = tollgate(authority.deployment.env, "token", "revoke", "--subject", one[0], "--reason", "x" * 161)
    assert (said.code, "--reason: the reason is longer" in said.err) == (2, True)
    there = reader.read_topic(authority.deployment.bootstrap, f"{authority.deployment.prefix}revocations").records
    assert not [each for each in there if one[0].encode() in (each.key or b"")]


def test_whoever_has_the_old_secret_keeps_no_token_past_a_rotation(authority: Authority, one: tuple[str, str]) -> None:
    taken: list[str] = []

    def steal() -> None:
        with httpx.Client(base_url=authority.url, auth=one, timeout=40) as thief:
            form = {"grant_type": "client_credentials", "scope": f"job:{JOB}", "uses": "many", "lifetime_s": "3600"}
            while (answer := thief.post("/oauth/token", data=form)).status_code == 200:
                taken.append(answer.json()["access_token"])

    stealing = threading.Thread(target=steal)
    stealing.start()
    authority.tollgate("identities", "rotate", one[0], "--revoke-tokens")
    stealing.join(60)
    assert len(taken) > 1
    for token in taken[:1] + taken[-3:]:
        decided = Emitter(authority.url, token).decided(JOB, idempotency_key=secrets.token_hex(4))
        assert decided["reason"] == "token_revoked"


@pytest.mark.parametrize("how", [("disable", "--revoke-tokens"), ("remove",)])
def test_what_an_identity_was_given_to_speak_for_another_goes_with_it(
    authority: Authority, one: tuple[str, str], how: tuple[str, ...]
) -> None:
    agent = authority.identity()
    allow = f'[{{ jobs = ["{JOB}"], subjects = ["{one[0]}"], max_lifetime_s = 3600 }}]'
    authority.apply("policy", f"[roles.{agent[0].replace('svc:', 'r')}]\nallow = {allow}\n")
    form = {"scope": f"job:{JOB}", "uses": "many", "subject": one[0]}
    theirs = until(lambda: authority.ask(agent, **form), 200).json()["access_token"]
    mine = authority.token(one, uses="many")
    assert Emitter(authority.url, theirs).decided(JOB, idempotency_key="a")["outcome"] == "accepted"
    authority.tollgate("identities", how[0], agent[0], *how[1:])
    assert Emitter(authority.url, theirs).decided(JOB, idempotency_key="b")["reason"] == "token_revoked"
    assert Emitter(authority.url, mine).decided(JOB, idempotency_key="c")["outcome"] == "accepted"
    # Who is disabled is nobody, whatever it asks for.
    if how[0] == "disable":
        for path in ("/oauth/token", "/oauth/introspect", "/oauth/revoke"):
            assert error(authority.ask(agent, path, token=mine))[:2] == (401, "invalid_client")
        assert httpx.get(f"{authority.url}/v1/tokens", auth=agent).status_code == 401
