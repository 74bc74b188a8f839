"""What of a lane outlives its lock: a lane that is fenced, or loses Kafka, is taken again with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from app.gate.original import Seal
from app.gate.outputs import Place
from app.stream.doubt import Doubt
from app.stream.holding import Holds
from app.stream.judging import Judge
from app.stream.log import Log, Partition
from app.stream.restore import LocalTable
from app.stream.sweeping import Sweeper
from app.stream.tables import Tables
from app.stream.topics import Topic


class Deployment(msgspec.Struct, frozen=True):
    """What all lanes of a process share and none may change."""

    prefix: str
    topics: dict[Topic, str]
    cluster_id: str
    birth_id: str
    lanes: int
    place: Place
    seal: Seal
    state_dir: Path
    batch_max_records: int
    clock_tolerance_ms: int
    queue_age_cap_ms: int
    keep_tombstones_ms: int
    owner: str


class Kept:
    """A lane's own things, whether it has its lock or not."""

    def __init__(
        self, number: int, shared: Deployment, source: Log, tables: Tables, on_commit: Callable[[int, int], object]
    ) -> None:
        self.number, self.shared, self.source, self.tables, self.on_commit = number, shared, source, tables, on_commit
        self.wake = asyncio.Event()  # something has arrived, or the lane is to be released
        self.table = LocalTable(shared.state_dir, shared.cluster_id, shared.birth_id, number)
        self.holds = Holds(number)
        self.judge = Judge(number, tables)
        self.sweeper = Sweeper()
        self.doubt: Doubt | None = None
        # Less after a turn that failed, down to one: the records may be why.
        self.turn_records = shared.batch_max_records
        self.progress_at_s = time.monotonic()

    def partition(self, topic: Topic) -> Partition:
        return self.shared.topics[topic], self.number

    def progress(self) -> None:
        self.progress_at_s = time.monotonic()

    async def until_woken(self, seconds: float) -> None:
        """Until something wakes the lane, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation (Python 3.11)
                await self.wake.wait()

    def let_go(self) -> None:
        """The lane is released, or has stopped."""
        self.table.close()
        self.holds.forget()
