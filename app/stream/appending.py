"""Records appended to topics of one partition, for issuers and commands: what was returned from is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from app.config import Kafka
    from app.stream.topics import Topic

TIMEOUT_S: Final = 30.0

Append = Callable[["Topic", Sequence[tuple[bytes, bytes]]], Awaitable[Sequence[int]]]  # keys and values to offsets


@asynccontextmanager
async def appending(kafka: Kafka) -> AsyncIterator[Append]:
    """What appends records; it connects when there is something to append. Raises KafkaError or TimeoutError.

    A producer that is not transactional: a record is no part of anything, and what an open transaction hides from gates
    would be a revocation without effect, or a handle that is good and unknown.
    """
    from aiokafka import AIOKafkaProducer

    from app.stream.connect import client_options

    producer: Any = None

    async def append(topic: Topic, records: Sequence[tuple[bytes, bytes]]) -> list[int]:
        nonlocal producer
        async with asyncio.timeout(TIMEOUT_S):
            if producer is None:
                producer = AIOKafkaProducer(**client_options(kafka), acks="all", enable_idempotence=True)
                await producer.start()
            name = topic.named(kafka.prefix)
            sent = [await producer.send(name, value, key=key, partition=0) for key, value in records]
            # Each is awaited: a batch that fails fails only its own futures.
            return [placed.offset for placed in await asyncio.gather(*sent)]

    try:
        yield append
    finally:
        if producer is not None:
            await producer.stop()
