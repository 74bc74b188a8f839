"""Taking a lane: local store, changelog and checkpoint, in the order that loses nothing.

    fence ─┬─▶ open the store ─▶ replay the changelog to the high watermark
           └─▶ read the checkpoint

The high watermark, not the last stable offset: a dead predecessor's transaction may still turn out committed. Because
the fence comes first, none of ours can be added after it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.gate import outputs
from app.gate.records import UNREADABLE, Checkpoint
from app.stream import store as stores
from app.stream.log import Log, Partition, ReadRecord, Watermarks
from app.stream.store import Store, StoreLocked
from app.telemetry import RESTORE_SECONDS, RESTORED_ENTRIES, Event, log

CHECKPOINT_READ_BACK: Final = 200  # records from the end: one is written a transaction, markers take offsets
LOOKS_MAX: Final = 10  # for a checkpoint: somebody who writes there without end must not hide that there is none
PROGRESS_EVERY_S: Final = 5.0


class CheckpointLost(Exception):  # noqa: N818
    """A lane has no checkpoint, or one of another deployment: a named stop, never a reset."""


class LocalTable:
    """A lane's table on this machine: one open store, or none. It outlives the lane's lock."""

    def __init__(self, directory: Path, cluster_id: str, birth_id: str, lane: int) -> None:
        self.store: Store | None = None
        self._directory, self._path = directory, Path()
        self._of = cluster_id, birth_id, lane

    async def bring_up_to_date(
        self, source: Log, changelog: Partition, keep_tombstones_ms: int, progress: Callable[[], None]
    ) -> Store:
        """Read the changelog from where the store ends to the high watermark. Raises what Kafka and the disk do."""
        if self.store is None:
            self.store, self._path = await open_local(self._directory, *self._of)
        return await replay(source, changelog, self.store, keep_tombstones_ms, self._begin_anew, progress)

    def _begin_anew(self) -> Store:
        """An empty store instead of the one that is there. Whatever fails from here on, none that is closed is kept."""
        old, self.store = self.store, None
        assert old is not None  # noqa: S101
        self.store = stores.wipe(old, self._path, *self._of)
        return self.store

    def discard(self) -> None:
        """Close the store and delete it: it failed while in use."""
        if self.store is not None:
            self.close()
            shutil.rmtree(self._path, ignore_errors=True)
            log.warning(Event.STORE_WIPED, lane=self._of[2], why="it failed while in use")

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None


async def open_local(directory: Path, cluster_id: str, birth_id: str, lane: int) -> tuple[Store, Path]:
    """The lane's store; when a zombie holds its lock for more than a second, one beside it."""
    deadline = time.monotonic() + stores.LOCK_WAIT_S
    path, number = directory / f"lane-{lane}", 0
    while True:
        try:
            store, why = stores.open_store(path, cluster_id, birth_id, lane)
        except StoreLocked:
            if time.monotonic() >= deadline:
                number += 1
                path = directory / f"lane-{lane}.{number}"
                log.warning(Event.STORE_LOCKED, lane=lane, instead=path.name)
            else:
                await asyncio.sleep(stores.LOCK_RETRY_S)
            continue
        if why is not None:
            log.warning(Event.STORE_WIPED, lane=lane, why=why)
        return store, path


async def replay(
    source: Log, changelog: Partition, store: Store, keep_tombstones_ms: int, anew: Callable[[], Store],
    progress: Callable[[], None],
) -> Store:  # fmt: skip
    """Bring the store up to the changelog's high watermark, or an empty one in its place. Returns which it was.

    `anew()` wipes it and says which store is the lane's from now on; `progress` is told of every chunk.
    """
    lane = changelog[1]
    began = told = time.monotonic()
    marks = await source.watermarks(changelog)
    why = _unfit(store, marks, keep_tombstones_ms)
    if why is not None:
        log.warning(Event.STORE_WIPED, lane=lane, why=why)
        store = anew()
    position, count = max(store.changelog_offset, marks.start), 0
    if position < marks.high:
        async for chunk, position in source.read(changelog, position, marks.high):  # noqa: B020
            if chunk:
                store.apply(((r.key, r.value) for r in chunk if r.key is not None), position)
                count += len(chunk)
                progress()
            if time.monotonic() - told > PROGRESS_EVERY_S:
                told = time.monotonic()
                log.info(Event.RESTORED, lane=lane, entries=count, left=marks.high - position, done=False)
    seconds = time.monotonic() - began
    RESTORED_ENTRIES.inc(count)
    RESTORE_SECONDS.labels(lane).set(seconds)
    log.info(Event.RESTORED, lane=lane, entries=count, seconds=round(seconds, 3), done=True)
    return store


def _unfit(store: Store, marks: Watermarks, keep_tombstones_ms: int) -> str | None:
    """Why the store cannot be brought up to date from the changelog that is there."""
    at = store.changelog_offset
    if at > marks.high:
        return f"it is ahead of the changelog: {at} > {marks.high}"
    if 0 < at < marks.start:
        return f"the changelog begins after it: {at} < {marks.start}"
    if at > 0 and store.age_ms > keep_tombstones_ms:
        return f"it is older ({store.age_ms // 1000} s) than the changelog's tombstones are kept"
    return None


async def last_checkpoint(source: Log, partition: Partition, birth_id: str, lanes: int) -> Checkpoint:
    """The newest committed checkpoint of a lane. Raises CheckpointLost.

    Where none is found, or it was deleted, but more was written meanwhile, it looks again: while a zombie reads, the
    lane's owner writes a newer one, and compaction takes the older ones from under its eyes.
    """
    for _ in range(LOOKS_MAX):
        marks = await source.watermarks(partition)
        newest = await _newest(source, partition, marks)
        if newest is not None and newest.value is not None:
            return _checked(newest.value, partition, birth_id, lanes)
        if (await source.watermarks(partition)).high == marks.high:
            break  # or deleted by somebody: an older one would be a reset
    raise CheckpointLost(
        f"{partition[0]}[{partition[1]}] holds no checkpoint: if the topics are new run `tollgate topics create`, "
        f"else `tollgate topics accept-gap {partition[1]}` after reading what it says"
    )


async def _newest(source: Log, partition: Partition, marks: Watermarks) -> ReadRecord | None:
    """The last record of a lane's checkpoints, looked for backwards from the end."""
    start, reach = marks.high, CHECKPOINT_READ_BACK
    while start > marks.start:
        start = max(marks.high - reach, marks.start)
        newest: ReadRecord | None = None
        async for chunk, _ in source.read(partition, start, marks.high):
            for record in chunk:
                if record.key == b"%d" % partition[1]:
                    newest = record
        if newest is not None:
            return newest
        reach *= 10
    return None


def _checked(value: bytes, partition: Partition, birth_id: str, lanes: int) -> Checkpoint:
    try:
        checkpoint = outputs.read_checkpoint(value)
    except UNREADABLE as error:
        raise CheckpointLost(f"{partition[0]}[{partition[1]}]: the newest record is no checkpoint: {error}") from None
    if checkpoint.birth_id != birth_id or checkpoint.lanes != lanes:
        raise CheckpointLost(
            f"{partition[0]}[{partition[1]}] is of deployment {checkpoint.birth_id} with {checkpoint.lanes} lanes, "
            f"the topics are of {birth_id} with {lanes}: a topic was recreated or changed; see `tollgate topics check`"
        )
    return checkpoint
