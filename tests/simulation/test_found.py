"""What simulation has found in the program, each as a world in which just that happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from app.config import Kafka
from app.stream.cluster import Cluster
from app.stream.lane import Lane, State
from app.stream.pollers import SETTLING_S
from app.stream.topics import Topic
from tests.simulation import faults
from tests.simulation.faults import Plan
from tests.simulation.group import Gate
from tests.simulation.log import Broker
from tests.simulation.misfortune import Misfortune
from tests.simulation.places import Place, SimulatedOps, ask_simulated
from tests.simulation.world import World, live

pytestmark = pytest.mark.usefixtures("replaced")


def quiet(**changed: int | bool) -> Plan:
    """A world in which nothing goes wrong by itself."""
    fixed = {"lanes": 2, "gates": 2, "nodes": 1, "fifo": True, "one_host": False, "batch_max_records": 50}
    same = {"latency_s": 0.001, "marker_max_s": 0.001, "step_s": 10e-6, "kinds": (), "losses": {}}
    return replace(faults.plan(0), **(fixed | same | changed))


async def until(what: str, holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - anything may make it true
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:.0f} s: {what}") from None


def running(world: World) -> dict[int, tuple[Gate, Lane]]:
    """The lanes that run, with their gates."""
    return {
        number: (gate, lane)
        for gate in world.gates
        if gate.process is not None and gate.alive and not gate.process.stopped and gate.worker is not None
        for number, lane in gate.worker.lanes.items()
        if lane.state is State.RUNNING
    }


async def all_run(world: World) -> dict[int, tuple[Gate, Lane]]:
    await until("all lanes run", lambda: len(running(world)) == world.plan.lanes)
    return running(world)


def test_gates_with_nothing_to_do_are_idle_however_many_brokers_lead_nothing_of_theirs() -> None:
    """Two that followed none of their partitions woke each other for ever: a core, for each gate."""

    async def script(world: World) -> None:
        world.begin()
        await all_run(world)
        await asyncio.sleep(SETTLING_S * 2)
        before = world.loop.steps
        await asyncio.sleep(10)
        counted.append(world.loop.steps - before)
        await world.end()

    counted: list[int] = []
    for nodes in (1, 20):
        _, outcome = live(quiet(nodes=nodes), script)
        assert not outcome.violations
    few, many = counted
    assert many < few * 10, "more than the polls of more brokers"


def test_a_lane_whose_outputs_are_led_elsewhere_now_goes_on_within_seconds() -> None:
    """Its writer asked the former leader again and again until the client's own refresh of metadata, every 30 s."""

    async def script(world: World) -> None:
        world.begin()
        await all_run(world)
        # None of these is followed, so no follower notices.
        for topic in (Topic.RECEIPTS, Topic.AUDIT, Topic.JOBS):
            world.broker.moved[world.names[topic], 0] = 1
        began_s = world.loop.time()
        await world.send(world.emitter.sentinel(), 0)
        await world.drain()
        assert world.loop.time() - began_s < 10
        await world.end()

    _, outcome = live(quiet(nodes=2), script)
    assert outcome.violations == []


@asynccontextmanager
async def following(place: Place) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """A connection of its own, which follows two partitions; what it gives writes to a topic and takes what is there."""
    topics = [place.a, place.b]
    cluster = Cluster(
        Kafka(bootstrap="localhost:9092"), topics, transaction_timeout_ms=1_000, codec="none", max_batch_bytes=1 << 20
    )
    await cluster.start()
    wake = asyncio.Event()
    tails = {topic: cluster.follow((topic, 0), 0, wake) for topic in topics}

    async def is_read(topic: str) -> None:
        await place.ops.write(topic, [b"1"])
        async with asyncio.timeout(5):
            while not tails[topic].take(1, 1 << 20):
                wake.clear()
                await wake.wait()

    try:
        yield is_read
    finally:
        await cluster.stop()


def on_two_nodes(script: Callable[[Place, Broker], Awaitable[None]]) -> None:
    """A broker of two nodes, of which each leads a topic."""

    async def ask(place: Place) -> None:
        assert isinstance(place.ops, SimulatedOps)
        broker = place.ops._broker
        broker.moved[place.b, 0] = 1
        assert {broker.leader((topic, 0)) for topic in (place.a, place.b)} == {0, 1}
        await script(place, broker)

    ask_simulated(ask, 1)


def test_a_broker_that_was_away_at_the_start_is_asked_for_what_it_leads() -> None:
    """Only a poller with nothing to ask for looked for brokers that had joined, and there was none."""

    async def script(place: Place, broker: Broker) -> None:
        broker.down.add(1)
        async with following(place) as is_read:
            await asyncio.sleep(2)
            broker.down.discard(1)
            for topic in (place.a, place.b):
                await is_read(topic)

    on_two_nodes(script)


def test_what_nobody_led_for_a_moment_is_asked_for_again_at_once() -> None:
    """Until the client's own refresh of metadata, every 30 s, nobody was asked for it."""

    async def script(place: Place, broker: Broker) -> None:
        async with following(place) as is_read:
            broker.down |= {0, 1}
            await asyncio.sleep(2)
            broker.down.clear()
            for topic in (place.a, place.b):
                await is_read(topic)

    on_two_nodes(script)


@pytest.mark.parametrize("since_s", [2.1, 2.3, 2.5, 2.7, 2.9])
def test_who_has_had_nothing_to_ask_for_asks_at_once_for_what_a_broker_leads_now(since_s: float) -> None:
    """It slept on for up to a second, though another poller had learnt of the new leader."""

    async def script(place: Place, broker: Broker) -> None:
        broker.moved[place.b, 0] += 1
        async with following(place) as is_read:
            await asyncio.sleep(since_s)
            broker.moved[place.b, 0] += 1
            began_s = asyncio.get_running_loop().time()
            await is_read(place.b)
            assert asyncio.get_running_loop().time() - began_s < 0.35

    on_two_nodes(script)


def test_a_zombie_whose_position_was_decided_and_deleted_meanwhile_does_not_stop_for_good() -> None:
    """It found its records gone before it learnt that it had been fenced, and stopped with an alarm."""

    async def script(world: World) -> None:
        world.begin()
        await world.send(world.emitter.sentinel(), 0)
        lanes = await all_run(world)
        zombie, _ = lanes[0]
        assert zombie.process is not None
        world.loop.stop_process(zombie.process)
        await asyncio.sleep(0.2)  # its poll comes back with nothing
        for _ in range(5):
            await world.send(world.emitter.sentinel(), 0)
        await world.drain()
        await until("another has the lane", lambda: running(world).get(0, (zombie,))[0] is not zombie)
        Misfortune(world)._retain()
        world.loop.continue_process(zombie.process)
        await asyncio.sleep(3.0)
        await world.end()

    world, outcome = live(quiet(), script)
    assert outcome.violations == []
    assert "lane_stopped" not in [logged.event["event"] for logged in world.logged]


def test_a_lane_whose_records_were_deleted_undecided_stops_by_name() -> None:
    """The other side of it: what is really lost is a named stop, never a reset."""

    async def script(world: World) -> None:
        world.begin()
        lanes = await all_run(world)
        for gate, _ in lanes.values():
            assert gate.process is not None
            world.loop.stop_process(gate.process)
        log = world.broker.logs[world.names[Topic.TRIGGERS], 0]
        for _ in range(5):
            await world.send(world.emitter.sentinel(), 0)
        log.delete_before(3)
        for gate, _ in lanes.values():
            assert gate.process is not None
            world.loop.continue_process(gate.process)
        await until("it stops", lambda: any("holds offsets" in str(logged.event.get("why")) for logged in world.logged))

    world, _ = live(quiet(gates=1), script)
    stopped = [logged.event["why"] for logged in world.logged if logged.event["event"] == "lane_stopped"]
    assert stopped
    assert all("sim.triggers[0] holds offsets 3 to 5, the lane stands at 0" in why for why in stopped)


@pytest.mark.parametrize("fifo", [True, False])
def test_a_cluster_stops_though_something_arrives_at_that_moment(fifo: bool) -> None:
    """`asyncio.wait_for` of Python 3.11 swallows a cancellation when what it waits for happens at the same time."""

    async def take_and_stop(place: Place) -> None:
        await place.ops.write(place.a, [b"1"])
        wake = asyncio.Event()
        tail = place.cluster.follow((place.a, 0), 0, wake)
        while not tail.take(1, 1 << 20):
            await wake.wait()
            wake.clear()

    for seed in range(10):
        ask_simulated(take_and_stop, seed, fifo=fifo)


def test_tables_stop_though_something_arrives_at_that_moment() -> None:
    async def script(world: World) -> None:
        world.begin()
        await all_run(world)
        tables = world.gates[0].worker._tables  # type: ignore[union-attr]
        for _ in range(50):
            task = world.loop.spawn(world.gates[0].process or world.loop.world, tables._follow())
            await asyncio.sleep(0.001)
            tables._wake.set()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
            assert task.done()
        await world.end()

    _, outcome = live(quiet(fifo=False), script)
    assert outcome.violations == []
