"""What all tests of the deployment left behind, hence last in the directory: no token, handle or secret but on triggers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from app.stream.topics import Topic
from tests.api.authorities import Authority, signing, trusted
from tests.api.conftest import Deployment
from tests.support.canaries import Canaries, of_record
from tests.support.doors import PLAIN, Emitter
from tests.support.issuer import JOB
from tests.support.reader import read_topic

pytestmark = pytest.mark.broker


@pytest.fixture
def made(deployment: Deployment) -> list[str]:
    """A token of each sort, a handle and a secret, each shown wherever it can be, and where it has no business."""
    authority = trusted(deployment)
    client = authority.identity()
    token, one_shot = authority.token(client, uses="many"), authority.token(client)
    with httpx.Client(base_url=authority.url, auth=client, timeout=40, **PLAIN) as http:
        wanted = {"jobs": [JOB], "lifetime_s": 600, "uses": "many", "reference": True}
        handle = http.post("/v1/tokens", json=wanted).json()["token"]
        shown = [token, one_shot, handle, client[1], deployment.issuer.token("once")]
        for text in shown:
            for path in ("/oauth/introspect", "/oauth/revoke", "/oauth/token"):
                http.post(path, data={"token": text, "grant_type": text, "scope": text, "client_id": text})
            http.post("/oauth/introspect", data={"token": text})
            http.post("/v1/tokens", json=wanted | {"jobs": [text], "subject": text})
            http.post("/v1/tokens", json=wanted | {"params": {"region": text}})
            http.post("/v1/revocations", json={"selector": "jti", "value": text})
            http.post("/v1/revocations", json={"selector": "subject", "value": client[0], "reason": text})
            http.get("/v1/tokens", params={"job": text, "subject": text, "class": text})
            authority.ask((text, "x"), token=text)
            misuse(authority, text)
    for text in (token, one_shot, handle):
        emitter = Emitter(authority.url, text)
        emitter.decided(JOB, {"n": 1})
        emitter.decided(JOB, {"n": 1, "text": text})
        emitter.trigger(JOB, tollgate_correlation_id=text, idempotency_key=text, prefer="wait=25")
        emitter.close()
    name, _ = authority.identity(secret=False)
    assertion = signing(authority, name)
    for _ in range(2):
        proof = assertion()
        authority.ask(None, scope=f"job:{JOB}", **proof)
        shown.append(proof["client_assertion"])
        misuse(authority, proof["client_assertion"])
    return shown


def misuse(authority: Authority, text: str) -> None:
    emitter = Emitter(authority.url, text)
    emitter.get("/v1/receipts/0-0")
    emitter.get(f"/v1/receipts/{text}")
    emitter.get(f"/v1/{text}")
    emitter.get("/v1/me")
    emitter.get("/v1/host")
    emitter.post("/v1/explain", json={"job": JOB, "token": text})
    emitter.post(f"/v1/triggers/{text}", content=text.encode())
    emitter.post("/v1/triggers", content=b"{}", headers={"content-type": text})
    emitter.get("/v1/receipts/stream", last_event_id=text)
    emitter.close()


def outputs(deployment: Deployment) -> Iterator[tuple[str, list[bytes]]]:
    for topic in Topic:
        if topic is not Topic.TRIGGERS:
            name = topic.named(deployment.prefix)
            yield name, [of_record(each) for each in read_topic(deployment.bootstrap, name, "read_uncommitted").records]
    for log in deployment.directory.rglob("*.log"):
        yield log.name, [log.read_bytes()]
    yield "metrics of the gate", [httpx.get(deployment.gate_metrics, **PLAIN).content]
    for door in deployment.doors:
        for path in ("/metrics", "/readyz", "/livez"):
            yield f"{path} of {door.name}", [httpx.get(door.internal_url + path, **PLAIN).content]


def test_no_token_handle_or_secret_is_on_a_topic_but_triggers_in_a_log_or_in_the_metrics(
    deployment: Deployment, made: list[str], canaries: Canaries
) -> None:
    deadline, there = time.monotonic() + 60, set[str]()
    triggers = read_topic(deployment.bootstrap, Topic.TRIGGERS.named(deployment.prefix)).records
    sent = {f"{each.partition}-{each.offset}" for each in triggers}
    while not sent <= there:
        assert time.monotonic() < deadline
        receipts = read_topic(deployment.bootstrap, Topic.RECEIPTS.named(deployment.prefix)).records
        there = {(each.key or b"").decode() for each in receipts}
    canaries.note(*map(of_record, triggers))
    for text in made:  # the control: all of them are looked for, and where they are they are found
        assert canaries.found_in(text.encode())
    assert canaries.kinds.keys() >= {"token", "handle", "client secret"}
    assert sum(bool(canaries.found_in(of_record(each))) for each in triggers) > 3
    places = dict(outputs(deployment))
    assert all(places[name] for name in (f"{deployment.prefix}issuance", f"{deployment.prefix}registry"))
    assert len([name for name in places if name.endswith(".log")]) >= 3
    assert canaries.leaks(places) == {}
