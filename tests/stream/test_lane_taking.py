"""A lane that is lost, taken by another or cut off in a commit decides each trigger once all the same."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from app.stream.lane import State
from tests.support import proxy, reader
from tests.support.deployments import QUIET_S, Deployment, is_running
from tests.support.emitting import until
from tests.support.proxy import Fate, KafkaProxy, Side


async def test_a_lane_whose_id_is_taken_by_another_is_fenced_and_taken_again_without_alarm(
    deployment: Deployment, state_dir: Path, logged: list[Any]
) -> None:
    number = deployment.lane()
    async with deployment.worker(number, state_dir=state_dir) as worker:
        lane = worker.lanes[number]
        await is_running(lane)
        for _ in range(3):
            await worker._cluster.fence(f"{deployment.prefix}lane-{number}", "another")
            assert await deployment.answers(await deployment.send(number, deployment.good(number))) == ["accepted"]
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
    records = [deployment.good(number) for _ in range(3)]
    with KafkaProxy(deployment.bootstrap) as between:
        settings: dict[str, Any] = {"state_dir": state_dir, "request_timeout_ms": 1_500}
        async with deployment.running(number, bootstrap=between.bootstrap, **settings):
            between.judge = proxy.drop_once(side, api_key)
            sent = await deployment.send(number, *records, *records)
            assert await deployment.answers(sent) == ["accepted"] * 3 + ["duplicate"] * 3
            first, last = await until("it is taken again", lambda: _two(between.epochs))
            assert (last.producer_id, last.epoch) > (first.producer_id, first.epoch)
    assert len(await deployment.read("jobs", number)) == 3
    audit = await deployment.read("audit", number)
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
            assert await deployment.answers(await deployment.send(number, deployment.good(number))) == ["accepted"]
    assert [event["event"] for event in logged].count("lane_taken") == 1


async def test_a_lane_that_goes_elsewhere_is_let_go_of_with_nothing_half_done(
    deployment: Deployment, state_dir: Path, tmp_path: Path
) -> None:
    number = deployment.lane()
    records = [deployment.good(number) for _ in range(500)]
    async with (
        deployment.worker(number, state_dir=state_dir) as first,
        deployment.worker(state_dir=tmp_path / "second") as second,
    ):
        sent = await deployment.send(number, *records)
        moves = [first, second] * 3
        for giving, taking in itertools.pairwise(moves):
            await giving.assigned(set())
            await taking.assigned({number})
            await is_running(taking.lanes[number])
        assert set(await deployment.answers(sent)) == {"accepted"}
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
    records = [deployment.good(number) for _ in range(200)]
    async with (
        deployment.worker(number, state_dir=state_dir) as first,
        deployment.worker(number, state_dir=tmp_path / "second"),
    ):
        sent = []
        for at in range(0, 200, 20):
            sent += await deployment.send(number, *records[at : at + 20])
        sent += await deployment.send(number, *records)
        await asyncio.sleep(QUIET_S)
        await first.assigned(set())  # the group has settled it
        found = await deployment.answers(sent)
    assert found == ["accepted"] * 200 + ["duplicate"] * 200
    assert len(await deployment.read("jobs", number)) == 200


async def test_a_released_lane_is_gone_at_once_even_while_it_backs_off(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.worker(number, bootstrap=between.bootstrap, state_dir=state_dir) as worker:
            await is_running(worker.lanes[number])
            between.judge = proxy.always(Side.REQUEST, proxy.PRODUCE, Fate.CUT)
            await deployment.send(number, deployment.good(number))
            await until("it backs off", lambda: worker.lanes[number].state is State.RETRYING)
            lane = worker.lanes[number]
            await worker.assigned(set())
            assert lane.state is State.RELEASED
