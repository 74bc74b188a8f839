"""A transaction ended by halves, as by a coordinator that writes markers where it leads and is fenced before the rest."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.support.markers import write_markers

TEAR = "tear"  # an action of `Point.BEFORE_END`


async def tear(writer: Any, partitions: Iterable[tuple[str, int]]) -> list[str]:
    """In a gate's process, in place of its EndTxn: tell the partitions that one broker leads of a commit.

    Which these are; none, and nothing done, where one broker leads them all.
    """
    led = defaultdict(list)
    for partition in partitions:
        led[await writer._client.leader(partition)].append(partition)
    if len(led) == 1:
        return []
    node = sorted(led)[writer._epoch % len(led)]
    broker = writer._client.cluster.broker_metadata(node)
    address = f"{broker.host}:{broker.port}"
    await asyncio.to_thread(write_markers, address, writer._producer_id, writer._epoch, led[node])
    return [f"{topic}/{number}" for topic, number in led[node]]
