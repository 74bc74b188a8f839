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
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog

from app import trust
from app.config import Gate as GateSettings
from app.config import Kafka, Settings, Telemetry
from app.gate import outputs
from app.gate.outputs import Checkpoint
from app.gate.revocation import revocation_record
from app.stream import cluster, store
from app.stream.topic_check import Deployment
from app.stream.topics import LAYOUT, LOG_APPEND, Topic
from app.stream.worker import Worker
from tests.simulation import faults, traffic
from tests.simulation.disk import DISK, Disk, Table, WriteBatch
from tests.simulation.faults import Plan, Weather
from tests.simulation.log import Broker, Message
from tests.simulation.scheduler import Loop, Process, Stuck, current_process, run
from tests.simulation.wire import NETWORK, Network, Wire
from tests.support.invariants import NO_AUDIT_YET

DRAIN_S: Final = 20.0  # the longest waits: a session, a transaction's time-out, a lane's back-off twice
LEAVE_S: Final = 10.0
LOOK_S: Final = 0.1
RESTART_S: Final = 0.3
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


class Gate:
    """A machine that runs one gate process after another."""

    def __init__(self, number: int, state_dir: Path) -> None:
        self.name, self.number, self.state_dir = f"gate-{number}", number, state_dir
        self.lives = self.generation = 0
        self.process: Process | None = None
        self.worker: Worker | None = None
        self.joined = False
        self.heard_s = 0.0
        self.given: set[int] = set()
        self.inbox: list[set[int]] = []
        self.news: asyncio.Event = asyncio.Event()
        self.leaving = self.left = False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive


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
        self.revoked_at_ms: int | None = None
        self.open_emitters = 0
        self.dice = random.Random(f"world {plan.seed}")
        root = Path(_directory())
        self.gates = [
            Gate(number, root / ("shared" if plan.one_host else f"gate-{number}")) for number in range(plan.gates)
        ]
        self.names = {topic: topic.named(traffic.PREFIX) for topic in Topic}
        context = self.loop.world.context
        context.run(NETWORK.set, self.network)
        context.run(DISK.set, self.disk)
        context.run(_WORLD.append, self)
        if self.keep_journal:
            self.broker.tell = self.tell

    def tell(self, who: str, *what: Any) -> None:
        if self.keep_journal:
            self.journal.append((self.loop.time(), who, what))

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

    def begin(self) -> None:
        """Topics, and gates that start."""
        self.deployment = self._found()
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
            worker = Worker(self._settings(gate), self.deployment, gate.number)
            await worker._cluster.start()
            await worker._tables.start()
            gate.worker = worker
            gate.joined, gate.heard_s = True, self.loop.time()
            ended = asyncio.ensure_future(worker._tables.ended())
            beat = asyncio.ensure_future(self._heartbeat(gate, process))
            while not gate.leaving and not ended.done():
                while gate.inbox:
                    await worker.assigned(gate.inbox.pop(0))
                gate.news.clear()
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
        return _settings(plan.batch_max_records, plan.transaction_timeout_ms, plan.max_staleness_ms, gate.state_dir)

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
        self._note(trigger, lane, self.broker.write(partition, [trigger.message]))

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
        for version in range(2, 2 + dice.randrange(4)):
            await asyncio.sleep(dice.random() * ends_s / 3)
            changed = traffic.registry(flapping_enabled=version % 2 == 1, version=version)
            self.register({f"job/{traffic.FLAPPING_JOB}": changed[f"job/{traffic.FLAPPING_JOB}"]})
            self.tell("ops", "change", traffic.FLAPPING_JOB)

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
        return all(log.stable == log.end for log in self.broker.logs.values())

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


class Group:
    """The consumer group's coordinator: who is heard has lanes; those who are not lose theirs, and may not know it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: list[Gate] = []
        self.closed = False
        self.generation = 0

    async def watch(self) -> None:
        world = self.world
        while True:
            await asyncio.sleep(0.05)
            if self.closed:
                continue
            now_s = world.loop.time()
            for gate in world.gates:
                if gate.alive and gate.joined and any(lane.stopped_because for lane in gate.worker.lanes.values()):
                    world.loop.kill(gate.process)  # its liveness probe fails
                if not gate.alive and not gate.leaving:
                    await asyncio.sleep(RESTART_S * world.dice.random())
                    world.start(gate)
            heard = [gate for gate in world.gates if gate.joined and now_s - gate.heard_s < world.plan.session_s * 1.2]
            if heard != self.members:
                self.members = heard
                self.rebalance()

    def rebalance(self) -> None:
        dice = self.world.dice
        given: dict[str, set[int]] = {gate.name: set() for gate in self.members}
        for lane in range(self.world.plan.lanes):
            if self.members:
                keeps = [gate for gate in self.members if lane in gate.given]
                gate = keeps[0] if keeps and dice.random() < 0.6 else dice.choice(self.members)
                given[gate.name].add(lane)
        for gate in self.members:
            self.give(gate, given[gate.name])

    def give(self, gate: Gate, lanes: set[int]) -> None:
        """The member learns it after a while; until then it believes the former."""
        gate.given = lanes
        self.world.tell("group", "gives", gate.name, sorted(lanes))
        process = gate.process
        self.generation += 1
        generation = self.generation

        def arrive() -> None:
            if gate.process is process and generation > gate.generation:
                gate.generation = generation
                gate.inbox.append(lanes)
                gate.news.set()

        self.world.broker.later(self.world.dice.random() ** 3, arrive)


class Misfortune:
    """Chooses what goes wrong, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weights = [faults.KINDS[kind] for kind in world.plan.kinds]

    async def befall(self, ends_s: float) -> None:
        world, dice = self.world, self.world.dice
        while True:
            await asyncio.sleep(dice.expovariate(1 / world.plan.fault_every_s))
            if world.loop.time() >= ends_s:
                return
            kind = dice.choices(world.plan.kinds, self.weights)[0]
            gate = dice.choice(world.gates)
            world.tell("fault", kind, gate.name)
            if self._inflict(kind, gate):
                world.weather.injected[kind] += 1

    def _inflict(self, kind: str, gate: Gate) -> bool:
        world, dice, loop, broker = self.world, self.world.dice, self.world.loop, self.world.broker
        process = gate.process
        names, lane = world.names, dice.randrange(world.plan.lanes)

        def later(seconds: float, undo: Any, *args: Any) -> bool:
            broker.later(seconds, undo, *args)
            return True

        match kind:
            case "kill" | "disk lost" if process is not None and process.alive:
                loop.kill(process)
                gate.joined = False
                if kind == "disk lost":
                    for path in [path for path in world.disk.tables if path.startswith(str(gate.state_dir))]:
                        holder = world.disk.locks.get(path)
                        if holder is None or not holder.alive:
                            world.disk.remove(path)
                return True
            case "stop short" | "stop past the session" if process is not None and process.alive:
                loop.stop_process(process)
                seconds = dice.uniform(0.05, 0.8) if kind == "stop short" else dice.uniform(1.2, 3.5)
                return later(seconds, loop.continue_process, process)
            case "leave" if gate.joined:
                gate.leaving = True
                gate.news.set()
                return later(0.5 + dice.random(), self._gone, gate, process)
            case "hijack":
                name = f"{traffic.PREFIX}lane-{lane}"
                broker._init(broker.coordinator(name), name, 1_000)
                return True
            case "rebalance":
                world.group.rebalance()
                return True
            case "two owners" if world.group.members:
                second = dice.choice(world.group.members)
                world.group.give(second, second.given | {lane})
                return True
            case "broker down":
                node = dice.randrange(world.plan.nodes)
                broker.down.add(node)
                return later(dice.choice((0.1, 0.4, 1.5)), broker.down.discard, node)
            case "leaders move" if world.plan.nodes > 1:
                for what in (*broker.logs, *broker.transactions):
                    if dice.random() < 0.3:
                        broker.moved[what] = broker.moved.get(what, 0) + 1
                return True
            case "coordinator loads":
                broker.loading_until_s = loop.time() + dice.random() * 0.5
                return True
            case "slow network":
                world.weather.slow = 10.0
                return later(dice.random(), setattr, world.weather, "slow", 1.0)
            case "clock off" if process is not None:
                process.clock_off_ms = dice.choice((-1, 1)) * dice.choice((2_000, 50_000, 5 * 3_600_000))
                return later(dice.uniform(0.1, 1.0), setattr, process, "clock_off_ms", 0)
            case "disk full" if process is not None:
                world.disk.full.add(process.name)
                return later(dice.uniform(0.05, 0.6), world.disk.full.discard, process.name)
            case "compaction":
                for log in broker.logs.values():
                    if log.compacted:
                        log.compact(dice)
                return True
            case "retention":
                return self._retain()
            case "emitter's transaction":
                if broker.leader((names[Topic.TRIGGERS], lane)) < 0:
                    return False
                loop.create_task(world.send_in_transaction(lane))
                return True
        return False

    def _gone(self, gate: Gate, process: Process | None) -> None:
        """By now it has left, or its supervisor kills it; the machine starts another."""
        if gate.process is process and process is not None:
            self.world.loop.kill(process)
            gate.joined = gate.leaving = False

    def _retain(self) -> bool:
        """Old triggers are deleted: those before every lane's committed checkpoint."""
        world = self.world
        for lane in range(world.plan.lanes):
            rows = world.broker.logs[world.names[Topic.CHECKPOINTS], lane].committed()
            stands = json.loads(rows[-1].value or b"")
            world.broker.logs[world.names[Topic.TRIGGERS], lane].delete_before(stands["triggers_offset"])
            world.broker.logs[world.names[Topic.HANDOFFS], lane].delete_before(stands["handoffs_offset"])
        return True


# ── what is replaced, for all worlds of this process ──

_WORLD: list[World] = []
_settings_made: dict[tuple[Any, ...], Settings] = {}
_directories: list[str] = []


def _directory() -> str:
    if not _directories:
        _directories.append(tempfile.mkdtemp(prefix="simulation-"))
        secret = Path(_directories[0]) / "secret"
        secret.write_bytes(traffic.SECRET)
        secret.chmod(0o600)
    return _directories[0]


def _settings(batch_max_records: int, transaction_timeout_ms: int, max_staleness_ms: int, state_dir: Path) -> Settings:
    wanted = (batch_max_records, transaction_timeout_ms, max_staleness_ms, state_dir)
    if wanted not in _settings_made:
        _settings_made[wanted] = Settings(
            kafka=Kafka(bootstrap="localhost:9092", prefix=traffic.PREFIX, request_timeout_ms=1_000),
            gate=GateSettings(
                batch_max_records=batch_max_records, transaction_timeout_ms=transaction_timeout_ms,
                max_staleness_ms=max_staleness_ms, state_dir=state_dir, compression="none",
                insecure_dev_hs256=Path(_directory()) / "secret",
            ),
            telemetry=Telemetry(port=0),
        )  # fmt: skip
    return _settings_made[wanted]


def _log(_: Any, level: str, event: dict[str, Any]) -> Any:
    if _WORLD:
        world, process = _WORLD[-1], current_process()
        world.logged.append(Logged(world.loop.time(), str(process), {"level": level} | event))
        if world.keep_journal:
            world.tell(str(process), event["event"], {k: v for k, v in event.items() if k != "event"})
    raise structlog.DropEvent


@contextmanager
def simulated() -> Iterator[None]:
    """What lies outside the program is replaced while inside."""
    replaced: list[tuple[Any, str, Any]] = [
        (cluster, "Connections", Wire), (store, "Rdict", Table), (store, "WriteBatch", WriteBatch),
        (store, "_options", lambda: None), (store, "_scan_options", lambda: None),
        (shutil, "rmtree", lambda path, **_: DISK.get().remove(path)), (trust, "_tls", lambda _: None),
    ]  # fmt: skip
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    configured = structlog.get_config()
    structlog.configure(processors=[_log], cache_logger_on_first_use=False)
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
        structlog.configure(**configured)
        for directory in _directories:
            shutil.rmtree(directory, ignore_errors=True)
        _directories.clear()
        _settings_made.clear()


def simulate(seed: int, *, keep_journal: bool = False) -> tuple[World, Outcome]:
    """Run one seed's world to its end and judge it. Call it within `simulated()`."""
    return live(faults.plan(seed), World.live, keep_journal=keep_journal)


def live(
    plan: Plan, script: Callable[[World], Coroutine[Any, Any, None]], *, keep_journal: bool = False
) -> tuple[World, Outcome]:
    """A world in which happens what the script says, and what came of it. Call it within `simulated()`."""
    from tests.simulation import checker

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
        _WORLD.clear()
        world.loop.bury()
        if collecting:
            gc.enable()
    return world, outcome
