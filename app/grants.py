"""The grants topic, for issuers and commands: what handles stand for is committed before anyone has one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from app.gate.reference import grant_key, handle_digest
from app.stream import whole
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.config import Kafka

WRITE_TIMEOUT_S: Final = 30.0

Write = Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None]]


@asynccontextmanager
async def writer(kafka: Kafka) -> AsyncIterator[Write]:
    """What writes grants, by key and value; when it returns, all are committed. Raises KafkaError or TimeoutError.

    A producer that is not transactional: a grant is no part of anything, and what an open transaction hides from gates
    would be a handle that is good and unknown.
    """
    from aiokafka import AIOKafkaProducer

    from app.stream.connect import client_options

    topic = Topic.GRANTS.named(kafka.prefix)
    producer = AIOKafkaProducer(**client_options(kafka), acks="all", enable_idempotence=True)

    async def write(grants: Sequence[tuple[bytes, bytes]]) -> None:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            sent = [await producer.send(topic, value, key=key, partition=0) for key, value in grants]
            await asyncio.gather(*sent)

    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await producer.start()
    try:
        yield write
    finally:
        await producer.stop()


async def find(kafka: Kafka, handle: str) -> bytes | None:
    """The unverified grant of a handle, a JWS; None where there is none. Reads the whole topic."""
    wanted, found = grant_key(handle_digest(handle)), None
    async with whole.opened(kafka, Topic.GRANTS) as topic:
        async for record in topic.records():
            if record.key == wanted:
                found = record.value
    return found
