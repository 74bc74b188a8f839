"""The rows of the fault table: what each does, how often, and the stage it wants."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.campaign import brokers, network, strikes
from tests.campaign.cluster import Cluster
from tests.campaign.network import Ends
from tests.campaign.points import Point
from tests.campaign.stage import Fault, Stage
from tests.support import proxy


@dataclass
class Play:
    """A row being played: its stage, its cluster, and how many faults are asked for."""

    row: str
    stage: Stage
    cluster: Cluster
    count: int
    told: Callable[[int], None]

    @property
    def effective(self) -> int:
        return sum(fault.effective for fault in self.stage.faults if fault.row == self.row)

    def going(self, tries_max: int) -> Any:
        """Until as many faults took effect as are asked for, or it was tried often enough."""
        for _ in range(tries_max):
            if self.effective >= self.count:
                return
            self.told(self.effective)
            yield self.count - self.effective


@dataclass(frozen=True)
class Row:
    """What `scripts/campaign --list` shows."""

    name: str
    what: str
    full: int
    quick: int
    play: Callable[[Play], None]
    alone: bool = False  # it strikes the cluster, so that no other row may be played on it meanwhile
    seconds: int = 60  # about, at the full count
    stage: Mapping[str, Any] = field(default_factory=dict)


def kills(play: Play) -> None:
    for left in play.going(play.count):
        strikes.kill_round(play.stage, play.row, min(len(play.stage.gates), max(left, 1)))


def crash_points(play: Play) -> None:
    times = math.ceil(play.count / len(Point))
    hit = dict.fromkeys(Point, 0)
    for _ in play.going(play.count * 2):
        wanted = sorted((point for point in Point if hit[point] < times), key=lambda point: hit[point])
        if not wanted:
            return
        for fault in strikes.crash_round(play.stage, play.row, wanted[: len(play.stage.gates)]):
            hit[Point(fault.kind)] += fault.effective
    missed = [point.value for point, count in hit.items() if not count]
    if missed:
        play.stage.broken.append(f"F2: points never hit: {', '.join(missed)}")


def zombies(play: Play) -> None:
    session_s = play.stage.session_ms / 1_000
    turns = itertools.count()
    for left in play.going(play.count * 2):
        turn = next(turns)
        two = min(left, 2)
        # Every fourth round one sleeps longer than a transaction may take.
        seconds = [play.stage.dice.uniform(1.7, 3.0) * session_s for _ in range(two)]
        if turn % 4 == 3:
            seconds[0] = 12.0
        strikes.stall_round(play.stage, play.row, seconds, in_commit=[turn % 2 == 0, turn % 2 == 1][:two])


def hijacks(play: Play) -> None:
    for _ in play.going(play.count * 2):
        strikes.hijack(play.stage, play.row, play.stage.dice.randrange(play.stage.lanes))


def broker_kills(play: Play) -> None:
    turns = itertools.count()
    for _ in play.going(play.count * 2):
        turn = next(turns)
        if turn % 7 == 6:
            brokers.kill_all_brokers(play.stage, play.cluster, play.row)
        else:
            part = brokers.PARTS[turn % 7 % len(brokers.PARTS)]
            brokers.kill_broker(play.stage, play.cluster, play.row, part)


def rolling_restarts(play: Play) -> None:
    for _ in play.going(play.count):
        for node in (1, 2, 3):
            brokers.restart_broker(play.stage, play.cluster, play.row, node)


def storm(play: Play) -> None:
    for _ in play.going(play.count * 2):
        strikes.churn(play.stage, play.row, 2, 6)
        time.sleep(play.stage.dice.uniform(0.2, 1.0))
    while sum(gate.alive for gate in play.stage.gates) < 2:
        strikes.churn(play.stage, play.row, 2, 6)
    if not play.stage.until_all_decide(strikes.SETTLE_S):
        play.stage.broken.append(f"L1: not every lane decided within {strikes.SETTLE_S:.0f} s of the storm")


def held_ends(play: Play) -> None:
    ends = Ends(play.stage)
    for left in play.going(play.count):
        # A third in the abort form: those are asked for when a lane is taken anew, as after each held commit.
        at_once = min(left, 6)
        aborts = at_once // 3
        ends.hold(play.row, proxy.END_TXN, at_once - aborts)
        if aborts:
            ends.hold(play.row, proxy.INIT_PRODUCER_ID, aborts)
        play.stage.until(lambda: ends.idle, network.DUE_S)
    ends.give_up()
    play.stage.until_all_decide(strikes.SETTLE_S)
    codes = [code for between in play.stage.proxies for code in between.late]
    play.stage.notes.append(
        f"{len(codes)} late requests were answered, {sum(code == 0 for code in codes)} of them with success"
    )


def weather(play: Play) -> None:
    import threading

    forms = itertools.cycle(network.FORMS)
    lock = threading.Lock()

    def one_gate(between: Any) -> None:
        while True:
            with lock:
                if play.effective >= play.count:
                    return
                form = next(forms)
            network.episode(play.stage, play.row, form, between)
            time.sleep(2)

    threads = [threading.Thread(target=one_gate, args=(each,)) for each in play.stage.proxies]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        play.told(play.effective)
        time.sleep(1)
    if not play.stage.until_all_decide(strikes.SETTLE_S):
        play.stage.broken.append(f"L1: not every lane decided within {strikes.SETTLE_S:.0f} s of the last weather")


def outlived(play: Play) -> None:
    for _ in play.going(play.count * 2):
        gates = [gate for gate in play.stage.gates if gate.lanes]
        if gates:
            strikes.outlive_transaction(play.stage, play.row, play.stage.dice.choice(gates), OUTLIVED_S)


def clocks(play: Play) -> None:
    minute_ms = 60_000
    forms = (
        (2 * minute_ms,), (-2 * minute_ms,), (60 * minute_ms,), (-60 * minute_ms,), (-5 * minute_ms, 5 * minute_ms),
    )  # fmt: skip
    turns = itertools.count()
    for _ in play.going(play.count * 2):
        turn = next(turns)
        gate = play.stage.dice.choice(play.stage.gates)
        if turn % 6 == 5:  # ten jumps a second
            strikes.wrong_clock(play.stage, play.row, gate, (3 * minute_ms, 1) * 10, 0.1)
        else:
            strikes.wrong_clock(play.stage, play.row, gate, forms[turn % 5], 1.5)
        time.sleep(0.5)
    if not play.stage.until_all_decide(strikes.SETTLE_S):
        play.stage.broken.append(f"L1: not every lane decided within {strikes.SETTLE_S:.0f} s of the last clock fault")


OUTLIVED_S = 4.0

ROWS: tuple[Row, ...] = (
    Row("F1", "SIGKILL of gates under load", 200, 30, kills, seconds=420, stage={"gate_count": 4, "rate": 700}),
    Row("F2", "crash points, each 15 times", 210, 0, crash_points, seconds=480, stage={"rate": 400}),
    Row("F3", "SIGSTOP beyond the session, then SIGCONT", 40, 8, zombies, seconds=240),
    Row("F4", "a stranger takes a transactional id", 30, 0, hijacks, seconds=60),
    Row("F5", "broker SIGKILL by part, and all three", 30, 6, broker_kills, alone=True, seconds=450),
    Row("F6", "clean rolling restart", 6, 0, rolling_restarts, alone=True, seconds=90),
    Row("F7", "rebalance storm, 2 to 6 gates", 100, 0, storm, seconds=150),
    Row("F8", "EndTxn held past the next transaction", 150, 20, held_ends, seconds=200, stage={"proxied": True}),
    Row("F9", "bad network", 80, 0, weather, seconds=300, stage={"proxied": True}),
    Row("F10", "transaction outlives its timeout", 20, 0, outlived, seconds=150,
        stage={"gate__transaction_timeout_ms": "4000"}),
    Row("F11", "wrong clocks", 40, 0, clocks, seconds=120),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
