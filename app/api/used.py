"""Whether a one-shot token was used: what the dedup table of its home lane has heard of it since it was issued.

A used one is of no use to who gets hold of it: the same request again names the run it became, another is refused.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka.errors import KafkaError

from app.api.problems import Problem
from app.gate.claims import Claims
from app.gate.idempotency import home_lane, of_one_shot
from app.stream.cluster import Cluster

TIMEOUT_S: Final = 5.0
AT_ONCE: Final = 4
CLOCKS_DIFFER_MS: Final = 120_000  # tokens bear the issuer's time, the table the broker's


class Used:
    """Asks the changelog, few times at once."""

    def __init__(self, cluster: Cluster, topic: str, lanes: int) -> None:
        self._cluster, self._topic, self._lanes = cluster, topic, lanes
        self._free = asyncio.Semaphore(AT_ONCE)

    async def was(self, claims: Claims) -> bool:
        """Whether it has become a run. Raises Problem when that cannot be told in time."""
        identity = of_one_shot(claims)
        if identity is None:
            return False
        partition = (self._topic, home_lane(identity.home_by, self._lanes))
        try:
            async with asyncio.timeout(TIMEOUT_S), self._free:
                first = await self._cluster.first_since(partition, max(claims.iat * 1000 - CLOCKS_DIFFER_MS, 0))
                if first is None:
                    return False
                high = (await self._cluster.watermarks(partition)).high
                found = False
                async for chunk, _ in self._cluster.read(partition, first[1], high):
                    for record in chunk:
                        if record.key == identity.digest:
                            found = record.value is not None  # a tombstone: swept, and long out of its time
                return found
        except (TimeoutError, KafkaError):
            raise Problem("not_ready", "whether the token was used cannot be told now") from None
