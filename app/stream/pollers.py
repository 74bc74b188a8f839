"""Following partitions: one long poll per broker serves all that it leads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.fetch import FetchRequest

from app.logs import Event, log
from app.stream.connections import COMMITTED, RETRY_S, Connections, aborted_in
from app.stream.log import Partition
from app.stream.tail import KafkaTail

FETCH_WAIT_MS: Final = 100  # also how long a new partition may wait for its first poll
SETTLING_S: Final = 1.0  # after a partition was followed others follow soon: a gate starts, or takes lanes over
SETTLING_WAIT_MS: Final = 10
FETCH_PARTITION_BYTES: Final = 1 << 20
FETCH_BYTES: Final = 8 << 20
LEADERS_AGAIN_S: Final = 0.5


class Pollers:
    """The pollers of a cluster's brokers, and the tails they fill."""

    def __init__(self, client: Connections, max_batch_bytes: int) -> None:
        self._client, self._max_batch_bytes = client, max_batch_bytes
        self._tails: dict[Partition, KafkaTail] = {}
        self._pollers: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._followed_at_s = self._look_again_at_s = float("-inf")

    async def stop(self) -> None:
        pollers = list(self._pollers.values())
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)

    def follow(
        self, partition: Partition, position: int, wake: asyncio.Event, past_open_transactions: bool
    ) -> KafkaTail:
        tail = KafkaTail(self, partition, position, wake, self._max_batch_bytes, past_open_transactions)
        self._tails[partition] = tail
        self._followed_at_s = time.monotonic()
        self._changed.set()
        self._poll_all()
        return tail

    def forget(self, tail: KafkaTail) -> None:
        if self._tails.get(tail.partition) is tail:
            del self._tails[tail.partition]

    def wake(self) -> None:
        """A partition wants records again."""
        self._changed.set()

    def _poll_all(self) -> None:
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
                log.failed(Event.FETCH_FAILED, error, node=node)
                moved = True
            if moved:
                await asyncio.sleep(RETRY_S)
                await self._client.force_metadata_update()
                self._changed.set()  # whoever leads it now may have had nothing to ask for

    async def _poll_once(self, node: int) -> bool:
        """Ask for every partition the broker leads that has room. True when a leader has moved."""
        self._poll_all()  # a broker may have joined
        asked: dict[Partition, KafkaTail] = {}
        for key, tail in self._tails.items():
            if tail.wants:
                leader = self._client.cluster.leader_for_partition(TopicPartition(*key))
                if leader == node:
                    asked[key] = tail
                elif leader is None or leader < 0:
                    self._look_for_leaders()
        if not asked:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # not wait_for, which may swallow a cancellation (Python 3.11)
                    await self._changed.wait()
            return False
        topics: dict[str, list[tuple[int, int, int]]] = {}
        asked_from = {key: tail.fetched for key, tail in asked.items()}
        for (topic, number), tail in asked.items():
            topics.setdefault(topic, []).append((number, tail.fetched, FETCH_PARTITION_BYTES))
        sent_at_s = time.monotonic()
        wait_ms = SETTLING_WAIT_MS if sent_at_s - self._followed_at_s < SETTLING_S else FETCH_WAIT_MS
        request = FetchRequest(wait_ms, 1, FETCH_BYTES, COMMITTED, list(topics.items()))
        response = await self._client.send(node, request, group="fetch")
        log.outage.answered()
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

    def _look_for_leaders(self) -> None:
        """Nobody is asked for a partition that none leads, so nobody would say who leads it next."""
        now_s = time.monotonic()
        if now_s >= self._look_again_at_s:
            self._look_again_at_s = now_s + LEADERS_AGAIN_S
            self._client.force_metadata_update()

    def _deliver(self, tail: KafkaTail, row: Any, sent_at_s: float) -> bool:
        """Hand a partition's part of a response to its tail. True when the leader has moved."""
        if row[1]:
            return _failed(tail, for_code(row[1]))
        tail.arrived(row[-1] or b"", aborted_in(row), row[2])
        if tail.fetched >= (row[3] if tail.past_open_transactions else row[2]):  # last stable offset, high watermark
            tail.caught_up(sent_at_s)
        return False


def _failed(tail: KafkaTail, error: type[KafkaError]) -> bool:
    """True when the leader has moved."""
    if error is OffsetOutOfRangeError:
        tail.out_of_range()
        return False
    if error is TopicAuthorizationFailedError:
        tail.broken(error(tail.partition[0]))
        return False
    tail.failed(error)
    return bool(error.invalid_metadata)
