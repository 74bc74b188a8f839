"""R: what an accepted trigger becomes, the receipt its emitter gets, and that jobs and receipts stand apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from tests.rows.jobs import NIGHTLY
from tests.rows.triggers import plain
from tests.rows.world import World
from tests.support.reader import read_topic

JSON_SECRET = "a parameter that is nobody else's business"


def schema(checkout: Path, name: str) -> Any:
    return json.loads((checkout / "schemas" / f"{name}.v1.schema.json").read_text())


def test_an_accepted_trigger_is_one_record_on_the_jobs_topic_keyed_by_its_run_id(world: World, checkout: Path) -> None:
    token = world.ours.token()
    outcome = world.present_one(plain(token, params={"region": "eu"}, correlation_id="order-7"))
    run_id = outcome.run_id or ""
    (record,) = [r for r in read_topic(world.bootstrap, world.topic("jobs")).records if r.key == run_id.encode()]
    job = json.loads(record.value or b"")
    jsonschema.validate(job, schema(checkout, "job"))
    partition, offset = map(int, outcome.trigger_id.split("-"))
    assert (job["job"], job["params"], job["org_id"], job["attempt"]) == (NIGHTLY, {"region": "eu"}, "acme", 1)
    assert job["identity"] == {"issuer": world.ours.iss, "subject": "service:ci"}
    assert job["token"]["kid"] == world.ours.kid
    assert (job["trigger"]["partition"], job["trigger"]["offset"]) == (partition, offset)
    assert job["trigger"]["topic"] == world.topic("triggers")
    assert job["correlation_id"] == "order-7"
    assert token not in json.dumps(job)


def test_each_trigger_has_one_receipt_that_tells_what_became_of_it(world: World, checkout: Path) -> None:
    good, forged = world.ours.token(), world.ours.token()[:-6] + "AAAAAA"
    ids = world.send_all([plain(good, correlation_id="a"), plain(forged, correlation_id="b")])
    accepted, rejected = world.outcomes(ids)
    receipts = [json.loads(r.value or b"") for r in read_topic(world.bootstrap, world.topic("receipts")).records]
    for outcome, correlation_id in ((accepted, "a"), (rejected, "b")):
        (receipt,) = [r for r in receipts if r["trigger_id"] == outcome.trigger_id]
        jsonschema.validate(receipt, schema(checkout, "receipt"))
        assert receipt["correlation_id"] == correlation_id
        assert receipt["decided_at_ms"] > 0
    assert (accepted.receipt["outcome"], accepted.receipt["job"]) == ("accepted", NIGHTLY)
    assert accepted.receipt["run_id"] == accepted.job["run_id"]
    assert (rejected.receipt["reason"], rejected.receipt["detail"], rejected.receipt["job"]) == (
        "signature_invalid",
        None,
        None,
    )


def test_the_command_waits_for_a_receipt_and_its_exit_code_tells_the_outcome(world: World) -> None:
    ids = world.send_all([plain(world.ours.token()), plain("e30.e30.e30")])
    (accepted,) = world.rows("receipts", "--wait", ids[0])
    (rejected,) = world.rows("receipts", "--wait", ids[1], code=3)
    assert (accepted["trigger_id"], accepted["outcome"], rejected["outcome"]) == (ids[0], "accepted", "rejected")
    assert not world.rows("receipts", "--wait", "0-999999999", "--timeout", "1", code=124)


def test_jobs_and_receipts_stand_on_topics_of_their_own_and_a_receipt_tells_no_parameter_or_key(world: World) -> None:
    outcome = world.present_one(
        plain(world.ours.token(uses="many"), params={"note": JSON_SECRET}, idempotency_key="a key of mine")
    )
    assert outcome.params == {"note": JSON_SECRET}
    jobs = [json.loads(r.value or b"") for r in read_topic(world.bootstrap, world.topic("jobs")).records]
    receipts = read_topic(world.bootstrap, world.topic("receipts")).records
    assert all("params" in job and "outcome" not in job for job in jobs)
    assert all("outcome" in json.loads(r.value or b"") for r in receipts)
    for secret in (JSON_SECRET, "a key of mine"):
        assert not any(secret.encode() in (r.value or b"") + repr(r.headers).encode() for r in receipts)
