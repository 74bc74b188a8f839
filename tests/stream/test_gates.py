"""Gate processes and their consumer group: who has which lane, and how lanes change hands in order."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from app.config import Kafka
from app.stream.inspection import DEPLOYMENT_KEY, connect
from tests.cli.program import tollgate
from tests.support import gates, proxy, reader
from tests.support.altering import alter
from tests.support.emitting import Raw, emit, trigger, until
from tests.support.founding import found
from tests.support.gates import GateProcess
from tests.support.invariants import Ledger, Seen, Sent, violations
from tests.support.issuer import OtherIssuer
from tests.support.proxy import Fate, KafkaProxy, Side

LANES = 4
DESCRIBE_CONFIGS = 32
ADMIN_S = 120  # the broker holds the topics of a thousand tests by now


class Running:
    """A deployment of four lanes, two gates, and a ledger of what was sent."""

    def __init__(self, broker: str, prefix: str, directory: Path) -> None:
        self.broker, self.prefix = broker, prefix
        self.issuer = OtherIssuer(prefix)
        found(broker, prefix, LANES, self.issuer, directory / "operator")
        env = gates.environment(broker, prefix, gate__session_timeout_ms="3000")
        self.first, self.second = (GateProcess(name, directory, env) for name in ("first", "second"))
        self.ledger = Ledger()
        self._number = 0

    async def send(self, count: int) -> None:
        for lane in range(LANES):
            keys = [f"key-{self._number + number}" for number in range(count)]
            self._number += count
            records = [trigger(self.issuer, key) for key in keys]
            ids = await asyncio.to_thread(emit, self.broker, f"{self.prefix}triggers", lane, records)
            self.ledger.sent |= {each: Sent(key, "good") for each, key in zip(ids, keys, strict=True)}

    async def send_alone(self, count: int) -> None:
        """Webhook triggers without a key: each is a run of its own."""
        for lane in range(LANES):
            records = [trigger(self.issuer) for _ in range(count)]
            ids = await asyncio.to_thread(emit, self.broker, f"{self.prefix}triggers", lane, records)
            self.ledger.sent |= {each: Sent(None, "good") for each in ids}

    async def all_answered(self) -> None:
        topic, wanted = f"{self.prefix}receipts", len(self.ledger.sent)
        assert await asyncio.to_thread(reader.count_up_to, self.broker, topic, wanted, 30.0) == wanted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for gate in (self.first, self.second):
            if gate.alive:
                gate.signal(signal.SIGKILL)
                gate.wait()

    def seen(self) -> Seen:
        names = Seen.topics()
        return Seen(
            **{name: reader.read_topic(self.broker, f"{self.prefix}{name.replace('_', '-')}").records for name in names}
        )


def lanes_of(gate: GateProcess) -> set[int]:
    """The lanes a gate has now, by its log."""
    mine: set[int] = set()
    for event in gate.events():
        match event["event"]:
            case "gate_started":
                mine.clear()
            case "lane_taken":
                mine.add(event["lane"])
            case "lane_released" | "lane_stopped":
                mine.discard(event["lane"])
    return mine


@pytest.fixture
def running(broker: str, prefix: str, tmp_path: Path) -> Iterator[Running]:
    with Running(broker, prefix, tmp_path) as made:
        yield made


async def test_a_gate_that_starts_while_brokers_cannot_tell_of_topics_waits_for_them(
    running: Running, tmp_path: Path
) -> None:
    with KafkaProxy(running.broker, proxy.always(Side.ANSWER, DESCRIBE_CONFIGS, Fate.DROP)) as between:
        env = gates.environment(between.bootstrap, running.prefix, kafka__request_timeout_ms="1000")
        gate = GateProcess("early", tmp_path, env)
        gate.start()
        try:
            await until("it asks again", lambda: "topics_unseen" in [event["event"] for event in gate.events()])
            assert gate.alive
            between.judge = proxy._pass
            await until("it has every lane", lambda: lanes_of(gate) == set(range(LANES)))
            assert gate.stop() == 0
        finally:
            gate.signal(signal.SIGKILL)


async def test_two_gates_share_the_lanes_and_hand_them_over_in_order(running: Running) -> None:
    first, second = running.first, running.second
    first.start()
    await until("the first gate has every lane", lambda: lanes_of(first) == set(range(LANES)))
    await running.send(50)

    second.start()
    await until("they share the lanes", lambda: len(lanes_of(first)) == len(lanes_of(second)) == LANES // 2)
    assert lanes_of(first) | lanes_of(second) == set(range(LANES))
    await running.send(50)

    sending = asyncio.create_task(running.send(200))  # SIGTERM in the middle of work
    await asyncio.sleep(0.05)
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait) == 0
    await sending
    await until("the second gate has every lane", lambda: lanes_of(second) == set(range(LANES)))
    await running.all_answered()
    assert await asyncio.to_thread(second.stop) == 0

    assert violations(running.ledger, running.seen()) == []
    audit = f"{running.prefix}audit"
    whole, all_ = (reader.read_topic(running.broker, audit, how) for how in ("read_committed", "read_uncommitted"))
    assert whole.ends == whole.highs
    # Lanes that are handed over in order leave nothing half done.
    assert len(all_.records) - len(whole.records) <= _fenced(running)
    for gate in (first, second):
        assert [event["event"] for event in gate.events()][-1] == "gate_stopped"
        assert "lane_stopped" not in {event["event"] for event in gate.events()}


def members_of(running: Running) -> set[str]:
    """Ids the group knows its members by."""
    admin, group = _admin(running.broker), f"{running.prefix}gate"
    told = admin.describe_consumer_groups([group])
    return {member.member_id for member in told[group].result(30).members}


@pytest.mark.slow
async def test_a_gate_stays_the_member_it_is_through_a_rebalance(running: Running, tmp_path: Path) -> None:
    """A member id that is forgotten stays in the group as nobody's, and every rebalance waits until it has run out."""
    first, second = running.first, running.second
    first.start()
    await until("the first gate has every lane", lambda: lanes_of(first) == set(range(LANES)))
    before = members_of(running)
    assert len(before) == 1
    second.start()
    await until("they share the lanes", lambda: len(lanes_of(first)) == len(lanes_of(second)) == LANES // 2)
    third = GateProcess("third", tmp_path, gates.environment(running.broker, running.prefix))
    second.signal(signal.SIGSTOP)
    third.start()
    try:  # until the second's session has run out the rebalance waits, and the first decides and tells its offsets
        async with asyncio.timeout(60):
            while len(lanes_of(third)) != LANES // 2:
                await running.send(5)
        await running.all_answered()
        assert before < members_of(running)
        assert "OffsetCommit failed" not in first.log_file.read_text()  # upon which aiokafka forgets who it is
    finally:
        third.signal(signal.SIGKILL)
        third.wait()


@pytest.mark.slow
async def test_a_gate_that_waits_for_its_group_stops_when_told(running: Running, tmp_path: Path) -> None:
    """Another member may keep the group from forming for as long as its session lasts."""
    env = gates.environment(running.broker, running.prefix, gate__session_timeout_ms="60000")
    sleeper, waiting = (GateProcess(name, tmp_path, env) for name in ("sleeper", "waiting"))
    sleeper.start()
    try:
        await until("the sleeper has every lane", lambda: lanes_of(sleeper) == set(range(LANES)))
        sleeper.signal(signal.SIGSTOP)
        waiting.start()
        await until("it has read its tables", lambda: any(e["event"] == "jwks_loaded" for e in waiting.events()))
        await asyncio.sleep(1)
        waiting.signal(signal.SIGTERM)
        assert await asyncio.to_thread(waiting.wait, 30) == 0
        assert [event["event"] for event in waiting.events()][-1] == "gate_stopped"
    finally:
        for gate in (sleeper, waiting):
            if gate.alive:
                gate.signal(signal.SIGKILL)
                gate.wait()


BAD = {
    "a run of what begins a token": {"job": "x", "token": "x", "params": {"a": "eyJAAAAAAAAA" * 32_000 + " ."}},
    "a token of equal parts": {"job": "a.b", "token": ("A" * 16 + ".") * 3_000},
}


@pytest.mark.parametrize("name", BAD)
async def test_a_strangers_record_takes_no_gate_away_from_the_triggers_behind_it(running: Running, name: str) -> None:
    gate = running.first
    gate.start()
    await until("the gate has every lane", lambda: lanes_of(gate) == set(range(LANES)))
    topic = f"{running.prefix}triggers"
    await asyncio.to_thread(emit, running.broker, topic, 0, [Raw(json.dumps(BAD[name]).encode())])
    await running.send(5)
    wanted = len(running.ledger.sent) + 1
    assert (
        await asyncio.to_thread(reader.count_up_to, running.broker, f"{running.prefix}receipts", wanted, 30.0) == wanted
    )
    peak = next(line for line in Path(f"/proc/{gate.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 400 << 10, "KiB"
    assert "lane_fenced" not in {event["event"] for event in gate.events()}


def _admin(broker: str) -> AdminClient:
    return connect(Kafka(bootstrap=broker))


def _recreate(broker: str, topic: str) -> None:
    admin = _admin(broker)
    admin.delete_topics([topic])[topic].result(ADMIN_S)
    time.sleep(1)
    admin.create_topics([NewTopic(topic, LANES)])[topic].result(ADMIN_S)


def _raise_partitions(broker: str, topic: str) -> None:
    admin = _admin(broker)  # kept until the answer: with the client its futures end, unanswered
    admin.create_partitions([NewPartitions(topic, 2 * LANES)])[topic].result(ADMIN_S)


def _delete(broker: str, topic: str) -> None:
    admin = _admin(broker)
    admin.delete_topics([topic])[topic].result(ADMIN_S)


def _overwrite(broker: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": broker})
    producer.produce(topic, b"{}", DEPLOYMENT_KEY, partition=0)
    assert producer.flush(30) == 0


LIVE: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "a topic is made anew": ("handoffs", _recreate),
    "partitions are raised": ("triggers", _raise_partitions),
    "a topic is deleted": ("idempotency", _delete),
    "another policy is set": ("checkpoints", lambda broker, topic: alter(_admin(broker), topic, cleanup_policy="delete")),
    "the founding record is none any more": ("registry", _overwrite),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(broker: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Of each case a gate's exit code and log. They wait together: a gate looks at its topics every few seconds."""

    async def broken(running: Running, what: str) -> None:
        topic, break_it = LIVE[what]
        running.first.start()
        await until("the gate has every lane", lambda: lanes_of(running.first) == set(range(LANES)))
        await running.send(5)
        await running.all_answered()
        await asyncio.to_thread(break_it, broker, f"{running.prefix}{topic}")

    with ExitStack() as all_:
        each = {}
        for what in LIVE:
            directory = tmp_path_factory.mktemp("broken")
            each[what] = all_.enter_context(Running(broker, f"t{secrets.token_hex(4)}.", directory))
            asyncio.run(broken(each[what], what))
        return {what: (running.first.wait(90), running.first.log_file.read_text()) for what, running in each.items()}


@pytest.mark.slow
@pytest.mark.parametrize("what", LIVE)
def test_a_gate_does_not_go_on_when_a_topic_comes_to_break_a_guarantee(
    ended: dict[str, tuple[int, str]], what: str
) -> None:
    code, said = ended[what]
    (*_, last) = said.splitlines()
    assert (code, LIVE[what][0] in last) == (1, True), last
    assert "Traceback" not in said


@pytest.mark.slow
async def test_lanes_without_checkpoints_go_on_where_they_stood_once_that_is_accepted(running: Running) -> None:
    gate = running.first
    gate.start()
    await until("the gate has every lane", lambda: lanes_of(gate) == set(range(LANES)))
    await running.send(20)  # three of four go home by a handoff
    await running.send_alone(20)
    await running.all_answered()
    assert await asyncio.to_thread(gate.stop) == 0
    await running.send(5)  # waits meanwhile
    producer = Producer({"bootstrap.servers": running.broker})
    for lane in range(LANES):
        producer.produce(f"{running.prefix}checkpoints", None, b"%d" % lane, partition=lane)
    assert producer.flush(30) == 0
    gate.start()
    await until("every lane stops", lambda: _stopped(gate) == set(range(LANES)))
    assert await asyncio.to_thread(gate.stop) == 0
    env = gates.environment(running.broker, running.prefix)
    for lane in range(LANES):
        said = await asyncio.to_thread(
            tollgate, env, "topics", "accept-gap", str(lane), "--reason", "a checkpoint was lost", "--yes"
        )
        assert said.code == 0, said.err
        assert said.err.count("it goes on at offset") == 2
    gate.start()
    await until("the gate has every lane", lambda: lanes_of(gate) == set(range(LANES)))
    await running.send(5)
    await running.all_answered()
    assert violations(running.ledger, running.seen()) == []
    assert tollgate(env, "audit", "verify").code == 0


def _stopped(gate: GateProcess) -> set[int]:
    return {event["lane"] for event in gate.events() if event["event"] == "lane_stopped"}


def _fenced(running: Running) -> int:
    """Takeovers that overtook a hand-over: each may have cost one transaction, never more."""
    names: list[Any] = [event["event"] for gate in (running.first, running.second) for event in gate.events()]
    return names.count("lane_fenced")


async def test_a_gate_that_is_told_to_stop_while_idle_stops_and_starts_again_where_it_was(running: Running) -> None:
    for _ in range(2):
        running.first.start()
        await until("the gate has every lane", lambda: lanes_of(running.first) == set(range(LANES)))
        await running.send(20)
        await running.all_answered()
        assert await asyncio.to_thread(running.first.stop) == 0
    assert violations(running.ledger, running.seen()) == []
    taken = [event for event in running.first.events() if event["event"] == "lane_taken"]
    assert {event["triggers_offset"] for event in taken} == {0, 20}
