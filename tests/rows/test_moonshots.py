"""MS: validity at append time, retry-safe one-time tokens, and outages that hold instead of refusing wrongly.

MS2, one atomic decision under `kill -9`, is shown by `tests/kill`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.rows.aside import Aside
from tests.rows.outcomes import TIMEOUT_S
from tests.rows.triggers import Trigger, plain
from tests.rows.world import World
from tests.support.altering import alter

GRACE_S = 60
LEFT_S = 8  # what is left of the token's time, grace included, when the gates stand still
HELD = re.compile(r'tollgate_held\{(?=[^}]*cause="keys")(?=[^}]*lane="0")[^}]*\} 1\.0')


# ── MS1 ──


def test_a_backlog_kills_no_honest_trigger_and_saves_none_that_came_too_late(aside: Aside) -> None:
    aside.gate.stop()
    while True:
        exp = int(time.time()) - GRACE_S + LEFT_S
        in_time, late, forged = (aside.ours.token(iat=exp - 300, nbf=exp - 300, exp=exp) for _ in range(3))
        sent = aside.send_all([plain(in_time)])
        if time.time() < exp + GRACE_S:  # a machine that was too slow for it tries again
            break
    time.sleep(max(0, exp + GRACE_S + 1 - time.time()))
    sent += aside.send_all([plain(late)])
    sent += [send_with_timestamp(aside, plain(forged), (exp - 100) * 1000)]  # claims that it was sent in time
    aside.gate.start().wait_ready()
    assert [each.verdict for each in aside.outcomes(sent)] == ["accepted", "token_expired", "token_expired"]


def test_a_topic_that_takes_producers_timestamps_is_refused_by_name_and_its_records_one_by_one(aside: Aside) -> None:
    topic = aside.topic("triggers")

    def webhook() -> Trigger:
        return plain(aside.ours.token(uses="many"))

    aside.gate.stop()
    aside.gate.start().wait_ready()  # a running gate looks at its topics every ten seconds, and ends when they are wrong
    with timestamps(aside, topic, "CreateTime"):
        aside.until("timestamp_type_invalid", webhook)  # the log follows its topic's setting after a moment
        live = plain(aside.ours.token())
        outcome = aside.outcomes([send_with_timestamp(aside, live, int(time.time() * 1000))])[0]
        assert outcome.verdict == "timestamp_type_invalid"
        started = aside.tollgate("gate", "--workers", "1", code=1, env={"TOLLGATE_TELEMETRY__PORT": "0"})
        checked = aside.tollgate("topics", "check", "-o", "table", code=1)
        for said in (started.stderr, checked.stderr):
            for word in (topic, "message.timestamp.type", "CreateTime", "LogAppendTime"):
                assert word in said
            assert "Traceback" not in said
    aside.gate.stop()
    aside.gate.start().wait_ready()
    aside.until("accepted", webhook)
    assert aside.present_one(live).verdict == "accepted", "the refusal used nothing up"


# ── MS3 ──


def test_a_one_time_token_shown_again_is_a_retry_and_with_another_request_an_attack(world: World) -> None:
    token = world.ours.token()
    first, again, other = world.present_in_turn(
        plain(token, params={"n": 1}), plain(token, params={"n": 1}), plain(token, params={"n": 2})
    )
    assert [each.verdict for each in (first, again, other)] == ["accepted", "duplicate", "token_already_used"]
    assert again.run_id == first.run_id
    assert len(world.run_jobs(first.run_id or "")) == 1


# ── MS15 ──


def test_triggers_of_an_issuer_that_cannot_be_reached_are_held_and_decided_rightly_on_its_return(aside: Aside) -> None:
    aside.keys.fail("away")
    (issuer, stranger) = aside.issuer_over_https("away", "a1", "a2", published=0)
    wait_for_log(aside, lambda event: event["event"] == "jwks_failed" and event["issuer"] == issuer.iss)
    held = aside.send_all([
        plain(issuer.token())._replace(partition=0), plain(stranger.token())._replace(partition=0),
        plain(aside.ours.token())._replace(partition=0),
    ])  # fmt: skip
    wait_for_log(aside, lambda event: event["event"] == "lane_held" and event.get("cause") == "keys")
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not HELD.search(aside.metrics()):  # its log may tell of a hold of another test's
            assert time.monotonic() < deadline, aside.gate.log_tail()
            time.sleep(0.1)
        elsewhere = plain(aside.ours.token(uses="many"))._replace(partition=1)  # without a key: decided where it is
        assert aside.present_one(elsewhere).verdict == "accepted", "the other lane goes on"
        assert not any(trigger_id in aside.tail.receipts for trigger_id in held)
    finally:
        aside.publish("away", issuer)
    assert [each.verdict for each in aside.outcomes(held)] == ["accepted", "kid_unknown", "accepted"]
    assert not HELD.search(aside.metrics())
    holds = [event for event in aside.gate.events() if event["event"] == "lane_held" and event.get("cause") == "keys"]
    assert len(holds) < 5, "an alarm, not a flood"


# ── leaves ──


def send_with_timestamp(world: World, trigger: Trigger, timestamp_ms: int) -> str:
    """As a producer that says when it made the record."""
    producer = Producer({"bootstrap.servers": world.bootstrap, "acks": "all"})
    sent: list[str] = []
    producer.produce(
        world.topic("triggers"), trigger.encoded(), timestamp=timestamp_ms,
        on_delivery=lambda error, message: sent.append(str(error) if error else f"{message.partition()}-{message.offset()}"),
    )  # fmt: skip
    assert producer.flush(TIMEOUT_S) == 0
    return sent[0]


@contextmanager
def timestamps(world: World, topic: str, kind: str) -> Iterator[None]:
    """The topic takes these timestamps meanwhile."""
    admin = AdminClient({"bootstrap.servers": world.bootstrap})
    alter(admin, topic, message_timestamp_type=kind)
    try:
        yield
    finally:
        alter(admin, topic, message_timestamp_type="LogAppendTime")


def wait_for_log(aside: Aside, wanted: object) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not any(wanted(event) for event in aside.gate.events()):  # type: ignore[operator]
        assert time.monotonic() < deadline, aside.gate.log_tail()
        time.sleep(0.1)
