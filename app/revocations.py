"""The revocations topic, for commands: what is revoked, and how a revocation is taken back without losing a newer one.

A tombstone removes whatever stands under its key, also what was written a moment before it and never seen by whoever
wrote the tombstone. So tombstones go into a transaction, and it is committed only when nothing else was written under
their keys since they were read; what is written later stands after them and counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.gate.revocation import Revocations
from app.stream import whole
from app.stream.access import REVOCATIONS_ID
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.config import Kafka

TRANSACTION_TIMEOUT_MS: Final = 10_000  # gates hold while one is open for longer than they may be stale
AT_ONCE: Final = 200  # tombstones of a transaction, so that it is over in a moment


class RevocationsError(Exception):
    """Nothing was taken back; one sentence says why."""


class Present(NamedTuple):
    """The revocations as they stand."""

    table: Revocations
    offsets: dict[bytes, int]  # of the newest record under each key
    complaints: dict[bytes, str]  # of records that are not as they should be
    written: set[bytes]  # keys of records that are no tombstones
    end: int  # offset; all before it was decided, and is in here


async def read(kafka: Kafka) -> Present:
    """All that is committed. Raises KafkaError or TimeoutError."""
    table, offsets, complaints, written = Revocations(), dict[bytes, int](), dict[bytes, str](), set[bytes]()
    async with whole.opened(kafka, Topic.REVOCATIONS) as topic:
        async for record in topic.records():
            key = record.key or b""
            complaint = table.apply(key, record.value)
            offsets[key] = record.offset
            written.add(key) if record.value is not None else written.discard(key)
            complaints.pop(key, None)
            if complaint is not None:
                complaints[key] = complaint
        return Present(table, offsets, complaints, written, topic.end)


async def take_back(kafka: Kafka, present: Present, keys: Sequence[bytes]) -> None:
    """Write tombstones under these keys of `present`. Raises RevocationsError when one was written anew meanwhile."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import ProducerFenced

    from app.stream.connect import client_options

    name = Topic.REVOCATIONS.named(kafka.prefix)
    producer = AIOKafkaProducer(
        **client_options(kafka), transactional_id=kafka.prefix + REVOCATIONS_ID,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS, acks="all", enable_idempotence=True,
    )  # fmt: skip
    async with whole.opened(kafka, Topic.REVOCATIONS, committed=False) as topic:
        await producer.start()
        try:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                async with producer.transaction():
                    sent = [await producer.send(name, None, key=key, partition=0) for key in some]
                    placed = await asyncio.gather(*sent)
                    tombstones = {key: at.offset for key, at in zip(some, placed, strict=True)}
                    since = [record async for record in topic.records(present.end)]
                    _refuse_newer(since, tombstones)
        except ProducerFenced:
            raise RevocationsError("someone else took revocations back at the same moment; run it again") from None
        finally:
            await producer.stop()


def _refuse_newer(since: Iterable[Any], tombstones: Mapping[bytes, int]) -> None:
    """Raise RevocationsError for a record between what was read and its tombstone, whether committed or not yet."""
    for record in since:
        key = record.key or b""
        if record.offset < tombstones.get(key, -1):
            raise RevocationsError(
                f"{key.decode(errors='replace')} was written anew at the same moment, at offset {record.offset}: "
                "nothing of it was taken back; look again"
            )
