"""The real log: aiokafka's connections and protocol, our own fetching.

What is followed is polled for; restores read on connections of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from typing import Any, Final

from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from app.config import Kafka
from app.logs import Event, log
from app.stream import batch
from app.stream.connect import client_options
from app.stream.connections import COMMITTED, RETRY_S, UNCOMMITTED, Connections, aborted_in
from app.stream.log import OffsetGone, Partition, Placed, ReadRecord, Unreadable, Watermarks, Writer
from app.stream.pollers import FETCH_WAIT_MS, Pollers
from app.stream.tail import KafkaTail, offsets_in_order
from app.stream.together import together
from app.stream.transaction import KafkaWriter

RESTORE_FETCH_BYTES: Final = 4 << 20
READ_TOLD_AFTER_S: Final = 5.0
READ_TOLD_AGAIN_S: Final = 60.0
OUTCOME_WAIT_S: Final = 5.0  # for a marker that a fence has seen written: a new leader may not show its last yet
METADATA_MAX_AGE_MS: Final = 30_000
ALL: Final = 1 << 31
_EARLIEST, _LATEST = -2, -1
_readers = itertools.count()


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
        self._pollers = Pollers(self._client, max_batch_bytes)

    async def start(self) -> None:
        """Raises KafkaError when no broker answers."""
        await self._client.bootstrap()
        await self._client.set_topics(self._topics)

    async def stop(self) -> None:
        await self._pollers.stop()
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
        found = await self._retried(partition, timestamp_ms)
        return found if found[1] >= 0 else None

    async def stable_end(self, partition: Partition) -> int:
        """The last stable offset: the end as read_committed sees it, which an open transaction holds back."""
        return (await self._retried(partition, _LATEST, isolation=COMMITTED))[1]

    async def require_readable(self, topics: Sequence[str]) -> None:
        """Raises TopicAuthorizationFailedError where one may not be read. Where nobody answers, nothing is said."""
        await together(*map(self._require_readable, topics))

    async def _require_readable(self, topic: str) -> None:
        request = FetchRequest(0, 1, 1, COMMITTED, [(topic, [(0, ALL, 1)])])
        try:
            response = await self._client.send(await self._client.leader((topic, 0)), request, group="offsets")
        except KafkaError:
            return
        for _, rows in response.topics:  # none where a quota is used up
            if for_code(rows[0][1]) is TopicAuthorizationFailedError:
                raise TopicAuthorizationFailedError(topic)

    async def _retried(self, partition: Partition, which: int, isolation: int = UNCOMMITTED) -> tuple[int, int]:
        async with asyncio.timeout(self._deadline_s):
            while True:
                try:
                    return await self._found(partition, which, isolation)
                except KafkaError as error:
                    await self._again(error)

    async def _offset(self, partition: Partition, which: int) -> int:
        return (await self._found(partition, which))[1]

    async def _found(self, partition: Partition, which: int, isolation: int = UNCOMMITTED) -> tuple[int, int]:
        request = OffsetRequest(-1, isolation, [(partition[0], [(partition[1], which)])])
        response = await self._client.send(await self._client.leader(partition), request, group="offsets")
        row = response.topics[0][1][0]
        _raise_for(row[1], partition)
        return int(row[2]), int(row[3])

    async def read(
        self, partition: Partition, start: int, end: int
    ) -> AsyncGenerator[tuple[Sequence[ReadRecord], int], None]:
        position = start
        tell_at_s = time.monotonic() + READ_TOLD_AFTER_S
        group = ("read", next(_readers))  # closed below, and nobody else's
        try:
            while position < end:
                raw, aborted = await self._fetch_one(partition, position, group)
                chunk: list[ReadRecord] = []
                before = position
                for part, next_offset in batch.visible(raw, aborted, position):
                    if part is not None:
                        chunk += [
                            ReadRecord(r.offset, r.key, r.value, r.timestamp)
                            for r in _all_of(part, partition, self._max_batch_bytes * 16)
                            if position <= r.offset < end
                        ]
                    position = next_offset
                if position > before:
                    tell_at_s = time.monotonic() + READ_TOLD_AFTER_S
                elif time.monotonic() > tell_at_s:  # whoever left it open, nobody may read past it until it is ended
                    tell_at_s = time.monotonic() + READ_TOLD_AGAIN_S
                    why = f"a transaction is open at {position}, and what is read ends at {end}"
                    log.warning(Event.READ_WAITS, topic=partition[0], partition=partition[1], why=why)
                yield chunk, min(position, end)
        finally:
            await self._client.drop(group)

    async def outcome(self, partition: Partition, placed: Placed) -> bool | None:
        position, ours = placed.base_offset, False
        tired_at_s = time.monotonic() + OUTCOME_WAIT_S
        group = ("read", next(_readers))
        try:
            while True:
                row = await self._fetch_row(partition, position, group, UNCOMMITTED)
                for each in batch.headers(bytes(row[-1] or b"")):
                    if each.next_offset <= position:
                        continue
                    if ours and each.commits is not None and each.producer_id == placed.producer_id:
                        return each.commits
                    if not ours and (each.base_offset, each.producer_id, each.epoch) != (
                        position, placed.producer_id, placed.epoch,
                    ):  # fmt: skip
                        # A log that lost its end and went on; or compaction took them: aborted, for it leaves the last
                        # of each key, and until a lane is out of doubt nobody writes a later one.
                        return False
                    ours, position = True, each.next_offset
                if position >= row[2] and time.monotonic() > tired_at_s:  # its high watermark
                    return None
        except OffsetGone as error:
            return None if position < error.start else False
        finally:
            await self._client.drop(group)

    async def _fetch_one(
        self, partition: Partition, position: int, group: Hashable
    ) -> tuple[bytes, Sequence[tuple[int, int]] | None]:
        row = await self._fetch_row(partition, position, group, COMMITTED)
        return bytes(row[-1] or b""), aborted_in(row)

    async def _fetch_row(self, partition: Partition, position: int, group: Hashable, isolation: int) -> Any:
        """A partition's part of a fetch response. Raises OffsetGone."""
        size = RESTORE_FETCH_BYTES
        request = FetchRequest(FETCH_WAIT_MS, 1, size, isolation, [(partition[0], [(partition[1], position, size)])])
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
                    return row

    async def _again(self, error: KafkaError) -> None:
        """Wait a little and look for new leaders, for errors that pass; any other is raised."""
        if not (error.retriable or error.invalid_metadata):
            raise error
        await asyncio.sleep(RETRY_S)
        await self._client.force_metadata_update()

    def follow(
        self, partition: Partition, position: int, wake: asyncio.Event, *, past_open_transactions: bool = True
    ) -> KafkaTail:
        return self._pollers.follow(partition, position, wake, past_open_transactions)


def _all_of(part: batch.Batch, partition: Partition, max_bytes: int) -> list[Any]:
    """Its records. Raises Unreadable where readers would not agree on them: one passed over might be a revocation."""
    try:
        records = batch.Records(part, max_bytes).take(ALL)
        offsets_in_order(records, part.base_offset, part.next_offset)
    except Exception as error:
        raise Unreadable(f"{partition[0]}[{partition[1]}] at {part.base_offset}: {type(error).__name__}") from error
    return records


def _raise_for(code: int, partition: Partition) -> None:
    if code:
        raise for_code(code)(f"{partition[0]}[{partition[1]}]")
