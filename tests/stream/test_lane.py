"""One lane against the real broker: whatever a stranger sends is decided, and so is the good trigger behind it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.support.deployments import QUIET_S, Deployment
from tests.support.emitting import Raw, trigger


async def test_a_good_trigger_becomes_a_job_a_receipt_an_entry_and_a_presentation(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        (trigger_id,) = await deployment.send(number, deployment.good(number))
        found = await deployment.receipts([trigger_id])
    assert found[trigger_id]["outcome"] == "accepted"
    jobs = await deployment.read("jobs", number)
    assert [json.loads(job.value or b"")["run_id"] for job in jobs] == [found[trigger_id]["run_id"]]
    entries = await deployment.read("idempotency", number)
    assert [(entry.value or b"")[1:17].hex() for entry in entries] == [found[trigger_id]["run_id"].replace("-", "")]
    (audit,) = await deployment.read("audit", number)
    assert [shown["trigger_id"] for shown in json.loads(audit.value or b"")["presentations"]] == [trigger_id]


# ── what strangers send ──

POISON: dict[str, tuple[Raw, str]] = {
    "no value": (Raw(None), "value_missing"),
    "an empty value": (Raw(b""), "json_malformed"),
    "random bytes": (Raw(bytes(range(256))), "json_malformed"),
    "UTF-16": (Raw('{"job": "x"}'.encode("utf-16")), "json_malformed"),
    "deep JSON": (Raw(b'{"params":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "json_too_deep"),
    "NaN": (Raw(b'{"params": {"n": NaN}}'), "json_malformed"),
    "a duplicate member": (Raw(b'{"job": "a", "job": "b"}'), "json_duplicate_member"),
    "no token": (Raw(b'{"job": "a"}'), "token_missing"),
    "1,000 headers": (Raw(b"{}", [(f"h{n}", b"v") for n in range(1_000)]), "headers_malformed"),
    "the same header 1,000 times": (Raw(b"{}", [("h", b"v")] * 1_000), "headers_malformed"),
    "a header without a value": (Raw(b"{}", [("authorization", None)]), "headers_malformed"),
    "a token of dots": (Raw(b'{"token": "' + b"." * 900_000 + b'"}'), "token_too_large"),
}  # fmt: skip


@pytest.fixture(scope="module")
def poisoned(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of every poison, each sent with a good trigger right behind it."""
    number = deployment.lane()

    async def run() -> dict[str, str]:
        async with deployment.running(number, state_dir=tmp_path_factory.mktemp("poisoned")):
            records = [each for raw, _ in POISON.values() for each in (raw, deployment.good(number))]
            found = await deployment.answers(await deployment.send(number, *records))
        assert found[1::2] == ["accepted"] * len(POISON)
        return dict(zip(POISON, found[::2], strict=True))

    return asyncio.run(run())


@pytest.mark.parametrize("what", POISON)
def test_poison_is_decided_and_the_next_good_trigger_too(poisoned: dict[str, str], what: str) -> None:
    assert poisoned[what] == POISON[what][1]


async def test_a_record_whose_time_is_its_producers_is_refused_while_the_topic_lets_it_be(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()

    async def set_type(value: str, shown: int) -> list[str]:
        """Change the topic, and send until records show it."""
        await deployment.alter("triggers", message_timestamp_type=value)
        sent: list[str] = []
        for _ in range(50):
            sent += await deployment.send(number, deployment.good(number))
            records = await deployment.read("triggers", number)
            if records[-1].timestamp_type == shown:
                return sent[-1:]
        raise AssertionError("the topic's setting never showed")

    async with deployment.running(number, state_dir=state_dir):
        try:
            ids = await set_type("CreateTime", 1)
        finally:
            ids += await set_type("LogAppendTime", 2)
        assert await deployment.answers(ids) == ["timestamp_type_invalid", "accepted"]


async def test_bytes_on_the_handoffs_topic_that_no_gate_wrote_are_counted_and_passed(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        for value in (b"", b"{}", b"\xff\xfe", b"null", b"[" * 100_000, None):
            deployment.write("handoffs", number, b"k", value)
        assert await deployment.answers(await deployment.send(number, deployment.good(number))) == ["accepted"]
    assert [event["event"] for event in logged].count("handoff_foreign") == 6
    assert len(await deployment.read("receipts", number)) == 1
    # Nobody gets a receipt for them, but nothing is lost without a word.
    aside = await deployment.read("dead-letters", number)
    told = [dict(each.headers) for each in aside]
    assert {(each["tollgate-reason"], each["tollgate-topic"]) for each in told} == {
        (b"handoff_unreadable", deployment.topic("handoffs").encode())
    }
    assert sorted(each["tollgate-offset"] for each in told) == [b"%d" % n for n in range(6)]


async def test_a_trigger_away_from_home_is_handed_off_and_decided_there(
    deployment: Deployment, state_dir: Path
) -> None:
    here, home = deployment.lane(), deployment.lane()
    token = deployment.issuer.token("many")
    record = trigger(deployment.issuer, deployment.key(home), token=token)
    async with deployment.worker(here, home, state_dir=state_dir):
        (trigger_id,) = await deployment.send(here, record)
        answered = await deployment.receipts_of(home, 1)
    assert [each.key for each in answered] == [trigger_id.encode()]
    assert json.loads(answered[0].value or b"")["outcome"] == "accepted"
    assert await deployment.read("receipts", here) == []
    (handed,) = await deployment.read("handoffs", home)
    original = base64.b64decode(json.loads(handed.value or b"")["redacted"]["value"])
    for part in token.encode().split(b"."):
        assert part not in (handed.value or b"") + original


async def test_one_key_sent_to_every_lane_at_once_is_one_job(deployment: Deployment, state_dir: Path) -> None:
    lanes = [deployment.lane() for _ in range(3)]
    record = trigger(deployment.issuer, deployment.key(lanes[0]))
    async with deployment.worker(*lanes, state_dir=state_dir):
        await asyncio.gather(*(deployment.send(lane, record, record) for lane in lanes))
        found = await deployment.receipts_of(lanes[0], 6)
    outcomes = sorted(json.loads(each.value or b"")["outcome"] for each in found)
    assert outcomes == ["accepted"] + ["duplicate"] * 5
    assert len({json.loads(each.value or b"")["run_id"] for each in found}) == 1


async def test_a_transaction_of_an_emitter_holds_back_what_follows_and_its_abort_is_skipped(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    topic = deployment.topic("triggers")
    emitter = Producer({"bootstrap.servers": deployment.bootstrap, "transactional.id": f"{deployment.prefix}emitter"})
    emitter.init_transactions(30)
    async with deployment.running(number, state_dir=state_dir):
        emitter.begin_transaction()
        emitter.produce(topic, deployment.good(number), partition=number)
        emitter.flush(30)
        behind = await deployment.send(number, deployment.good(number))
        await asyncio.sleep(QUIET_S)
        assert await deployment.read("receipts", number) == []
        await asyncio.to_thread(emitter.abort_transaction, 30)
        assert await deployment.answers(behind) == ["accepted"]
        emitter.begin_transaction()
        emitter.produce(topic, deployment.good(number), partition=number)
        await asyncio.to_thread(emitter.commit_transaction, 30)
        offset = int(behind[0].partition("-")[2]) + 2  # after the abort's marker
        assert await deployment.answers([*behind, f"{number}-{offset}"]) == ["accepted", "accepted"]
    assert len(await deployment.read("receipts", number)) == 2


async def test_the_checkpoints_of_an_idle_lane_keep_the_time(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` compares them with the broker's clock: one that stood still would look like a clock that is wrong."""
    monkeypatch.setattr("app.stream.tenure.IDLE_CHECKPOINT_S", 0.3)
    number = deployment.lane()
    async with deployment.running(number):
        (trigger_id,) = await deployment.send(number, deployment.good(number))
        await deployment.receipts([trigger_id])
        await asyncio.sleep(3)
    *_, last = await deployment.read("checkpoints", number)
    assert abs(json.loads(last.value or b"")["lane_clock_ms"] - last.timestamp_ms) < 2_000
