"""The rows of the fault table: what each does, how often, and the stage it wants."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign import brokers, inputs, network, storage, strikes, topics
from tests.campaign.cluster import Cluster
from tests.campaign.network import Ends
from tests.campaign.points import Point
from tests.campaign.stage import Fault, Interrupted, Stage
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
            self.told(self.effective)  # raises Interrupted
            yield self.count - self.effective


@dataclass(frozen=True)
class Row:
    """What `scripts/campaign --list` shows."""

    name: str
    what: str
    full: int
    quick: int
    play: Callable[[Play], None]
    control: str = ""  # a bug without whose absence this row must turn red
    alone: bool = False  # it strikes the cluster, so that no other row may be played on it meanwhile
    seconds: int = 60  # about, at the full count
    recovers_s: float | None = None  # by when 99 of 100 lanes shall decide again, beyond the session's timeout
    stage: Mapping[str, Any] = field(default_factory=dict)


def kills(play: Play) -> None:
    turns = itertools.count()
    for left in play.going(play.count):
        # Mostly some are left to take over; every sixth round may be everyone.
        most = len(play.stage.gates) - (next(turns) % 6 != 5)
        strikes.kill_round(play.stage, play.row, min(most, max(left, 1)))


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
    if missed and play.count >= len(Point):
        play.stage.broken.append(f"points_hit: never hit: {', '.join(missed)}")


def zombies(play: Play) -> None:
    session_s = play.stage.session_ms / 1_000
    turns = itertools.count()
    for left in play.going(play.count * 2):
        turn = next(turns)
        two = min(left, 2)
        # In every second round one sleeps longer than a transaction may take, by turns in the commit and elsewhere.
        seconds = [play.stage.dice.uniform(1.7, 3.0) * session_s for _ in range(two)]
        if turn % 4 in {1, 2}:
            seconds[0] = OUTSLEPT_S
        strikes.stall_round(play.stage, play.row, seconds, in_commit=[turn % 2 == 0, turn % 2 == 1][:two])


def hijacks(play: Play) -> None:
    for _ in play.going(play.count * 2):
        strikes.hijack(play.stage, play.row, play.stage.dice.randrange(play.stage.lanes))


def broker_kills(play: Play) -> None:
    parts = itertools.cycle((*brokers.PARTS, None))
    for _ in play.going(play.count * 2):
        part = next(parts)
        if part is None:
            brokers.kill_all_brokers(play.stage, play.cluster, play.row)
        else:
            brokers.kill_broker(play.stage, play.cluster, play.row, part)


def brokers_back_soon(play: Play) -> None:
    parts = itertools.cycle(brokers.PARTS)
    for _ in play.going(play.count * 2):
        brokers.kill_broker(play.stage, play.cluster, play.row, next(parts), soon=True)


def rolling_restarts(play: Play) -> None:
    for _ in play.going(play.count):
        for node in (1, 2, 3):
            brokers.restart_broker(play.stage, play.cluster, play.row, node)


def storm(play: Play) -> None:
    joining: list[Fault] = []
    for _ in play.going(play.count * 3):
        fault = strikes.churn(play.stage, play.row, 2, 6)
        if fault.kind == "join":
            joining.append(fault)
        joining = strikes.note_joined(play.stage, joining)
        time.sleep(play.stage.dice.uniform(0.2, 1.0))
    play.stage.until_all_decide("the storm")
    for fault in strikes.note_joined(play.stage, joining):
        play.stage.note(fault)


IN_VAIN_MAX = 2


def held_ends(play: Play) -> None:
    ends = Ends(play.stage)
    in_vain = 0  # where the rule that this is about is switched off, lanes stop one by one
    for left in play.going(play.count):
        before = play.effective
        # A third in the abort form: those are asked for when a lane is taken anew, as after each held commit.
        at_once = min(left, 6)
        aborts = at_once // 3
        ends.hold(play.row, proxy.END_TXN, at_once - aborts)
        if aborts:
            ends.hold(play.row, proxy.INIT_PRODUCER_ID, aborts)
        play.stage.until(lambda: ends.idle, network.DUE_S)
        in_vain = in_vain + 1 if play.effective == before else 0
        if in_vain == IN_VAIN_MAX:
            break
    ends.give_up()
    play.stage.until_all_decide("held ends")
    codes = [code for between in play.stage.proxies for code in between.late]
    play.stage.notes.append(
        f"{len(codes)} late requests were answered, {sum(code == 0 for code in codes)} of them with success"
    )


def weather(play: Play) -> None:
    import threading

    forms = itertools.islice(itertools.cycle(network.FORMS), play.count * 3)
    lock = threading.Lock()

    def one_gate(between: Any) -> None:
        while True:
            with lock:
                form = next(forms, None)
                if play.effective >= play.count or form is None:
                    return
            network.episode(play.stage, play.row, form, between)
            time.sleep(2)

    threads = [threading.Thread(target=one_gate, args=(each,)) for each in play.stage.proxies]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            play.told(play.effective)
            time.sleep(1)
    except Interrupted:
        play.count = 0  # each ends its episode
        for thread in threads:
            thread.join()
        raise
    play.stage.until_all_decide("the last weather")


def torn(play: Play) -> None:
    for _ in play.going(play.count * 2):
        strikes.tear_round(play.stage, play.row)


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
    play.stage.until_all_decide("the last clock fault")


def damaged_stores(play: Play) -> None:
    older: dict[Path, Path] = {}
    total = sum(storage.SHARES.values())
    wanted = [kind for kind, share in storage.SHARES.items() for _ in range(math.ceil(share * play.count / total))]
    play.stage.dice.shuffle(wanted)
    for left in play.going(play.count):
        done = Counter(fault.kind for fault in play.stage.faults if fault.row == play.row and fault.effective)
        missing = list((Counter(wanted) - done).elements()) or wanted
        play.stage.dice.shuffle(missing)
        storage.damage_round(play.stage, play.row, missing[:left], older)
    told = sum(event["event"] == "store_wiped" for gate in play.stage.gates for event in gate.events())
    play.stage.notes.append(f"gates threw {told} stores away as damaged or not theirs; the others made no difference")


def aborted_stores(play: Play) -> None:
    for _ in play.going(play.count):
        storage.aborted_round(play.stage, play.row)


def full_disks(play: Play) -> None:
    with storage.small_disks(play.stage) as small:
        if not small:
            play.stage.notes.append("not played: this user may not mount a small file system")
            return
        play.stage.until_all_decide("the start on small disks")
        for number in play.going(play.count * 2):
            gate = play.stage.dice.choice(play.stage.gates)
            kind = (*storage.FAILING, None, None)[number % 4]
            if kind is None:
                storage.disk_full(play.stage, play.row, gate, 3.0)
            else:
                storage.disk_failing(play.stage, play.row, gate, kind, 5.0)


def swarm(play: Play) -> None:
    """Windows of 10 to 20 s; in three of four a random subset of all faults, one after another, while it lasts."""
    stage, dice, row = play.stage, play.stage.dice, play.row
    ends = Ends(stage)

    def hold() -> None:
        ends.hold(row, dice.choice((proxy.END_TXN, proxy.END_TXN, proxy.INIT_PRODUCER_ID)), dice.randint(1, 3))
        stage.until(lambda: ends.idle, 6)

    def some_weather() -> None:
        form = dice.choice([name for name in network.FORMS if "hole" not in name] + ["black hole both ways"])
        network.episode(stage, row, form, dice.choice(stage.proxies), longest_s=5)

    def clock() -> None:
        strikes.wrong_clock(stage, row, dice.choice(stage.gates), (dice.choice((-1, 1)) * 120_000,), 1.5)

    kinds: dict[str, Callable[[], Any]] = {
        "kill": lambda: strikes.kill_round(stage, row, len(stage.gates)),
        "crash": lambda: strikes.crash_round(stage, row, dice.sample(sorted(strikes.EVERY_TURN), 2)),
        "stall": lambda: strikes.stall_round(stage, row, [dice.uniform(1.7, 2.5) * stage.session_ms / 1_000], in_commit=[dice.random() < 0.5]),
        "hijack": lambda: [strikes.hijack(stage, row, dice.randrange(stage.lanes)) for _ in range(3)],
        "hold": hold, "weather": some_weather, "clock": clock,
        "broker": lambda: brokers.kill_broker(stage, play.cluster, row, dice.choice(brokers.PARTS)),
    }  # fmt: skip
    share, began_s = play.count / SWARM_FAULTS, time.monotonic()
    windows = quiet = 0

    def is_going() -> bool:
        """For its time, and where faults are slow for up to as much more."""
        all_there = play.effective >= play.count and windows >= SWARM_WINDOWS * share
        return time.monotonic() - began_s < SWARM_S * share * (1 if all_there else 2)

    while is_going():
        window_end = time.monotonic() + dice.uniform(10, 20)
        windows += 1
        chosen = [] if dice.random() < 0.25 else dice.sample(sorted(kinds), dice.randint(1, 4))
        quiet += not chosen
        play.told(play.effective)
        while time.monotonic() < window_end:
            if chosen:
                kinds[dice.choice(chosen)]()
            else:
                time.sleep(1)
    ends.give_up()
    stage.notes.append(f"{windows} windows, {quiet} of them without faults")
    if windows < SWARM_WINDOWS * share:
        stage.broken.append(f"windows_played: {windows}, asked: {SWARM_WINDOWS * share:.0f}")
    stage.until_all_decide("the swarm")


def by(work: Callable[[Stage, str, int, Callable[[int], None]], None]) -> Callable[[Play], None]:
    """A row that counts for itself."""
    return lambda play: work(play.stage, play.row, play.count, play.told)


OUTLIVED_S = 4.0
OUTSLEPT_S = 12.0  # longer than the stage's transactions may take
SWARM_S, SWARM_FAULTS, SWARM_WINDOWS = 600, 150, 40

ROWS: tuple[Row, ...] = (
    Row("F1", "SIGKILL of gates under load", 200, 30, kills, alone=True, seconds=600, recovers_s=3.0,
        stage={"gate_count": 4, "rate": 700}),
    Row("F2", "crash points, each 15 times", 210, 0, crash_points, seconds=480, stage={"rate": 400}),
    Row("F3", "SIGSTOP beyond the session, then SIGCONT", 40, 8, zombies, seconds=240),
    Row("F4", "a stranger takes a transactional id", 30, 0, hijacks, seconds=60),
    Row("F5", "broker SIGKILL by part, and all three", 30, 6, broker_kills, alone=True, seconds=450),
    Row("F27", "broker SIGKILL by part, back within its session", 30, 0, brokers_back_soon, alone=True, seconds=450),
    Row("F6", "clean rolling restart, broker by broker", 30, 0, rolling_restarts, alone=True, seconds=400),
    Row("F7", "rebalance storm, 2 to 6 gates", 100, 0, storm, seconds=190),
    Row("F8", "EndTxn held past the next transaction", 150, 30, held_ends, seconds=250, stage={"proxied": True},
        control="no_recycling_after_unknown_end"),
    Row("F9", "bad network", 80, 0, weather, seconds=300, stage={"proxied": True}),
    Row("F10", "transaction outlives its timeout", 20, 0, outlived, seconds=150,
        stage={"gate__transaction_timeout_ms": "4000"}),
    Row("F11", "wrong clocks", 40, 0, clocks, seconds=120),
    Row("F12", "disk full, read-only or broken", 12, 0, full_disks, seconds=120),
    Row("F13", "damaged local stores", 140, 0, damaged_stores, seconds=150, stage={"load": {"repeats": 0.3}}),
    Row("F14", "killed with a transaction under way, stores read from disk", 50, 0, aborted_stores, seconds=150),
    Row("F15", "poison in the stream", 20_000, 0, by(inputs.poison), seconds=120, stage={"rate": 600}),
    Row("F16", "sizes, and batches that expand to 210 MB", 500, 0, by(inputs.sizes), seconds=120, stage={"rate": 200}),
    Row("F17", "topics that break a guarantee, at start and later", 12, 0, by(topics.refused), seconds=150,
        stage={"gate_count": 1, "lanes": 2, "rate": 50}),
    Row("F18", "changelog compacted under load, all stores restored", 10, 0, by(topics.compaction), seconds=310,
        stage={"rate": 900}),
    Row("F19", "group offsets deleted; checkpoints lost", 4, 0, by(topics.group_offsets), seconds=560,
        stage={"rate": 1_000}),
    Row("F20", "JWK Sets that are broken, unknown kids", 10, 0, by(inputs.key_sets), seconds=200, stage={"rate": 300}),
    Row("F21", "revocations under load and within restores", 1_000, 0, by(inputs.revocations), seconds=120,
        stage={"rate": 300}),
    Row("F26", "commit told to one broker only, the rest aborted", 100, 0, torn, seconds=120),
    Row("F24", "swarm: random faults in windows", 150, 0, swarm, alone=True, seconds=660,
        stage={"proxied": True, "rate": 900}),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
