"""Strikes at gates: killed, stopped, fenced by a stranger, told to come and go, given a wrong clock.

Each takes a stage and says by a Fault what it did and whether the journals show that it took effect.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaException, Producer

from tests.campaign.journals import Attempt
from tests.campaign.points import Point
from tests.campaign.stage import CampaignGate, Fault, Stage
from tests.campaign.tearing import TEAR

CATCH_UP_S = 1.0
BACK_S = 10.0  # by when who was stopped is in the group again, or has ended (I11)
DUE_S = 20.0  # by when an armed gate has come to its point
CLOCK_HEARD_S = 10.0
ORDER_HEARD_S = 0.05
FREQUENT_PASSES = 30
TAKEN_OVER = "SIGKILL, others take over"
BACK_AT_ONCE = "SIGKILL, back at once"  # its lanes move twice: to others, and some of them to it again
SEVERAL = "SIGKILL of several at once"
NONE_LEFT = "SIGKILL of all there are"


def kill_round(stage: Stage, row: str, most: int) -> list[Fault]:
    """SIGKILL some gates that own lanes, at once; start them again; wait until every lane decides again.

    A single one comes back at once, or when others have taken its lanes over. What waits from the round before has time to be worked off first: the time to recover is a gate's, not a backlog's.
    """
    time.sleep(CATCH_UP_S)
    ready = [gate for gate in stage.gates if gate.lanes]
    victims = stage.dice.sample(ready, min(len(ready), stage.dice.randint(1, most)))
    if len(victims) == sum(gate.alive for gate in stage.gates):
        kind = NONE_LEFT
    else:
        kind = SEVERAL if len(victims) > 1 else stage.dice.choice((TAKEN_OVER, BACK_AT_ONCE))
    time.sleep(stage.dice.uniform(0.0, 0.5))
    faults = []
    for gate in victims:
        lanes, run = gate.lanes, gate.run
        fault = Fault(row, kind, time.monotonic(), lanes=lanes, detail=run)
        gate.kill()
        fault.effective = bool(lanes)
        faults.append(fault)
    if kind == TAKEN_OVER:
        recover(stage, faults)
    for gate in victims:
        gate.start()
    if kind != TAKEN_OVER:
        recover(stage, faults)
    return faults


def recover(stage: Stage, faults: Sequence[Fault], *, keep: bool = True) -> None:
    """Wait for the lanes of all, and note how long each took from the last blow of the round."""
    if not faults:
        return
    last = max(fault.at for fault in faults)
    runs = {fault.detail for fault in faults}
    lanes = sorted({lane for fault in faults for lane in fault.lanes})

    def back() -> bool:
        stage.journals.update()
        return all(
            any(each.at > last and each.run not in runs for each in stage.journals.decided[lane][-50:])
            for lane in lanes
        )

    if not stage.until(back, stage.settle_s):
        stage.broken.append(f"decides_again: not all of {lanes} did within {stage.settle_s:.0f} s of {faults[0].kind}")
    for fault in faults:
        stage.recoveries(fault, not_by=fault.detail, since=last)
        if keep:
            stage.note(fault)


def crash_round(stage: Stage, row: str, points: Sequence[Point]) -> list[Fault]:
    """Each of some gates dies at a point of its own, in the course of its work."""
    armed: list[tuple[CampaignGate, Point, list[int]]] = []
    faults: list[Fault] = []
    for gate, point in zip([gate for gate in stage.gates if gate.lanes], points, strict=False):
        lanes = gate.lanes
        if point is Point.IN_RESTORE:
            _start_without_store(stage, gate, {"point": point, "action": "kill", "pass": stage.dice.randint(1, 2)})
        elif not gate.arm(point, "kill", stage.dice.randint(1, FREQUENT_PASSES if point in EVERY_TURN else 2)):
            continue
        if point is Point.IN_STOP:
            gate.signal(signal.SIGTERM)
        armed.append((gate, point, lanes))
    stage.until(lambda: not any(gate.alive for gate, _, _ in armed), DUE_S)
    for gate, point, lanes in armed:
        stage.journals.update()
        struck = next((each for each in reversed(stage.journals.struck) if each["run"] == gate.run), None)
        fault = Fault(row, point, struck["at"] if struck else time.monotonic(), detail=gate.run)
        fault.effective = struck is not None and not gate.alive and gate.wait() == -signal.SIGKILL
        fault.lanes = lanes if fault.effective and point is not Point.IN_RESTORE else []
        if gate.alive:
            gate.kill()
        gate.start()
        faults.append(fault)
    recover(stage, faults)
    stage.until_all_decide("crashes")
    return faults


EVERY_TURN = frozenset(Point) - {Point.IN_STOP, Point.IN_RESTORE, Point.IN_JWKS_REFRESH}


def _start_without_store(stage: Stage, gate: CampaignGate, order: dict[str, object]) -> None:
    """So that there is something to restore."""
    gate.expected_down = True
    with contextlib.suppress(subprocess.TimeoutExpired):  # then it was killed, which is as good here
        gate.stop()
    shutil.rmtree(gate.state_dir, ignore_errors=True)
    gate.start(order)


def stall_round(stage: Stage, row: str, seconds: Sequence[float], *, in_commit: Sequence[bool]) -> list[Fault]:
    """SIGSTOP gates, some of them right before they ask to commit; SIGCONT when their time is over."""
    faults: list[Fault] = []
    stopped: list[tuple[CampaignGate, float, Fault]] = []
    victims = [gate for gate in stage.gates if gate.lanes][: len(seconds)]
    for gate, long_s, within in zip(victims, seconds, in_commit, strict=False):
        lanes = gate.lanes
        if within:
            if not gate.arm(Point.BEFORE_END, "stop", stage.dice.randint(1, 5)) or not stage.until(
                lambda gate=gate: _struck(stage, gate), DUE_S
            ):
                continue
        else:
            gate.signal(signal.SIGSTOP)
        kind = f"SIGSTOP {'in the commit window' if within else 'anywhere'}"
        fault = Fault(row, kind, time.monotonic(), lanes=lanes, detail=gate.run)
        stopped.append((gate, fault.at + long_s, fault))
    for gate, until, fault in sorted(stopped, key=lambda each: each[1]):
        time.sleep(max(until - time.monotonic(), 0))
        gate.signal(signal.SIGCONT)
        woken = time.monotonic()
        # It took effect when another process took a lane of its meanwhile.
        stage.journals.update()
        fault.effective = any(
            fault.at < at < woken and run != fault.detail
            for lane in fault.lanes
            for at, run, _ in stage.journals.epochs[lane]
        )
        faults.append(fault)
        # Who others have taken lanes of is out of the group: it joins again, or ends.
        if fault.effective and not stage.until(
            lambda gate=gate, woken=woken: not gate.alive or _joined(stage, gate, woken), BACK_S
        ):
            stage.broken.append(
                f"comes_back: {gate.name} neither ended nor joined again within {BACK_S:.0f} s of SIGCONT"
            )
    stage.until_all_decide("a SIGCONT")
    for fault in faults:
        stage.recoveries(fault, not_by=fault.detail)
        stage.note(fault)
    return faults


def _struck(stage: Stage, gate: CampaignGate) -> bool:
    stage.journals.update()
    return any(each["run"] == gate.run and time.monotonic() - each["at"] < DUE_S for each in stage.journals.struck)


def _joined(stage: Stage, gate: CampaignGate, since: float) -> bool:
    stage.journals.update()
    return any(event["at"] > since and event["run"] == gate.run for event in stage.journals.other["assigned"])


def hijack(stage: Stage, row: str, lane: int) -> Fault:
    """A stranger takes a lane's transactional id; the lane must notice, and take it back."""
    producer = Producer(
        {"bootstrap.servers": stage.bootstrap, "transactional.id": f"{stage.prefix}lane-{lane}", "log_level": 0}
    )
    stage.journals.update()
    owner, known = stage.journals.owner[lane], len(stage.journals.epochs[lane])
    fault = Fault(row, "foreign init_transactions", time.monotonic(), lanes=[lane], detail=owner)
    try:
        producer.init_transactions(20)
    except KafkaException as error:
        fault.detail += f" {error}"
        return stage.note(fault)
    fault.at = time.monotonic()

    def taken_back() -> bool:
        stage.journals.update()
        later = [
            event for event in stage.journals.other["failed"] if event["lane"] == lane and event["at"] > fault.at - 5
        ]
        fault.effective = any(event["why"] == "Fenced" for event in later)
        return len(stage.journals.epochs[lane]) > known and stage.journals.decided_since(lane, fault.at) is not None

    if not stage.until(taken_back, stage.settle_s):
        stage.broken.append(f"decides_again: lane {lane} was not taken back within {stage.settle_s:.0f} s of a hijack")
    stage.recoveries(fault)
    return stage.note(fault)


def outlive_transaction(stage: Stage, row: str, gate: CampaignGate, timeout_s: float) -> Fault:
    """A gate stands still between its records and its commit for longer than the transaction may take."""
    lanes = gate.lanes
    armed = gate.arm(Point.BEFORE_END, f"{timeout_s + 2.5}", stage.dice.randint(1, 5))
    fault = Fault(row, "stall beyond the transaction timeout", time.monotonic(), lanes=lanes, detail=gate.run)
    if not armed or not stage.until(lambda: _struck(stage, gate), DUE_S):
        return stage.note(fault)
    fault.at = time.monotonic()
    time.sleep(timeout_s + 2.5)

    def failed() -> list[Attempt]:
        stage.journals.update()
        return [each for each in stage.journals.attempts[-2_000:] if each.run == fault.detail and each.end == "failed"]

    fault.effective = stage.until(lambda: any(each.at > fault.at - 5 for each in failed()), 10)
    stage.until_all_decide("a transaction that timed out")
    stage.recoveries(fault)
    return stage.note(fault)


def tear_round(stage: Stage, row: str) -> None:
    """Each gate tears one of its next transactions; then all lanes decide again."""
    began = time.monotonic()
    waiting = {gate.run: gate for gate in stage.gates if gate.lanes}
    waiting = {run: gate for run, gate in waiting.items() if gate.arm(Point.BEFORE_END, TEAR, stage.dice.randint(1, 5))}

    def torn() -> dict[str, dict[str, Any]]:
        stage.journals.update()
        return {event["run"]: event for event in stage.journals.other["torn"] if event["at"] > began}

    stage.until(lambda: torn().keys() >= waiting.keys(), DUE_S)
    faults = [
        Fault(row, "commit told to one broker only", event["at"], lanes=[event["lane"]], detail=run)
        for run, event in torn().items()
    ]
    stage.until_all_decide("torn transactions", since=max([fault.at for fault in faults], default=began))
    for fault in faults:
        fault.effective = bool(torn()[fault.detail]["told"])
        stage.recoveries(fault)
        stage.note(fault)


def churn(stage: Stage, row: str, fewest: int, most: int) -> Fault:
    """A gate joins the group, or leaves it in order. That one has joined is seen, and noted, later: by `joined`."""
    up = [gate for gate in stage.gates if gate.alive]
    down = [gate for gate in stage.gates if not gate.alive]
    joins = len(up) <= fewest or (len(up) < most and stage.dice.random() < 0.5)
    if joins:
        gate = down[0] if down else stage.add_gate()
        if down:
            gate.start()
        return Fault(row, "join", time.monotonic(), detail=gate.run)
    gate = stage.dice.choice(up)
    fault = Fault(row, "leave", time.monotonic(), detail=gate.run)
    gate.expected_down = True
    gate.signal(signal.SIGTERM)
    try:
        code = gate.wait()
    except subprocess.TimeoutExpired:
        code = None
    fault.effective = code == 0
    if code not in (0, -signal.SIGTERM):  # -15: told before it had a handler
        stage.broken.append(f"no_gate_falls: {gate.name} ended with {code} when it was told to leave")
    return stage.note(fault)


def note_joined(stage: Stage, joining: list[Fault]) -> list[Fault]:
    """Notes those that have been given a lane since, or have gone without one; the others are still to be seen."""
    stage.journals.update()
    owners = {run for epochs in stage.journals.epochs.values() for _, run, _ in epochs}
    alive = {gate.run for gate in stage.gates if gate.alive}
    waiting = []
    for fault in joining:
        fault.effective = fault.detail in owners
        if fault.effective or fault.detail not in alive:
            stage.note(fault)
        else:
            waiting.append(fault)
    return waiting


def _clock_is(stage: Stage, gate: CampaignGate, offset_ms: int, since: float) -> bool:
    """Tell a gate what its clock shows. Whether its journal says so already; who is gone has no clock."""
    if not gate.order({"clock_ms": offset_ms}):
        return not gate.alive
    time.sleep(ORDER_HEARD_S)
    stage.journals.update()
    return any(
        event["run"] == gate.run and event["at"] >= since and event["offset_ms"] == offset_ms
        for event in stage.journals.other["clock"]
    )


def wrong_clock(stage: Stage, row: str, gate: CampaignGate, offsets_ms: Sequence[int], each_s: float) -> Fault:
    """A gate's wall clock jumps; in the end it is right again."""
    kind = "clock strobe" if len(offsets_ms) > 2 else f"clock {offsets_ms[0] / 1000:+.0f} s"
    fault = Fault(row, kind, time.monotonic(), lanes=gate.lanes, detail=gate.run)
    done = False
    for offset_ms in (*offsets_ms, 0):
        # Until it says so: an order that the next one overwrites leaves a gate that rightly holds, and looks stuck.
        done = stage.until(functools.partial(_clock_is, stage, gate, offset_ms, time.monotonic()), CLOCK_HEARD_S)
        time.sleep(each_s if offset_ms else 0)
    stage.journals.update()
    fault.effective = done and any(
        event["run"] == fault.detail and event["at"] >= fault.at and event["offset_ms"]
        for event in stage.journals.other["clock"]
    )
    return stage.note(fault)
