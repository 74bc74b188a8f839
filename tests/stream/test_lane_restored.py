"""A lane taken anew: whatever is left of its store, it holds what was committed and decides each trigger once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaError

from app.gate.outputs import Out
from app.stream import store
from app.stream.cluster import Cluster
from app.stream.lane import Lane
from app.stream.log import Partition
from tests.support import proxy
from tests.support.deployments import Deployment
from tests.support.emitting import trigger, until
from tests.support.proxy import KafkaProxy, Side
from tests.support.stores import Table, identity, packed


def table_of(lane: Lane) -> Table:
    made = lane._kept.table.store
    assert made is not None
    return dict(made.items())


async def _decided(deployment: Deployment, lane: int, keys: list[str]) -> list[str]:
    """Outcomes of one trigger for each key."""
    return await deployment.answers(await deployment.send(lane, *[trigger(deployment.issuer, key) for key in keys]))


async def test_a_lane_keeps_no_closed_store_when_what_follows_a_wipe_fails(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    number = deployment.lane()
    keys = [deployment.key(number) for _ in range(3)]
    async with deployment.running(number, state_dir=tmp_path):
        await _decided(deployment, number, keys)
    found, _ = store.open_store(
        tmp_path / f"lane-{number}", deployment.found.cluster_id, deployment.found.birth_id, number
    )
    found.apply([], 10**9)  # ahead of the changelog
    found.close()
    read, failures = Cluster._fetch_one, iter([True] * 3)

    async def fails_at_first(self: Any, partition: Partition, *args: Any) -> Any:
        if partition[0].endswith("idempotency") and next(failures, False):
            raise KafkaError("not now")
        return await read(self, partition, *args)

    monkeypatch.setattr(Cluster, "_fetch_one", fails_at_first)
    async with deployment.running(number, state_dir=tmp_path) as lane:
        assert len(table_of(lane)) == 3
        assert await _decided(deployment, number, keys) == ["duplicate"] * 3
    assert [each["event"] for each in logged].count("lane_retry") == 3


async def test_a_restored_table_is_the_live_table(deployment: Deployment, state_dir: Path, tmp_path: Path) -> None:
    number = deployment.lane()
    keys = [deployment.key(number) for _ in range(40)]
    async with deployment.running(number, state_dir=state_dir) as lane:
        assert await _decided(deployment, number, keys) == ["accepted"] * 40
        live = table_of(lane)
    assert len(live) == 40
    async with deployment.running(number, state_dir=tmp_path / "other") as lane:
        assert table_of(lane) == live
    async with deployment.running(number, state_dir=state_dir) as lane:
        assert table_of(lane) == live
        assert await _decided(deployment, number, keys) == ["duplicate"] * 40


async def test_an_open_transaction_of_a_dead_predecessor_is_not_in_the_table(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    changelog = (deployment.topic("idempotency"), number)
    async with deployment.worker() as predecessor:
        writer: Any = await predecessor._cluster.fence(f"{deployment.prefix}lane-{number}", "predecessor")
        parts = {changelog: [Out(identity(1), packed(1))]}
        await writer._add_partitions(parts)
        await writer._produce(parts)
        # It never ends its transaction; whoever takes the lane does.
        async with deployment.running(number, state_dir=state_dir) as lane:
            assert table_of(lane) == {}
            assert await _decided(deployment, number, [deployment.key(number)]) == ["accepted"]
            assert len(table_of(lane)) == 1


async def test_a_transaction_that_was_not_committed_is_never_in_the_store(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    with KafkaProxy(deployment.bootstrap) as between:
        async with deployment.worker(number, bootstrap=between.bootstrap, state_dir=state_dir) as worker:
            lane = worker.lanes[number]
            await until("the lane runs", lambda: lane.state == "running")
            between.seen.clear()
            between.judge = proxy.always(Side.REQUEST, proxy.END_TXN, proxy.Fate.DROP)
            record = trigger(deployment.issuer, deployment.key(number))
            await deployment.send(number, record)
            await until("an end was asked for", lambda: between.seen[(Side.REQUEST, proxy.END_TXN)])
            assert lane._task is not None
            lane._task.cancel()  # as if killed: nothing is finished
            await asyncio.gather(lane._task, return_exceptions=True)
    left, why = store.open_store(
        state_dir / f"lane-{number}", deployment.found.cluster_id, deployment.found.birth_id, number
    )
    assert (dict(left.items()), why) == ({}, None)
    left.close()


# What befalls the files of a store while no gate runs.


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 7, len(data), max(len(data) // 7, 1)):
        data[at] ^= 0x40
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": _flip, "truncated": _truncate, "emptied": _empty, "deleted": Path.unlink,
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str], Path]:
    """A lane with 60 entries and its store as a kill leaves it: half in a table file, half in the write-ahead log."""
    number = deployment.lane()
    directory = tmp_path_factory.mktemp("kept")
    as_killed = directory / "as-killed"
    keys = [deployment.key(number) for _ in range(60)]

    async def fill() -> None:
        async with deployment.running(number, state_dir=directory) as lane:
            await _decided(deployment, number, keys[:30])
            made = lane._kept.table.store
            assert made is not None
            made._db.flush()
            await _decided(deployment, number, keys[30:])
            await until("all is in the store", lambda: len(table_of(lane)) == 60)
            shutil.copytree(directory / f"lane-{number}", as_killed / f"lane-{number}")

    asyncio.run(fill())
    return number, keys, as_killed


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("what", ["*.sst", "*.log", "MANIFEST-*", "CURRENT", "OPTIONS-*"])
async def test_a_damaged_store_never_starts_a_second_job(
    deployment: Deployment, kept: tuple[int, list[str], Path], tmp_path: Path, what: str, how: str
) -> None:
    number, keys, directory = kept
    shutil.copytree(directory, tmp_path / "copy")
    files = [path for path in (tmp_path / "copy" / f"lane-{number}").glob(what) if path.stat().st_size]
    assert files
    for path in files:
        DAMAGE[how](path)
    async with deployment.running(number, state_dir=tmp_path / "copy") as lane:
        assert await _decided(deployment, number, keys) == ["duplicate"] * len(keys)
        assert len(table_of(lane)) == len(keys)


async def test_a_store_put_back_from_an_older_copy_is_brought_up_to_date(
    deployment: Deployment, tmp_path: Path
) -> None:
    number = deployment.lane()
    keys = [deployment.key(number) for _ in range(6)]
    async with deployment.running(number, state_dir=tmp_path / "now"):
        await _decided(deployment, number, keys[:3])
    shutil.copytree(tmp_path / "now", tmp_path / "older")
    async with deployment.running(number, state_dir=tmp_path / "now"):
        await _decided(deployment, number, keys[3:])
    async with deployment.running(number, state_dir=tmp_path / "older") as lane:
        assert len(table_of(lane)) == 6
        assert await _decided(deployment, number, keys) == ["duplicate"] * 6


async def test_two_stores_put_in_each_others_place_are_both_wiped(deployment: Deployment, tmp_path: Path) -> None:
    first, second = deployment.lane(), deployment.lane()
    keys = {number: deployment.key(number) for number in (first, second)}
    async with deployment.worker(first, second, state_dir=tmp_path):
        for number, key in keys.items():
            assert await _decided(deployment, number, [key]) == ["accepted"]
    (tmp_path / f"lane-{first}").rename(tmp_path / "aside")
    (tmp_path / f"lane-{second}").rename(tmp_path / f"lane-{first}")
    (tmp_path / "aside").rename(tmp_path / f"lane-{second}")
    async with deployment.worker(first, second, state_dir=tmp_path):
        for number, key in keys.items():
            assert await _decided(deployment, number, [key]) == ["duplicate"]
