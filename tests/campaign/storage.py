"""Strikes at local stores: damaged in every way while no gate holds them, or with nowhere left to write."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.campaign.judge import store_as_its_changelog
from tests.campaign.points import Point
from tests.campaign.stage import CampaignGate, Fault, Stage
from tests.campaign.strikes import EVERY_TURN, recover
from tests.support import reader


def flip_bit(store: Path, dice: random.Random) -> None:
    victim = dice.choice(_files(store))
    data = bytearray(victim.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    victim.write_bytes(data)


def truncate(store: Path, dice: random.Random) -> None:
    victim = dice.choice(_files(store))
    data = victim.read_bytes()
    victim.write_bytes(data[: dice.randrange(len(data))])


def _files(store: Path) -> list[Path]:
    """Those that RocksDB reads; its LOG is for people."""
    return sorted(path for path in store.iterdir() if path.is_file() and path.stat().st_size and path.name != "LOG")


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {"one bit flipped": flip_bit, "truncated": truncate}
PUT_BACK, SWAPPED, DELETED = "older copy put back", "swapped", "deleted while in use"
# kind → of 140 faults
SHARES = {"one bit flipped": 100, "truncated": 20, PUT_BACK: 10, SWAPPED: 5, DELETED: 5}


def damage_round(stage: Stage, row: str, kinds: Sequence[str], older: dict[Path, Path]) -> list[Fault]:
    """Kill all gates, damage what they have of a lane per kind, start them: it is noticed, or makes no difference.

    A fault counts when the gate that took the lane next had a store that was damaged.
    """
    running = [gate for gate in stage.gates if gate.alive]
    faults = [
        _delete_in_use(row, gate, lanes[0])
        for gate, _ in zip(running, [kind for kind in kinds if kind == DELETED], strict=False)
        if (lanes := gate.lanes)
    ]
    if faults:
        time.sleep(1.0)
    lanes = sorted({lane for gate in running for lane in gate.lanes})
    for gate in running:
        gate.kill()
    at = time.monotonic()
    free = list(range(stage.lanes))
    stage.dice.shuffle(free)
    struck: list[tuple[Fault, list[Path]]] = []
    for kind in [kind for kind in kinds if kind != DELETED]:
        if len(free) < 2:
            break
        lane = free.pop()
        other = free.pop() if kind == SWAPPED else lane
        damaged = [
            path for path in _stores(stage, lane) if _damage(stage, kind, path, path.with_name(f"lane-{other}"), older)
        ]
        detail = " ".join(f"{path.parent.name}/{path.name}" for path in damaged)
        struck.append((Fault(row, kind, at, lanes=[lane], detail=detail), damaged))
    for path in [path for lane in free for path in _stores(stage, lane)]:  # for a later round
        if path not in older and stage.dice.random() < 0.5:
            copy = stage.directory / "older" / path.parent.name / path.name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            older[path] = copy
    for gate in stage.gates:
        gate.start()
    blow = Fault(row, "all gates killed", at, lanes=lanes)
    recover(stage, [blow], keep=False)
    for fault, damaged in struck:
        owners = [run.partition("/")[0] for since, run, _ in stage.journals.epochs[fault.lanes[0]] if since > at][:1]
        fault.effective = any(
            path.parent == gate.state_dir for path in damaged for gate in stage.gates if gate.name in owners
        )
        faults.append(fault)
    for fault in faults:
        fault.lanes = []  # of no interest: all gates were killed
        stage.note(fault)
    return faults


def _delete_in_use(row: str, gate: CampaignGate, lane: int) -> Fault:
    """The store of a lane that a gate has now."""
    path = gate.state_dir / f"lane-{lane}"
    there = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    return Fault(row, DELETED, time.monotonic(), effective=there, detail=f"{path.parent.name}/{path.name}")


def _stores(stage: Stage, lane: int) -> list[Path]:
    """What the gates have of a lane."""
    return [path for gate in stage.gates if _whole(path := gate.state_dir / f"lane-{lane}")]


def _damage(stage: Stage, kind: str, store: Path, other: Path, older: dict[Path, Path]) -> bool:
    """False where this kind of damage cannot be done to this store."""
    if kind in DAMAGE:
        DAMAGE[kind](store, stage.dice)
    elif kind == SWAPPED and _whole(other):
        aside = store.with_name("aside")
        store.rename(aside)
        other.rename(store)
        aside.rename(other)
    elif kind == PUT_BACK and store in older:
        shutil.rmtree(store)
        shutil.copytree(older[store], store)
    else:
        return False
    return True


def _whole(path: Path) -> bool:
    return (path / "CURRENT").exists() and bool(_files(path))


def aborted_round(stage: Stage, row: str) -> list[Fault]:
    """Every gate dies with a transaction under way; then each store on disk is held against the committed changelog."""
    faults: list[Fault] = []
    armed: list[tuple[CampaignGate, Point, list[int]]] = []
    for gate in [gate for gate in stage.gates if gate.lanes]:
        point = stage.dice.choice((Point.BEFORE_END, Point.AFTER_PRODUCE, Point.DURING_END, Point.IN_APPLY))
        assert point in EVERY_TURN
        if gate.arm(point, "kill", stage.dice.randint(1, 10)):
            armed.append((gate, point, gate.lanes))
    stage.until(lambda: not any(gate.alive for gate, _, _ in armed), 20)
    for gate in stage.gates:
        if gate.alive:
            gate.kill()
    changelog = reader.read_topic(stage.bootstrap, f"{stage.prefix}idempotency").records
    stage.journals.update()
    struck = {event["run"] for event in stage.journals.struck}
    for gate, point, lanes in armed:
        fault = Fault(
            row, f"killed {point}", time.monotonic(), effective=gate.run in struck, lanes=lanes, detail=gate.run
        )
        for path in sorted(gate.state_dir.glob("lane-*")):
            lane = int(path.name.removeprefix("lane-").partition(".")[0])
            mine = [record for record in changelog if record.partition == lane]
            stage.broken += [f"stores_as_their_changelogs: {what}" for what in store_as_its_changelog(path, mine)]
        faults.append(fault)
    for gate in stage.gates:
        gate.start()
    recover(stage, faults)
    return faults


def disk_full(stage: Stage, row: str, gate: CampaignGate, long_s: float) -> Fault:
    """A gate's stores are on a small file system of their own, and something else fills it to the last byte."""
    fault = Fault(row, "disk full", time.monotonic(), lanes=gate.lanes, detail=gate.run)
    before = len(gate.events())
    ballast = gate.state_dir / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    time.sleep(long_s)
    ballast.unlink()
    fault.at = time.monotonic()
    told = gate.events()[before:]
    fault.effective = not gate.alive or any("No space left" in str(event) for event in told)
    if not gate.alive:  # a named stop is as good; somebody starts it again
        gate.start()
    stage.until_all_decide("a full disk", since=fault.at)
    stage.recoveries(fault)
    return stage.note(fault)


FAILING = {"I/O error": errno.EIO, "read-only file system": errno.EROFS}


def disk_failing(stage: Stage, row: str, gate: CampaignGate, kind: str, long_s: float) -> Fault:
    """No write of a gate to a file succeeds any more; after a while somebody gives it another disk."""
    fault = Fault(row, kind, time.monotonic(), lanes=gate.lanes, detail=gate.run)
    before = len(gate.events())
    if gate.order({"errno": FAILING[kind]}):
        time.sleep(long_s)
        told = str(gate.events()[before:])
        fault.effective = not gate.alive or os.strerror(FAILING[kind]) in told
        if gate.alive:
            gate.kill()
        gate.start()
        fault.at = time.monotonic()
        stage.until_all_decide(f"a disk with {kind}", since=fault.at)
        stage.recoveries(fault)
    return stage.note(fault)


@contextlib.contextmanager
def small_disks(stage: Stage) -> Iterator[bool]:
    """The gates' stores on 64 MiB each; False where this user may not mount."""
    mounted: list[Path] = []
    for gate in stage.gates:
        gate.kill()
    try:
        for gate in stage.gates:
            shutil.rmtree(gate.state_dir, ignore_errors=True)
            gate.state_dir.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(gate.state_dir)],
                capture_output=True,
                check=False,
            )
            if done.returncode:
                break
            mounted.append(gate.state_dir)
        for gate in stage.gates:
            gate.start()
        yield len(mounted) == len(stage.gates)
    finally:
        for gate in stage.gates:
            if gate.alive:
                gate.kill()
        for path in mounted:
            subprocess.run(["umount", str(path)], check=False)
        for gate in stage.gates:
            gate.start()
