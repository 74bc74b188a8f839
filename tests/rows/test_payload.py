"""Rows P: what a trigger may look like, who may send it, and what becomes of its parameters."""

import asyncio
import hashlib
import json
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaProducer

from tests.rows.jobs import DEFAULTED, NIGHTLY, STRICT
from tests.rows.triggers import Trigger, by_headers, plain
from tests.support.jose import ABSENT

MAIN_CLASS = "org.apache.kafka.tools.ConsoleProducer"


def digest(params):
    return hashlib.sha256(json.dumps(params, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


# ── P-01 ──


@pytest.fixture(scope="session")
def console_producer(world):
    """Kafka's own console producer, as its shell script would run it: lines in, records out."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.java_command"], capture_output=True, text=True, check=True, timeout=300
    )
    java = json.loads(told.stdout)

    def produce(lines, *options):
        subprocess.run(
            [
                java["java"], "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", java["class_path"], MAIN_CLASS,
                "--bootstrap-server", world.bootstrap, "--topic", world.topic("triggers"), *options,
            ],
            input="".join(f"{line}\n" for line in lines), text=True, capture_output=True, check=True, timeout=120,
        )  # fmt: skip

    return produce


def test_javas_console_producer_starts_jobs_by_value_and_by_headers(world, console_producer):
    named = {form: f"java-{form}-{world.prefix}" for form in ("value", "headers", "repeated")}
    many = world.ours.token(uses="many")
    value = {"job": NIGHTLY, "token": world.issue(), "correlation_id": named["value"]}
    console_producer([json.dumps(value)])
    headers = f"authorization:Bearer {many},tollgate-job:{NIGHTLY},idempotency-key:java,tollgate-correlation-id:"
    console_producer(
        [f'{headers}{named["headers"]}\tkey-1\t{{"n":1}}', f'{headers}{named["repeated"]}\tkey-2\t{{"n":1}}'],
        "--property", "parse.headers=true", "--property", "parse.key=true",
    )  # fmt: skip
    outcomes = dict(zip(named, world.outcomes(world.ids_of(named.values())), strict=True))
    assert outcomes["value"].verdict == "accepted"
    assert sorted([outcomes["headers"].verdict, outcomes["repeated"].verdict]) == ["accepted", "duplicate"]
    assert outcomes["headers"].run_id == outcomes["repeated"].run_id


def test_an_aiokafka_producer_starts_jobs_by_value_and_by_headers(world):
    value, headers = plain(world.issue()), by_headers(world.issue(), NIGHTLY, {"n": 1})

    async def produce():
        async with AIOKafkaProducer(bootstrap_servers=world.bootstrap) as producer:
            for trigger in (value, headers):
                sent = await producer.send_and_wait(
                    world.topic("triggers"), trigger.encoded(),
                    headers=[(name, content.encode()) for name, content in trigger.headers],
                )  # fmt: skip
                yield f"{sent.partition}-{sent.offset}"

    async def all_of():
        return [trigger_id async for trigger_id in produce()]

    outcomes = world.outcomes(asyncio.run(all_of()))
    assert [outcome.verdict for outcome in outcomes] == ["accepted", "accepted"]


@pytest.mark.parametrize("key", [None, b"", b"a key", bytes(range(256)), b"x" * 10_000])
def test_a_librdkafka_producer_starts_a_job_whatever_its_records_key(world, key):
    outcomes = world.present(plain(world.issue())._replace(key=key), by_headers(world.ours.token())._replace(key=key))
    assert [outcome.verdict for outcome in outcomes] == ["accepted", "accepted"]


BINARY = [
    ("ce_specversion", "1.0"),
    ("ce_id", "1"),
    ("ce_source", "/rows"),
    ("ce_type", "run"),
    ("ce_subject", NIGHTLY),
]


def structured(token, **changes):
    event = {"specversion": "1.0", "id": "1", "source": "/rows", "type": "run"} | changes
    return Trigger(event, [("authorization", f"Bearer {token}"), ("content-type", "application/cloudevents+json")])


def test_a_trigger_may_come_in_any_documented_form(world):
    ours = world.ours
    forms = {
        "plain": plain(ours.token(), params={"n": 1}),
        "plain without the job": plain(ours.token(), None, {"n": 1}),
        "headers": by_headers(ours.token(), NIGHTLY, {"n": 1}),
        "the token alone in a header": by_headers(ours.token(), None, {"job": NIGHTLY, "params": {"n": 1}}),
        "binary CloudEvent": by_headers(ours.token(), None, {"n": 1}, *BINARY),
        "structured CloudEvent": structured(ours.token(), subject=NIGHTLY, data={"n": 1}),
        "form 1 as a CloudEvent's data": structured(ours.token(), data={"job": NIGHTLY, "params": {"n": 1}}),
    }
    outcomes = world.present(*forms.values())
    assert {form: outcome.verdict for form, outcome in zip(forms, outcomes, strict=True)} == dict.fromkeys(
        forms, "accepted"
    )
    assert all(outcome.params == {"n": 1} for outcome in outcomes)


# ── P-02 ──

EMITTER = """
import os, sys
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": sys.argv[1]})
producer.produce(sys.argv[2], sys.stdin.buffer.read(), on_delivery=lambda _, m: print(f"{m.partition()}-{m.offset()}", flush=True))
producer.flush()
os._exit(0)
"""


def test_an_emitter_may_be_gone_before_its_trigger_is_decided(world):
    (gate,) = world.gates
    gate.stop()
    emitted = subprocess.run(
        [sys.executable, "-c", EMITTER, world.bootstrap, world.topic("triggers")], input=plain(world.issue()).encoded(),
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    trigger_id = emitted.stdout.decode().strip()
    gate.start()
    (receipt,) = world.rows("receipts", "--wait", trigger_id, "--timeout", "60")
    gate.wait_ready()
    assert (receipt["trigger_id"], receipt["outcome"]) == (trigger_id, "accepted")
    (outcome,) = world.outcomes([trigger_id])
    assert outcome.job["run_id"] == receipt["run_id"]


# ── P-03 ──

# name: what the token fixes, what the payload says → what the job runs with; the job has defaults for a, b and c.
PRECEDENCE = [
    ("a", "token", "payload", "token"),
    ("a", "token", ABSENT, "token"),
    ("a", ABSENT, "payload", "payload"),
    ("a", ABSENT, ABSENT, "default"),
    ("d", "token", "payload", "token"),
    ("d", "token", ABSENT, "token"),
    ("d", ABSENT, "payload", "payload"),
    ("d", ABSENT, ABSENT, ABSENT),
    ("a", None, "payload", None),
    ("a", ABSENT, None, None),
]


def test_the_token_wins_over_the_payload_and_the_payload_over_the_jobs_default(world):
    outcomes = world.present(
        *(
            by_headers(
                world.ours.token(DEFAULTED, grant={} if fixed is ABSENT else {"params": {name: fixed}}), DEFAULTED,
                {} if sent is ABSENT else {name: sent},
            )
            for name, fixed, sent, _ in PRECEDENCE
        )
    )  # fmt: skip
    assert [outcome.params.get(name, ABSENT) for (name, *_), outcome in zip(PRECEDENCE, outcomes, strict=True)] == [
        runs_with for *_, runs_with in PRECEDENCE
    ]
    assert all(outcome.params["b"] == outcome.params["c"] == "default" for outcome in outcomes)


INVALID = [
    ({"region": "mars"}, "/region"),
    ({"region": "eu", "pages": [1, 2, "three"]}, "/pages/2"),
    ({"region": "eu", "pages": [1, 10]}, "/pages/1"),
    ({}, "region"),
    ({"region": "eu", "surplus": 1}, "(params)"),
]


@pytest.mark.parametrize(("params", "pointer"), INVALID)
def test_a_payload_that_does_not_fit_the_jobs_schema_is_told_where(world, params, pointer):
    outcome = world.present_one(by_headers(world.ours.token(STRICT), STRICT, params))
    assert (outcome.verdict, outcome.stage) == ("payload_invalid", "authorize")
    assert pointer in outcome.dead_letter.detail
    assert pointer in outcome.receipt["detail"]
    assert "mars" not in outcome.dead_letter.detail


def test_a_payload_that_fits_runs_with_the_defaults_filled_in(world):
    outcome = world.present_one(by_headers(world.ours.token(STRICT), STRICT, {"region": "eu"}))
    assert outcome.verdict == "accepted"
    assert outcome.params == {"region": "eu", "format": "pdf"}


def test_a_payload_above_the_limit_is_refused_and_one_below_is_not(world):
    below, above = world.present(
        by_headers(world.ours.token(), NIGHTLY, {"x": "a" * (512 * 1024 - 8)}),
        by_headers(world.ours.token(), NIGHTLY, {"x": "a" * (512 * 1024 - 7)}),
    )
    assert (below.verdict, above.verdict) == ("accepted", "payload_too_large")


def test_a_payload_digest_in_trigger_or_token_must_match(world):
    params, good, bad = {"n": 1, "a": "é"}, None, digest({"n": 2})
    good = hashlib.sha256('{"a":"é","n":1}'.encode()).hexdigest()
    fixed, fixed_wrong = {"params_sha256": good}, {"params_sha256": bad}
    cases = [
        (plain(world.ours.token(), params=params, params_sha256=good), "accepted"),
        (plain(world.ours.token(), params=params, params_sha256=bad), "payload_digest_mismatch"),
        (plain(world.ours.token(grant=fixed), params=params), "accepted"),
        (plain(world.ours.token(grant=fixed_wrong), params=params), "payload_digest_mismatch"),
        (plain(world.ours.token(grant=fixed), params=params | {"more": 1}), "payload_digest_mismatch"),
        (plain(world.ours.token(grant=fixed), params=params, params_sha256=bad), "payload_digest_mismatch"),
        (plain(world.issue(NIGHTLY, "--params-sha256", good), params=params), "accepted"),
    ]
    outcomes = world.present(*(trigger for trigger, _ in cases))
    assert [outcome.verdict for outcome in outcomes] == [verdict for _, verdict in cases]


# ── P-05 ──


def test_a_kind_of_job_never_seen_before_works_with_only_a_registry_record(world):
    job = "rows/never-seen-before"
    assert world.present_one(plain(world.ours.token(job), job)).verdict == "job_unknown"
    world.apply("jobs", f'[jobs."{job}"]\n')
    started = world.until("accepted", lambda: plain(world.ours.token(job), job, {"anything": [1, {"b": None}]}))
    assert (started.job["job"], started.params) == (job, {"anything": [1, {"b": None}]})
