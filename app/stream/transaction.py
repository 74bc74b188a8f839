"""The writer: one transactional producer, one call for one transaction, and never a second chance.

aiokafka's own producer resends a commit request whose answer was lost, with the same epoch; the first one, arriving
late, may then end the next transaction (KAFKA-17754). Here every request is sent once. Whatever fails between the
first request and the known end makes the writer dead: its successor fences it, which settles the transaction, and
reads from the checkpoint what became of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    NotCoordinatorError,
    OperationNotAttempted,
    ProducerFenced,
    for_code,
)
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from app.gate.outputs import Out
from app.stream import batch
from app.stream.log import CommitUnknown, Fenced, Partition, Placed
from app.stream.together import together

if TYPE_CHECKING:
    from app.stream.connections import Connections

# While the markers of the transaction before are written: mostly a millisecond or two, but as long as a leader is away.
MARKERS_WAIT_S: Final = 0.002
MARKERS_WAIT_MAX_S: Final = 0.02  # as Java's client waits
COORDINATOR_WAIT_S: Final = 0.1
_ALL_REPLICAS: Final = -1
_FENCING: Final = (ProducerFenced, InvalidProducerEpoch, InvalidTxnState, InvalidProducerIdMapping)
_NOT_YET: Final = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)
_PRODUCER_FENCED: Final = 90  # a code aiokafka has no class for
_SEQUENCE_MODULUS: Final = 2**31
_numbers = itertools.count()


class KafkaWriter:
    """A producer id and epoch of one transactional id, good until the first thing that goes wrong."""

    def __init__(
        self, client: Connections, transactional_id: str, *, owner: str, timeout_ms: int, deadline_s: float, codec: int
    ) -> None:
        self._client, self._id, self._codec = client, transactional_id, codec
        self._timeout_ms, self._deadline_s = timeout_ms, deadline_s
        # Connections of its own: lanes do not queue behind each other, and none of a dead writer's is used again.
        self._group = ("writer", owner, next(_numbers))
        self._coordinator = -1
        self._producer_id, self._epoch = -1, -1
        self._sequences: dict[Partition, int] = {}
        self._dead: str | None = "not fenced yet"

    async def fence(self) -> None:
        """Get a new epoch (InitProducerId): former owners are fenced, their open transaction is aborted.

        Retried while the coordinator is loading or still aborting; nothing has been written, so this is safe.
        """
        request = InitProducerIdRequest(self._id, self._timeout_ms)
        waits = _marker_waits()
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    try:
                        if self._coordinator < 0:
                            self._coordinator = await self._client.transaction_coordinator(self._id)
                        response = await self._client.send(self._coordinator, request, group=self._group)
                        _raise_for(response.error_code)
                    except ConcurrentTransactions:
                        await asyncio.sleep(next(waits))
                    except KafkaError as error:
                        if not isinstance(error, _NOT_YET) and not error.retriable:
                            raise type(error)(self._id) from None  # which of all ids, aiokafka does not say
                        self._coordinator = -1
                        await asyncio.sleep(COORDINATOR_WAIT_S)
                        await self._client.force_metadata_update()
                    else:
                        break
        except TimeoutError:
            raise KafkaError(
                f"the coordinator of {self._id} did not give a producer id within {self._deadline_s:.0f} s"
            ) from None
        self._producer_id, self._epoch = response.producer_id, response.producer_epoch
        self._dead = None

    async def commit(self, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        if self._dead is not None:
            raise CommitUnknown(f"this writer is dead: {self._dead}")
        # Dead until proven alive: an exception, a timeout and a cancelled await all leave it so.
        self._dead = "a transaction was begun and its end is not known"
        placed: Mapping[Partition, Placed] = {}
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._add_partitions(parts)
                placed = await self._produce(parts)
                await self._end()
        except _FENCING as error:
            self._dead = "fenced"
            raise Fenced(type(error).__name__) from None
        except (KafkaError, TimeoutError) as error:
            self._dead = type(error).__name__
            # A leader may have moved: whoever fences anew must not ask the old one again.
            self._client.force_metadata_update()
            told = str(error) or type(error).__name__
            raise CommitUnknown(f"{told}, before the end of the transaction was known", placed) from error
        self._dead = None
        return placed

    async def _add_partitions(self, parts: Mapping[Partition, Sequence[Out]]) -> None:
        """AddPartitionsToTxn: begins the transaction. The one error that is waited out says that nothing was done."""
        topics = [
            (topic, [number for _, number in group])
            for topic, group in itertools.groupby(sorted(parts), key=lambda partition: partition[0])
        ]
        request = AddPartitionsToTxnRequest(self._id, self._producer_id, self._epoch, topics)
        waits = _marker_waits()
        while True:
            response = await self._client.send(self._coordinator, request, group=self._group)
            errors = {for_code(code): topic for topic, rows in response.errors for _, code in rows if code}
            if not errors:
                return
            if ConcurrentTransactions not in errors:
                # Where one partition is refused, of all others it is said that nothing was attempted.
                error, topic = min(errors.items(), key=lambda told: told[0] is OperationNotAttempted)
                raise error(topic)
            await asyncio.sleep(next(waits))

    async def _produce(self, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        """One request per leader, all at once; every partition's result is checked before the commit."""
        by_leader: dict[int, dict[str, list[tuple[int, bytes]]]] = {}
        for partition, records in parts.items():
            topic, number = partition
            sequence = self._sequences.get(partition, 0)
            raw = batch.encode(
                records, producer_id=self._producer_id, producer_epoch=self._epoch, base_sequence=sequence,
                codec=self._codec,
            )  # fmt: skip
            self._sequences[partition] = (sequence + len(records)) % _SEQUENCE_MODULUS
            leader = await self._client.leader(partition)
            by_leader.setdefault(leader, {}).setdefault(topic, []).append((number, raw))
        responses = await together(
            *(
                self._client.send(
                    node,
                    ProduceRequest(self._id, _ALL_REPLICAS, int(self._deadline_s * 1000), list(topics.items())),
                    group=self._group,
                )
                for node, topics in by_leader.items()
            )
        )
        placed: dict[Partition, Placed] = {}
        for response in responses:
            for topic, rows in response.topics:
                for row in rows:
                    number, code, base_offset, appended_at_ms = row[:4]
                    _raise_for(code)
                    placed[(topic, number)] = Placed(base_offset, appended_at_ms, self._producer_id, self._epoch)
        missing = parts.keys() - placed.keys()
        if missing:
            raise KafkaError(f"no answer for {min(missing)}")
        return placed

    async def _end(self) -> None:
        """EndTxn, once. Any answer but success leaves the end unknown."""
        request = EndTxnRequest(self._id, self._producer_id, self._epoch, True)
        response = await self._client.send(self._coordinator, request, group=self._group)
        _raise_for(response.error_code)

    async def close(self) -> None:
        self._dead = self._dead or "closed"
        await self._client.drop(self._group)


def _marker_waits() -> Iterator[float]:
    """Seconds, each half as long again as the one before."""
    wait_s = MARKERS_WAIT_S
    while True:
        yield wait_s
        wait_s = min(wait_s * 1.5, MARKERS_WAIT_MAX_S)


def _raise_for(code: int) -> None:
    if code:
        error: Any = ProducerFenced if code == _PRODUCER_FENCED else for_code(code)
        raise error()
