"""The gates of a world, and the consumer group that tells them which lanes are theirs, sometimes late or wrongly."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.stream.worker import Worker
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

RESTART_S: Final = 0.3


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
                    if not self.closed:
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
