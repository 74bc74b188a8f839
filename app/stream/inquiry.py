"""An inquiry: one record of the triggers topic judged as a gate would judge it now, without writing anything."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiokafka.errors import KafkaError

from app.config import Settings
from app.gate import decide
from app.gate.decide import Admitted, Memo, World
from app.gate.explain import Explanation, explain
from app.gate.policy import Revocations
from app.gate.trigger import Record
from app.stream.cluster import Cluster
from app.stream.tables import Tables
from app.stream.topic_check import Deployment
from app.stream.topics import Topic
from app.trust import JwksFollower

READ_TIMEOUT_S: Final = 15.0
CLOCKS_DIFFER_MS: Final = 120_000  # of issuers, which date tokens, and of brokers, which date the table
_FOR_EVER_MS: Final = 1 << 62
_ONE_RECORD_BYTES: Final = 1 << 30


class NoSuchRecord(Exception):  # noqa: N818
    """The coordinates name no record that is still there and readable."""


def empty_world(settings: Settings, found: Deployment) -> World:
    """A world without tables: what a deployment and the settings fix."""
    gate = settings.gate
    kept_ms, cap_ms = found.idempotency_retention_ms, gate.queue_age_cap_s * 1000
    return World(
        audience=settings.audience, lanes=found.lanes, grace_s=gate.grace_s, queue_age_cap_ms=cap_ms,
        max_window_ms=kept_ms - found.idempotency_segment_ms - cap_ms if kept_ms >= 0 else _FOR_EVER_MS,
        run_seed=decide.run_seed(found.cluster_id, Topic.TRIGGERS.named(settings.kafka.prefix)),
        ring={}, rules={}, jobs={}, revocations=Revocations(),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def connected(
    settings: Settings, found: Deployment, *watchers: Callable[[bytes, bytes | None], object]
) -> AsyncIterator[tuple[Cluster, Tables]]:
    """A cluster and its tables as they are now; `watchers` are told of each record of the registry."""
    prefix, gate = settings.kafka.prefix, settings.gate
    cluster = Cluster(
        settings.kafka, [topic.named(prefix) for topic in Topic], transaction_timeout_ms=gate.transaction_timeout_ms,
        codec=gate.compression, max_batch_bytes=gate.expanded_batch_max_bytes,
    )  # fmt: skip
    tables = Tables(
        cluster, (Topic.REGISTRY.named(prefix), 0), (Topic.REVOCATIONS.named(prefix), 0),
        (Topic.GRANTS.named(prefix), 0), JwksFollower(settings), empty_world(settings, found),
        gate.max_staleness_ms / 1000,
    )  # fmt: skip
    tables.watchers.extend(watchers)
    await cluster.start()
    try:
        await tables.start()
        try:
            yield cluster, tables
        finally:
            await tables.stop()
    finally:
        await cluster.stop()


async def record_at(cluster: Cluster, topic: str, partition: int, offset: int) -> Record:
    """The record at an offset, as a read_committed reader sees it. Raises NoSuchRecord."""
    marks = await cluster.watermarks((topic, partition))
    if marks.start >= marks.high:
        raise NoSuchRecord(f"{topic}[{partition}] is empty: nothing was appended, or retention has deleted it")
    if not marks.start <= offset < marks.high:
        raise NoSuchRecord(f"{topic}[{partition}] holds offsets {marks.start} to {marks.high - 1}, not {offset}")
    wake = asyncio.Event()
    tail = cluster.follow((topic, partition), offset, wake)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while True:
                wake.clear()
                records = tail.take(1, _ONE_RECORD_BYTES)
                if records and records[0].offset == offset:
                    return records[0]
                if tail.position > offset:
                    raise NoSuchRecord(f"{topic}[{partition}] offset {offset} is a transaction's marker or was aborted")
                await wake.wait()
    except TimeoutError:
        raise KafkaError(f"{topic}[{partition}] offset {offset} could not be read: an open transaction?") from None
    finally:
        tail.close()


async def entry_of(cluster: Cluster, partition: tuple[str, int], digest: bytes, since_ms: int) -> bytes | None:
    """The newest that the changelog of a lane holds for an identity, as far as it was written since (Unix ms)."""
    first = await cluster.first_since(partition, max(since_ms - CLOCKS_DIFFER_MS, 0))
    if first is None:
        return None
    newest: bytes | None = None
    async for chunk, _ in cluster.read(partition, first[1], (await cluster.watermarks(partition)).high):
        for record in chunk:
            if record.key == digest:
                newest = record.value
    return newest


async def inquire(settings: Settings, found: Deployment, what: Record | tuple[int, int]) -> Explanation:
    """Explain a record, or the one at (partition, offset) of the triggers topic."""
    prefix = settings.kafka.prefix
    async with connected(settings, found) as (cluster, tables):
        record = what
        if isinstance(record, tuple):
            record = await record_at(cluster, Topic.TRIGGERS.named(prefix), *record)
        return await judged(cluster, tables, prefix, record)


async def judged(cluster: Cluster, tables: Tables, prefix: str, record: Record) -> Explanation:
    """What would become of a record now, with what the dedup table holds for it."""
    world = tables.world
    admitted = decide.admit(record, world, Memo())
    packed = None
    if isinstance(admitted, Admitted) and admitted.identity is not None:
        changelog = Topic.IDEMPOTENCY.named(prefix), admitted.home
        packed = await entry_of(cluster, changelog, admitted.identity.digest, _earliest_ms(admitted, world))
    return explain(record, world, packed, time.time_ns() // 1_000_000, look_away=True)


def _earliest_ms(admitted: Admitted, world: World) -> int:
    """Since when there can be an entry that matters: within the longest window, or while its one token exists."""
    claims, appended_at_ms = admitted.token.claims, admitted.source.appended_at_ms
    if claims.uses == "once" and claims.idempotency_key is None:
        return (claims.iat - world.grace_s) * 1000  # a gate takes a token that long before its time
    return appended_at_ms - world.max_window_ms
