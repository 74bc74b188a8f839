"""Receipts, their stream and the dry run, as their emitters and others ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.api.conftest import STRICT, Deployment
from tests.cli.program import tollgate
from tests.support import reader
from tests.support.doors import DoorProcess, Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
Make = Callable[..., Emitter]


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


# ── one receipt ──


def test_every_instance_tells_the_same_receipt_and_it_is_the_one_on_the_topic(
    deployment: Deployment, emitter: Make
) -> None:
    told = emitter().decided(JOB, {"n": 1})
    for door in range(2):
        assert emitter(door=door).receipt(told["trigger_id"]) == told
    (said,) = tollgate(deployment.env, "receipts", "--wait", told["trigger_id"]).rows
    assert said == told


def test_a_receipt_of_another_identity_of_nobody_and_none_at_all_are_told_alike(
    deployment: Deployment, emitter: Make
) -> None:
    theirs = emitter().decided(JOB)["trigger_id"]
    nobodys = emitter("garbage").decided(JOB)["trigger_id"]
    other = emitter(deployment.issuer.token(sub="service:other"))
    answers = [other.get(f"/v1/receipts/{each}") for each in (theirs, nobodys, "0-999999999", "77-1", "x", "0-01")]
    assert {reason(answer) for answer in answers} == {(404, "receipt_unknown")}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"exp": 1_600_000_600, "iat": 1_600_000_000, "nbf": 1_600_000_000}, "token_expired"), ({"sub": "u:ann"}, "subject_not_allowed"),
     ({"aud": "tollgate:other."}, "audience_mismatch"), ({"iss": "https://nobody.test"}, "issuer_untrusted")],
)  # fmt: skip
def test_who_reads_must_be_somebody_now(
    deployment: Deployment, emitter: Make, changed: dict[str, Any], code: str
) -> None:
    for answer in (
        emitter(deployment.issuer.token(**changed)).get("/v1/receipts/0-0"),
        emitter(deployment.issuer.token(**changed)).get("/v1/receipts/stream"),
        emitter(deployment.issuer.token(**changed)).post("/v1/explain", json={}),
    ):
        assert reason(answer) == (401, code)


def test_a_receipt_older_than_what_is_at_hand_is_found_on_the_topic(deployment: Deployment, emitter: Make) -> None:
    early = emitter().decided(JOB, {"early": True})
    token = deployment.issuer.token()
    # More receipts of everyone than an instance keeps.
    tollgate(deployment.env | {"TOLLGATE_TOKEN": token}, "emit", JOB, "--count", "4000", "--wait", timeout_s=120)
    small = DoorProcess("small", deployment.directory, deployment.settings_for(serve__receipts_kept="1000"))
    small.start()
    try:
        small.wait_ready()
        client = Emitter(small.url, token)
        assert client.receipt(early["trigger_id"]) == early
        client.close()
    finally:
        assert small.stop() == 0


# ── the stream ──


@contextmanager
def stream(
    deployment: Deployment, token: str, door: int = 0, **headers: str
) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The events of a stream: id and receipt."""
    named = {"authorization": f"Bearer {token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{deployment.doors[door].url}/v1/receipts/stream"
    with httpx.stream("GET", url, headers=named, timeout=40) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _events(answer)


def _events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    told: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, text = line.partition(": ")
            told[name] = text
        else:
            if "id" in told:
                yield told["id"], json.loads(told.get("data", "{}"))
            told = {}


def test_a_stream_tells_an_emitter_of_its_own_triggers_and_of_no_others(deployment: Deployment, emitter: Make) -> None:
    token = deployment.issuer.token(sub="service:streaming")
    with stream(deployment, token) as events:
        next(events)  # where it begins
        emitter().decided(JOB)
        mine = [emitter(token, door=number % 2).decided(JOB, {"n": number}) for number in range(4)]
        refused = emitter(token).decided(JOB, {"t": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"})
        assert refused["emitter"] is None  # parsed before it was verified: nobody's
        mine.append(emitter(token).decided("reports/other"))
        assert [next(events)[1] for _ in mine] == mine


def test_a_stream_resumes_where_it_was_cut_off_on_any_instance(deployment: Deployment, emitter: Make) -> None:
    token = deployment.issuer.token(sub="service:resuming")
    with stream(deployment, token) as events:
        first_id, _ = next(events)
        before = [emitter(token).decided(JOB, {"n": number}) for number in range(3)]
        seen = [next(events) for _ in before]
        assert [receipt for _, receipt in seen] == before
    missed = [emitter(token).decided(JOB, {"n": number}) for number in range(3, 8)]
    by_id = lambda rows: sorted(rows, key=lambda row: row["trigger_id"])  # noqa: E731
    with stream(deployment, token, door=1, last_event_id=seen[-1][0]) as events:
        next(events)
        assert by_id(next(events)[1] for _ in missed) == by_id(missed)
        live = emitter(token).decided(JOB, {"n": 9})
        assert next(events)[1] == live
    with stream(deployment, token, last_event_id=first_id) as events:
        next(events)
        everything = [*before, *missed, live]
        assert by_id(next(events)[1] for _ in everything) == by_id(everything)


@pytest.mark.parametrize("event_id", ["x", "1.2", "1.2.3.4", "1..2", "-1.0.0", "1e3.0.0"])
def test_an_event_id_that_was_never_given_is_refused(emitter: Make, event_id: str) -> None:
    assert reason(emitter().get("/v1/receipts/stream", last_event_id=event_id)) == (400, "event_id_malformed")


def test_a_stream_ends_when_its_token_is_revoked(deployment: Deployment) -> None:
    token = deployment.issuer.token(sub="service:revoked")
    jti = deployment.issuer.claims_of(token)["jti"]
    with stream(deployment, token) as events:
        next(events)
        said = tollgate(deployment.env, "token", "revoke", "--issuer", deployment.issuer.issuer, "--jti", jti)
        assert said.code == 0, said.err
        assert list(events) == []
    answer = httpx.get(f"{deployment.doors[0].url}/v1/receipts/stream", headers={"authorization": f"Bearer {token}"})
    assert reason(answer) == (401, "token_revoked")


# ── the dry run ──


def test_the_dry_run_says_what_would_become_of_a_trigger_and_writes_nothing(
    deployment: Deployment, emitter: Make
) -> None:
    def written() -> int:
        return sum(reader.read_topic(deployment.bootstrap, deployment.prefix + "triggers").highs.values())

    client, before = emitter(deployment.issuer.token("once", job=STRICT)), written()

    def told(params: dict[str, Any], job: str = STRICT) -> tuple[str, str | None]:
        answer = client.post("/v1/explain", json={"job": job, "params": params})
        assert answer.status_code == 200, answer.text
        explanation = answer.json()
        failed = [check["check"] for check in explanation["checks"] if check["result"] == "fail"]
        assert failed == [explanation["reason"]] * (explanation["outcome"] == "rejected")
        return explanation["outcome"], explanation["reason"]

    assert told({"region": "eu"}) == ("accepted", None)
    assert told({"region": "mars"}) == ("rejected", "payload_invalid")
    assert told({}, "reports/other") == ("rejected", "job_not_authorized")
    assert written() == before
    run_id = client.decided(STRICT, {"region": "eu"})["run_id"]
    assert told({"region": "eu"}) == ("duplicate", None)
    assert told({"region": "us"}) == ("rejected", "token_already_used")
    assert client.post("/v1/explain", json={"job": STRICT, "params": {"region": "eu"}}).json()["run_id"] == run_id


def test_the_dry_run_shows_nothing_of_a_job_that_a_receipt_would_not(deployment: Deployment, emitter: Make) -> None:
    token = deployment.issuer.token(job=STRICT)
    answer = emitter(token).post("/v1/explain", json={"job": STRICT, "params": {"region": "eu"}})
    assert answer.json()["outcome"] == "accepted"
    assert "nobody's business" not in answer.text
    assert token not in answer.text


def test_a_dry_run_with_an_unknown_member_or_a_second_token_is_refused_as_a_trigger_would_be(emitter: Make) -> None:
    for members, code in (({"jobs": JOB}, "envelope_malformed"), ({"token": "eyJ.e30.c2ln"}, "token_ambiguous")):
        told = emitter().post("/v1/explain", json=members).json()
        assert (told["outcome"], told["reason"]) == ("rejected", code)
