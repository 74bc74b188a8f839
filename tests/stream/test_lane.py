"""One lane against the real broker: what a stranger sends, and what the world does, never stops it wrongly."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from app.config import Kafka
from app.stream import store as stores
from app.stream.inspection import connect
from app.stream.lane import State
from tests.support import memory, proxy, reader
from tests.support.altering import alter
from tests.support.deployments import Deployment, is_running
from tests.support.emitting import Raw, emit, read_lane, receipts, trigger, until
from tests.support.issuer import OtherIssuer
from tests.support.proxy import Fate, Frame, KafkaProxy, Side

MIB = 1 << 20
QUIET_S = 0.6  # several times as long as a lane needs for a decision


async def send(deployment: Deployment, lane: int, *records: Raw | bytes, **options: Any) -> list[str]:
    return await asyncio.to_thread(emit, deployment.bootstrap, deployment.topic("triggers"), lane, records, **options)


def good(deployment: Deployment, lane: int) -> bytes:
    return trigger(deployment.issuer, deployment.key(lane))


async def answers(deployment: Deployment, ids: Sequence[str]) -> list[str]:
    """Of each trigger its outcome, or the reason it was refused."""
    found = await receipts(deployment.bootstrap, deployment.prefix, ids)
    return [found[each]["reason"] or found[each]["outcome"] for each in ids]


async def receipts_of(deployment: Deployment, lane: int, count: int) -> list[Any]:
    """The receipts a lane has written, once there are so many: also those of triggers that stand elsewhere."""
    async with asyncio.timeout(60):
        while True:
            found = await read_lane(deployment.bootstrap, deployment.topic("receipts"), lane)
            if len(found) >= count:
                return found


async def test_a_good_trigger_becomes_a_job_a_receipt_an_entry_and_a_presentation(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        (trigger_id,) = await send(deployment, number, good(deployment, number))
        found = await receipts(deployment.bootstrap, deployment.prefix, [trigger_id])
    assert found[trigger_id]["outcome"] == "accepted"
    jobs = await read_lane(deployment.bootstrap, deployment.topic("jobs"), number)
    assert [json.loads(job.value or b"")["run_id"] for job in jobs] == [found[trigger_id]["run_id"]]
    entries = await read_lane(deployment.bootstrap, deployment.topic("idempotency"), number)
    assert [(entry.value or b"")[1:17].hex() for entry in entries] == [found[trigger_id]["run_id"].replace("-", "")]
    (audit,) = await read_lane(deployment.bootstrap, deployment.topic("audit"), number)
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
            records = [each for raw, _ in POISON.values() for each in (raw, good(deployment, number))]
            found = await answers(deployment, await send(deployment, number, *records))
        assert found[1::2] == ["accepted"] * len(POISON)
        return dict(zip(POISON, found[::2], strict=True))

    return asyncio.run(run())


@pytest.mark.parametrize("what", POISON)
def test_poison_is_decided_and_the_next_good_trigger_too(poisoned: dict[str, str], what: str) -> None:
    assert poisoned[what] == POISON[what][1]


async def test_the_largest_record_the_topic_takes_is_decided(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    largest = 1_048_588 - 61 - 30  # less the batch's header and the record's own fields
    envelope = len(trigger(deployment.issuer, "x" * 20, params={"fill": ""}))
    records = [
        Raw(b"\xff" * largest),
        Raw(b'"' + b"a" * (largest - 2) + b'"'),
        Raw(b"k" * 500_000, key=b"k" * (largest - 500_000)),
        Raw(b"{}", [("big", b"h" * (largest - 200))]),
        Raw(trigger(deployment.issuer, deployment.key(number), params={"fill": "x" * (largest - envelope - 100)})),
        Raw(trigger(deployment.issuer, deployment.key(number), params={"fill": "x" * 500_000})),
        Raw(good(deployment, number)),
    ]
    async with deployment.running(number, state_dir=state_dir):
        found = await answers(deployment, await send(deployment, number, *records))
    assert found[4:] == ["payload_too_large", "accepted", "accepted"]
    assert set(found[:4]) <= {"json_malformed", "envelope_malformed", "headers_malformed", "record_too_large"}


async def test_a_batch_that_expands_to_150_mb_is_refused_offset_by_offset_within_bounded_memory(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    bomb = [Raw(bytes(50 * MIB)) for _ in range(3)]
    ids = await send(deployment, number, *bomb, compression_type="zstd", batch_size=200_000_000, linger_ms=1_000)
    ids += await send(deployment, number, good(deployment, number))
    del bomb
    gc.collect()
    async with deployment.worker(state_dir=state_dir) as worker:
        memory.begin_peak_anew()
        idle = memory.peak_bytes()
        await worker.assigned({number})
        found = await answers(deployment, ids)
        grown = memory.peak_bytes() - idle
    assert found == ["batch_too_large"] * 3 + ["accepted"]
    assert grown < 256 * MIB
    letters = await read_lane(deployment.bootstrap, deployment.topic("dead-letters"), number)
    offsets = [dict(letter.headers)["tollgate-offset"] for letter in letters]
    assert offsets == [b"0", b"1", b"2"]


async def test_a_record_whose_time_is_its_producers_is_refused_while_the_topic_lets_it_be(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()

    async def set_type(value: str, shown: int) -> list[str]:
        """Change the topic, and send until records show it."""
        await _set(deployment, "triggers", "message.timestamp.type", value)
        sent: list[str] = []
        for _ in range(50):
            sent += await send(deployment, number, good(deployment, number))
            records = await read_lane(deployment.bootstrap, deployment.topic("triggers"), number)
            if records[-1].timestamp_type == shown:
                return sent[-1:]
        raise AssertionError("the topic's setting never showed")

    async with deployment.running(number, state_dir=state_dir):
        try:
            ids = await set_type("CreateTime", 1)
        finally:
            ids += await set_type("LogAppendTime", 2)
        assert await answers(deployment, ids) == ["timestamp_type_invalid", "accepted"]


async def test_bytes_on_the_handoffs_topic_that_no_gate_wrote_are_counted_and_passed(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        for value in (b"", b"{}", b"\xff\xfe", b"null", b"[" * 100_000, None):
            deployment.write("handoffs", number, b"k", value)
        assert await answers(deployment, await send(deployment, number, good(deployment, number))) == ["accepted"]
    assert [event["event"] for event in logged].count("handoff_foreign") == 6
    assert len(await read_lane(deployment.bootstrap, deployment.topic("receipts"), number)) == 1
    # Nobody gets a receipt for them, but nothing is lost without a word.
    aside = await read_lane(deployment.bootstrap, deployment.topic("dead-letters"), number)
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
        (trigger_id,) = await send(deployment, here, record)
        answered: list[Any] = []

        async def read() -> None:
            answered[:] = await read_lane(deployment.bootstrap, deployment.topic("receipts"), home)

        async with asyncio.timeout(30):
            while not answered:
                await read()
    assert [each.key for each in answered] == [trigger_id.encode()]
    assert json.loads(answered[0].value)["outcome"] == "accepted"
    assert await read_lane(deployment.bootstrap, deployment.topic("receipts"), here) == []
    (handed,) = await read_lane(deployment.bootstrap, deployment.topic("handoffs"), home)
    original = base64.b64decode(json.loads(handed.value or b"")["redacted"]["value"])
    for part in token.encode().split(b"."):
        assert part not in (handed.value or b"") + original


async def test_one_key_sent_to_every_lane_at_once_is_one_job(deployment: Deployment, state_dir: Path) -> None:
    lanes = [deployment.lane() for _ in range(3)]
    record = trigger(deployment.issuer, deployment.key(lanes[0]))
    async with deployment.worker(*lanes, state_dir=state_dir):
        await asyncio.gather(*(send(deployment, lane, record, record) for lane in lanes))
        found: list[Any] = []
        async with asyncio.timeout(30):
            while len(found) < 6:
                found = await read_lane(deployment.bootstrap, deployment.topic("receipts"), lanes[0])
    outcomes = sorted(json.loads(each.value)["outcome"] for each in found)
    assert outcomes == ["accepted"] + ["duplicate"] * 5
    assert len({json.loads(each.value)["run_id"] for each in found}) == 1


async def test_a_transaction_of_an_emitter_holds_back_what_follows_and_its_abort_is_skipped(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    topic = deployment.topic("triggers")
    emitter = Producer({"bootstrap.servers": deployment.bootstrap, "transactional.id": f"{deployment.prefix}emitter"})
    emitter.init_transactions(30)
    async with deployment.running(number, state_dir=state_dir):
        emitter.begin_transaction()
        emitter.produce(topic, good(deployment, number), partition=number)
        emitter.flush(30)
        behind = await send(deployment, number, good(deployment, number))
        await asyncio.sleep(QUIET_S)
        assert await read_lane(deployment.bootstrap, deployment.topic("receipts"), number) == []
        await asyncio.to_thread(emitter.abort_transaction, 30)
        assert await answers(deployment, behind) == ["accepted"]
        emitter.begin_transaction()
        emitter.produce(topic, good(deployment, number), partition=number)
        await asyncio.to_thread(emitter.commit_transaction, 30)
        offset = int(behind[0].partition("-")[2]) + 2  # after the abort's marker
        assert await answers(deployment, [*behind, f"{number}-{offset}"]) == ["accepted", "accepted"]
    assert len(await read_lane(deployment.bootstrap, deployment.topic("receipts"), number)) == 2


# ── batches ──


async def test_a_backlog_is_decided_in_few_transactions_and_idle_records_one_by_one(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    backlog = await send(deployment, number, *(good(deployment, number) for _ in range(1_000)))
    async with deployment.running(number, state_dir=state_dir):
        assert set(await answers(deployment, backlog)) == {"accepted"}
        for _ in range(5):
            single = await send(deployment, number, good(deployment, number))
            assert await answers(deployment, single) == ["accepted"]
    audit = await read_lane(deployment.bootstrap, deployment.topic("audit"), number)
    sizes = [len(json.loads(record.value or b"")["presentations"]) for record in audit]
    assert sum(sizes) == 1_005
    assert sizes[-5:] == [1] * 5
    assert max(sizes) >= 100
    assert len(sizes) <= 5 + 20


# ── holding ──


async def test_a_lane_holds_while_its_tables_are_not_confirmed_and_resumes(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.running(
            number, bootstrap=between.bootstrap, state_dir=state_dir, max_staleness_ms=300
        ) as lane:
            between.judge = _all(Side.ANSWER, proxy.FETCH, Fate.HOLD)
            await until("the lane holds", lambda: lane.state is State.HELD)
            sent = await send(deployment, number, good(deployment, number))
            await asyncio.sleep(QUIET_S)
            assert await read_lane(deployment.bootstrap, deployment.topic("receipts"), number) == []
            between.judge = proxy._pass
            between.let_go()
            assert await answers(deployment, sent) == ["accepted"]
            await is_running(lane)
    held = [event for event in logged if event["event"] == "lane_held"]
    assert {event["cause"] for event in held} == {"tables_stale"}


def _all(side: Side, api_key: int, fate: Fate) -> proxy.Judge:
    def judge(frame: Frame) -> Fate:
        return fate if (frame.side, frame.api_key) == (side, api_key) else Fate.PASS

    return judge


@pytest.mark.parametrize("off_ms", [3_600_000, -3_600_000])
async def test_a_lane_holds_while_its_clock_and_the_brokers_differ_and_resumes(
    deployment: Deployment, state_dir: Path, logged: list[Any], off_ms: int
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir) as lane:
        right = lane._clock._wall_ms
        lane._clock._wall_ms = lambda: right() + off_ms
        await until("the lane holds", lambda: lane.state is State.HELD)
        sent = await send(deployment, number, good(deployment, number))
        await asyncio.sleep(QUIET_S)
        assert await read_lane(deployment.bootstrap, deployment.topic("receipts"), number) == []
        lane._clock._wall_ms = right
        assert await answers(deployment, sent) == ["accepted"]
    assert [event["cause"] for event in logged if event["event"] == "lane_held"] == ["clock"]


async def test_a_lane_holds_while_an_issuer_has_no_key_set_and_resumes(
    deployment: Deployment, state_dir: Path, tmp_path: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    other = OtherIssuer(deployment.prefix)
    name = f"https://issuer-{number}.test"
    deployment.trust(name, tmp_path / "later.json")
    async with deployment.running(number, state_dir=state_dir) as lane:
        before = await send(deployment, number, good(deployment, number))
        token = other.token("many", iss=name)
        sent = await send(
            deployment, number, trigger(other, deployment.key(number), token=token), good(deployment, number)
        )
        await until("the lane holds", lambda: lane.state is State.HELD)
        assert await answers(deployment, before) == ["accepted"]
        await asyncio.sleep(QUIET_S)
        assert len(await read_lane(deployment.bootstrap, deployment.topic("receipts"), number)) == 1
        (tmp_path / "later.json").write_text(json.dumps(other.jwks()))
        assert await answers(deployment, sent) == ["accepted", "accepted"]
        await is_running(lane)
    assert "keys" in {event.get("cause") for event in logged if event["event"] == "lane_held"}


async def test_a_trigger_that_waits_for_keys_keeps_no_handoff_waiting(
    deployment: Deployment, state_dir: Path, tmp_path: Path, logged: list[Any]
) -> None:
    number, elsewhere = deployment.lane(), deployment.lane()
    name = f"https://issuer-{number}.test"
    other, keys = OtherIssuer(deployment.prefix), tmp_path / "later.json"
    deployment.trust(name, keys)
    token = other.token("many", iss=name)
    async with deployment.worker(number, elsewhere, state_dir=state_dir) as worker:
        await is_running(worker.lanes[elsewhere])
        await send(deployment, number, *[trigger(deployment.issuer, deployment.key(number), token=token)] * 300)
        await until("the lane holds", lambda: worker.lanes[number].state is State.HELD)
        sent = await send(deployment, elsewhere, *[good(deployment, number) for _ in range(20)])
        found = await receipts_of(deployment, number, len(sent))
        assert {(each.key or b"").decode() for each in found} == set(sent)
        assert worker.lanes[number].state is State.HELD
    keys.write_text(json.dumps(other.jwks()))  # later tests are of other things
    assert [each["event"] for each in logged].count("lane_held") == 1  # told once, though decisions go on


async def test_a_handoff_is_decided_by_a_gate_that_started_before_a_change_that_was_aborted(
    deployment: Deployment, tmp_path: Path
) -> None:
    here, home = deployment.lane(), deployment.lane()
    async with deployment.worker(home, state_dir=tmp_path / "old") as old:
        await is_running(old.lanes[home])
        ops = Producer({"bootstrap.servers": deployment.bootstrap, "transactional.id": f"{deployment.prefix}ops"})
        ops.init_transactions(30)
        ops.begin_transaction()
        ops.produce(deployment.topic("registry"), b"{}", b"job/aborted", partition=0)
        ops.flush(30)
        ops.abort_transaction(30)
        async with deployment.worker(here, state_dir=tmp_path / "new"):
            sent = await send(deployment, here, good(deployment, home))
            (answer,) = await receipts_of(deployment, home, 1)
    assert (answer.key or b"").decode() == sent[0]
    assert json.loads(answer.value or b"")["outcome"] == "accepted"


async def test_an_open_transaction_on_the_revocations_holds_every_lane(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    """What stands behind it may be a revocation that was committed, and cannot be seen."""
    number = deployment.lane()
    stranger = Producer({"bootstrap.servers": deployment.bootstrap, "transactional.id": f"{deployment.prefix}stranger"})
    stranger.init_transactions(30)
    async with deployment.running(number, state_dir=state_dir) as lane:
        stranger.begin_transaction()
        stranger.produce(deployment.topic("revocations"), b"{}", b"nothing", partition=0)
        stranger.flush(30)
        await until("the lane holds", lambda: lane.state is State.HELD)
        sent = await send(deployment, number, good(deployment, number))
        await asyncio.sleep(QUIET_S)
        assert await read_lane(deployment.bootstrap, deployment.topic("receipts"), number) == []
        stranger.abort_transaction(30)
        assert await answers(deployment, sent) == ["accepted"]
    told = [(each["event"], each["cause"]) for each in logged if each["event"] in {"lane_held", "lane_resumed"}]
    assert told == [("lane_held", "tables_stale"), ("lane_resumed", "tables_stale")]


async def test_a_fetch_for_an_unknown_kid_begins_though_handoffs_never_cease(
    deployment: Deployment, state_dir: Path, tmp_path: Path
) -> None:
    number, elsewhere = deployment.lane(), deployment.lane()
    name = f"https://issuer-{number}.test"
    other = OtherIssuer(deployment.prefix, "never-published")
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(deployment.issuer.jwks()))
    deployment.trust(name, keys)
    async with deployment.worker(number, elsewhere, state_dir=state_dir) as worker:
        await is_running(worker.lanes[elsewhere])

        async def flow() -> None:
            while True:
                await send(deployment, elsewhere, *[good(deployment, number) for _ in range(20)])

        flowing = asyncio.create_task(flow())
        token = other.token("many", iss=name)
        sent = await send(deployment, number, trigger(other, deployment.key(number), token=token))
        try:
            assert await answers(deployment, sent) == ["kid_unknown"]
        finally:
            flowing.cancel()


async def test_what_a_small_batch_expands_to_never_makes_a_transaction_that_no_topic_takes(
    deployment: Deployment, state_dir: Path
) -> None:
    """Found in review: some records before a batch that expands to just under the limit."""
    number = deployment.lane()
    text = base64.b64encode(os.urandom(750_000))
    junk = [Raw(text[n * 9_000 : (n + 1) * 9_000]) for n in range(100)]
    ids = await send(deployment, number, *junk)
    ids += await send(
        deployment, number, *[Raw(text[:1_000_000])] * 8,
        compression_type="zstd", batch_size=200_000_000, linger_ms=1_000,
    )  # fmt: skip
    ids += await send(
        deployment, number, *[Raw(b"{}", key=text[:1_000_000])] * 6,
        compression_type="zstd", batch_size=200_000_000, linger_ms=1_000,
    )  # fmt: skip
    ids += await send(deployment, number, good(deployment, number))
    async with deployment.running(number, state_dir=state_dir):
        found = await answers(deployment, ids)
    assert found[-1] == "accepted"
    assert set(found[:-1]) == {"json_malformed", "token_missing"}


async def test_the_largest_triggers_are_handed_off_in_transactions_that_every_topic_takes(
    deployment: Deployment, state_dir: Path
) -> None:
    here, home = deployment.lane(), deployment.lane()
    fill = base64.b64encode(os.urandom(370_000)).decode()
    token = deployment.issuer.token("many")
    records = [
        Raw(trigger(deployment.issuer, deployment.key(home), token=token, params={"fill": fill, "n": n}))
        for n in range(16)
    ]
    sent = await send(
        deployment, here, *records, compression_type="zstd", batch_size=200_000_000, linger_ms=1_000
    )  # fmt: skip
    async with deployment.worker(here, home, state_dir=state_dir):
        found = await receipts_of(deployment, home, len(sent))
    assert {json.loads(each.value or b"")["outcome"] for each in found} == {"accepted"}


async def test_a_lane_whose_store_fails_for_a_while_goes_on_trying_and_decides_once(
    deployment: Deployment, state_dir: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a disk that is full for a second."""
    number = deployment.lane()
    write, full = stores.Store._write, [True]

    def write_if_there_is_room(self: Any, batch: Any) -> None:
        if full[0]:
            raise stores.StoreUnusable("IO error: No space left on device")
        write(self, batch)

    async with deployment.running(number, state_dir=state_dir) as lane:
        monkeypatch.setattr(stores.Store, "_write", write_if_there_is_room)
        sent = await send(deployment, number, *[good(deployment, number) for _ in range(20)])
        await until("it tried often", lambda: [each["event"] for each in logged].count("lane_retry") > 5)
        full[0] = False
        assert await answers(deployment, sent) == ["accepted"] * 20
        await is_running(lane)
    assert len(await read_lane(deployment.bootstrap, deployment.topic("jobs"), number)) == 20


# ── named stops ──


async def _set(deployment: Deployment, topic: str, name: str, value: str) -> None:
    admin = connect(Kafka(bootstrap=deployment.bootstrap))
    await asyncio.to_thread(alter, admin, deployment.topic(topic), **{name: value})


async def _delete_all(deployment: Deployment, topic: str, lane: int) -> None:
    admin = connect(Kafka(bootstrap=deployment.bootstrap))
    for future in admin.delete_records([TopicPartition(deployment.topic(topic), lane, -1)]).values():
        await asyncio.to_thread(future.result, 30)


async def test_a_lane_whose_checkpoint_is_lost_stops_and_says_so(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        pass
    await _set(deployment, "checkpoints", "cleanup.policy", "delete")
    try:
        await _delete_all(deployment, "checkpoints", number)
    finally:
        await _set(deployment, "checkpoints", "cleanup.policy", "compact")
    sent = await send(deployment, number, good(deployment, number))
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await until("the lane stops", lambda: lane.stopped_because)
        assert "holds no checkpoint" in (lane.stopped_because or "")
        assert worker.live()[0] is False
    assert sent
    assert await read_lane(deployment.bootstrap, deployment.topic("jobs"), number) == []


@pytest.mark.parametrize("topic", ["triggers", "handoffs"])
async def test_a_lane_whose_offsets_are_gone_stops_and_says_which(
    deployment: Deployment, state_dir: Path, topic: str
) -> None:
    number = deployment.lane()
    deployment.write(topic, number, None, b"{}")  # never decided
    await _delete_all(deployment, topic, number)
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await until("the lane stops", lambda: lane.stopped_because)
        assert f"{deployment.topic(topic)}[{number}] holds offsets 1 to 1, the lane stands at 0" in (
            lane.stopped_because or ""
        )


async def test_a_lane_whose_offsets_go_while_it_is_held_back_stops_and_never_resets(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.running(number, bootstrap=between.bootstrap, state_dir=state_dir) as lane:
            between.judge = _all(Side.ANSWER, proxy.FETCH, Fate.CUT)  # it cannot read
            await send(deployment, number, good(deployment, number))
            await _delete_all(deployment, "triggers", number)
            between.judge = proxy._pass
            await until("the lane stops", lambda: lane.stopped_because)
            assert lane.state is State.STOPPED


# ── losing and taking ──


async def test_a_lane_whose_id_is_taken_by_another_is_fenced_and_taken_again_without_alarm(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await is_running(lane)
        for _ in range(3):
            await worker._cluster.fence(f"{deployment.prefix}lane-{number}", "another")
            assert await answers(deployment, await send(deployment, number, good(deployment, number))) == ["accepted"]
    events = [event["event"] for event in logged]
    assert events.count("lane_fenced") == 3
    assert "lane_stopped" not in events
    assert not [event for event in logged if event["level"] in {"warning", "error"}]


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("api_key", [proxy.END_TXN, proxy.PRODUCE, proxy.ADD_PARTITIONS_TO_TXN])
async def test_a_lane_that_lost_a_frame_of_a_commit_takes_itself_anew_and_decides_once(
    deployment: Deployment, state_dir: Path, side: Side, api_key: int
) -> None:
    number = deployment.lane()
    records = [good(deployment, number) for _ in range(3)]
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.running(number, bootstrap=between.bootstrap, state_dir=state_dir):
            between.judge = proxy.drop_once(side, api_key)
            sent = await send(deployment, number, *records, *records)
            assert await answers(deployment, sent) == ["accepted"] * 3 + ["duplicate"] * 3
            first, last = await until("it is taken again", lambda: _two(between.epochs))
            assert (last.producer_id, last.epoch) > (first.producer_id, first.epoch)
    assert len(await read_lane(deployment.bootstrap, deployment.topic("jobs"), number)) == 3
    audit = await read_lane(deployment.bootstrap, deployment.topic("audit"), number)
    assert [json.loads(record.value or b"")["sequence"] for record in audit] == list(range(1, len(audit) + 1))


def _two(epochs: list[proxy.Epoch]) -> list[proxy.Epoch]:
    given = [each for each in epochs if not each.error]
    return given[:1] + given[-1:] if len(given) > 1 else []


async def test_a_lane_that_comes_back_to_the_same_process_keeps_what_it_holds(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await is_running(lane)
        for _ in range(3):
            await worker.assigned({number})
            assert worker.lanes[number] is lane
            assert await answers(deployment, await send(deployment, number, good(deployment, number))) == ["accepted"]
    assert [event["event"] for event in logged].count("lane_taken") == 1


async def test_a_lane_that_goes_elsewhere_is_let_go_of_with_nothing_half_done(
    deployment: Deployment, state_dir: Path, tmp_path: Path
) -> None:
    number = deployment.lane()
    records = [good(deployment, number) for _ in range(500)]
    async with (
        deployment.worker(number, state_dir=state_dir) as first,
        deployment.worker(state_dir=tmp_path / "second") as second,
    ):
        sent = await send(deployment, number, *records)
        moves = [first, second] * 3
        for giving, taking in itertools.pairwise(moves):
            await giving.assigned(set())
            await taking.assigned({number})
            await is_running(taking.lanes[number])
        assert set(await answers(deployment, sent)) == {"accepted"}
    topic = deployment.topic("audit")
    counts = {
        isolation: len(
            (await asyncio.to_thread(reader.read_topic, deployment.bootstrap, topic, isolation, [number])).records
        )
        for isolation in ("read_committed", "read_uncommitted")
    }
    assert counts["read_committed"] == counts["read_uncommitted"]


async def test_two_workers_that_both_think_a_lane_is_theirs_still_decide_each_trigger_once(
    deployment: Deployment, state_dir: Path, tmp_path: Path
) -> None:
    number = deployment.lane()
    records = [good(deployment, number) for _ in range(200)]
    async with (
        deployment.worker(number, state_dir=state_dir) as first,
        deployment.worker(number, state_dir=tmp_path / "second"),
    ):
        sent = []
        for at in range(0, 200, 20):
            sent += await send(deployment, number, *records[at : at + 20])
        sent += await send(deployment, number, *records)
        await asyncio.sleep(QUIET_S)
        await first.assigned(set())  # the group has settled it
        found = await answers(deployment, sent)
    assert found == ["accepted"] * 200 + ["duplicate"] * 200
    assert len(await read_lane(deployment.bootstrap, deployment.topic("jobs"), number)) == 200


async def test_a_released_lane_is_gone_at_once_even_while_it_backs_off(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.worker(number, bootstrap=between.bootstrap, state_dir=state_dir) as worker:
            await is_running(worker.lanes[number])
            between.judge = _all(Side.REQUEST, proxy.PRODUCE, Fate.CUT)
            await send(deployment, number, good(deployment, number))
            await until("it backs off", lambda: worker.lanes[number].state is State.RETRYING)
            lane = worker.lanes[number]
            await worker.assigned(set())
            assert lane.state is State.RELEASED


# ── idle ──


async def test_the_checkpoints_of_an_idle_lane_keep_the_time(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` compares them with the broker's clock: one that stood still would look like a clock that is wrong."""
    monkeypatch.setattr("app.stream.lane.IDLE_CHECKPOINT_S", 0.3)
    number = deployment.lane()
    async with deployment.running(number):
        (trigger_id,) = await send(deployment, number, good(deployment, number))
        await receipts(deployment.bootstrap, deployment.prefix, [trigger_id])
        await asyncio.sleep(3)
    *_, last = await read_lane(deployment.bootstrap, deployment.topic("checkpoints"), number)
    assert abs(json.loads(last.value or b"")["lane_clock_ms"] - last.timestamp_ms) < 2_000
