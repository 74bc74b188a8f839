"""The kill test: gates die by SIGKILL inside open transactions, under load, and nothing is lost and nothing twice.

Each gate reaches the broker through a proxy of its own, which kills it at a chosen frame of a transaction and never
passes that frame on: so the transaction is open at the broker, for certain, when its owner dies. What came of it all
is read afterwards by a client that is not ours, under read_committed.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rocksdict import AccessType, Options, Rdict

from tests.support import gates, proxy, reader
from tests.support.founding import found
from tests.support.gates import GateProcess
from tests.support.invariants import Seen, violations
from tests.support.issuer import OtherIssuer
from tests.support.proxy import Fate, Frame, KafkaProxy, Side
from tests.support.traffic import Traffic

LANES = 6
GATES = 3
RATE = 1_100  # sent per second; at least 1,000 must have been
SESSION_TIMEOUT_MS = 3_000
KILLS_IN_TRANSACTION = 20
STALLS = 2
# How many die in a round, again and again: survivors take over, or none is left to.
ROUNDS = (3, 2, 3, 1)
DUE_S = 30.0  # by when an armed gate has come to a transaction
DRAIN_S = 20.0  # without a single new receipt
IDENTITY_BYTES = 16  # keys of a store that are entries
FULL_PRODUCE_BYTES = 2_000  # more than a checkpoint: the transaction decides triggers


@dataclass
class Trap:
    """Waits for a gate to come to one point of a transaction that decides triggers, and strikes there."""

    gate: GateProcess
    strike: signal.Signals = signal.SIGKILL
    armed: tuple[Side, int] | None = None
    struck: threading.Event = field(default_factory=threading.Event)
    deciding: set[int] = field(default_factory=set)  # connections with a transaction under way

    def arm(self, side: Side, api_key: int, strike: signal.Signals = signal.SIGKILL) -> None:
        self.struck.clear()
        self.deciding.clear()
        self.strike, self.armed = strike, (side, api_key)

    def __call__(self, frame: Frame) -> Fate:
        if frame.side is Side.REQUEST and frame.api_key == proxy.ADD_PARTITIONS_TO_TXN:
            self.deciding.discard(frame.connection)
        if frame.side is Side.REQUEST and frame.api_key == proxy.PRODUCE and len(frame.body) > FULL_PRODUCE_BYTES:
            self.deciding.add(frame.connection)
        if self.armed != (frame.side, frame.api_key) or frame.connection not in self.deciding:
            return Fate.PASS
        self.armed = None
        self.gate.signal(self.strike)
        self.struck.set()
        return Fate.CUT if self.strike is signal.SIGKILL else Fate.HOLD


# Where a transaction is open at the broker: begun and nothing written, written and not told, written and its end not
# asked for. The last point lies after the end: committed, and the gate never learns it.
OPEN_POINTS = (
    (Side.REQUEST, proxy.END_TXN),
    (Side.REQUEST, proxy.PRODUCE),
    (Side.ANSWER, proxy.PRODUCE),
)
AFTER_THE_END = (Side.ANSWER, proxy.END_TXN)


def test_gates_killed_inside_open_transactions_lose_nothing_and_start_nothing_twice(
    broker: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = OtherIssuer(prefix)
    found(broker, prefix, LANES, issuer, tmp_path / "operator")
    kills = stalls = after_the_end = 0
    with ExitStack() as stack:
        traps: list[Trap] = []
        proxies: list[KafkaProxy] = []
        for number in range(GATES):
            between = stack.enter_context(KafkaProxy(broker))
            env = gates.environment(
                between.bootstrap, prefix, gate__session_timeout_ms=str(SESSION_TIMEOUT_MS),
            )  # fmt: skip
            gate = GateProcess(f"gate-{number}", tmp_path, env)
            between.judge = trap = Trap(gate)
            traps.append(trap)
            proxies.append(between)
            stack.callback(_end, gate)
            gate.start()
        traffic = stack.enter_context(Traffic(broker, f"{prefix}triggers", LANES, issuer, rate=RATE))

        turn = 0
        while kills < KILLS_IN_TRANSACTION or after_the_end < 2:
            size = ROUNDS[turn % len(ROUNDS)]
            points = [OPEN_POINTS[(turn + place) % len(OPEN_POINTS)] for place in range(size)]
            if turn % 4 == 3:
                points[0] = AFTER_THE_END
            victims = [traps[(turn + place) % GATES] for place in range(size)]
            for trap, point in zip(victims, points, strict=True):
                trap.arm(*point)
            for trap, point in zip(victims, points, strict=True):
                assert trap.struck.wait(DUE_S), f"{trap.gate.name} came to no transaction in {DUE_S} s: {_last(trap)}"
                trap.gate.wait()
                after_the_end += point == AFTER_THE_END
                kills += point != AFTER_THE_END
                trap.gate.start()
            turn += 1

        for number in range(STALLS):
            trap, between = traps[number], proxies[number]
            trap.arm(Side.REQUEST, proxy.END_TXN, signal.SIGSTOP)
            assert trap.struck.wait(DUE_S), f"{trap.gate.name} came to no transaction in {DUE_S} s: {_last(trap)}"
            time.sleep(SESSION_TIMEOUT_MS / 1_000 * 1.5)
            trap.gate.signal(signal.SIGCONT)
            between.let_go()  # its request to commit arrives now, long after another took the lane
            stalls += 1
        traffic.__exit__(None, None, None)
        assert traffic.failed == 0, "the emitter itself failed"
        sent = len(traffic.ledger.sent)
        began = time.monotonic()
        answered = reader.count_up_to(broker, f"{prefix}receipts", sent, DRAIN_S)
        drained_s = time.monotonic() - began
        assert answered == sent, f"{answered} receipts for {sent} triggers, and none came for {DRAIN_S} s"
        for trap in traps:
            assert trap.gate.stop() == 0, f"{trap.gate.name}: {_last(trap)}"

    seen = Seen(
        **{name: reader.read_topic(broker, f"{prefix}{name.replace('_', '-')}").records for name in Seen.topics()}
    )
    kept = [path for trap in traps for path in (tmp_path / f"{trap.gate.name}-state").iterdir()]
    strange = {str(path): _never_committed(path, seen) for path in kept}
    whole = reader.read_topic(broker, f"{prefix}audit")
    attempted = reader.read_topic(broker, f"{prefix}audit", "read_uncommitted").records
    with capsys.disabled():
        print(
            f"\nkill test: {sent} triggers in {traffic.seconds:.0f} s ({sent / traffic.seconds:.0f}/s) on {LANES} lanes, "
            f"{kills} kills inside open transactions, {after_the_end} after an end not yet told, {stalls} stalls; "
            f"{len(seen.jobs)} jobs, {len(seen.handoffs)} handoffs, {len(seen.audit)} transactions with decisions, "
            f"{len(attempted) - len(seen.audit)} more taken back after they were written whole; "
            f"drained in {drained_s:.0f} s"
        )
    assert violations(traffic.ledger, seen) == []
    assert not any(strange.values()), "a local store holds what was not committed"
    assert whole.ends == whole.highs, "a transaction hangs: the last stable offset is behind the end"
    assert sent / traffic.seconds >= 1_000
    assert len(attempted) > len(seen.audit), "no kill left a transaction with records to abort"
    stopped = [event for trap in traps for event in trap.gate.events() if event["event"] == "lane_stopped"]
    assert stopped == []


def _end(gate: GateProcess) -> None:
    if gate.alive:
        gate.signal(signal.SIGCONT)
        gate.signal(signal.SIGKILL)
        gate.wait()


def _never_committed(store: Path, seen: Seen) -> dict[bytes, bytes]:
    """What the local store of a lane (named lane-N, or lane-N.M beside a zombie's) holds beyond its changelog."""
    lane = int(store.name.removeprefix("lane-").partition(".")[0])
    committed = {(record.key, record.value) for record in seen.idempotency if record.partition == lane}
    table = Rdict(str(store), Options(raw_mode=True), access_type=AccessType.read_only())
    held = {key: value for key, value in table.items() if len(key) == IDENTITY_BYTES}
    table.close()
    return {key: value for key, value in held.items() if (key, value) not in committed}


def _last(trap: Trap) -> str:
    return "\n".join(trap.gate.log_file.read_text(errors="replace").splitlines()[-8:])
