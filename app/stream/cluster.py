"""The real log: aiokafka's connections and protocol, our own fetching.

One long poll per broker serves all partitions that are followed; restores read on connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from operator import lt
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from app.config import Kafka
from app.gate.trigger import Record
from app.logs import Event, log
from app.stream import batch
from app.stream.connect import client_options
from app.stream.log import OffsetGone, Partition, ReadRecord, Unreadable, Watermarks, Writer
from app.stream.together import together
from app.stream.transaction import KafkaWriter

FETCH_WAIT_MS: Final = 100  # also how long a new partition may wait for its first poll
SETTLING_S: Final = 1.0  # after a partition was followed others follow soon: a gate starts, or takes lanes over
SETTLING_WAIT_MS: Final = 10
FETCH_PARTITION_BYTES: Final = 1 << 20
FETCH_BYTES: Final = 8 << 20
BUFFER_BYTES: Final = 2 << 20  # per followed partition, as fetched
RESTORE_FETCH_BYTES: Final = 4 << 20
RETRY_S: Final = 0.1
METADATA_MAX_AGE_MS: Final = 30_000
_RECORD_OVERHEAD_BYTES: Final = 200
TAKE_AT_ONCE: Final = 100
ALL: Final = 1 << 31
_READ_COMMITTED: Final = 1
_EARLIEST, _LATEST = -2, -1
_readers = itertools.count()


class Connections(AIOKafkaClient):  # type: ignore[misc]
    """aiokafka's client with what a lane needs beside: connections by purpose, closed when their user is done."""

    async def drop(self, group: Hashable) -> None:
        """Close all connections of a group, so that nothing sent on them is answered to a later user."""
        mine = [key for key in self._conns if key[1] == group]
        for key in mine:
            connection = self._conns.pop(key)
            connection.close()

    async def leader(self, partition: Partition) -> int:
        """The node that leads a partition. Raises KafkaError when none does."""
        node = self.cluster.leader_for_partition(TopicPartition(*partition))
        if node is None or node == -1:
            await self.force_metadata_update()
            node = self.cluster.leader_for_partition(TopicPartition(*partition))
        if node is None or node == -1:
            raise KafkaError(f"{partition[0]}[{partition[1]}] has no leader now")
        return int(node)

    async def transaction_coordinator(self, transactional_id: str) -> int:
        return int(await self.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id))


class Cluster:
    """A connection to a Kafka cluster, as the Log a lane runs on."""

    def __init__(
        self, kafka: Kafka, topics: Sequence[str], *, transaction_timeout_ms: int, codec: str, max_batch_bytes: int
    ) -> None:
        self._client = Connections(metadata_max_age_ms=METADATA_MAX_AGE_MS, **client_options(kafka))
        self._topics = topics
        self._deadline_s = kafka.request_timeout_ms / 1000
        self._transaction_timeout_ms = transaction_timeout_ms
        self._codec = batch.CODECS[codec]
        self._max_batch_bytes = max_batch_bytes
        self._tails: dict[Partition, KafkaTail] = {}
        self._pollers: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._followed_at_s = float("-inf")

    async def start(self) -> None:
        """Raises KafkaError when no broker answers."""
        await self._client.bootstrap()
        await self._client.set_topics(self._topics)

    async def stop(self) -> None:
        pollers = list(self._pollers.values())
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)
        await self._client.close()

    # ── Log ──

    async def fence(self, transactional_id: str, owner: str) -> Writer:
        writer = KafkaWriter(
            self._client, transactional_id, owner=owner, timeout_ms=self._transaction_timeout_ms,
            deadline_s=self._deadline_s, codec=self._codec,
        )  # fmt: skip
        try:
            await writer.fence()
        except BaseException:
            await writer.close()  # its connections are its own: nobody else would let go of them
            raise
        return writer

    async def watermarks(self, partition: Partition) -> Watermarks:
        async with asyncio.timeout(self._deadline_s):
            while True:
                try:
                    return Watermarks(
                        *await together(self._offset(partition, _EARLIEST), self._offset(partition, _LATEST))
                    )
                except KafkaError as error:
                    await self._again(error)

    async def first_since(self, partition: Partition, timestamp_ms: int) -> tuple[int, int] | None:
        """Timestamp and offset of the first record that is as new as this; None when there is none."""
        async with asyncio.timeout(self._deadline_s):
            while True:
                try:
                    found = await self._found(partition, timestamp_ms)
                except KafkaError as error:
                    await self._again(error)
                else:
                    return found if found[1] >= 0 else None

    async def _offset(self, partition: Partition, which: int) -> int:
        return (await self._found(partition, which))[1]

    async def _found(self, partition: Partition, which: int) -> tuple[int, int]:
        request = OffsetRequest(-1, 0, [(partition[0], [(partition[1], which)])])
        response = await self._client.send(await self._client.leader(partition), request, group="offsets")
        row = response.topics[0][1][0]
        _raise_for(row[1], partition)
        return int(row[2]), int(row[3])

    async def read(self, partition: Partition, start: int, end: int) -> AsyncIterator[tuple[Sequence[ReadRecord], int]]:
        position = start
        group = ("read", next(_readers))  # closed below, and nobody else's
        try:
            while position < end:
                raw, aborted = await self._fetch_one(partition, position, group)
                chunk: list[ReadRecord] = []
                for part, next_offset in batch.visible(raw, aborted, position):
                    if part is not None:
                        chunk += [
                            ReadRecord(r.offset, r.key, r.value, r.timestamp)
                            for r in batch.Records(part, self._max_batch_bytes * 16).take(ALL)
                            if position <= r.offset < end
                        ]
                    position = next_offset
                yield chunk, min(position, end)
        finally:
            await self._client.drop(group)

    async def _fetch_one(
        self, partition: Partition, position: int, group: Hashable
    ) -> tuple[bytes, Sequence[tuple[int, int]] | None]:
        size = RESTORE_FETCH_BYTES
        request = FetchRequest(
            FETCH_WAIT_MS, 1, size, _READ_COMMITTED, [(partition[0], [(partition[1], position, size)])]
        )
        async with asyncio.timeout(self._deadline_s):
            while True:
                try:
                    response = await self._client.send(await self._client.leader(partition), request, group=group)
                    row = response.topics[0][1][0]
                    _raise_for(row[1], partition)
                except OffsetOutOfRangeError:
                    marks = await self.watermarks(partition)
                    raise OffsetGone(partition, position, *marks) from None
                except KafkaError as error:
                    await self._again(error)
                else:
                    return bytes(row[-1] or b""), _aborted(row)

    async def _again(self, error: KafkaError) -> None:
        """Wait a little and look for new leaders, for errors that pass; any other is raised."""
        if not (error.retriable or error.invalid_metadata):
            raise error
        await asyncio.sleep(RETRY_S)
        await self._client.force_metadata_update()

    def follow(
        self, partition: Partition, position: int, wake: asyncio.Event, *, past_open_transactions: bool = True
    ) -> KafkaTail:
        tail = KafkaTail(self, partition, position, wake, self._max_batch_bytes, past_open_transactions)
        self._tails[partition] = tail
        self._followed_at_s = time.monotonic()
        self._poll_all()
        return tail

    def forget(self, tail: KafkaTail) -> None:
        if self._tails.get(tail.partition) is tail:
            del self._tails[tail.partition]

    # ── polling ──

    def wake(self) -> None:
        """A partition wants records again."""
        self._changed.set()

    def _poll_all(self) -> None:
        self._changed.set()
        for broker in self._client.cluster.brokers():
            poller = self._pollers.get(broker.nodeId)
            if poller is None or poller.done():
                self._pollers[broker.nodeId] = asyncio.create_task(self._poll(broker.nodeId))

    async def _poll(self, node: int) -> None:
        """Long polls of one broker, for ever."""
        while True:
            try:
                moved = await self._poll_once(node)
            except Exception as error:
                # Whatever it is: a poller that ended would hold every lane without a word.
                log.warning(Event.FETCH_FAILED, node=node, error=type(error).__name__)
                moved = True
            if moved:
                await asyncio.sleep(RETRY_S)
                await self._client.force_metadata_update()

    async def _poll_once(self, node: int) -> bool:
        """Ask for every partition the broker leads that has room. True when a leader has moved."""
        asked = {
            key: tail
            for key, tail in self._tails.items()
            if tail.wants and self._client.cluster.leader_for_partition(TopicPartition(*key)) == node
        }
        if not asked:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # not wait_for, which may swallow a cancellation (Python 3.11)
                    await self._changed.wait()
            self._poll_all()  # a broker may have joined
            return False
        topics: dict[str, list[tuple[int, int, int]]] = {}
        asked_from = {key: tail.fetched for key, tail in asked.items()}
        for (topic, number), tail in asked.items():
            topics.setdefault(topic, []).append((number, tail.fetched, FETCH_PARTITION_BYTES))
        sent_at_s = time.monotonic()
        wait_ms = SETTLING_WAIT_MS if sent_at_s - self._followed_at_s < SETTLING_S else FETCH_WAIT_MS
        request = FetchRequest(wait_ms, 1, FETCH_BYTES, _READ_COMMITTED, list(topics.items()))
        response = await self._client.send(node, request, group="fetch")
        moved = False
        for topic, rows in response.topics:
            for row in rows:
                tail = asked[topic, row[0]]
                if tail.fetched != asked_from[topic, row[0]]:
                    continue  # another leader has answered meanwhile: this answer begins in the middle
                try:
                    moved |= self._deliver(tail, row, sent_at_s)
                except Exception as error:
                    tail.broken(error)  # bytes we cannot read stop the one partition, by name, and no other
        return moved

    def _deliver(self, tail: KafkaTail, row: Any, sent_at_s: float) -> bool:
        """Hand a partition's part of a response to its tail. True when the leader has moved."""
        error = for_code(row[1])
        if error is OffsetOutOfRangeError:
            tail.out_of_range()
            return False
        if error is TopicAuthorizationFailedError:
            tail.broken(error(tail.partition[0]))
            return False
        if row[1]:
            return True
        tail.arrived(row[-1] or b"", _aborted(row), row[2])
        if tail.fetched >= (row[3] if tail.past_open_transactions else row[2]):  # last stable offset, high watermark
            tail.caught_up(sent_at_s)
        return False


class KafkaTail:
    """One followed partition: what was fetched and not taken yet."""

    def __init__(
        self, cluster: Cluster, partition: Partition, position: int, wake: asyncio.Event, max_batch_bytes: int,
        past_open_transactions: bool,
    ) -> None:  # fmt: skip
        self.partition, self.past_open_transactions = partition, past_open_transactions
        self.fetched = position  # where the next fetch begins
        self._position = position
        self._cluster, self._wake, self._max_batch_bytes = cluster, wake, max_batch_bytes
        self._waiting: deque[tuple[batch.Batch | None, int]] = deque()
        self._bytes = 0
        self._current: _Reading | None = None
        self._ready: list[Record] = []  # read from it, and not taken yet
        self._current_end = position
        self._high = position
        self._gone = False
        self._error: Exception | None = None
        self._caught_up = (position, float("-inf"))  # all there was at that time, and when
        self.confirmed_at_s = float("-inf")

    @property
    def position(self) -> int:
        return self._position

    @property
    def backlog(self) -> int:
        return max(self._high - self._position, 0)

    @property
    def wants(self) -> bool:
        return self._bytes < BUFFER_BYTES and not self._gone

    def arrived(self, raw: bytes, aborted: Sequence[tuple[int, int]] | None, high: int) -> None:
        self._high = high
        before = self.fetched
        for part, next_offset in batch.visible(raw, aborted, self.fetched):
            self._waiting.append((part, next_offset))
            self._bytes += len(part.raw) if part is not None else 0
            self.fetched = next_offset
        if self.fetched != before:
            self._wake.set()

    def caught_up(self, at_s: float) -> None:
        """The broker had no more when it was asked at `at_s` (monotonic, in seconds)."""
        self._caught_up = (self.fetched, at_s)
        self._confirm()

    def _confirm(self) -> None:
        # Not when it was fetched: whoever follows a table knows what it took.
        end, at_s = self._caught_up
        if self._position >= end:
            self.confirmed_at_s = at_s

    def out_of_range(self) -> None:
        self._gone = True
        self._wake.set()

    def broken(self, error: Exception) -> None:
        self._error = error
        self._gone = True
        self._wake.set()

    def take(self, limit: int, max_bytes: int) -> list[Record]:
        if isinstance(self._error, KafkaError):
            raise self._error  # what passes, as an ACL that is missing may: not the end of a lane
        if self._error is not None:
            raise Unreadable(f"{self.partition[0]}[{self.partition[1]}] at {self.fetched}: {self._error}")
        if self._gone:
            raise OffsetGone(self.partition, self.fetched, -1, self._high)
        taken: list[Record] = []
        while len(taken) < limit and max_bytes > 0:
            if not self._ready:
                if self._current is None and not self._open_next():
                    break
                if self._current is None:  # passed over
                    self._position = max(self._position, self._current_end)
                    continue
                self._ready = self._current.take(TAKE_AT_ONCE)
                if not self._ready:
                    self._current = None
                    self._position = max(self._position, self._current_end)
                    continue
            count = 0
            for record in self._ready[: limit - len(taken)]:
                count += 1
                max_bytes -= _size_of(record)
                if max_bytes <= 0:  # a batch of few bytes may hold records of many
                    break
            taken += self._ready[:count]
            del self._ready[:count]
        if taken:
            self._position = max(self._position, taken[-1].offset + 1)
        self._confirm()
        return taken

    def _open_next(self) -> bool:
        """Look into the next batch. What is passed over moves the position alone."""
        if not self._waiting:
            return False
        part, self._current_end = self._waiting.popleft()
        if part is not None:
            self._bytes -= len(part.raw)
            self._current = _Reading(part, self.partition[1], self._position, self._max_batch_bytes)
            self._cluster.wake()
        return True

    def close(self) -> None:
        self._cluster.forget(self)


def _size_of(record: Record) -> int:
    size = _RECORD_OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b"")
    if record.headers:
        size += sum([len(name) + len(content or b"") for name, content in record.headers])
    return size


class _Reading:
    """A batch of a followed partition, being taken record by record."""

    def __init__(self, part: batch.Batch, number: int, start: int, max_bytes: int) -> None:
        self._part, self._number, self._start, self._by_broker = part, number, start, part.log_append_time
        self._next = part.base_offset  # of the next record
        self._refused: Iterator[Record] | None = None
        try:
            self._records = batch.Records(part, max_bytes)
        except batch.ExpandsTooFar as error:
            self._refuse("batch_too_large", error)
        except Exception as error:
            self._refuse("batch_unreadable", error)

    def take(self, limit: int) -> list[Record]:
        """Up to `limit` records; none only at the end. What cannot be read comes out refused, offset by offset."""
        number, start, by_broker = self._number, self._start, self._by_broker
        while self._refused is None:
            try:
                raw = self._records.take(limit)
                self._next = _offsets_in_order(raw, self._next, self._part.next_offset)
                got = [
                    Record(number, r.offset, r.timestamp, by_broker, r.key, r.value, tuple(r.headers))
                    for r in raw
                    if r.offset >= start
                ]
            except Exception as error:
                self._refuse("batch_unreadable", error)
                break
            if got or not raw:
                return got
        return list(itertools.islice(self._refused or (), limit))

    def _refuse(self, fault: str, error: Exception) -> None:
        """Each offset that is left gets a decision of its own; what the batch held there is not shown to anybody."""
        part, number = self._part, self._number
        log.warning(
            Event.BATCH_UNREAD, partition=number, base_offset=part.base_offset, fault=fault, error=type(error).__name__
        )
        self._refused = (
            Record(number, offset, part.max_timestamp_ms, self._by_broker, None, None, (), fault)
            for offset in range(max(self._start, self._next), part.next_offset)
        )


def _offsets_in_order(records: Sequence[Any], start: int, end: int) -> int:
    """Where the next record stands. Raises ValueError for offsets that do not increase within the batch's own.

    In a batch that is not compressed the broker leaves the records' own offsets as the producer wrote them: believed,
    one would name other triggers than its own, or carry the lane past all that come after it.
    """
    if not records:
        return start
    offsets: list[int] = [record.offset for record in records]
    first, last = offsets[0], offsets[-1]
    if first < start or last >= end:
        raise ValueError(f"records of offsets {first} to {last} where {start} to {end - 1} may stand")
    if offsets != list(range(first, last + 1)) and not all(map(lt, offsets, offsets[1:])):  # compacted ones have gaps
        raise ValueError("a batch whose offsets do not increase")
    return last + 1


def _aborted(row: Any) -> Sequence[tuple[int, int]] | None:
    """The aborted transactions in a partition's part of a fetch response; v5 put the log's start before them."""
    aborted: Sequence[tuple[int, int]] | None = row[4] if len(row) == 6 else row[5]
    return aborted


def _raise_for(code: int, partition: Partition) -> None:
    if code:
        raise for_code(code)(f"{partition[0]}[{partition[1]}]")
