"""A worker: one process, one event loop, the lanes its consumer group gives it.

The group is only a hint of who should take which lane; the lock is each lane's transactional id. Its committed offsets
are for tools that show lag; a lane's own position stands in its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest

from app import __version__
from app.config import Settings
from app.gate.outputs import Place
from app.logs import Event, log
from app.stream import topic_check
from app.stream.cluster import Cluster
from app.stream.connect import client_options
from app.stream.inquiry import empty_world
from app.stream.kept import Deployment
from app.stream.lane import Lane, State
from app.stream.probes import Probes
from app.stream.sealing import sealer_from
from app.stream.tables import Tables
from app.stream.topics import Topic
from app.trust import JwksFollower

if TYPE_CHECKING:
    from app.stream.administration import Checked

GROUP_OFFSETS_EVERY_S: Final = 1.0
GROUP_TIMEOUT_S: Final = 5.0
COLLECT_AFTER_OBJECTS: Final = 200_000  # more than a turn makes
GAUGES_EVERY_S: Final = 5.0
TOPICS_EVERY_S: Final = 10.0
TOPICS_AGAIN_S: Final = 2.0  # what looks wrong is looked at twice: brokers may be changing leaders
STUCK_AFTER_S: Final = 30.0  # a lane at work that has not been round its loop for so long is not alive
LOST_AFTER_S: Final = 300.0  # nor is one that tried to be taken for so long, with nothing restored meanwhile
WORKING: Final = (State.RUNNING, State.HELD)
NEVER_MS: Final = 2**31 - 1
READ_BACK: Final = (Topic.JOBS, Topic.RECEIPTS, Topic.DEAD_LETTERS, Topic.AUDIT)  # by `doubt` alone
_STICKY: Final = (StickyPartitionAssignor,)


class Worker:
    """Owns the cluster connection, the tables and the lanes of this process."""

    def __init__(self, settings: Settings, found: topic_check.Deployment, index: int) -> None:
        self._settings, self._found, self._index = settings, found, index
        prefix = settings.kafka.prefix
        names = {topic: topic.named(prefix) for topic in Topic}
        gate = settings.gate
        self._cluster = Cluster(
            settings.kafka, list(names.values()), transaction_timeout_ms=gate.transaction_timeout_ms,
            codec=gate.compression, max_batch_bytes=gate.expanded_batch_max_bytes,
        )  # fmt: skip
        keys = JwksFollower(settings)
        self._tables = Tables(
            self._cluster, (names[Topic.REGISTRY], 0), (names[Topic.REVOCATIONS], 0), (names[Topic.GRANTS], 0), keys,
            empty_world(settings, found), gate.max_staleness_ms / 1000,
        )  # fmt: skip
        self._shared = Deployment(
            prefix=prefix, topics=names, cluster_id=found.cluster_id, birth_id=found.birth_id, lanes=found.lanes,
            place=Place(names[Topic.TRIGGERS], f"tollgate:{prefix}", __version__),
            seal=sealer_from(gate.sealing_key), state_dir=gate.state_dir, batch_max_records=gate.batch_max_records,
            clock_tolerance_ms=gate.clock_tolerance_s * 1000, queue_age_cap_ms=gate.queue_age_cap_s * 1000,
            keep_tombstones_ms=topic_check.TOMBSTONES_KEPT_MS,
            owner=f"{socket.gethostname()}-{os.getpid()}",
        )  # fmt: skip
        self.lanes: dict[int, Lane] = {}
        self._joined = False
        self._stopping = asyncio.Event()
        self._failure: Exception | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._offsets: dict[int, int] = {}  # of lanes, for the group

    # ── what probes ask ──

    def ready(self) -> tuple[bool, str]:
        """Ready: a member of the group, and every lane given to this worker restored and running."""
        if not self._joined:
            return False, "not in the consumer group yet"
        waiting = [f"lane {lane.number} {lane.state}" for lane in self._mine() if lane.state is not State.RUNNING]
        return not waiting, ", ".join(waiting) or f"{len(self.lanes)} lanes"

    def live(self) -> tuple[bool, str]:
        """Live: every lane made progress lately, and none has stopped for good."""
        now = time.monotonic()
        bad = [f"lane {lane.number} stopped: {lane.stopped_because}" for lane in self._mine() if lane.stopped_because]
        for lane in self._mine():
            idle_s, may_s = now - lane.progress_at_s, STUCK_AFTER_S if lane.state in WORKING else LOST_AFTER_S
            if not lane.stopped_because and idle_s > may_s:
                bad.append(f"lane {lane.number} made no progress for {idle_s:.0f} s, it is {lane.state}")
            elif lane.failing_s > LOST_AFTER_S:
                bad.append(f"lane {lane.number} has failed for {lane.failing_s:.0f} s, deciding nothing")
        return not bad, "; ".join(bad) or "ok"

    def _mine(self) -> list[Lane]:
        return list(self.lanes.values())

    # ── life ──

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then every turn under way is finished, and the lanes are let go."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        telemetry = self._settings.telemetry
        port = telemetry.port + self._index if telemetry.port else 0
        with Probes(telemetry.host, port, self.ready, self.live):
            await self._cluster.start()
            # Read only where a transaction's end is not known: who may not must not learn it then.
            await self._cluster.require_readable([self._shared.topics[topic] for topic in READ_BACK])
            await self._tables.start()
            if not await self._join():
                await self._leave()
                if self._failure is not None:
                    raise self._failure
                log.info(Event.GATE_STOPPED, pid=os.getpid())
                return
            log.info(
                Event.GATE_STARTED, version=__version__, lanes=self._found.lanes, pid=os.getpid(),
                bootstrap=self._settings.kafka.bootstrap, prefix=self._settings.kafka.prefix,
            )  # fmt: skip
            ends = [
                asyncio.create_task(each)
                for each in (self._chores(), self._watch_topics(), self._tables.ended(), self._stopping.wait())
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in ends:
                    task.cancel()
                results = await asyncio.gather(*ends, return_exceptions=True)
                await self._leave()
            for result in (self._failure, *results):
                if isinstance(result, Exception):
                    raise result
        log.info(Event.GATE_STOPPED, pid=os.getpid())

    async def _join(self) -> bool:
        """Become a member of the group. False when told to stop before: the others may keep us waiting for long."""
        gate = self._settings.gate
        self._consumer = AIOKafkaConsumer(
            **client_options(self._settings.kafka),
            group_id=f"{self._settings.kafka.prefix}{gate.group}",
            session_timeout_ms=gate.session_timeout_ms,
            heartbeat_interval_ms=max(gate.session_timeout_ms // 10, 200),  # members learn of a rebalance by them
            rebalance_timeout_ms=max(gate.session_timeout_ms, 5_000),
            max_poll_interval_ms=NEVER_MS,  # we do not poll it: lanes fetch for themselves
            enable_auto_commit=False,
            auto_offset_reset="latest",
            partition_assignment_strategy=_STICKY,
            fetch_max_wait_ms=30_000,
        )
        self._consumer.subscribe([self._shared.topics[Topic.TRIGGERS]], listener=_Rebalances(self))
        starting = asyncio.create_task(self._consumer.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        joined = starting.done()
        for task in (starting, stopping):
            task.cancel()
        results = await asyncio.gather(starting, stopping, return_exceptions=True)
        if joined and results[0] is not None:
            raise results[0]
        return joined

    async def _leave(self) -> None:
        await asyncio.gather(*(lane.release() for lane in self._mine()))
        with contextlib.suppress(KafkaError, TimeoutError):
            await self._tell_group()
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(self._consumer.stop(), GROUP_TIMEOUT_S)
        await self._tables.stop()
        await self._cluster.stop()

    # ── membership ──

    async def assigned(self, numbers: set[int]) -> None:
        """After a rebalance: lanes that went elsewhere are let go, new ones are taken, the others never stopped.

        Until then nothing is let go: the lock is the transactional id, so whoever took a lane fences us, and a dead
        member's session may take long to run out.
        """
        if self._stopping.is_set():
            return  # `_leave` lets go of all there are
        gone = [lane for number, lane in self.lanes.items() if number not in numbers]
        for lane in gone:
            del self.lanes[lane.number]
        await asyncio.gather(*(lane.release() for lane in gone))
        for lane in gone:
            log.info(Event.LANE_RELEASED, lane=lane.number)
        for number in sorted(numbers):
            if number not in self.lanes and not self._stopping.is_set():
                lane = Lane(number, self._shared, self._cluster, self._tables, self._note_offset)
                self.lanes[number] = lane
                lane.start()
        self._joined = True

    def fail(self, error: Exception) -> None:
        """End the worker by an error that nobody else would raise."""
        self._failure = error
        self._stopping.set()

    def _note_offset(self, number: int, offset: int) -> None:
        self._offsets[number] = offset

    async def _tell_group(self) -> None:
        """Commit offsets to the group: for lag tools only, so a failure is nobody's harm.

        Not by the consumer's own commit. One that is answered after a rebalance makes it forget its member id and join
        anew, and the next rebalance waits for the member it was until that one's session runs out.
        """
        mine = [(number, offset, "") for number, offset in self._offsets.items() if number in self.lanes]
        self._offsets = {}
        coordinator = self._consumer._coordinator if self._consumer is not None else None  # noqa: SLF001
        if not mine or coordinator is None or coordinator.coordinator_id is None:
            return
        request = OffsetCommitRequest(
            coordinator.group_id, coordinator.generation, coordinator.member_id,
            OffsetCommitRequest.DEFAULT_RETENTION_TIME, [(self._shared.topics[Topic.TRIGGERS], mine)],
        )  # fmt: skip
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(GROUP_TIMEOUT_S):
                await coordinator._client.send(coordinator.coordinator_id, request, group="lag")  # noqa: SLF001

    async def _chores(self) -> None:
        gauges_at_s = 0.0
        while True:
            await asyncio.sleep(GROUP_OFFSETS_EVERY_S)
            if self._consumer is not None:
                # What went wrong with the group is told to who polls, and until then membership stands still: a gate
                # that may not join, and never polls, would wait without a word.
                self._consumer._coordinator.check_errors()  # noqa: SLF001
            await self._tell_group()
            if time.monotonic() - gauges_at_s > GAUGES_EVERY_S:
                gauges_at_s = time.monotonic()
                for lane in self._mine():
                    lane.gauge()

    async def _watch_topics(self) -> None:
        """A gate does not start on topics that break a guarantee, nor does it go on when they come to. TopicsError."""
        from app.stream import administration

        wrong = False
        while True:
            await asyncio.sleep(TOPICS_AGAIN_S if wrong else TOPICS_EVERY_S)
            try:
                complaint = self._complaint(await asyncio.to_thread(administration.check, self._settings))
            except administration.TopicsError as error:  # a founding record or a checkpoint that is none
                complaint = str(error)
            except Exception as error:  # brokers that do not answer say nothing about topics; lanes tell of them
                log.failed(Event.TOPICS_UNSEEN, error, what=str(error)[:300])
                continue
            if complaint is not None and wrong:
                raise administration.TopicsError(complaint)
            wrong = complaint is not None

    def _complaint(self, checked: Checked) -> str | None:
        """Why a gate may not go on with topics found so; None where it may."""
        if checked.deployment is not None and checked.deployment.birth_id == self._found.birth_id:
            return None
        return checked.complaint or "the topics are another deployment's now"


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka logs and swallows exceptions of these callbacks, so an error here ends the worker instead."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing yet: see `Worker.assigned`."""

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        consumer = self._worker._consumer  # noqa: SLF001
        if consumer is not None:
            consumer.pause(*assigned)
        try:
            await self._worker.assigned({partition.partition for partition in assigned})
        except Exception as error:
            self._worker.fail(error)
            raise


def run(settings: Settings, found: topic_check.Deployment, index: int) -> None:
    """Work on topics that were found right, until told to stop. Raises ConfigError or KafkaError."""
    _quiet_collector()
    asyncio.run(_run(settings, found, index))


async def _run(settings: Settings, found: topic_check.Deployment, index: int) -> None:
    await Worker(settings, found, index).run()  # aiokafka's client wants to be made within the loop


def _quiet_collector() -> None:
    """Decisions make many objects and no cycles. By default the collector would look at a turn's own dozens of times.

    It still looks when objects pile up that a turn does not let go.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 20, 50)
