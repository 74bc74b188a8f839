"""Accepting a gap: how ops lets a lane go on whose position lies outside its topic, or whose checkpoint was lost.

A lane never resets by itself: records deleted undecided are triggers lost, and someone must know.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from app.config import Settings
from app.gate import outputs
from app.gate.records import AuditRecord, Checkpoint, Gap, GapRecord
from app.stream import administration, restore
from app.stream.cluster import Cluster
from app.stream.log import Log, Partition
from app.stream.topics import Topic

NO_AUDIT_YET: Final = "0" * 64


class NoGap(Exception):  # noqa: N818
    """There is nothing to accept."""


async def accept(settings: Settings, lane: int, by: str, reason: str, *, commit: bool) -> list[Gap]:
    """Find what a lane cannot read any more; with `commit` go on without it, in one transaction with its audit.

    Raises NoGap, or TopicsError where the topics themselves are wrong.
    """
    checked = administration.check(settings)
    found = checked.deployment
    if found is None:
        raise administration.TopicsError(checked.complaint)
    if lane >= found.lanes:
        raise NoGap(f"there is no lane {lane}: this deployment has {found.lanes}, from 0 on")
    prefix = settings.kafka.prefix
    names = {topic: topic.named(prefix) for topic in Topic}
    cluster = Cluster(
        settings.kafka, list(names.values()), transaction_timeout_ms=settings.gate.transaction_timeout_ms,
        codec=settings.gate.compression, max_batch_bytes=settings.gate.expanded_batch_max_bytes,
    )  # fmt: skip
    await cluster.start()
    try:
        # The lock first: a gate that has the lane must not commit what is judged here from an older position.
        writer = await cluster.fence(f"{prefix}lane-{lane}", f"accept-gap-{os.getpid()}") if commit else None
        before = await _checkpoint(cluster, (names[Topic.CHECKPOINTS], lane), found.birth_id, found.lanes)
        positions, gaps = {}, []
        for topic, position in _positions(before).items():
            marks = await cluster.watermarks((names[topic], lane))
            positions[topic] = position
            if position is None or not marks.start <= position <= marks.high:
                positions[topic] = marks.start
                gaps.append(Gap(topic.value, position or 0, marks.start, by, reason))
        if not gaps:
            raise NoGap(f"lane {lane} stands within its topics: nothing is missing")
        if writer is not None:
            sequence, head = await _audit_head(cluster, (names[Topic.AUDIT], lane))
            record = GapRecord(lane, sequence + 1, head, [], gaps)
            out = outputs.audit(record)
            after = Checkpoint(
                lane, found.lanes, found.birth_id, sequence + 1, positions[Topic.TRIGGERS] or 0,
                positions[Topic.HANDOFFS] or 0, before.lane_clock_ms if before else 0, outputs.digest(out.value),
            )  # fmt: skip
            await writer.commit(
                {
                    (names[Topic.AUDIT], lane): [out],
                    (names[Topic.CHECKPOINTS], lane): [outputs.checkpoint(after)],
                }
            )
            await writer.close()
        return gaps
    finally:
        await cluster.stop()


def _positions(before: Checkpoint | None) -> dict[Topic, int | None]:
    if before is None:
        return {Topic.TRIGGERS: None, Topic.HANDOFFS: None}
    return {Topic.TRIGGERS: before.triggers_offset, Topic.HANDOFFS: before.handoffs_offset}


async def _checkpoint(source: Log, partition: Partition, birth_id: str, lanes: int) -> Checkpoint | None:
    try:
        return await restore.last_checkpoint(source, partition, birth_id, lanes)
    except restore.CheckpointLost:
        return None


async def _audit_head(source: Log, partition: Partition) -> tuple[int, str]:
    """Sequence and digest of the lane's newest audit record, from which its chain goes on."""
    marks = await source.watermarks(partition)
    start, reach = marks.high, restore.CHECKPOINT_READ_BACK
    while start > marks.start:
        start = max(marks.high - reach, marks.start)
        newest: bytes | None = None
        async for chunk, _ in source.read(partition, start, marks.high):
            newest = chunk[-1].value if chunk else newest
        if newest is not None:
            return msgspec.json.decode(newest, type=AuditRecord).sequence, outputs.digest(newest)
        reach *= 10
    return 0, NO_AUDIT_YET
