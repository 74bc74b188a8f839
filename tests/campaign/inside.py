"""What the campaign loads into a gate's process: a journal of its transactions, and points at which it may be struck.

Nothing of the product knows of it. The journal is appended to a file by one write(2) a line, so it outlives SIGKILL;
times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from tests.campaign.failing_disk import fail_writes
from tests.campaign.points import Point
from tests.campaign.tearing import TEAR, tear

JOURNAL, ARM, PLANT = "CAMPAIGN_JOURNAL", "CAMPAIGN_ARM", "CAMPAIGN_PLANT"

_now = time.monotonic


class Journal:
    """One line an event: `e` what, `at` when, `run` which process."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self._run = f"{path.stem}/{os.getpid()}"

    def write(self, event: str, **fields: Any) -> None:
        os.write(self.descriptor, orjson.dumps({"e": event, "at": _now(), "run": self._run, **fields}) + b"\n")


class Armed:
    """Passes of named points; one of them may be armed from outside: rewrite the file, then send SIGUSR1."""

    def __init__(self, journal: Journal, orders: Path) -> None:
        self._journal, self._orders = journal, orders
        self._point: Point | None = None
        self._left = 0
        self.action = ""
        self.clock_offset_ms = 0
        signal.signal(signal.SIGUSR1, self._read)
        if orders.exists():
            self._read()

    def _read(self, *_: Any) -> None:
        order = json.loads(self._orders.read_bytes())
        if "errno" in order:
            wakes = signal.set_wakeup_fd(-1)  # the event loop's: written to by signals
            signal.set_wakeup_fd(wakes)
            self._journal.write("writes_fail", errno=order["errno"])
            fail_writes(order["errno"], (self._journal.descriptor, wakes))
        elif "clock_ms" in order:
            self.clock_offset_ms = order["clock_ms"]
            self._journal.write("clock", offset_ms=self.clock_offset_ms)
        else:
            self._left, self.action = order["pass"], order["action"]
            self._point = Point(order["point"])
            self._journal.write("armed", point=self._point)

    def due(self, point: Point) -> bool:
        """Whether this pass is the one; says so in the journal."""
        if self._point is not point:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._point = None
        self._journal.write("struck", point=point, action=self.action)
        return True

    def reach(self, point: Point) -> None:
        if self._point is point and self.due(point):
            self.act()

    def act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            time.sleep(float(self.action))  # the whole process stands still, as in a long pause of a machine


def load() -> None:
    """Wrap the product where the journal and the points look. Raises when a name has gone: then this must follow."""
    if JOURNAL not in os.environ:
        return
    journal = Journal(Path(os.environ[JOURNAL]))
    armed = Armed(journal, Path(os.environ[ARM]))
    journal.write("start")
    _clock(armed)
    _writer(journal, armed)
    _lane(journal, armed)


def _clock(armed: Armed) -> None:
    nanoseconds = time.time_ns
    time.time_ns = lambda: nanoseconds() + armed.clock_offset_ms * 1_000_000
    time.time = lambda: time.time_ns() / 1e9


def _writer(journal: Journal, armed: Armed) -> None:
    from aiokafka.errors import KafkaConnectionError
    from aiokafka.protocol.produce import ProduceRequest
    from aiokafka.protocol.transaction import EndTxnRequest

    from app.stream.connections import Connections
    from app.stream.transaction import KafkaWriter

    fence, add, produce, end = KafkaWriter.fence, KafkaWriter._add_partitions, KafkaWriter._produce, KafkaWriter._end
    commit, send = KafkaWriter.commit, Connections.send
    deciding: dict[int, Any] = {}  # producers with a transaction under way that decides something, and its parts

    def who(writer: KafkaWriter) -> dict[str, Any]:
        lane = int(writer._id.rpartition("-")[2])
        return {"lane": lane, "producer": writer._producer_id, "epoch": writer._epoch}

    @functools.wraps(fence)
    async def fenced(self: KafkaWriter) -> None:
        await fence(self)
        journal.write("epoch", **who(self))

    @functools.wraps(add)
    async def added(self: KafkaWriter, parts: Any) -> None:
        counts = {f"{topic}/{number}": len(records) for (topic, number), records in parts.items()}
        journal.write("begin", counts=counts, **who(self))
        await add(self, parts)
        if len(parts) > 1:
            deciding[self._producer_id] = parts
            armed.reach(Point.AFTER_BEGIN)
        else:
            deciding.pop(self._producer_id, None)

    @functools.wraps(produce)
    async def produced(self: KafkaWriter, parts: Any) -> Any:
        placed = await produce(self, parts)
        journal.write(
            "placed", bases={f"{topic}/{number}": at.base_offset for (topic, number), at in placed.items()}, **who(self)
        )
        return placed

    @functools.wraps(end)
    async def ended(self: KafkaWriter) -> None:
        if self._producer_id in deciding and armed.due(Point.BEFORE_END):
            if armed.action == TEAR:
                journal.write("end", **who(self))
                told = await tear(self, deciding[self._producer_id])
                journal.write("torn", told=told, **who(self))
                raise KafkaConnectionError("the end that was asked for is cut off")
            armed.act()
        journal.write("end", **who(self))
        await end(self)

    @functools.wraps(commit)
    async def committed(self: KafkaWriter, parts: Any) -> Any:
        try:
            placed = await commit(self, parts)
        except BaseException as error:
            journal.write("failed", why=type(error).__name__, what=str(error)[:200], **who(self))
            raise
        journal.write("committed", decided=len(parts) > 1, **who(self))
        if len(parts) > 1:
            armed.reach(Point.AFTER_COMMIT)
        return placed

    @functools.wraps(send)
    async def sent(self: Connections, node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, EndTxnRequest) and request._producer_id in deciding and armed.due(Point.DURING_END):
            under_way = asyncio.ensure_future(send(self, node, request, **options))
            await asyncio.sleep(0.001)  # it is written; its answer may or may not be here
            armed.act()
            return await under_way
        answer = await send(self, node, request, **options)
        if isinstance(request, ProduceRequest) and deciding:
            armed.reach(Point.AFTER_PRODUCE)
        return answer

    KafkaWriter.fence, KafkaWriter._add_partitions, KafkaWriter._produce = fenced, added, produced
    KafkaWriter._end, KafkaWriter.commit = ended, committed
    Connections.send = sent


def _lane(journal: Journal, armed: Armed) -> None:
    from app import trust
    from app.gate import decide, outputs
    from app.stream import restore
    from app.stream.lane import Lane
    from app.stream.store import Store
    from app.stream.tail import KafkaTail
    from app.stream.turn import Turn
    from app.stream.worker import Worker

    now = {"restoring": 0, "finishing": 0, "leaving": 0}

    def after(owner: Any, name: str, point: Point, *, when: Any = lambda _: True) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def passed(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if when(result):
                armed.reach(point)
            return result

        setattr(owner, name, passed)

    after(KafkaTail, "take", Point.AFTER_POLL, when=bool)
    after(decide, "admit_all", Point.AFTER_VERIFY)
    after(Store, "get_many", Point.AFTER_STORE_READ)
    after(outputs, "read_handoff", Point.IN_HANDOFF_DRAIN)
    after(trust, "_read_changed", Point.IN_JWKS_REFRESH)

    checkpoint, finish = outputs.checkpoint, Turn.finish

    def before_checkpoint(*args: Any) -> Any:
        if now["finishing"]:
            armed.reach(Point.BEFORE_CHECKPOINT)
        return checkpoint(*args)

    def finished(self: Turn, *args: Any) -> Any:
        now["finishing"] += 1
        try:
            return finish(self, *args)
        finally:
            now["finishing"] -= 1

    outputs.checkpoint, Turn.finish = before_checkpoint, finished

    replay, apply, write = restore.replay, Store.apply, Store._write

    async def replayed(*args: Any) -> Any:
        now["restoring"] += 1
        try:
            return await replay(*args)
        finally:
            now["restoring"] -= 1

    def applied(self: Store, *args: Any) -> None:
        apply(self, *args)
        if now["restoring"]:
            armed.reach(Point.IN_RESTORE)

    def written(self: Store, batch: Any) -> None:
        if not now["restoring"] and armed.due(Point.IN_APPLY):
            threading.Thread(target=armed.act).start()  # beside the write: before, within or after it
        write(self, batch)

    restore.replay, Store.apply, Store._write = replayed, applied, written

    release, leave, assigned = Lane.release, Worker._leave, Worker.assigned

    async def given(self: Worker, numbers: set[int]) -> None:
        journal.write("assigned", lanes=sorted(numbers))
        await assigned(self, numbers)

    async def released(self: Lane) -> None:
        if now["leaving"]:
            armed.reach(Point.IN_STOP)
        await release(self)

    async def left(self: Worker) -> None:
        now["leaving"] += 1
        journal.write("leaving")
        await leave(self)
        journal.write("left")

    Lane.release, Worker._leave, Worker.assigned = released, left, given
