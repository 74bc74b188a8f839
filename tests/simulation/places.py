"""A log to ask questions of: the simulated one, or a real broker's. The program's own client asks, of both alike."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest

from app.config import Kafka
from app.gate.outputs import Out
from app.stream import batch
from app.stream.cluster import Cluster
from app.stream.log import ReadRecord
from app.stream.transaction import KafkaWriter
from tests.simulation.log import Broker
from tests.simulation.partition import READ_COMMITTED, Message
from tests.simulation.scheduler import Loop, run
from tests.simulation.wire import NETWORK, Network, Verdict
from tests.support.markers import write_markers

TRANSACTION_TIMEOUT_MS: Final = 1_000
PATIENCE_S: Final = 20.0
_ALL_REPLICAS: Final = -1


class Ops(Protocol):
    """What is done to a log from outside the program."""

    async def create(self, topic: str, *, append_time: bool) -> None: ...
    async def write(self, topic: str, values: Sequence[bytes]) -> None: ...
    async def begin(self, topic: str, values: Sequence[bytes]) -> Callable[[bool], Awaitable[None]]: ...
    async def delete_before(self, topic: str, offset: int) -> None: ...
    async def mark_committed(self, topic: str, writer: KafkaWriter) -> None: ...


class Place:
    """A cluster with topics of its own, of one partition each."""

    def __init__(self, cluster: Cluster, ops: Ops, topics: list[str]) -> None:
        self.cluster, self.ops, self.topics = cluster, ops, topics
        self.id = f"contract-{secrets.token_hex(4)}"
        self.a, self.b, self.timed = topics

    async def fence(self) -> KafkaWriter:
        writer = await self.cluster.fence(self.id, "contract")
        assert isinstance(writer, KafkaWriter)
        return writer

    def outs(self, *values: bytes) -> list[Out]:
        return [Out(value, value) for value in values]

    # One request each, with whatever producer id and epoch: what a writer of ours would never send.

    async def add(self, writer: KafkaWriter, *topics: str) -> int:
        request = AddPartitionsToTxnRequest(
            self.id, writer._producer_id, writer._epoch, [(topic, [0]) for topic in topics]
        )
        while True:
            response = await self._ask(request)
            code = max(code for _, rows in response.errors for _, code in rows)
            if code != 51:  # concurrent transactions: markers of the one before are under way
                return int(code)
            await asyncio.sleep(0.01)

    async def produce(self, writer: KafkaWriter, topic: str, sequence: int, *values: bytes) -> int:
        raw = batch.encode(
            self.outs(*values), producer_id=writer._producer_id, producer_epoch=writer._epoch, base_sequence=sequence
        )
        client: Any = self.cluster._client
        request = ProduceRequest(self.id, _ALL_REPLICAS, 5_000, [(topic, [(0, raw)])])
        response = await client.send(await client.leader((topic, 0)), request, group="contract")
        return int(response.topics[0][1][0][1])

    async def end(self, writer: KafkaWriter, *, commit: bool = True) -> int:
        return int((await self._ask(EndTxnRequest(self.id, writer._producer_id, writer._epoch, commit))).error_code)

    async def _ask(self, request: Any) -> Any:
        client: Any = self.cluster._client
        return await client.send(await client.transaction_coordinator(self.id), request, group="contract")

    async def stable(self, topic: str) -> int:
        """The last stable offset."""
        client: Any = self.cluster._client
        request = OffsetRequest(-1, READ_COMMITTED, [(topic, [(0, -1)])])
        response = await client.send(await client.leader((topic, 0)), request, group="contract")
        return int(response.topics[0][1][0][3])

    async def high(self, topic: str) -> int:
        return (await self.cluster.watermarks((topic, 0))).high

    async def settled(self, topic: str) -> None:
        """Until no transaction is open on it."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.stable(topic) != await self.high(topic):  # noqa: ASYNC110 - a broker sets no event
                await asyncio.sleep(0.05)

    async def read(self, topic: str, start: int = 0, end: int | None = None) -> list[ReadRecord]:
        records: list[ReadRecord] = []
        end = await self.high(topic) if end is None else end
        async with asyncio.timeout(PATIENCE_S):
            async for chunk, _ in self.cluster.read((topic, 0), start, end):
                records += chunk
        return records

    async def values(self, topic: str) -> list[bytes | None]:
        await self.settled(topic)
        return [record.value for record in await self.read(topic)]


Contract = Callable[[Place], Awaitable[None]]


def _kafka(bootstrap: str) -> Kafka:
    return Kafka(bootstrap=bootstrap, request_timeout_ms=5_000)


@asynccontextmanager
async def _place(bootstrap: str, ops: Ops) -> AsyncIterator[Place]:
    mark = secrets.token_hex(4)
    topics = [f"contract-{mark}.{name}" for name in ("a", "b", "timed")]
    for topic in topics:
        await ops.create(topic, append_time=topic.endswith("timed"))
    cluster = Cluster(
        _kafka(bootstrap), topics, transaction_timeout_ms=TRANSACTION_TIMEOUT_MS, codec="none",
        max_batch_bytes=8 << 20,
    )  # fmt: skip
    await cluster.start()
    try:
        for topic in topics:
            await cluster.watermarks((topic, 0))  # until its leader knows it
        yield Place(cluster, ops, topics)
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await cluster.stop()


# ── the simulated one ──


class SimulatedOps:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def create(self, topic: str, *, append_time: bool) -> None:
        self._broker.create(topic, 1, append_time=append_time, compacted=False)

    async def write(self, topic: str, values: Sequence[bytes]) -> None:
        self._broker.write((topic, 0), [Message(value, value) for value in values])

    async def begin(self, topic: str, values: Sequence[bytes]) -> Callable[[bool], Awaitable[None]]:
        producer_id, _ = self._broker.begin_foreign((topic, 0), [Message(value, value) for value in values])

        async def end(commit: bool) -> None:
            self._broker.end_foreign((topic, 0), producer_id, commit=commit)

        return end

    async def delete_before(self, topic: str, offset: int) -> None:
        self._broker.logs[topic, 0].delete_before(offset)

    async def mark_committed(self, topic: str, writer: KafkaWriter) -> None:
        self._broker.logs[topic, 0].mark(writer._producer_id, writer._epoch, True, self._broker.now_ms)


def ask_simulated(contract: Contract, seed: int, *, fifo: bool = False) -> None:
    """Call it within `simulated()`."""
    loop = Loop(seed, fifo=fifo)
    broker = Broker(loop, seed, nodes=1 + seed % 3, marker_max_s=0.05)
    dice = broker.random
    network = Network(broker, lambda *_: Verdict(dice.random() * 0.003, dice.random() * 0.003))
    loop.world.context.run(NETWORK.set, network)

    async def ask() -> None:
        async with _place("localhost:9092", SimulatedOps(broker)) as place:
            await contract(place)

    try:
        run(loop, ask())
    finally:
        loop.bury()


# ── the real one ──


class RealOps:
    def __init__(self, bootstrap: str) -> None:
        from app.stream.inspection import connect

        self._bootstrap = bootstrap
        self._admin = connect(_kafka(bootstrap))
        self._numbers = itertools.count()

    async def create(self, topic: str, *, append_time: bool) -> None:
        from confluent_kafka.admin import NewTopic

        kind = "LogAppendTime" if append_time else "CreateTime"
        made = self._admin.create_topics([NewTopic(topic, 1, config={"message.timestamp.type": kind})])
        await asyncio.to_thread(made[topic].result, 30)

    async def write(self, topic: str, values: Sequence[bytes]) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self._bootstrap})
        for value in values:
            producer.produce(topic, value, value)
        assert await asyncio.to_thread(producer.flush, 30) == 0

    async def begin(self, topic: str, values: Sequence[bytes]) -> Callable[[bool], Awaitable[None]]:
        from confluent_kafka import Producer

        name = f"{topic}.emitter-{next(self._numbers)}"
        producer = Producer({"bootstrap.servers": self._bootstrap, "transactional.id": name})
        await asyncio.to_thread(producer.init_transactions, 30)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, value)
        assert await asyncio.to_thread(producer.flush, 30) == 0

        async def end(commit: bool) -> None:
            await asyncio.to_thread(producer.commit_transaction if commit else producer.abort_transaction, 30)

        return end

    async def delete_before(self, topic: str, offset: int) -> None:
        from confluent_kafka import TopicPartition

        done = self._admin.delete_records([TopicPartition(topic, 0, offset)])
        for future in done.values():
            await asyncio.to_thread(future.result, 30)

    async def mark_committed(self, topic: str, writer: KafkaWriter) -> None:
        await asyncio.to_thread(write_markers, self._bootstrap, writer._producer_id, writer._epoch, [(topic, 0)])


def ask_real(contract: Contract, bootstrap: str) -> None:
    async def ask() -> None:
        async with _place(bootstrap, RealOps(bootstrap)) as place:
            await contract(place)

    asyncio.run(ask())
