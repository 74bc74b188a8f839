"""A simulated world: gates that run the program's own worker, lanes and Kafka client, and everything that befalls them.

What is replaced lies outside the program: the event loop and the clocks (`scheduler`), aiokafka's connections (`wire`),
the brokers (`log`), RocksDB and the removal of its directories (`disk`), and the group coordinator, here a list of
members that is sometimes wrong about who has what. All of it follows from the seed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from app.config import Settings
from app.gate import outputs
from app.gate.outputs import Checkpoint
from app.gate.revocation import revocation_record
from app.stream.topic_check import Deployment
from app.stream.topics import LAYOUT, LOG_APPEND, Topic
from app.stream.worker import Worker
from tests.simulation import checker, faults, replaced, traffic
from tests.simulation.disk import DISK, Disk
from tests.simulation.faults import Plan, Weather
from tests.simulation.group import Gate, Group
from tests.simulation.log import Broker
from tests.simulation.misfortune import Misfortune
from tests.simulation.partition import Message
from tests.simulation.scheduler import Loop, Process, Stuck, run
from tests.simulation.wire import NETWORK, Network
from tests.support.invariants import NO_AUDIT_YET

DRAIN_S: Final = 20.0  # the longest waits: a session, a transaction's time-out, a lane's back-off twice
LEAVE_S: Final = 10.0
LOOK_S: Final = 0.1
BIRTH_ID: Final = "birth"
CLUSTER_ID: Final = "cluster"
DAY_MS: Final = 86_400_000


@dataclass
class Logged:
    """An event that the program logged."""

    at_s: float
    process: str
    event: dict[str, Any]


@dataclass
class Outcome:
    """What a world came to."""

    seed: int
    violations: list[str]
    transactions: int
    aborted: int
    triggers: int
    faults: Counter[str]
    virtual_s: float
    digest: str  # of everything on every topic: the same seed gives the same


@dataclass
class World:
    """One world, of one seed."""

    plan: Plan
    keep_journal: bool = False
    journal: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    logged: list[Logged] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        self.loop = Loop(plan.seed, fifo=plan.fifo, step_s=plan.step_s)
        self.broker = Broker(self.loop, plan.seed, nodes=plan.nodes, marker_max_s=plan.marker_max_s)
        self.weather = Weather(plan)
        self.network = Network(self.broker, self.weather)
        self.disk = Disk()
        self.emitter = traffic.Emitter(plan.seed)
        self.sent: dict[str, traffic.Trigger] = {}
        self.appended_ms: dict[str, int] = {}
        self.grants: set[tuple[bytes, bytes]] = set()
        self.revoked_at_ms: int | None = None
        self.deployment: Deployment | None = None
        self.open_emitters = 0
        self.dice = random.Random(f"world {plan.seed}")
        root = Path(replaced.directory())
        self.gates = [
            Gate(number, root / ("shared" if plan.one_host else f"gate-{number}")) for number in range(plan.gates)
        ]
        self.names = {topic: topic.named(traffic.PREFIX) for topic in Topic}
        context = self.loop.world.context
        context.run(NETWORK.set, self.network)
        context.run(DISK.set, self.disk)
        replaced.listeners.append(self._hear)
        if self.keep_journal:
            self.broker.tell = self.tell

    def tell(self, who: str, *what: Any) -> None:
        if self.keep_journal:
            self.journal.append((self.loop.time(), who, what))

    def _hear(self, process: str, event: dict[str, Any]) -> None:
        self.logged.append(Logged(self.loop.time(), process, event))
        self.tell(process, event["event"], {name: what for name, what in event.items() if name != "event"})

    # ── beginning ──

    def _found(self) -> Deployment:
        plan = self.plan
        for topic, layout in LAYOUT.items():
            self.broker.create(
                self.names[topic], plan.lanes if layout.per_lane else 1,
                append_time=LOG_APPEND.items() <= layout.enforced.items(),
                compacted="compact" in layout.enforced["cleanup.policy"],
            )  # fmt: skip
        for lane in range(plan.lanes):
            first = Checkpoint(lane, plan.lanes, BIRTH_ID, 0, 0, 0, 0, NO_AUDIT_YET)
            out = outputs.checkpoint(first)
            self.broker.write((self.names[Topic.CHECKPOINTS], lane), [Message(out.key, out.value)])
        self.register(traffic.registry())
        return Deployment(CLUSTER_ID, BIRTH_ID, plan.lanes, {}, 60 * DAY_MS, DAY_MS)

    def register(self, records: dict[str, dict[str, Any]]) -> None:
        messages = [Message(name.encode(), json.dumps(record).encode()) for name, record in records.items()]
        self.broker.write((self.names[Topic.REGISTRY], 0), messages)

    async def live(self) -> None:
        """Traffic and faults, then calm until everything is decided and every gate has left."""
        loop, plan = self.loop, self.plan
        self.begin()
        ends_s = plan.traffic_s
        emitting = loop.create_task(self._emit(ends_s))
        self.tasks.append(loop.create_task(self._change_tables(ends_s)))
        if plan.kinds:
            self.tasks.append(loop.create_task(Misfortune(self).befall(ends_s)))
        await asyncio.sleep(ends_s)
        await emitting
        await self.end()

    def prepare(self) -> None:
        """Topics, before any gate."""
        self.deployment = self._found()

    def begin(self) -> None:
        """Topics, if nobody has prepared any, and gates that start."""
        if self.deployment is None:
            self.prepare()
        self.group = Group(self)
        self.tasks = [self.loop.create_task(self.group.watch())]
        for gate in self.gates:
            self.start(gate)

    async def end(self) -> None:
        """Calm, until everything is decided; then every gate leaves."""
        await self._calm()
        await self.drain()
        await self._leave()
        for task in self.tasks:
            task.cancel()

    # ── gates ──

    def start(self, gate: Gate) -> None:
        gate.lives += 1
        gate.process = Process(f"{gate.name}.{gate.lives}")
        gate.joined, gate.given, gate.inbox, gate.leaving, gate.left = False, set(), [], False, False
        gate.worker = None
        gate.news = asyncio.Event()
        self.tell(gate.process.name, "starts")
        self.loop.spawn(gate.process, self._run_gate(gate, gate.process), name=gate.process.name)

    async def _run_gate(self, gate: Gate, process: Process) -> None:
        """What `Worker.run` does, with a group that is simulated."""
        try:
            assert self.deployment is not None
            worker = Worker(self._settings(gate), self.deployment, gate.number)
            await worker._cluster.start()
            await worker._tables.start()
            gate.worker = worker
            gate.joined, gate.heard_s = True, self.loop.time()
            ended = asyncio.ensure_future(worker._tables.ended())
            beat = asyncio.ensure_future(self._heartbeat(gate, process))
            while not gate.leaving and not ended.done():
                gate.news.clear()  # before looking: what comes meanwhile is looked at next
                while gate.inbox:
                    await worker.assigned(gate.inbox.pop(0))
                told = asyncio.ensure_future(gate.news.wait())
                await asyncio.wait([told, ended], return_when=asyncio.FIRST_COMPLETED)
            gate.joined = False
            beat.cancel()
            await worker._leave()
            gate.left = True
            self.tell(process.name, "has left")
        except Exception as error:
            self.tell(process.name, "ends by", error)
            self.logged.append(Logged(self.loop.time(), process.name, {"event": "worker_ended", "why": repr(error)}))
            self.loop.kill(process)  # the process exits: nothing of it goes on

    async def _heartbeat(self, gate: Gate, process: Process) -> None:
        while process.alive:
            gate.heard_s = self.loop.time()
            await asyncio.sleep(self.plan.session_s / 5)

    def _settings(self, gate: Gate) -> Settings:
        plan = self.plan
        return replaced.settings(
            plan.batch_max_records, plan.transaction_timeout_ms, plan.max_staleness_ms, gate.state_dir
        )

    # ── traffic ──

    async def _emit(self, ends_s: float) -> None:
        dice, plan = self.dice, self.plan
        left = plan.triggers
        while left > 0:
            await asyncio.sleep(dice.expovariate(plan.triggers / (ends_s * 0.9)) * dice.choice((0.2, 1.8)))
            for trigger in self.emitter.next():
                await self.send(trigger, dice.randrange(plan.lanes))
                left -= 1

    async def send(self, trigger: traffic.Trigger, lane: int) -> None:
        partition = (self.names[Topic.TRIGGERS], lane)
        while self.broker.leader(partition) < 0:  # noqa: ASYNC110 - a broker sets no event
            await asyncio.sleep(0.05)
        self._issue(trigger)
        self._note(trigger, lane, self.broker.write(partition, [trigger.message]))

    def _issue(self, trigger: traffic.Trigger) -> None:
        if trigger.grant is not None and trigger.grant not in self.grants:
            self.grants.add(trigger.grant)
            self.broker.write((self.names[Topic.GRANTS], 0), [Message(*trigger.grant)])

    def _note(self, trigger: traffic.Trigger, lane: int, offset: int) -> None:
        trigger_id = f"{lane}-{offset}"
        self.sent[trigger_id] = trigger
        self.appended_ms[trigger_id] = self.broker.now_ms
        self.tell("emitter", "sends", trigger_id, trigger.sent)

    async def send_in_transaction(self, lane: int) -> None:
        """An emitter's own transaction: it holds back what follows, and may be aborted."""
        partition, dice = (self.names[Topic.TRIGGERS], lane), self.dice
        triggers = self.emitter.next()
        self.open_emitters += 1
        for trigger in triggers:
            self._issue(trigger)
        producer_id, base = self.broker.begin_foreign(partition, [trigger.message for trigger in triggers])
        await asyncio.sleep(dice.random() * 0.5)
        commit = dice.random() < 0.5
        if commit:
            for delta, trigger in enumerate(triggers):
                self._note(trigger, lane, base + delta)
        self.broker.end_foreign(partition, producer_id, commit=commit)
        self.open_emitters -= 1

    async def _change_tables(self, ends_s: float) -> None:
        """Ops revoke a subject, and disable and enable a job."""
        dice = self.dice
        await asyncio.sleep(dice.random() * ends_s)
        key, value = revocation_record(
            traffic.ISSUER, "subject", traffic.REVOKED_SUBJECT, since_s=traffic.BEGAN_S + 3_600, reason="left",
            by="ops", keep_until_s=0,
        )  # fmt: skip
        self.broker.write((self.names[Topic.REVOCATIONS], 0), [Message(key, value)])
        self.revoked_at_ms = self.broker.now_ms
        self.tell("ops", "revoke", traffic.REVOKED_SUBJECT)
        if dice.random() < 0.4:
            await self._change_in_vain()
        for version in range(2, 2 + dice.randrange(4)):
            await asyncio.sleep(dice.random() * ends_s / 3)
            changed = traffic.registry(flapping_enabled=version % 2 == 1, version=version)
            self.register({f"job/{traffic.FLAPPING_JOB}": changed[f"job/{traffic.FLAPPING_JOB}"]})
            self.tell("ops", "change", traffic.FLAPPING_JOB)

    async def _change_in_vain(self) -> None:
        """Ops' change of the registry is aborted: its offsets are passed over by those who run and those who start."""
        partition = (self.names[Topic.REGISTRY], 0)
        producer_id, _ = self.broker.begin_foreign(partition, [Message(b"job/never", b"{}")])
        await asyncio.sleep(self.dice.random())
        self.broker.end_foreign(partition, producer_id, commit=False)
        self.tell("ops", "change nothing after all")

    # ── the end ──

    async def _calm(self) -> None:
        """Nothing goes wrong any more."""
        self.weather.calm, self.weather.slow = True, 1.0
        self.broker.down.clear()
        self.broker.loading_until_s = 0.0
        self.disk.full.clear()
        for gate in self.gates:
            if gate.process is not None:
                gate.process.clock_off_ms = 0
                self.loop.continue_process(gate.process)
        while self.open_emitters:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        for lane in range(self.plan.lanes):
            await self.send(self.emitter.sentinel(), lane)
        self.tell("world", "is calm")

    async def drain(self) -> None:
        until_s = self.loop.time() + DRAIN_S
        receipts = [self.broker.logs[self.names[Topic.RECEIPTS], lane] for lane in range(self.plan.lanes)]
        while self.loop.time() < until_s:
            counted = sum(
                int.from_bytes(batch.original[57:61], "big")
                for log in receipts
                for batch in log.batches
                if batch.outcome and not batch.control
            )
            if counted >= len(self.sent) and self._at_rest():
                return
            await asyncio.sleep(LOOK_S)
        states = {
            f"{gate.name} {number}": (lane.state.value, lane.stopped_because)
            for gate in self.gates
            if gate.worker is not None
            for number, lane in gate.worker.lanes.items()
        }
        self.findings.append(
            f"drained: {counted} receipts for {len(self.sent)} triggers {DRAIN_S:.0f} s after the last fault: {states}"
        )

    def _at_rest(self) -> bool:
        """Nothing is open, and no lane is still to complete what was torn: released, it could not."""
        lanes = [lane for gate in self.gates if gate.worker is not None for lane in gate.worker.lanes.values()]
        return all(log.stable == log.end for log in self.broker.logs.values()) and not any(
            lane._kept.doubt is not None for lane in lanes
        )

    async def _leave(self) -> None:
        self.group.closed = True
        for gate in self.gates:
            gate.leaving = True
            gate.news.set()
        until_s = self.loop.time() + LEAVE_S
        while self.loop.time() < until_s and not all(gate.left or not gate.alive for gate in self.gates):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        self.findings += [
            f"leaves: {gate.name} did not leave within {LEAVE_S:.0f} s"
            for gate in self.gates
            if gate.alive and not gate.left
        ]
        await asyncio.sleep(self.plan.transaction_timeout_ms / 1000 + 1.2)

    # ── judging ──

    def digest(self) -> str:
        state = sha256()
        for name, log in sorted(self.broker.logs.items()):
            state.update(repr((name, log.start, log.end, log.aborted)).encode())
            for batch in log.batches:
                state.update(batch.original)
        return state.hexdigest()[:16]


def simulate(seed: int, *, keep_journal: bool = False) -> tuple[World, Outcome]:
    """Run one seed's world to its end and judge it. Call it within `replaced.simulated()`."""
    return live(faults.plan(seed), World.live, keep_journal=keep_journal)


def live(
    plan: Plan, script: Callable[[World], Coroutine[Any, Any, None]], *, keep_journal: bool = False
) -> tuple[World, Outcome]:
    """A world in which happens what the script says, and what came of it. Call it within `replaced.simulated()`."""
    collecting = gc.isenabled()
    gc.disable()
    world = World(plan, keep_journal=keep_journal)
    try:
        try:
            run(world.loop, script(world))
        except Stuck as error:
            world.findings.append(f"drained: {error}")
        found = checker.violations(world)
        outcome = Outcome(
            plan.seed, found, world.broker.committed, world.broker.aborted, len(world.sent), world.weather.injected,
            world.loop.time(), world.digest(),
        )  # fmt: skip
    finally:
        replaced.listeners.remove(world._hear)
        world.loop.bury()
        if collecting:
            gc.enable()
    return world, outcome
