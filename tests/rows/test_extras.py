"""X: what the field has come to expect: keys that conflict, windows, CloudEvents, dead-letter headers, an explainer."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.rows.jobs import BY_EVENT_ID, FORBIDDEN, NIGHTLY, STRICT
from tests.rows.triggers import Trigger, by_headers, plain
from tests.rows.world import World
from tests.support.reader import read_topic

WINDOW_S = 2
STEP_S = 0.7
STEPS = 7


#


def test_a_key_with_another_request_is_refused_and_names_the_first_run(world: World) -> None:
    first, other = world.present_in_turn(
        plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key="x01"),
        plain(world.ours.token(uses="many"), params={"n": 2}, idempotency_key="x01"),
    )
    assert (first.verdict, other.verdict) == ("accepted", "idempotency_key_reused")
    assert other.receipt["run_id"] == first.run_id
    assert other.dead_letter.headers["tollgate-first-run-id"] == first.run_id


def test_the_same_request_again_gets_the_first_runs_handle(world: World) -> None:
    trigger = plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key="x02")
    first, *again = world.present_in_turn(trigger, trigger, trigger)
    assert [each.verdict for each in (first, *again)] == ["accepted", "duplicate", "duplicate"]
    assert {each.run_id for each in again} == {first.run_id}
    assert len(world.run_jobs(first.run_id or "")) == 1


# ── X-03 ──


def test_a_key_counts_for_its_jobs_window_by_append_time_and_not_longer(world: World) -> None:
    world.apply("jobs", f'[jobs."rows/brief"]\ndedup_window_s = {WINDOW_S}\n')
    token = world.ours.token("rows/brief", "many")
    world.until("accepted", lambda: plain(token, "rows/brief"))
    ids: list[str] = []
    for _ in range(STEPS):
        ids.append(world.send(plain(token, "rows/brief", idempotency_key="x03").value))
        time.sleep(STEP_S)
    appended = {r.id: r.timestamp_ms for r in read_topic(world.bootstrap, world.topic("triggers")).records}
    verdicts: list[str] = []
    began_ms, run_id = None, None
    for outcome in world.outcomes(ids):
        at_ms = appended[outcome.trigger_id]
        if began_ms is not None and at_ms - began_ms <= WINDOW_S * 1000:
            assert (outcome.verdict, outcome.run_id) == ("duplicate", run_id)
        else:
            assert outcome.verdict == "accepted"
            began_ms, run_id = at_ms, outcome.run_id
        verdicts.append(outcome.verdict)
    assert verdicts.count("accepted") > 1


#

EVENT = {"specversion": "1.0", "id": "e-1", "source": "/shop/1", "type": "order.placed"}


def test_a_cloudevent_is_a_trigger_in_binary_and_in_structured_mode(world: World) -> None:
    attributes = [(f"ce_{name}", value) for name, value in EVENT.items()]
    binary = by_headers(world.ours.token(), None, {"n": 1}, ("ce_subject", NIGHTLY), *attributes)
    structured = Trigger(
        {**EVENT, "subject": NIGHTLY, "data": {"n": 1}},
        [
            ("content-type", "application/cloudevents+json; charset=utf-8"),
            ("authorization", f"Bearer {world.ours.token()}"),
        ],
    )
    for outcome in world.present(binary, structured):
        assert outcome.verdict == "accepted"
        assert (outcome.job["job"], outcome.params) == (NIGHTLY, {"n": 1})


def test_an_events_source_and_id_are_a_key_where_the_job_says_so(world: World) -> None:
    token = world.ours.token(BY_EVENT_ID, "many")

    def event(**changes: str) -> Trigger:
        attributes = [(f"ce_{name}", value) for name, value in {**EVENT, **changes}.items()]
        return by_headers(token, None, {"n": 1}, ("ce_subject", BY_EVENT_ID), *attributes)

    outcomes = world.present_in_turn(event(id="x18"), event(id="x18"), event(id="x18", source="/shop/2"))
    assert [each.verdict for each in outcomes] == ["accepted", "duplicate", "accepted"]


@pytest.mark.parametrize(("topic", "event_type"), [("jobs", "tollgate.job.v1"), ("receipts", "tollgate.receipt.v1")])
def test_jobs_and_receipts_are_cloudevents_in_binary_mode(world: World, topic: str, event_type: str) -> None:
    outcome = world.present_one(plain(world.ours.token()))
    named = {"jobs": outcome.run_id, "receipts": outcome.trigger_id}[topic]
    records = read_topic(world.bootstrap, world.topic(topic)).records
    (headers,) = [{n: (v or b"").decode() for n, v in r.headers} for r in records if r.key == (named or "").encode()]
    assert (headers["ce_specversion"], headers["ce_id"], headers["ce_type"]) == ("1.0", named, event_type)
    assert headers["ce_source"]
    assert headers["ce_subject"] == NIGHTLY
    assert headers["content-type"] == "application/json"


def test_a_dead_letter_names_origin_and_reason_in_our_headers_and_in_those_that_viewers_know(world: World) -> None:
    outcome = world.present_one(plain(world.ours.token()[:-6] + "AAAAAA"))
    partition, offset = outcome.trigger_id.split("-")
    told = outcome.dead_letter.headers
    for family in ("tollgate-", "__streams.errors."):
        assert (told[f"{family}topic"], told[f"{family}partition"], told[f"{family}offset"]) == (
            world.topic("triggers"), partition, offset,
        )  # fmt: skip
    assert told["__streams.errors.exception"] == told["tollgate-reason"] == "signature_invalid"
    assert told["__streams.errors.message"] == told["tollgate-detail"]


# ── X-30 ──


def explained(world: World, *words: str, code: int) -> tuple[dict[str, Any], str]:
    done = world.tollgate("explain", *words, "-o", "json", code=code)
    return json.loads(done.stdout), done.stdout + done.stderr


def test_explain_shows_each_check_of_a_trigger_on_the_topic_and_the_one_that_decided(world: World) -> None:
    token = world.ours.token(STRICT)
    outcome = world.present_one(plain(token, STRICT, {"region": "mars"}))
    assert outcome.verdict == "payload_invalid"
    told, printed = explained(world, outcome.trigger_id, code=3)
    checks = told["checks"]
    (failed,) = [check for check in checks if check["result"] == "fail"]
    assert failed["check"] == "payload_invalid"
    assert {check["stage"] for check in checks} >= {"parse", "verify", "authorize"}
    assert all(check["result"] == "pass" for check in checks[: checks.index(failed)])
    assert token not in printed
    assert token.rpartition(".")[2] not in printed


def test_explain_of_a_file_judges_what_was_never_sent(world: World) -> None:
    (world.directory / "t.json").write_bytes(plain(world.ours.token(FORBIDDEN), FORBIDDEN).encoded() or b"")
    told, _ = explained(world, "t.json", code=3)
    assert [check["check"] for check in told["checks"] if check["result"] == "fail"] == ["job_not_authorized"]
    (world.directory / "t.json").write_bytes(plain(world.ours.token()).encoded() or b"")
    told, _ = explained(world, "t.json", code=0)
    assert told["outcome"] == "accepted"


def test_explain_says_when_there_is_no_such_trigger(world: World) -> None:
    done = world.tollgate("explain", "0-999999999", code=5)
    assert not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
