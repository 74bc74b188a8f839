"""A producer for the life of a process: idempotent, and replaced by a fresh one when it fails for good.

After an error it does not retry, an idempotent producer may fail for ever: the sequence of its batches has a gap, or
its task has ended. Only a fresh one, with an id of its own, writes again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from app.config import Kafka
from app.logs import Event, log
from app.stream.connect import client_options

STOP_TIMEOUT_S: Final = 10.0
RETRY_S: Final = 1.0


class Producer:
    """One at a time. `options` are of AIOKafkaProducer."""

    def __init__(self, kafka: Kafka, **options: Any) -> None:
        self._kafka, self._options = kafka, options
        self._renewing: asyncio.Task[None] | None = None
        self._stopped = False
        self.current: AIOKafkaProducer | None = None  # None: not started, stopped, or being replaced

    async def start(self) -> None:
        """Raises KafkaError when no broker answers."""
        producer = AIOKafkaProducer(
            **client_options(self._kafka), acks="all", enable_idempotence=True, **self._options
        )  # fmt: skip
        try:
            await producer.start()
        except BaseException:
            await _stop(producer)  # it has connections by now
            raise
        self.current = producer

    async def stop(self) -> None:
        """What is under way is sent first, as far as Kafka takes it in time."""
        self._stopped = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        producer, self.current = self.current, None
        if producer is not None:
            await _stop(producer)

    def renew(self, broken: AIOKafkaProducer) -> None:
        """Replace this one, unless that was done already; until it is, `current` is None."""
        if self.current is broken:
            self.current = None
            self._renewing = asyncio.create_task(self._replace(broken), name="producer")

    async def _replace(self, broken: AIOKafkaProducer) -> None:
        """Whatever goes wrong is logged and tried again: without a producer the process is of no use."""
        await _stop(broken)
        while self.current is None:
            try:
                await self.start()
            except (Exception, asyncio.CancelledError) as error:
                if self._stopped:  # else it is a task of the library's own that was cancelled while it was awaited
                    raise
                log.failed(Event.PUBLISH_FAILED, error)
                await asyncio.sleep(RETRY_S)


async def _stop(producer: AIOKafkaProducer) -> None:
    """On a task of its own: however it ends, and it may by any error of what it waits for, that is not how we do.

    One that takes too long goes on by itself, until what it holds is written or has timed out.
    """
    stopping = asyncio.create_task(producer.stop())
    _, late = await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
    error = TimeoutError() if late else asyncio.CancelledError() if stopping.cancelled() else stopping.exception()
    if error is not None:
        log.failed(Event.PUBLISH_FAILED, error)
