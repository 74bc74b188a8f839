"""A topic of one partition, read whole: the tables, as commands see them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from app.config import Kafka
    from app.stream.topics import Topic

READ_TIMEOUT_S: Final = 30
POLL_MS: Final = 500


class Whole:
    """A reader of all that is there; it may be asked again for what came since."""

    def __init__(self, consumer: Any, partition: Any) -> None:
        self._consumer, self._partition = consumer, partition
        self.end = 0  # where the last reading ended: with `committed`, all before it is decided

    async def records(self, start: int | None = None) -> AsyncIterator[Any]:
        """Those from `start` (None: the first) to the end as it is now, as aiokafka has them.

        Raises KafkaError, and TimeoutError when none came for READ_TIMEOUT_S.
        """
        consumer, partition = self._consumer, self._partition
        if start is None:
            await consumer.seek_to_beginning(partition)
        else:
            consumer.seek(partition, start)
        self.end = end = (await consumer.end_offsets([partition]))[partition]
        give_up_s = time.monotonic() + READ_TIMEOUT_S
        while await consumer.position(partition) < end:
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"{partition.topic}: nothing came for {READ_TIMEOUT_S} s")
            for record in (await consumer.getmany(partition, timeout_ms=POLL_MS)).get(partition, []):
                give_up_s = time.monotonic() + READ_TIMEOUT_S
                yield record


@asynccontextmanager
async def opened(kafka: Kafka, topic: Topic, *, committed: bool = True) -> AsyncIterator[Whole]:
    """Open a topic; with `committed` false also what open and aborted transactions hold. Raises KafkaError."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from app.stream.connect import client_options, why_unseen

    name = topic.named(kafka.prefix)
    consumer = AIOKafkaConsumer(
        **client_options(kafka), group_id=None, enable_auto_commit=False,
        isolation_level="read_committed" if committed else "read_uncommitted", auto_offset_reset="none",
        check_crcs=True,
    )  # fmt: skip
    await consumer.start()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            if name not in await consumer.topics():
                raise await why_unseen(consumer._client, name)  # noqa: SLF001
        partition = TopicPartition(name, 0)
        consumer.assign([partition])
        yield Whole(consumer, partition)
    finally:
        await consumer.stop()
