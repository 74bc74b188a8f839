"""Misfortune: inflicts a world's kinds of faults, at times and on victims that follow from the seed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from app.stream.topics import Topic
from tests.simulation import faults, traffic
from tests.simulation.group import Gate
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


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
