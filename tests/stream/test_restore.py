"""Replaying a changelog: whatever it and the local store look like, the table is what was committed."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from app.config import Kafka
from app.gate import outputs
from app.gate.outputs import Out
from app.gate.records import Checkpoint
from app.stream import restore, store
from app.stream.cluster import Cluster
from app.stream.inspection import connect
from app.stream.log import Partition, ReadRecord, Watermarks
from app.stream.store import Store
from tests.support import reader
from tests.support.stores import BIRTH, CLUSTER, LANE, Table, identity, opened, packed, stale_store

DAY_MS = 86_400_000
COMPACTED_WITHIN_S = 60.0


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


async def _delete_before(cluster: Cluster, partition: Partition, offset: int) -> None:
    admin = connect(Kafka(bootstrap=cluster._client._bootstrap_servers))
    for future in admin.delete_records([TopicPartition(*partition, offset)]).values():
        await asyncio.to_thread(future.result, 30)


async def _wiped(cluster: Cluster, changelog: Partition, path: Path, logged: list[Any], **options: Any) -> str:
    """Why the store at a path was wiped; its table is then the changelog's."""
    table, _ = await replayed(cluster, changelog, path, **options)
    assert table == {identity(1): b"1"}
    return next(event["why"] for event in logged if event["event"] == "store_wiped")


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


async def test_a_store_ahead_of_the_changelog_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    await commit(cluster, changelog, (1, b"1"))
    stale_store(tmp_path / "s", 1_000)
    assert "ahead of the changelog" in await _wiped(cluster, changelog, tmp_path / "s", logged)


async def test_a_store_behind_the_start_of_the_changelog_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    for _ in range(3):
        await commit(cluster, changelog, (1, b"1"))
    stale_store(tmp_path / "s", 1)
    await _delete_before(cluster, changelog, 3)
    assert "begins after it" in await _wiped(cluster, changelog, tmp_path / "s", logged)


async def test_a_store_older_than_tombstones_are_kept_is_wiped(
    cluster: Cluster, changelog: Partition, tmp_path: Path, logged: list[Any]
) -> None:
    await commit(cluster, changelog, (1, b"1"))
    stale_store(tmp_path / "s", 1)
    await asyncio.sleep(0.05)
    assert "older" in await _wiped(cluster, changelog, tmp_path / "s", logged, keep_ms=10)


ROW = Checkpoint(3, 12, "birth", 981, 1043, 12, 0, "0" * 64)


class Compacted:
    """Checkpoints of a lane that another owns: `high` at each look, and of the records those below it that are left."""

    def __init__(self, highs: list[int], *left: ReadRecord) -> None:
        self._highs, self._left = highs, left

    async def watermarks(self, _: Partition) -> Watermarks:
        return Watermarks(0, self._highs.pop(0) if len(self._highs) > 1 else self._highs[0])

    async def read(self, _: Partition, start: int, end: int) -> AsyncIterator[tuple[list[ReadRecord], int]]:
        yield [each for each in self._left if start <= each.offset < end], end


async def test_who_reads_checkpoints_while_they_are_compacted_looks_for_the_newer_one() -> None:
    written = outputs.checkpoint(ROW)
    source: Any = Compacted([10, 12], ReadRecord(10, written.key, written.value))
    assert await restore.last_checkpoint(source, ("checkpoints", 3), "birth", 12) == ROW


@pytest.mark.parametrize("left", [(), (ReadRecord(9, b"3", None),), (ReadRecord(9, b"4", b"{}"),)])
async def test_a_lane_without_a_checkpoint_is_lost_and_begins_nowhere(left: tuple[ReadRecord, ...]) -> None:
    source: Any = Compacted([10], *left)
    with pytest.raises(restore.CheckpointLost):
        await restore.last_checkpoint(source, ("checkpoints", 3), "birth", 12)


async def test_who_writes_there_without_end_does_not_hide_that_there_is_no_checkpoint() -> None:
    source: Any = Compacted(list(range(10, 10_000)))
    with pytest.raises(restore.CheckpointLost):
        await restore.last_checkpoint(source, ("checkpoints", 3), "birth", 12)
    assert source._highs[0] == 10 + 2 * restore.LOOKS_MAX


def test_every_checkpoint_written_can_be_read() -> None:
    row = ROW
    written = outputs.checkpoint(row)
    assert outputs.read_checkpoint(written.value or b"") == row
    assert json.loads(written.value or b"")["lane"] == 3
    assert secrets.compare_digest(written.key or b"", b"3")
