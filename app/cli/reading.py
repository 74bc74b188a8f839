"""Reads the output topics for the commands: committed records only, every partition, no consumer group."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.cli import given

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from app.config import Settings
    from app.stream.topics import Topic

POLL_MS: Final = 200
BATCH_RECORDS_MAX: Final = 5_000
PARTITION_FETCH_MAX_BYTES: Final = 4 << 20
PROGRESS_FROM_RECORDS: Final = 20_000  # fewer are read before one has seen a progress bar


class Entry(NamedTuple):
    """One record as it stands on a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Window(NamedTuple):
    """What to read: from when (None: all there is), and whether to go on past the end found at the start."""

    since_ms: int | None = None
    follow: bool = False
    deadline: float | None = None  # of time.monotonic()
    partitions: frozenset[int] | None = None  # None: all


EVERYTHING: Final = Window()


def since_ms(text: str | None) -> int | None:
    """`10m` ago, or a time, as milliseconds since 1970."""
    return None if text is None else given.moment_s("--since", text) * 1_000


def deadline_of(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


async def partitions_of(settings: Settings, topic: Topic) -> list[int]:
    """The partitions of a topic. Raises at once where there is none (UnknownTopic…), or none for us to see."""
    from aiokafka.client import AIOKafkaClient

    from app.stream.connect import client_options, why_unseen

    name = topic.named(settings.kafka.prefix)
    client = AIOKafkaClient(**client_options(settings.kafka))
    try:
        await client.bootstrap()
        partitions = (await client.fetch_all_metadata()).partitions_for_topic(name)
        if not partitions:
            raise await why_unseen(client, name)
    finally:
        await client.close()
    return sorted(partitions)


class Reader:
    """A consumer placed on some partitions of one topic, with the end that was there when it was opened."""

    def __init__(
        self, consumer: AIOKafkaConsumer, starts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
    ) -> None:
        self._consumer = consumer
        self._ends = ends
        self._starts = starts

    @property
    def total(self) -> int:
        """Offsets between start and end: at least as many as there are records."""
        return sum(max(0, end - self._starts[place]) for place, end in self._ends.items())

    async def batches(self, window: Window, advance: Callable[[int], None] | None = None) -> AsyncIterator[list[Entry]]:
        """Records as they come, in batches; ends at the end, at the deadline, or (following) never."""
        left = {place for place, end in self._ends.items() if end > self._starts[place]}
        done = 0
        while left or window.follow:
            wait_ms = POLL_MS
            if window.deadline is not None:
                wait_ms = min(POLL_MS, int((window.deadline - time.monotonic()) * 1_000))
                if wait_ms < 0:
                    return
            fetched = await self._consumer.getmany(timeout_ms=wait_ms, max_records=BATCH_RECORDS_MAX)
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # which its wait_for may swallow (Python 3.11)
                raise asyncio.CancelledError
            for place, records in fetched.items():
                end = None if window.follow else self._ends[place]
                yield [
                    Entry(place.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                    for r in records
                    if end is None or r.offset < end
                ]
            # Positions pass transaction markers and aborted records, which are never handed to us.
            for place in list(left):
                if await self._consumer.position(place) >= self._ends[place]:
                    left.discard(place)
            if advance is not None:
                at = sum([await self._consumer.position(place) - start for place, start in self._starts.items()])
                advance(at - done)
                done = at


@asynccontextmanager
async def reader(
    settings: Settings, topic: Topic, window: Window = EVERYTHING, *, at_end: bool = False
) -> AsyncIterator[Reader]:
    """Open a Reader at the start the window names, or at the end."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from app.stream.connect import client_options

    name = topic.named(settings.kafka.prefix)
    listed = await partitions_of(settings, topic)
    places = [TopicPartition(name, p) for p in listed if window.partitions is None or p in window.partitions]
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka),
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",  # what retention deletes while we read is gone
        max_partition_fetch_bytes=PARTITION_FETCH_MAX_BYTES,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        starts = await _starts(consumer, places, ends, window.since_ms, at_end=at_end)
        for place, offset in starts.items():
            consumer.seek(place, offset)
        yield Reader(consumer, starts, ends)
    finally:
        await consumer.stop()


async def _starts(
    consumer: AIOKafkaConsumer,
    places: list[TopicPartition],
    ends: dict[TopicPartition, int],
    since: int | None,
    *,
    at_end: bool,
) -> dict[TopicPartition, int]:
    if at_end:
        return dict(ends)
    starts: dict[TopicPartition, int] = await consumer.beginning_offsets(places)
    if since is None:
        return starts
    found = await consumer.offsets_for_times(dict.fromkeys(places, since))
    return {place: found[place].offset if found.get(place) else ends[place] for place in places}


@asynccontextmanager
async def entries(
    settings: Settings, topic: Topic, window: Window = EVERYTHING, *, doing: str | None = None
) -> AsyncIterator[AsyncIterator[list[Entry]]]:
    """Batches of a topic; with `doing`, a progress bar says so when on a terminal and there is much to read."""
    async with reader(settings, topic, window) as opened:
        if doing is None or not sys.stderr.isatty() or opened.total < PROGRESS_FROM_RECORDS:
            yield opened.batches(window)
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(doing, total=None if window.follow else opened.total)
            yield opened.batches(window, lambda n: progress.advance(task, n))


async def wait_for_receipts(
    opened: Reader, trigger_ids: Iterable[str], timeout_s: float, heard: Callable[[dict[str, Any]], None]
) -> set[str]:
    """Call `heard` with the receipt of each of these triggers as it comes; returns the ids that got none in time."""
    import orjson

    missing = set(trigger_ids)
    if not missing:
        return missing
    stream = opened.batches(Window(follow=True, deadline=deadline_of(timeout_s)))
    async for batch in stream:
        for entry in batch:
            trigger_id = (entry.key or b"").decode("ascii", "replace")
            if trigger_id in missing and entry.value is not None:
                missing.discard(trigger_id)
                heard(orjson.loads(entry.value))
        if not missing:
            break
        await asyncio.sleep(0)
    return missing
