"""Taking a lane: whatever the local store and the changelog look like, the table is what was committed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from app.config import Kafka
from app.gate.outputs import Out
from app.stream import restore, store
from app.stream.cluster import Cluster
from app.stream.inspection import connect
from app.stream.lane import Lane
from app.stream.log import Partition
from app.stream.store import Store
from tests.support import proxy, reader
from tests.support.deployments import Deployment
from tests.support.emitting import emit, receipts, trigger, until
from tests.support.proxy import KafkaProxy, Side

CLUSTER, BIRTH, LANE = "cluster", "birth", 0
DAY_MS = 86_400_000
COMPACTED_WITHIN_S = 60.0

Table = dict[bytes, bytes]


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def packed(number: int) -> bytes:
    return b"entry %d" % number


# ── a changelog alone ──


@pytest.fixture
def changelog(broker: str, prefix: str) -> Partition:
    return make_changelog(broker, prefix)


def make_changelog(broker: str, prefix: str, **config: str) -> Partition:
    topic = NewTopic(f"{prefix}changelog", 1, config={name.replace("_", "."): value for name, value in config.items()})
    admin = connect(Kafka(bootstrap=broker))
    admin.create_topics([topic])[topic.topic].result(30)
    reader.read_topic(broker, topic.topic)  # it is led now
    return (topic.topic, 0)


@pytest.fixture
async def cluster(broker: str, changelog: Partition) -> AsyncIterator[Cluster]:
    made = Cluster(
        Kafka(bootstrap=broker), [changelog[0]], transaction_timeout_ms=10_000, codec="none", max_batch_bytes=1 << 20
    )
    await made.start()
    yield made
    await made.stop()


def opened(path: Path) -> Store:
    return store.open_store(path, CLUSTER, BIRTH, LANE)[0]


async def replayed(cluster: Cluster, changelog: Partition, path: Path, keep_ms: int = DAY_MS) -> tuple[Table, int]:
    """The table and its changelog offset after a replay into the store at a path."""
    tables = [opened(path)]

    def anew() -> Store:
        tables.append(store.wipe(tables[-1], path, CLUSTER, BIRTH, LANE))
        return tables[-1]

    try:
        await restore.replay(cluster, changelog, tables[-1], keep_ms, anew, lambda: None)
        return dict(tables[-1].items()), tables[-1].changelog_offset
    finally:
        tables[-1].close()


async def commit(cluster: Cluster, changelog: Partition, *entries: tuple[int, bytes | None]) -> None:
    writer = await cluster.fence(f"{changelog[0]}-writer", "test")
    await writer.commit({changelog: [Out(identity(number), value) for number, value in entries]})


async def test_an_empty_changelog_gives_an_empty_table(cluster: Cluster, changelog: Partition, tmp_path: Path) -> None:
    assert await replayed(cluster, changelog, tmp_path / "s") == ({}, 0)


async def test_a_changelog_that_ends_in_markers_is_read_to_its_end(
    cluster: Cluster, changelog: Partition, tmp_path: Path
) -> None:
    for number in range(3):
        await commit(cluster, changelog, (number, packed(number)))
    table, _ = await replayed(cluster, changelog, tmp_path / "s")
    assert table == {identity(number): packed(number) for number in range(3)}


async def test_a_later_entry_replaces_and_a_tombstone_removes(
    cluster: Cluster, changelog: Partition, tmp_path: Path
) -> None:
    await commit(cluster, changelog, (1, b"old"), (2, b"gone"), (3, b"stays"))
    await commit(cluster, changelog, (1, b"new"), (2, None))
    assert (await replayed(cluster, changelog, tmp_path / "s"))[0] == {identity(1): b"new", identity(3): b"stays"}


async def test_a_second_replay_begins_where_the_first_ended(
    cluster: Cluster, changelog: Partition, tmp_path: Path
) -> None:
    await commit(cluster, changelog, (1, b"1"))
    _, first = await replayed(cluster, changelog, tmp_path / "s")
    await commit(cluster, changelog, (2, b"2"))
    await _delete_before(cluster, changelog, first)  # what was applied need not be there any more
    table, second = await replayed(cluster, changelog, tmp_path / "s")
    assert table == {identity(1): b"1", identity(2): b"2"}
    assert second > first


async def test_aborted_entries_are_passed(cluster: Cluster, changelog: Partition, broker: str, tmp_path: Path) -> None:
    await commit(cluster, changelog, (1, b"1"))
    producer = Producer({"bootstrap.servers": broker, "transactional.id": f"{changelog[0]}-aborting"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in (1, 2):
        producer.produce(changelog[0], b"aborted", identity(number), partition=0)
    producer.flush(30)
    producer.abort_transaction(30)
    table, offset = await replayed(cluster, changelog, tmp_path / "s")
    assert table == {identity(1): b"1"}
    assert offset >= 2


async def test_a_changelog_that_was_really_compacted_gives_the_same_table(
    broker: str, prefix: str, tmp_path: Path
) -> None:
    changelog = make_changelog(
        broker, prefix, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01",
        delete_retention_ms="0",
    )  # fmt: skip
    expected: Table = {}
    cluster = Cluster(
        Kafka(bootstrap=broker), [changelog[0]], transaction_timeout_ms=10_000, codec="none", max_batch_bytes=1 << 20
    )
    await cluster.start()
    try:
        writer = await cluster.fence(f"{changelog[0]}-writer", "test")
        for round_number in range(4):
            for number in range(0, 100, round_number + 1):
                expected[identity(number)] = packed(1_000 * round_number + number)
            records = [Out(each, expected[each]) for each in map(identity, range(0, 100, round_number + 1))]
            await writer.commit({changelog: records})
            await asyncio.sleep(0.15)  # the next one begins a segment
        await writer.commit({changelog: [Out(identity(7), b"last")]})
        expected[identity(7)] = b"last"

        async def held() -> int:
            marks = await cluster.watermarks(changelog)
            return sum([len(chunk) async for chunk, _ in cluster.read(changelog, marks.start, marks.high)])

        async with asyncio.timeout(COMPACTED_WITHIN_S):
            while await held() > 150:  # of 210 written  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        table, offset = await replayed(cluster, changelog, tmp_path / "s")
        marks = await cluster.watermarks(changelog)
    finally:
        await cluster.stop()
    assert table == expected
    assert offset == marks.high


# ── the local store ──


async def _delete_before(cluster: Cluster, partition: Partition, offset: int) -> None:
    admin = connect(Kafka(bootstrap=cluster._client._bootstrap_servers))
    for future in admin.delete_records([TopicPartition(*partition, offset)]).values():
        await asyncio.to_thread(future.result, 30)


async def _wiped(cluster: Cluster, changelog: Partition, path: Path, logged: list[Any], **options: Any) -> str:
    """Why the store at a path was wiped; its table is then the changelog's."""
    table, _ = await replayed(cluster, changelog, path, **options)
    assert table == {identity(1): b"1"}
    return next(event["why"] for event in logged if event["event"] == "store_wiped")


def _stale_store(path: Path, offset: int, lane: int = LANE, birth: str = BIRTH) -> None:
    """A store that holds an entry the changelog does not."""
    made, _ = store.open_store(path, CLUSTER, birth, lane)
    made.apply([(identity(99), b"of another time")], offset)
    made.close()


def test_a_store_that_is_opened_again_has_its_bloom_filter_and_the_shared_cache(tmp_path: Path) -> None:
    """rocksdict opens what exists with RocksDB's defaults, unless the column family is named."""
    for _ in range(3):
        opened(tmp_path / "s").close()
    for told in sorted((tmp_path / "s").glob("LOG*")):
        text = told.read_text()
        assert "filter_policy: bloomfilter" in text, told
        assert f"capacity : {store.BLOCK_CACHE_BYTES}" in text, told


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


async def test_a_store_ahead_of_the_changelog_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    await commit(cluster, changelog, (1, b"1"))
    _stale_store(tmp_path / "s", 1_000)
    assert "ahead of the changelog" in await _wiped(cluster, changelog, tmp_path / "s", logged)


async def test_a_store_behind_the_start_of_the_changelog_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    for _ in range(3):
        await commit(cluster, changelog, (1, b"1"))
    _stale_store(tmp_path / "s", 1)
    await _delete_before(cluster, changelog, 3)
    assert "begins after it" in await _wiped(cluster, changelog, tmp_path / "s", logged)


async def test_a_store_older_than_tombstones_are_kept_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    await commit(cluster, changelog, (1, b"1"))
    _stale_store(tmp_path / "s", 1)
    await asyncio.sleep(0.05)
    assert "older" in await _wiped(cluster, changelog, tmp_path / "s", logged, keep_ms=10)


@pytest.mark.parametrize(("lane", "birth"), [(1, BIRTH), (LANE, "another")])
def test_a_store_of_another_lane_or_birth_is_wiped(tmp_path: Path, lane: int, birth: str) -> None:
    _stale_store(tmp_path / "s", 5, lane, birth)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why == "it belongs to another deployment or lane"
    assert (dict(made.items()), made.changelog_offset) == ({}, 0)
    made.close()


def test_a_store_of_the_same_lane_is_kept(tmp_path: Path) -> None:
    _stale_store(tmp_path / "s", 5)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why is None
    assert (dict(made.items()), made.changelog_offset) == ({identity(99): b"of another time"}, 5)
    made.close()


def test_a_sweep_meets_damage_that_no_lookup_has_met(tmp_path: Path) -> None:
    made, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    made.apply([(identity(number), os.urandom(60)) for number in range(5_000)], 5_000)
    made.close()
    (table,) = (tmp_path / "s").glob("*.sst")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    again, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why is None, "opening reads no entry"
    with pytest.raises(store.StoreUnusable, match="checksum"):
        again.sweep(10_000, lambda _: False)
    again.close()


def _fill(made: store.Store) -> None:
    for number in range(1, 1_000):
        made.apply([(identity(number), bytes(500))], number)


def test_a_store_that_its_disk_failed_is_closed_and_let_go(tmp_path: Path) -> None:
    made, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32_768, before[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(store.StoreUnusable, match="IO error"):
            _fill(made)
        made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert set(dict(again.items())) == {identity(number) for number in range(1, again.changelog_offset + 1)}
    again.close()


async def test_a_store_whose_lock_a_zombie_holds_gets_one_beside_it(
    tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.2)
    zombie, _ = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    second, path = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    assert path == tmp_path / f"lane-{LANE}.1"
    assert [event["event"] for event in logged] == ["store_locked"]
    second.close()
    zombie.close()


async def test_a_store_whose_lock_is_let_go_within_a_second_is_waited_for(tmp_path: Path) -> None:
    former, _ = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    asyncio.get_running_loop().call_later(0.2, former.close)
    second, path = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    assert path == tmp_path / f"lane-{LANE}"
    second.close()


def test_a_sweep_deletes_only_what_is_dead_and_comes_round(tmp_path: Path) -> None:
    made = opened(tmp_path / "s")
    made.apply([(identity(number), b"dead" if number % 2 else b"live") for number in range(100)], 100)
    assert sum(made.sweep(30, lambda value: value == b"dead") for _ in range(5)) == 50
    assert set(made.items()) == {(identity(number), b"live") for number in range(0, 100, 2)}
    made.apply([(identity(1), b"dead")], 101)
    assert sum(made.sweep(30, lambda value: value == b"dead") for _ in range(4)) == 1
    made.close()


# ── with a lane ──


def table_of(lane: Lane) -> Table:
    assert lane._store is not None
    return dict(lane._store.items())


async def _decided(deployment: Deployment, lane: int, keys: list[str]) -> list[str]:
    """Outcomes of one trigger for each key."""
    records = [trigger(deployment.issuer, key) for key in keys]
    ids = await asyncio.to_thread(emit, deployment.bootstrap, deployment.topic("triggers"), lane, records)
    found = await receipts(deployment.bootstrap, deployment.prefix, ids)
    return [found[each]["outcome"] for each in ids]


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
            between.judge = lambda frame: (
                proxy.Fate.DROP if (frame.side, frame.api_key) == (Side.REQUEST, proxy.END_TXN) else proxy.Fate.PASS
            )
            record = trigger(deployment.issuer, deployment.key(number))
            await asyncio.to_thread(emit, deployment.bootstrap, deployment.topic("triggers"), number, [record])
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
            assert lane._store is not None
            lane._store._db.flush()
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


@pytest.mark.parametrize("seed", range(120))
def test_a_store_damaged_anywhere_is_refused_or_holds_exactly_what_its_offset_says(
    grown: Path, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    shutil.copytree(grown, tmp_path / "s")
    files = sorted(path for path in (tmp_path / "s").iterdir() if path.stat().st_size and path.name != "LOG")
    victim = dice.choice(files)
    data = bytearray(victim.read_bytes())
    at = dice.randrange(len(data))
    if seed % 4 == 3:
        victim.write_bytes(data[:at])
    else:
        data[at] ^= 1 << dice.randrange(8)
        victim.write_bytes(data)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    try:
        # As a lane reads it; RocksDB's iterators end at damage without a word.
        asked = [identity(number) for number in range(300)]
        held = {key: value for key, value in zip(asked, made.get_many(asked), strict=True) if value is not None}
    except Exception:  # RocksDB's: the lane wipes such a store when it meets it
        return
    finally:
        offset = made.changelog_offset
        made.close()
    assert held == {identity(number): packed(number) for number in range(offset)}, f"{victim.name}: {why}"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as a kill leaves it: entry n was applied with changelog offset n + 1, over two tables and a log."""
    directory = tmp_path_factory.mktemp("grown")
    made = opened(directory / "s")
    for number in range(300):
        made.apply([(identity(number), packed(number))], number + 1)
        if number in {99, 199}:
            made._db.flush()
    shutil.copytree(directory / "s", directory / "as-killed")
    made.close()
    return directory / "as-killed"


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


def test_every_checkpoint_written_can_be_read() -> None:
    from app.gate import outputs
    from app.gate.records import Checkpoint

    row = Checkpoint(3, 12, "birth", 981, 1043, 12, 0, "0" * 64)
    written = outputs.checkpoint(row)
    assert outputs.read_checkpoint(written.value or b"") == row
    assert json.loads(written.value or b"")["lane"] == 3
    assert secrets.compare_digest(written.key or b"", b"3")
