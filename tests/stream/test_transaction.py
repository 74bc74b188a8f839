"""The writer, against a real broker and through a proxy that drops, holds and delays what they say to each other.

What a dead writer leaves behind is always settled by its successor's fence: committed whole, or not at all.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from app.config import Kafka
from app.gate.outputs import Out
from app.stream.cluster import Cluster
from app.stream.inspection import connect
from app.stream.log import CommitUnknown, Fenced, Partition
from app.stream.transaction import KafkaWriter
from tests.support import proxy, reader
from tests.support.proxy import Fate, Frame, KafkaProxy, Side

DEADLINE_MS = 1_000  # of every request, so that a dropped answer is missed soon
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def topics(broker: str) -> tuple[str, str]:
    """Two topics of one partition for each of many tests."""
    from confluent_kafka.admin import NewTopic

    names = tuple(f"t{secrets.token_hex(4)}.{name}" for name in ("a", "b"))
    admin = connect(Kafka(bootstrap=broker))
    made = admin.create_topics([NewTopic(name, 1) for name in names])
    for future in made.values():
        future.result(30)
    return names[0], names[1]


@dataclass
class World:
    """A transactional id of its own, and how to write by it directly or through the proxy."""

    broker: str
    id: str
    topics: tuple[str, str]
    direct: Cluster
    proxied: Cluster | None = None
    between: KafkaProxy | None = None
    tags: list[bytes] = field(default_factory=list)

    def parts(self, tag: bytes) -> dict[Partition, list[Out]]:
        """A record for each topic, told by its key."""
        return {(topic, 0): [Out(self.id.encode(), tag)] for topic in self.topics}

    async def committed(self, isolation: reader.Isolation = "read_committed") -> list[list[bytes]]:
        """The tags on each topic, in order."""
        found = []
        for topic in self.topics:
            read = await asyncio.to_thread(reader.read_topic, self.broker, topic, isolation)
            found.append([r.value or b"" for r in read.records if r.key == self.id.encode()])
        return found

    async def fence(self, cluster: Cluster | None = None) -> KafkaWriter:
        writer = await (cluster or self.direct).fence(self.id, "test")
        assert isinstance(writer, KafkaWriter)
        return writer


@asynccontextmanager
async def _cluster(bootstrap: str, topics: tuple[str, str], deadline_ms: int = 15_000) -> AsyncIterator[Cluster]:
    cluster = Cluster(
        Kafka(bootstrap=bootstrap, request_timeout_ms=deadline_ms), topics, transaction_timeout_ms=10_000,
        codec="none", max_batch_bytes=1 << 20,
    )  # fmt: skip
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
async def world(broker: str, prefix: str, topics: tuple[str, str]) -> AsyncIterator[World]:
    async with _cluster(broker, topics) as direct:
        yield World(broker, f"{prefix}writer", topics, direct)


@pytest.fixture
async def proxied(world: World) -> AsyncIterator[World]:
    """The same with a second cluster connection that leads through a proxy."""
    with KafkaProxy(world.broker) as between:
        async with _cluster(between.bootstrap, world.topics, DEADLINE_MS) as cluster:
            world.proxied, world.between = cluster, between
            yield world


# ── alone with the broker ──


async def test_a_transaction_is_visible_whole_on_every_partition(world: World) -> None:
    writer = await world.fence()
    placed = await writer.commit(world.parts(b"1"))
    assert await world.committed() == [[b"1"], [b"1"]]
    assert placed.keys() == world.parts(b"").keys()


async def test_the_writer_tells_where_its_records_landed(world: World) -> None:
    writer = await world.fence()
    partition = (world.topics[0], 0)
    first = (await writer.commit({partition: [Out(world.id.encode(), b"%d" % n) for n in range(3)]}))[partition]
    second = (await writer.commit({partition: [Out(world.id.encode(), b"3")]}))[partition]
    assert second.base_offset == first.base_offset + 4  # three records and a marker
    read = await asyncio.to_thread(reader.read_topic, world.broker, world.topics[0])
    assert {r.offset: r.value for r in read.records if r.key == world.id.encode()} == {
        first.base_offset: b"0", first.base_offset + 1: b"1", first.base_offset + 2: b"2", second.base_offset: b"3",
    }  # fmt: skip


async def test_many_transactions_follow_each_other_on_one_epoch(world: World) -> None:
    writer = await world.fence()
    for number in range(30):
        await writer.commit(world.parts(b"%d" % number))
    assert await world.committed() == [[b"%d" % number for number in range(30)]] * 2


async def test_a_writer_whose_id_was_taken_is_fenced(world: World) -> None:
    old = await world.fence()
    await old.commit(world.parts(b"1"))
    await world.fence()
    with pytest.raises(Fenced):
        await old.commit(world.parts(b"2"))
    assert await world.committed() == [[b"1"], [b"1"]]


async def test_a_fenced_writer_never_works_again(world: World) -> None:
    old = await world.fence()
    await world.fence()
    with pytest.raises(Fenced):
        await old.commit(world.parts(b"1"))
    with pytest.raises(CommitUnknown):
        await old.commit(world.parts(b"2"))


async def test_a_writer_that_was_never_fenced_in_does_not_write(world: World) -> None:
    writer = KafkaWriter(world.direct._client, world.id, owner="test", timeout_ms=10_000, deadline_s=5, codec=0)
    with pytest.raises(CommitUnknown):
        await writer.commit(world.parts(b"1"))


async def test_a_record_its_topic_does_not_take_kills_the_writer_and_nothing_of_its_transaction_is_committed(
    world: World,
) -> None:
    writer = await world.fence()
    parts = world.parts(b"1")
    parts[(world.topics[1], 0)] = [Out(world.id.encode(), bytes(2 << 20))]  # beyond max.message.bytes
    with pytest.raises(CommitUnknown):
        await writer.commit(parts)
    with pytest.raises(CommitUnknown):
        await writer.commit(world.parts(b"2"))
    await (await world.fence()).commit(world.parts(b"3"))
    assert await world.committed() == [[b"3"], [b"3"]]
    assert (await world.committed("read_uncommitted"))[0] == [b"1", b"3"]


async def test_the_successor_of_a_writer_that_died_with_an_open_transaction_ends_it(world: World) -> None:
    old = await world.fence()
    await old._add_partitions(world.parts(b"1"))
    await old._produce(world.parts(b"1"))
    await (await world.fence()).commit(world.parts(b"2"))
    read = await asyncio.to_thread(reader.read_topic, world.broker, world.topics[0])
    assert read.ends == read.highs  # nothing is left open
    assert await world.committed() == [[b"2"], [b"2"]]


async def test_a_cancelled_commit_kills_the_writer(world: World) -> None:
    writer = await world.fence()
    commit = asyncio.create_task(writer.commit(world.parts(b"1")))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    with pytest.raises(CommitUnknown):
        await writer.commit(world.parts(b"2"))
    await (await world.fence()).commit(world.parts(b"3"))
    assert await world.committed() == [[b"3"], [b"3"]]


async def test_a_closed_writer_does_not_write(world: World) -> None:
    writer = await world.fence()
    await writer.close()
    with pytest.raises(CommitUnknown):
        await writer.commit(world.parts(b"1"))


# ── through the proxy ──

# What is dropped, and whether the broker did what was asked all the same.
DROPPED = {
    "the answer to EndTxn": (Side.ANSWER, proxy.END_TXN, True),
    "the request EndTxn": (Side.REQUEST, proxy.END_TXN, False),
    "the answer to Produce": (Side.ANSWER, proxy.PRODUCE, False),
    "the request Produce": (Side.REQUEST, proxy.PRODUCE, False),
    "the answer to AddPartitionsToTxn": (Side.ANSWER, proxy.ADD_PARTITIONS_TO_TXN, False),
    "the request AddPartitionsToTxn": (Side.REQUEST, proxy.ADD_PARTITIONS_TO_TXN, False),
}


@pytest.mark.parametrize("fate", [Fate.DROP, Fate.CUT])
@pytest.mark.parametrize("what", DROPPED)
async def test_a_frame_lost_in_a_transaction_leads_to_a_new_epoch_and_the_outcome_is_whole(
    proxied: World, what: str, fate: Fate
) -> None:
    side, api_key, is_committed = DROPPED[what]
    assert proxied.between is not None
    writer = await proxied.fence(proxied.proxied)
    await writer.commit(proxied.parts(b"before"))
    proxied.between.judge = proxy.once(side, api_key, fate)
    async with asyncio.timeout(PATIENCE_S):  # every await has a deadline
        with pytest.raises(CommitUnknown):
            await writer.commit(proxied.parts(b"lost"))
    with pytest.raises(CommitUnknown):  # not even a first request of a next transaction
        await writer.commit(proxied.parts(b"never"))
    await writer.close()

    successor = await proxied.fence(proxied.proxied)
    await successor.commit(proxied.parts(b"after"))

    first, second = (given for given in proxied.between.epochs if not given.error)
    # A new epoch, told on the wire: what is still under way of the old one can touch nothing.
    assert (second.producer_id, second.epoch) > (first.producer_id, first.epoch)
    expected = [b"before", b"lost", b"after"] if is_committed else [b"before", b"after"]
    assert await proxied.committed() == [expected, expected]


async def test_no_request_of_a_transaction_is_ever_sent_twice(proxied: World) -> None:
    assert proxied.between is not None
    writer = await proxied.fence(proxied.proxied)
    proxied.between.judge = proxy.drop_once(Side.ANSWER, proxy.END_TXN)
    with pytest.raises(CommitUnknown):
        await writer.commit(proxied.parts(b"1"))
    await asyncio.sleep(2 * DEADLINE_MS / 1_000)
    assert proxied.between.seen[(Side.REQUEST, proxy.END_TXN)] == 1


async def test_a_held_request_to_commit_that_arrives_late_changes_nothing(proxied: World) -> None:
    assert proxied.between is not None
    old = await proxied.fence(proxied.proxied)
    proxied.between.judge = proxy.once(Side.REQUEST, proxy.END_TXN, Fate.HOLD)
    with pytest.raises(CommitUnknown):
        await old.commit(proxied.parts(b"held"))
    successor = await proxied.fence()
    # Its transaction is under way when the old one's end arrives.
    await successor._add_partitions(proxied.parts(b"new"))
    await successor._produce(proxied.parts(b"new"))
    proxied.between.let_go()
    await _seen(proxied.between, (Side.ANSWER, proxy.END_TXN))
    assert await proxied.committed() == [[], []]
    await successor._end()
    assert await proxied.committed() == [[b"new"], [b"new"]]


async def _seen(between: KafkaProxy, what: tuple[Side, int]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not between.seen[what]:  # noqa: ASYNC110 - it is set on the proxy's thread
            await asyncio.sleep(0.01)


async def test_a_fence_whose_answer_is_lost_fails_in_time_and_the_next_one_works(proxied: World) -> None:
    assert proxied.between is not None
    proxied.between.judge = proxy.drop_once(Side.ANSWER, proxy.INIT_PRODUCER_ID)
    async with asyncio.timeout(PATIENCE_S):
        try:
            writer = await proxied.fence(proxied.proxied)
        except Exception:  # which of the two deadlines is first is nobody's concern
            writer = await proxied.fence(proxied.proxied)
    await writer.commit(proxied.parts(b"1"))
    assert await proxied.committed() == [[b"1"], [b"1"]]


async def test_a_broker_that_answers_nothing_any_more_is_given_up_in_time(proxied: World) -> None:
    assert proxied.between is not None
    writer = await proxied.fence(proxied.proxied)
    proxied.between.judge = lambda frame: Fate.DROP if frame.side is Side.ANSWER else Fate.PASS
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(CommitUnknown):
            await writer.commit(proxied.parts(b"1"))
        with pytest.raises(Exception, match=r""):
            await proxied.fence(proxied.proxied)


async def test_a_writer_that_failed_to_fence_leaves_no_connection_behind(proxied: World) -> None:
    assert proxied.between is not None
    assert proxied.proxied is not None
    proxied.between.judge = _drop_all(Side.ANSWER, proxy.INIT_PRODUCER_ID)
    with pytest.raises(Exception, match=r""):
        await proxied.fence(proxied.proxied)
    groups = [group for _, group in proxied.proxied._client._conns if isinstance(group, tuple)]
    assert [group for group in groups if group[0] == "writer"] == []


def _drop_all(side: Side, api_key: int) -> Callable[[Frame], Fate]:
    return lambda frame: Fate.DROP if (frame.side, frame.api_key) == (side, api_key) else Fate.PASS


async def test_a_cancelled_commit_in_flight_kills_the_writer_wherever_it_stood(proxied: World) -> None:
    assert proxied.between is not None
    for api_key in (proxy.ADD_PARTITIONS_TO_TXN, proxy.PRODUCE, proxy.END_TXN):
        writer = await proxied.fence(proxied.proxied)
        proxied.between.seen.clear()
        proxied.between.judge = _drop_all(Side.REQUEST, api_key)
        commit = asyncio.create_task(writer.commit(proxied.parts(b"cancelled")))
        await _seen(proxied.between, (Side.REQUEST, api_key))
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        proxied.between.judge = proxy._pass
        with pytest.raises(CommitUnknown):
            await writer.commit(proxied.parts(b"never"))
        await writer.close()
    await (await proxied.fence(proxied.proxied)).commit(proxied.parts(b"after"))
    assert await proxied.committed() == [[b"after"], [b"after"]]
