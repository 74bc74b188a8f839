"""aiokafka's connections, with what reading and writing for lanes need of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError

from app.stream.log import Partition

RETRY_S: Final = 0.1
UNCOMMITTED, COMMITTED = 0, 1  # isolation levels


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


def aborted_in(row: Any) -> Sequence[tuple[int, int]] | None:
    """The aborted transactions in a partition's part of a fetch response; v5 put the log's start before them."""
    aborted: Sequence[tuple[int, int]] | None = row[4] if len(row) == 6 else row[5]
    return aborted
