"""Accepting a gap: how ops lets a lane go on whose position lies outside its topic, or whose checkpoint was lost.

A lane never resets by itself: records deleted undecided are triggers lost, and someone must know. Nor does it begin
again where a checkpoint is lost: what its transactions left beside it tells where it stood.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import msgspec

from app.config import Settings
from app.gate import outputs
from app.gate.records import NO_AUDIT_YET, UNREADABLE, AuditRecord, Checkpoint, Gap, GapRecord, Handoff
from app.stream import administration, restore
from app.stream.cluster import Cluster
from app.stream.log import Log, Partition, ReadRecord
from app.stream.topic_check import Deployment
from app.stream.topics import Topic


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
        if before is not None:
            stood = before.triggers_offset, before.handoffs_offset
        else:
            stood = await _stood(cluster, names, found, lane)
        for topic, position in zip((Topic.TRIGGERS, Topic.HANDOFFS), stood, strict=True):
            marks = await cluster.watermarks((names[topic], lane))
            within = marks.start <= position <= marks.high
            # Beyond the end nothing is missing; to begin again at the start would run all there is a second time.
            positions[topic] = min(max(position, marks.start), marks.high)
            if before is None or not within:
                gaps.append(Gap(topic.value, position, positions[topic], by, reason))
        if not gaps:
            raise NoGap(f"lane {lane} stands within its topics: nothing is missing")
        if writer is not None:
            sequence, head = await _audit_head(cluster, (names[Topic.AUDIT], lane))
            record = GapRecord(lane, sequence + 1, head, [], gaps)
            out = outputs.audit(record)
            after = Checkpoint(
                lane, found.lanes, found.birth_id, sequence + 1, positions[Topic.TRIGGERS],
                positions[Topic.HANDOFFS], before.lane_clock_ms if before else 0, outputs.digest(out.value),
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


async def _stood(source: Log, names: dict[Topic, str], found: Deployment, lane: int) -> tuple[int, int]:
    """The next offsets of triggers and handoffs of a lane without a checkpoint: nothing is decided twice.

    Transactions take both in order, and each of a lane's triggers is, from then on, in the audit of the lane that
    decided it or in a handoff to the lane that will. So a lane stood behind the last of these; where is none, at 0.
    """
    triggers = handoffs = 0
    mine: dict[str, int] = {}  # handoffs to this lane, by the trigger's id
    for other in range(found.lanes):
        async for record in _all(source, (names[Topic.HANDOFFS], other)):
            trigger_id = _trigger_of(record.value)
            if trigger_id is None:
                continue
            triggers = max(triggers, _behind(trigger_id, lane))
            if other == lane:
                mine[trigger_id] = record.offset
    for other in range(found.lanes):
        async for record in _all(source, (names[Topic.AUDIT], other)):
            for shown in _entry(record.value, other).presentations:
                triggers = max(triggers, _behind(shown.trigger_id, lane))
                if other == lane and shown.trigger_id in mine:
                    handoffs = max(handoffs, mine[shown.trigger_id] + 1)
    return triggers, handoffs


async def _all(source: Log, partition: Partition) -> AsyncIterator[ReadRecord]:
    marks = await source.watermarks(partition)
    async for chunk, _ in source.read(partition, marks.start, marks.high):
        for record in chunk:
            yield record


def _entry(value: bytes | None, lane: int) -> AuditRecord:
    try:
        return msgspec.json.decode(value or b"", type=AuditRecord)
    except UNREADABLE:
        raise NoGap(
            f"the audit of lane {lane} holds a record that no gate has written: `tollgate audit verify`"
        ) from None


def _trigger_of(value: bytes | None) -> str | None:
    try:
        return msgspec.json.decode(value or b"", type=Handoff).trigger.id
    except UNREADABLE:
        return None  # a stranger's: its dead letter names the handoff's own coordinates


def _behind(trigger_id: str, lane: int) -> int:
    """The offset after a trigger, when it is one of the lane's; else 0."""
    partition, _, offset = trigger_id.partition("-")
    return int(offset) + 1 if partition == str(lane) else 0


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
            return _entry(newest, partition[1]).sequence, outputs.digest(newest)
        reach *= 10
    return 0, NO_AUDIT_YET
