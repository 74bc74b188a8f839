"""A lane that cannot decide yet holds, refuses nothing and resumes; one that must not go on stops, and says why."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from app.stream import store as stores
from app.stream.lane import State
from tests.support import proxy
from tests.support.deployments import QUIET_S, Deployment, is_running
from tests.support.emitting import trigger, until
from tests.support.issuer import OtherIssuer
from tests.support.proxy import Fate, KafkaProxy, Side


async def test_a_lane_holds_while_its_tables_are_not_confirmed_and_resumes(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.running(
            number, bootstrap=between.bootstrap, state_dir=state_dir, max_staleness_ms=300
        ) as lane:
            between.judge = proxy.always(Side.ANSWER, proxy.FETCH, Fate.HOLD)
            await until("the lane holds", lambda: lane.state is State.HELD)
            sent = await deployment.send(number, deployment.good(number))
            await asyncio.sleep(QUIET_S)
            assert await deployment.read("receipts", number) == []
            between.judge = proxy._pass
            between.let_go()
            assert await deployment.answers(sent) == ["accepted"]
            await is_running(lane)
    held = [event for event in logged if event["event"] == "lane_held"]
    assert {event["cause"] for event in held} == {"tables_stale"}


@pytest.mark.parametrize("off_ms", [3_600_000, -3_600_000])
async def test_a_lane_holds_while_its_clock_and_the_brokers_differ_and_resumes(
    deployment: Deployment, state_dir: Path, logged: list[Any], off_ms: int
) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir) as lane:
        assert lane._tenure is not None
        clock = lane._tenure._clock
        right = clock._wall_ms
        clock._wall_ms = lambda: right() + off_ms
        await until("the lane holds", lambda: lane.state is State.HELD)
        sent = await deployment.send(number, deployment.good(number))
        await asyncio.sleep(QUIET_S)
        assert await deployment.read("receipts", number) == []
        clock._wall_ms = right
        assert await deployment.answers(sent) == ["accepted"]
    assert [event["cause"] for event in logged if event["event"] == "lane_held"] == ["clock"]


async def test_a_lane_holds_while_an_issuer_has_no_key_set_and_resumes(
    deployment: Deployment, state_dir: Path, tmp_path: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    other = OtherIssuer(deployment.prefix)
    name = f"https://issuer-{number}.test"
    deployment.trust(name, tmp_path / "later.json")
    async with deployment.running(number, state_dir=state_dir) as lane:
        before = await deployment.send(number, deployment.good(number))
        token = other.token("many", iss=name)
        sent = await deployment.send(
            number, trigger(other, deployment.key(number), token=token), deployment.good(number)
        )
        await until("the lane holds", lambda: lane.state is State.HELD)
        assert await deployment.answers(before) == ["accepted"]
        await asyncio.sleep(QUIET_S)
        assert len(await deployment.read("receipts", number)) == 1
        (tmp_path / "later.json").write_text(json.dumps(other.jwks()))
        assert await deployment.answers(sent) == ["accepted", "accepted"]
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
        await deployment.send(number, *[trigger(deployment.issuer, deployment.key(number), token=token)] * 300)
        await until("the lane holds", lambda: worker.lanes[number].state is State.HELD)
        sent = await deployment.send(elsewhere, *[deployment.good(number) for _ in range(20)])
        found = await deployment.receipts_of(number, len(sent))
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
            sent = await deployment.send(here, deployment.good(home))
            (answer,) = await deployment.receipts_of(home, 1)
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
        sent = await deployment.send(number, deployment.good(number))
        await asyncio.sleep(QUIET_S)
        assert await deployment.read("receipts", number) == []
        stranger.abort_transaction(30)
        assert await deployment.answers(sent) == ["accepted"]
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
                await deployment.send(elsewhere, *[deployment.good(number) for _ in range(20)])

        flowing = asyncio.create_task(flow())
        token = other.token("many", iss=name)
        sent = await deployment.send(number, trigger(other, deployment.key(number), token=token))
        try:
            assert await deployment.answers(sent) == ["kid_unknown"]
        finally:
            flowing.cancel()


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
        sent = await deployment.send(number, *[deployment.good(number) for _ in range(20)])
        await until("it tried often", lambda: [each["event"] for each in logged].count("lane_retry") > 5)
        full[0] = False
        assert await deployment.answers(sent) == ["accepted"] * 20
        await is_running(lane)
    assert len(await deployment.read("jobs", number)) == 20


# ── named stops ──


async def test_a_lane_whose_checkpoint_is_lost_stops_and_says_so(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    async with deployment.running(number, state_dir=state_dir):
        pass
    await deployment.alter("checkpoints", cleanup_policy="delete")
    try:
        await deployment.delete_all("checkpoints", number)
    finally:
        await deployment.alter("checkpoints", cleanup_policy="compact")
    sent = await deployment.send(number, deployment.good(number))
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await until("the lane stops", lambda: lane.stopped_because)
        assert "holds no checkpoint" in (lane.stopped_because or "")
        assert worker.live()[0] is False
    assert sent
    assert await deployment.read("jobs", number) == []


@pytest.mark.parametrize("topic", ["triggers", "handoffs"])
async def test_a_lane_whose_offsets_are_gone_stops_and_says_which(
    deployment: Deployment, state_dir: Path, topic: str
) -> None:
    number = deployment.lane()
    deployment.write(topic, number, None, b"{}")  # never decided
    await deployment.delete_all(topic, number)
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
            between.judge = proxy.always(Side.ANSWER, proxy.FETCH, Fate.CUT)  # it cannot read
            await deployment.send(number, deployment.good(number))
            await deployment.delete_all("triggers", number)
            between.judge = proxy._pass
            await until("the lane stops", lambda: lane.stopped_because)
            assert lane.state is State.STOPPED
