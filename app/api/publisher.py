"""Publishing: a trigger is acknowledged when every in-sync replica has it, and never before.

The producer is idempotent: within its life it writes a trigger once, however often it has to send it. What it could not
settle in time may still be written later: then the outcome is unknown, and the emitter is told so.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from app.api.problems import Problem
from app.api.producing import Producer
from app.config import Settings
from app.emission import Trigger
from app.logs import Event, log
from app.stream.topics import TRIGGERS_MAX_BYTES, Topic

UNSETTLED_MAX: Final = 100  # of unknown outcome: Kafka does not answer, so the next is refused at once, unsent
_NEVER_WRITTEN: Final = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, UnknownTopicOrPartitionError)


class Placed(NamedTuple):
    """Where a trigger stands once Kafka has it: its id, and the broker's time."""

    trigger_id: str
    appended_at_ms: int


class Publisher:
    """The process's one producer of triggers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = Topic.TRIGGERS.named(settings.kafka.prefix)
        self._producer = Producer(
            settings.kafka, compression_type=None, linger_ms=0, max_request_size=TRIGGERS_MAX_BYTES
        )
        self._under_way = 0
        self._unsettled = 0

    async def start(self) -> None:
        """Raises KafkaError when no broker answers."""
        await self._producer.start()

    async def stop(self) -> None:
        """What is under way is sent first, as far as Kafka takes it in time."""
        await self._producer.stop()

    def complaint(self) -> str | None:
        """Why triggers are refused, or None."""
        if self._producer.current is None:
            return "there is no producer"
        return "Kafka does not acknowledge" if self._unsettled >= UNSETTLED_MAX else None

    async def publish(self, trigger: Trigger) -> Placed:
        """Raises Problem: `outcome_unknown`, or one that says that nothing was written."""
        producer = self._producer.current
        if producer is None or self._unsettled >= UNSETTLED_MAX:
            raise Problem("kafka_unavailable")
        if self._under_way >= self._settings.serve.unacknowledged_max:
            raise Problem("overloaded")
        self._under_way += 1
        try:
            return await self._publish(producer, trigger)
        finally:
            self._under_way -= 1

    async def _publish(self, producer: AIOKafkaProducer, trigger: Trigger) -> Placed:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.serve.publish_timeout_s
        try:
            async with asyncio.timeout_at(end):
                sending = await producer.send(self._topic, trigger.value, trigger.key, headers=trigger.headers)
        except (TimeoutError, KafkaError, AssertionError) as error:  # aiokafka asserts that it is open
            raise self._refused(producer, error, sent=False) from None
        done, _ = await asyncio.wait({sending}, timeout=max(end - loop.time(), 0))
        if not done:
            self._unsettled += 1
            sending.add_done_callback(self._settled)
            raise Problem("outcome_unknown")
        failed = sending.exception()
        if failed is not None:
            raise self._refused(producer, failed, sent=True)
        placed = sending.result()
        if placed.offset < 0:  # the broker has it, and has forgotten where
            raise Problem("outcome_unknown")
        return Placed(f"{placed.partition}-{placed.offset}", placed.timestamp)

    def _settled(self, sending: asyncio.Future[Any]) -> None:
        self._unsettled -= 1
        if not sending.cancelled() and sending.exception() is not None:
            log.failed(Event.PUBLISH_FAILED, sending.exception())

    def _refused(self, producer: AIOKafkaProducer, error: BaseException, *, sent: bool) -> Problem:
        if isinstance(error, MessageSizeTooLargeError):
            return Problem("record_too_large")
        log.failed(Event.PUBLISH_FAILED, error, level=logging.ERROR)
        if isinstance(error, _NEVER_WRITTEN):
            return Problem("kafka_unavailable")
        if not isinstance(error, TimeoutError):
            self._producer.renew(producer)
        return Problem("outcome_unknown" if sent else "kafka_unavailable")
