"""Exchanged tokens, from outside: who acts for whom is told everywhere, and what comes of a token is never more than it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import jwt
import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.api.authorities import ASSERTION_TYPE, Authority, error, trusted
from tests.api.conftest import LANES, Deployment
from tests.support import reader
from tests.support.doors import Emitter
from tests.support.issuer import JOB
from tests.support.jose import claims_of

pytestmark = pytest.mark.broker
JWT = "urn:ietf:params:oauth:token-type:jwt"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
CHAIN_MAX = 4
SCHEMAS = Path(__file__).parents[2] / "schemas"
OTHER = "reports/other"
Client = tuple[str, str]


@pytest.fixture(scope="module")
def authority(deployment: Deployment) -> Authority:
    return trusted(deployment)


def until(reason: str, url: str, *tokens: str) -> None:
    """Present the tokens until each is refused for this."""
    deadline = time.monotonic() + 20
    for token in tokens:
        emitter = Emitter(url, token)
        while emitter.decided(JOB)["reason"] != reason:
            assert time.monotonic() < deadline
        emitter.close()


class Family:
    """An identity, and others that may have tokens for it."""

    def __init__(self, authority: Authority, actors: int) -> None:
        self.authority = authority
        self.owner: Client = authority.identity("reports/*")
        authority.token(self.owner)
        self.actors: list[Client] = [self._actor() for _ in range(actors)]

    def _actor(self) -> Client:
        name, secret = self.authority.identity("reports/*")
        self.authority.apply(
            "policy",
            f"[roles.{name.replace('svc:', 'r')}]\n"
            f'allow = [{{ jobs = ["reports/*"], subjects = ["{self.owner[0]}"], max_lifetime_s = 3600 }}]\n',
        )
        return name, secret

    def handed(self, **form: str) -> str:
        return self.authority.token(self.owner, **({"uses": "many", "lifetime_s": "600"} | form))

    def exchanged(self, actor: Client, token: str, **form: str) -> httpx.Response:
        return self.authority.ask(actor, grant_type=EXCHANGE, subject_token=token, subject_token_type=JWT, **form)

    def child(self, actor: Client, token: str, **form: str) -> str:
        """A webhook token for what another one is for, once the actor's rights are known everywhere."""
        form = {"uses": "many", "lifetime_s": "600"} | form
        deadline = time.monotonic() + 20
        while (answer := self.exchanged(actor, token, **form)).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.2)
        text: str = answer.json()["access_token"]
        return text


@pytest.fixture(scope="module")
def family(authority: Authority) -> Iterator[Family]:
    return Family(authority, CHAIN_MAX + 1)


def test_who_acts_for_whom_stands_in_the_token_in_introspection_and_in_the_audit(family: Family) -> None:
    first, second = family.actors[:2]
    owner, token = family.owner[0], family.child(second, family.child(first, family.handed()))
    act = {"sub": second[0], "act": {"sub": first[0]}}
    assert (claims_of(token)["sub"], claims_of(token)["act"]) == (owner, act)
    seen = family.authority.ask(first, "/oauth/introspect", token=token).json()
    assert (seen["sub"], seen["act"]) == (owner, act)

    receipt = Emitter(family.authority.url, token).decided(JOB)
    assert receipt["outcome"] == "accepted"
    chain = [second[0], first[0]]
    for identity in (owner, first[0], second[0]):  # whoever had a part in it finds it
        rows = [json.loads(line) for line in family.authority.tollgate("audit", "--identity", identity).splitlines()]
        (row,) = [row for row in rows if row["trigger_id"] == receipt["trigger_id"]]
        assert (row["subject"], row["actors"]) == (owner, chain)
    story = json.loads(family.authority.tollgate("audit", "--run", receipt["run_id"], "-o", "json"))
    assert (story["emitter"]["subject"], story["emitter"]["actors"]) == (owner, chain)
    told = family.authority.tollgate("audit", "--run", receipt["run_id"], "-o", "table")
    assert f"{second[0]}, acting for {first[0]}, acting for {owner}" in told
    issued = [each for each in family.authority.issuance(second[0]) if each["event"] == "issued"]
    assert (issued[-1]["subject"], issued[-1]["actors"]) == (owner, chain)

    own = Emitter(family.authority.url, family.handed()).decided(JOB)
    rows = [json.loads(line) for line in family.authority.tollgate("audit", "--identity", owner).splitlines()]
    assert "actors" not in next(row for row in rows if row["trigger_id"] == own["trigger_id"])


def test_a_token_of_a_subject_that_no_entry_names_is_not_exchanged(family: Family) -> None:
    authority, agent, other = family.authority, family.authority.identity("reports/*"), Family(family.authority, 0)
    allow = f'{{ jobs = ["reports/*"], exchanged_subjects = ["{family.owner[0]}"], max_lifetime_s = 3600 }}'
    authority.apply("policy", f"[roles.{agent[0].replace('svc:', 'r')}]\nallow = [{allow}]\n")
    token = family.child(agent, family.handed())  # whom it names, as soon as that is known
    assert claims_of(token)["sub"] == family.owner[0]
    refused = family.exchanged(agent, other.handed(), uses="many")
    assert error(refused) == (400, "invalid_request", "subject_not_granted")
    denied = authority.issuance(agent[0])[-1]
    assert (denied["reason"], denied["subject"], denied["jobs"]) == ("subject_not_granted", other.owner[0], [JOB])


def test_a_chain_of_four_is_the_longest(family: Family) -> None:
    token = family.handed()
    for actor in family.actors[:CHAIN_MAX]:
        token = family.child(actor, token)
    assert Emitter(family.authority.url, token).decided(JOB)["outcome"] == "accepted"
    refused = family.exchanged(family.actors[CHAIN_MAX], token)
    assert error(refused) == (400, "invalid_request", "delegation_too_deep")
    act: dict[str, Any] = {"sub": "svc:0"}
    for number in range(1, CHAIN_MAX + 1):
        act = {"sub": f"svc:{number}", "act": act}
    foreign = family.authority.deployment.issuer.token(act=act)  # whoever else signs one that is longer
    assert Emitter(family.authority.url, foreign).decided(JOB)["reason"] == "delegation_too_deep"


def test_a_disabled_actor_starts_nothing_for_anyone_and_its_subject_goes_on(family: Family) -> None:
    actor = family.actors[0]
    handed = family.handed()
    token = family.child(actor, handed)
    assert Emitter(family.authority.url, token).decided(JOB)["outcome"] == "accepted"
    family.authority.tollgate("identities", "disable", actor[0])
    try:
        until("identity_disabled", family.authority.url, token)
        assert Emitter(family.authority.url, handed).decided(JOB)["outcome"] == "accepted"
    finally:
        family.authority.tollgate("identities", "enable", actor[0])


def started(family: Family, *tokens: str) -> list[str]:
    return [Emitter(family.authority.url, token).decided(JOB)["outcome"] for token in tokens]


def test_what_a_token_was_exchanged_for_dies_with_it_and_not_the_other_way_round(family: Family) -> None:
    authority, (first, second) = family.authority, family.actors[:2]
    handed, other = family.handed(), family.handed()
    child = family.child(first, handed)
    grandchild, sibling, cousin = (family.child(second, each) for each in (child, handed, other))
    everyone = (handed, child, grandchild, sibling, cousin, other)
    assert started(family, *everyone) == ["accepted"] * 6

    assert authority.ask(first, "/oauth/revoke", token=child).status_code == 200
    until("token_revoked", authority.url, child, grandchild)
    assert started(family, handed, sibling, cousin, other) == ["accepted"] * 4
    assert authority.ask(family.owner, "/oauth/revoke", token=handed).status_code == 200
    until("token_revoked", authority.url, handed, sibling)
    assert started(family, cousin, other) == ["accepted"] * 2
    for token, active in ((sibling, False), (cousin, True)):
        assert authority.ask(second, "/oauth/introspect", token=token).json()["active"] is active
    url = f"{authority.url}/v1/tokens"
    rows = httpx.get(url, params={"revoked": "true"}, auth=second).json()["tokens"]
    live = {row["jti"] for row in httpx.get(url, auth=second).json()["tokens"]}
    assert claims_of(cousin)["jti"] in live
    assert live.isdisjoint(claims_of(token)["jti"] for token in (grandchild, sibling))
    marked = {row["jti"]: row["revoked"] for row in rows}
    assert [marked[claims_of(token)["jti"]] for token in (grandchild, sibling, cousin)] == [True, True, False]
    assert error(family.exchanged(second, handed)) == (400, "invalid_request", "token_revoked")


def test_whoever_is_revoked_loses_what_it_acts_with(family: Family) -> None:
    first, second = family.actors[:2]
    handed = family.handed()
    child = family.child(first, handed)
    grandchild, untouched = family.child(second, child), family.child(second, handed)
    assert started(family, child, grandchild, untouched) == ["accepted"] * 3
    family.authority.tollgate("token", "revoke", "--subject", first[0])
    until("token_revoked", family.authority.url, child, grandchild)
    assert started(family, handed, untouched) == ["accepted"] * 2
    family.authority.tollgate("revocations", "lift", "subject", first[0])


def test_what_a_handle_was_exchanged_for_dies_with_the_handle(family: Family) -> None:
    file = family.authority.deployment.directory / "handle"
    file.write_text(
        family.authority.tollgate(
            "token",
            "issue",
            "--job",
            JOB,
            "--ttl",
            "10m",
            "--uses",
            "many",
            "--subject",
            family.owner[0],
            "--reference",
        )
    )
    child = family.child(family.actors[0], file.read_text())
    assert started(family, file.read_text(), child) == ["accepted"] * 2
    family.authority.tollgate("token", "revoke", "--token-file", str(file))
    until("token_revoked", family.authority.url, file.read_text(), child)


def more_than(given: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """In what an exchanged token's claims say more than those of the one it came of."""
    (had,), (has,) = given["authorization_details"], made["authorization_details"]
    fixed, digest = had.get("params", {}), had.get("params_sha256")
    more = {
        "whom it is for": any(made[name] != given[name] for name in ("iss", "aud", "sub", "org_id")),
        "class": given["typ"] != made["typ"],
        "jobs": not set(has["jobs"]) <= set(had["jobs"]),
        "actions": not set(has["actions"]) <= set(had["actions"]),
        "params": not has.get("params", {}).items() >= fixed.items(),
        "params beside a digest": digest is not None and has.get("params", {}) != fixed,
        "digest": digest not in (None, has.get("params_sha256")),
        "lifetime": made["exp"] > given["exp"],
        "uses": given["uses"] != "many",
        "key": given.get("idempotency_key") not in (None, made.get("idempotency_key")),
        "binding": had.get("bound_to") != has.get("bound_to"),
        "what it came of": [each["jti"] for each in made["parents"]]
        != [given["jti"], *(each["jti"] for each in given.get("parents", ()))],
    }
    return [name for name, is_more in more.items() if is_more]


def said(token: str) -> dict[str, Any]:
    return claims_of(token) | {"typ": jwt.get_unverified_header(token)["typ"]}


@st.composite
def asked_for(draw: st.DrawFn) -> dict[str, str]:
    """A form, of which most things are left out."""
    grant: dict[str, Any] = {"type": "job_trigger", "jobs": draw(st.lists(st.sampled_from([JOB, OTHER]), min_size=1))}
    grant |= draw(st.fixed_dictionaries({}, optional={
        "params": st.sampled_from([{}, {"region": "eu"}, {"region": "us"}, {"n": 1}]),
        "params_sha256": st.sampled_from(["0" * 64, "1" * 64]), "actions": st.just(["106-Trigger"]),
    }))  # fmt: skip
    form: dict[str, str] = draw(st.fixed_dictionaries({}, optional={
        "uses": st.sampled_from(["once", "many"]), "lifetime_s": st.sampled_from(["60", "3000", "86400"]),
        "idempotency_key": st.sampled_from(["k1", "k2"]), "subject": st.sampled_from(["service:ci", "svc:nobody"]),
        "authorization_details": st.just(json.dumps([grant])),
    }))  # fmt: skip
    return form


@pytest.fixture(scope="module")
def low(family: Family) -> list[str]:
    """Webhook tokens of which each may little in another way; and one that came of another."""
    grants: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"jobs": [JOB, OTHER]}, {}),
        ({"jobs": [JOB], "params": {"region": "eu"}}, {}),
        ({"jobs": [JOB], "params_sha256": "0" * 64}, {"idempotency_key": "k1"}),
    ]
    made = [
        family.authority.ask(
            family.owner, authorization_details=json.dumps([{"type": "job_trigger"} | grant]), uses="many",
            lifetime_s="900", **form,
        ).json()["access_token"]
        for grant, form in grants
    ]  # fmt: skip
    return [*made, family.child(family.actors[0], made[0], lifetime_s="300")]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 3), form=asked_for())
def test_whatever_is_asked_for_a_token_is_never_exchanged_for_more(
    family: Family, low: list[str], number: int, form: dict[str, str]
) -> None:
    answer = family.exchanged(family.actors[1], low[number], **form)
    event(str(answer.status_code))
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert more_than(said(low[number]), said(answer.json()["access_token"])) == []


def test_a_token_is_no_credential_to_get_another_with(family: Family, low: list[str]) -> None:
    """Neither as a secret, an assertion, a bearer or a refresh token, by a client that may nothing itself."""
    authority, token = family.authority, low[0]
    for credential in ({"client_id": family.owner[0], "client_secret": token},
                       {"client_assertion": token, "client_assertion_type": ASSERTION_TYPE}):  # fmt: skip
        answer = authority.ask(None, scope=f"job:{JOB}", **credential)
        assert error(answer) == (401, "invalid_client", "client_unauthenticated")
    bearer = {"authorization": f"Bearer {token}"}
    wanted = {"jobs": [JOB], "lifetime_s": 60}
    for path, body in (("/v1/tokens", wanted), ("/v1/revocations", {"selector": "subject", "value": family.owner[0]})):
        answer = httpx.post(authority.url + path, json=body, headers=bearer)
        assert (answer.status_code, answer.json()["reason"]) == (403, "wrong_client_class")
    assert httpx.get(f"{authority.url}/v1/tokens", headers=bearer).status_code == 403
    refreshed = authority.ask(family.owner, grant_type="refresh_token", refresh_token=token)
    assert error(refreshed)[:2] == (400, "unsupported_grant_type")
    poor = authority.identity("reports/uncertain")
    authority.apply("jobs", '[jobs."reports/uncertain"]\n')
    deadline = time.monotonic() + 20
    while authority.ask(poor, scope="job:reports/uncertain").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    refused = family.exchanged(poor, token, scope=f"job:{JOB}")
    assert error(refused) == (400, "invalid_scope", "job_not_granted")
    assert error(authority.ask(poor, scope=f"job:{JOB}", subject=family.owner[0]))[2] == "job_not_granted"


def test_exchanged_tokens_and_every_record_that_they_leave_fit_their_schemas(family: Family) -> None:
    authority = family.authority
    deployment, tokens = authority.deployment, [family.handed()]
    for actor in family.actors[:CHAIN_MAX]:
        tokens.append(family.child(actor, tokens[-1]))
    bound = {"jobs": [JOB], "lifetime_s": 60, "uses": "many", "bound_to": f"job/{JOB}"}
    tokens.append(httpx.post(f"{authority.url}/v1/tokens", json=bound, auth=family.owner).json()["token"])
    for token in tokens:
        schema("trigger-token").validate(claims_of(token))
    emitter = Emitter(authority.url, tokens[-2])
    seen = [emitter.receipt(trigger_id)["outcome"] for trigger_id in everywhere(deployment, tokens[-2])]
    assert sorted(seen) == ["accepted"] + ["duplicate"] * (LANES - 1)

    def read(topic: str) -> list[dict[str, Any]]:
        there = reader.read_topic(deployment.bootstrap, deployment.prefix + topic).records
        return [json.loads(record.value or b"") for record in there]

    audits, handoffs, issued = read("audit"), read("handoffs"), read("issuance")
    for audit in audits:
        schema("audit").validate(audit)
    for handoff in handoffs:
        schema("handoff").validate(handoff)
    for record in issued:
        schema("issued" if record["event"] == "issued" else "issue-denied").validate(record)
    assert any(len(row.get("actors", ())) == CHAIN_MAX for audit in audits for row in audit["presentations"])
    assert any(handoff["claims"]["delegation"] for handoff in handoffs)
    assert any(len(record.get("parents", ())) == CHAIN_MAX for record in issued)
    assert any(record.get("bound_to") for record in issued)


def everywhere(deployment: Deployment, token: str) -> list[str]:
    """One request, sent to every lane: all but one hand it over. Returns the triggers' ids."""
    placed: list[Any] = []
    producer = Producer({"bootstrap.servers": deployment.bootstrap, "acks": "all"})
    value = json.dumps({"job": JOB, "token": token, "idempotency_key": secrets.token_hex(8)})
    for lane in range(LANES):
        producer.produce(
            f"{deployment.prefix}triggers", value, partition=lane, on_delivery=lambda _, message: placed.append(message)
        )
    assert producer.flush(30) == 0
    return [f"{message.partition()}-{message.offset()}" for message in placed]


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.v1.schema.json").read_text()))
