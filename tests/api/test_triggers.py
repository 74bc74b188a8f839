"""A trigger by HTTP and the same by Kafka: the same record, the same decision, the same receipt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.gate.reasons import BY_CODE
from tests.api.conftest import STRICT, Deployment
from tests.cli.program import tollgate
from tests.support import reader
from tests.support.doors import Emitter
from tests.support.emitting import emit, receipts
from tests.support.invariants import Read
from tests.support.issuer import JOB, OtherIssuer

pytestmark = pytest.mark.broker
Make = Callable[..., Emitter]
OWN = ("trigger_id", "decided_at_ms", "run_id")  # what no two receipts have in common


def on(deployment: Deployment, topic: str) -> list[Read]:
    return reader.read_topic(deployment.bootstrap, deployment.prefix + topic).records


def forged(issuer: OtherIssuer) -> str:
    message, _, signature = issuer.token().rpartition(".")
    return f"{message}.{signature[:-4]}{'AAAA' if signature[-4:] != 'AAAA' else 'BBBB'}"


# What is presented, and how it ends. The token is made anew for each.
CASES: dict[str, tuple[Callable[[OtherIssuer], str], str, dict[str, Any], str]] = {
    "a good one": (lambda issuer: issuer.token(), JOB, {"region": "eu"}, "accepted"),
    "no token at all, but text": (lambda _: "garbage", JOB, {}, "token_malformed"),
    "forged": (forged, JOB, {}, "signature_invalid"),
    "expired": (
        lambda issuer: issuer.token(iat=int(time.time()) - 900, nbf=int(time.time()) - 900, exp=int(time.time()) - 300),
        JOB, {}, "token_expired",
    ),
    "of another deployment": (lambda issuer: issuer.token(aud="tollgate:staging."), JOB, {}, "audience_mismatch"),
    "of nobody": (lambda issuer: issuer.token(iss="https://nobody.test"), JOB, {}, "issuer_untrusted"),
    "without end": (lambda issuer: issuer.token(exp=None), JOB, {}, "ttl_missing"),
    "for another job": (lambda issuer: issuer.token(job="reports/other"), JOB, {}, "job_not_authorized"),
    "for no job there is": (lambda issuer: issuer.token(job="reports/none"), "reports/none", {}, "job_unknown"),
    "for a job that is off": (lambda issuer: issuer.token(job="reports/off"), "reports/off", {}, "job_disabled"),
    "with wrong parameters": (lambda issuer: issuer.token(job=STRICT), STRICT, {"region": "mars"}, "payload_invalid"),
    "with a token in them": (lambda issuer: issuer.token(), JOB, {"t": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}, "token_in_params"),
    "nested too deep in the record": (
        lambda issuer: issuer.token(), JOB, {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}}, "json_too_deep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_the_same_token_and_event_get_the_same_receipt_by_kafka_and_by_http(
    deployment: Deployment, emitter: Make, case: str
) -> None:
    made, job, params, verdict = CASES[case]
    token = made(deployment.issuer)
    value = json.dumps({"job": job, "params": params, "correlation_id": case, "token": token}).encode()
    (trigger_id,) = emit(deployment.bootstrap, deployment.prefix + "triggers", 0, [value])
    by_kafka = (await receipts(deployment.bootstrap, deployment.prefix, [trigger_id]))[trigger_id]
    by_http = emitter(token).decided(job, params, tollgate_correlation_id=case)
    assert (by_kafka["reason"] or by_kafka["outcome"]) == verdict
    assert by_http.keys() == by_kafka.keys()
    assert {name for name in by_http if by_http[name] != by_kafka[name]} <= set(OWN)


@pytest.mark.parametrize("case", [case for case, made in CASES.items() if made[3] in BY_CODE])
def test_a_refusal_is_a_problem_with_the_status_of_its_reason(deployment: Deployment, emitter: Make, case: str) -> None:
    made, job, params, code = CASES[case]
    answer = emitter(made(deployment.issuer)).trigger(job, params, prefer="wait=25")
    told = answer.json()
    assert (answer.status_code, told["reason"], told["title"]) == (
        BY_CODE[code].http_status,
        code,
        BY_CODE[code].meaning,
    )
    assert answer.headers["location"] == f"/v1/receipts/{told['trigger_id']}"
    assert answer.headers["preference-applied"] == "wait=25"


def test_the_door_publishes_what_the_command_publishes(deployment: Deployment, emitter: Make) -> None:
    token = deployment.issuer.token("once", key="the same")
    said = tollgate(
        deployment.env | {"TOLLGATE_TOKEN": token}, "emit", JOB, "--param", "region=eu", "--correlation-id", "c-9"
    )
    answer = emitter(token).trigger(JOB, {"region": "eu"}, tollgate_correlation_id="c-9")
    ids = {said.rows[0]["trigger_id"], answer.json()["trigger_id"]}
    one, other = (read for read in on(deployment, "triggers") if f"{read.partition}-{read.offset}" in ids)
    assert (one.partition, one.key, one.value, one.headers) == (other.partition, other.key, other.value, other.headers)


def test_a_trigger_is_acknowledged_with_its_id_and_where_its_receipt_will_be(
    deployment: Deployment, emitter: Make
) -> None:
    client = emitter()
    answer = client.trigger(JOB, {"region": "eu"})
    told = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/receipts/{told['trigger_id']}"
    partition, offset = map(int, told["trigger_id"].split("-"))
    (there,) = (read for read in on(deployment, "triggers") if (read.partition, read.offset) == (partition, offset))
    assert there.timestamp_ms == told["appended_at_ms"]
    receipt = client.receipt(told["trigger_id"])
    assert (receipt["outcome"], receipt["job"]) == ("accepted", JOB)


def test_a_job_may_be_left_out_when_the_token_grants_one(emitter: Make) -> None:
    receipt = emitter().decided(None, {"region": "eu"})
    assert (receipt["outcome"], receipt["job"]) == ("accepted", JOB)


@pytest.mark.parametrize("path", ["reports//nightly", "reports/nightly/", "/reports/nightly", "reports%2F%2Fnightly"])
def test_a_path_is_taken_as_it_was_sent(emitter: Make, path: str) -> None:
    assert emitter().decided(path)["outcome"] == "rejected"


def test_a_slash_of_a_jobs_name_may_be_escaped(emitter: Make) -> None:
    assert emitter().decided("reports%2Fnightly")["job"] == JOB


def test_retries_with_one_idempotency_key_make_one_run(deployment: Deployment, emitter: Make) -> None:
    clients = [emitter(door=number % 2) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda client: client.decided(JOB, {"n": 1}, idempotency_key="order-7"), clients))
    assert sorted(receipt["outcome"] for receipt in told) == ["accepted"] + ["duplicate"] * 7
    (run_id,) = {receipt["run_id"] for receipt in told}
    assert len([read for read in on(deployment, "jobs") if read.key == run_id.encode()]) == 1
    other = clients[0].trigger(JOB, {"n": 2}, idempotency_key="order-7", prefer="wait=25")
    assert (other.status_code, other.json()["reason"]) == (422, "idempotency_key_reused")


def test_a_one_shot_token_that_was_used_by_kafka_is_used_by_http(deployment: Deployment, emitter: Make) -> None:
    token = deployment.issuer.token("once")
    said = tollgate(deployment.env | {"TOLLGATE_TOKEN": token}, "emit", JOB, "--param", "n:=1", "--wait")
    assert said.rows[0]["outcome"] == "accepted"
    again = emitter(token).decided(JOB, {"n": 1})
    assert (again["outcome"], again["run_id"]) == ("duplicate", said.rows[0]["run_id"])
    replay = emitter(token).trigger(JOB, {"n": 2}, prefer="wait=25")
    assert (replay.status_code, replay.json()["reason"]) == (409, "token_already_used")


def test_a_trace_goes_on_in_the_job(deployment: Deployment, emitter: Make) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    run_id = emitter().decided(JOB, traceparent=trace)["run_id"]
    (job,) = (read for read in on(deployment, "jobs") if read.key == run_id.encode())
    assert dict(job.headers)["traceparent"] == trace.encode()


def test_who_waits_no_time_gets_the_acknowledgement(emitter: Make) -> None:
    answer = emitter().trigger(JOB, prefer="respond-async, wait=0")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")


def test_no_wait_is_longer_than_the_limit(emitter: Make) -> None:
    assert emitter().trigger(JOB, prefer="wait=86400").headers["preference-applied"] == "wait=30"
