"""Rows of what befalls topics and groups: wrong settings at start, compaction in earnest, offsets deleted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from tests.campaign import strikes
from tests.campaign.stage import CHECKPOINT_LOST, Fault, Stage
from tests.support import gates
from tests.support.altering import alter
from tests.support.founding import found
from tests.support.gates import GateProcess
from tests.support.issuer import OtherIssuer

REFUSED_WITHIN_S = 10.0
REFUSED_LIVE_WITHIN_S = 30.0
TWO_LANES = 2
COORDINATOR_WITHIN_S = 60.0
COORDINATOR_MOVES = {
    KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}  # fmt: skip
KEYS, CYCLES = 50_000, 10  # that are there before the first cycle, at the full count
TRIGGERS, LOSSES = 400_000, 4  # decided before the last loss, at the full count


# ── F17: what breaks a guarantee is refused ──


def _missing(admin: AdminClient, prefix: str) -> None:
    _delete(admin, f"{prefix}handoffs")


def _recreated(admin: AdminClient, prefix: str) -> None:
    _delete(admin, f"{prefix}idempotency")
    time.sleep(1)
    made = admin.create_topics([NewTopic(f"{prefix}idempotency", TWO_LANES, 3)])
    for future in made.values():
        future.result(30)


def _delete(admin: AdminClient, topic: str) -> None:
    for future in admin.delete_topics([topic]).values():
        future.result(30)


def _raised(admin: AdminClient, prefix: str) -> None:
    for future in admin.create_partitions([NewPartitions(f"{prefix}triggers", 2 * TWO_LANES)]).values():
        future.result(30)


MISUSES: dict[str, tuple[str, Callable[[AdminClient, str], None]]] = {
    "a topic is missing": ("handoffs", _missing),
    "a topic was made anew": ("idempotency", _recreated),
    "partitions were raised": ("triggers", _raised),
    "producers' times are taken": (
        "triggers", lambda admin, prefix: alter(admin, f"{prefix}triggers", message_timestamp_type="CreateTime"),
    ),
    "the changelog is deleted too soon": (
        "idempotency", lambda admin, prefix: alter(admin, f"{prefix}idempotency", retention_ms="60000"),
    ),
    "checkpoints are deleted": (
        "checkpoints", lambda admin, prefix: alter(admin, f"{prefix}checkpoints", cleanup_policy="delete"),
    ),
    "jobs are compacted": (
        "jobs", lambda admin, prefix: alter(admin, f"{prefix}jobs", cleanup_policy="compact"),
    ),
    "triggers may outgrow their dead letters": (
        "triggers", lambda admin, prefix: alter(admin, f"{prefix}triggers", max_message_bytes="10000000"),
    ),
}  # fmt: skip


LIVE = ("a topic is missing", "a topic was made anew", "partitions were raised", "checkpoints are deleted")


def refused(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """A gate that finds a topic which breaks a guarantee ends and says which: at its start, or while it runs."""
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    cases = [(kind, False) for kind in MISUSES] + [(kind, True) for kind in LIVE]
    for number, (kind, live) in enumerate(cases[:count]):
        topic, break_it = MISUSES[kind]
        prefix, directory = f"{stage.prefix}x{number}.", stage.directory / f"misuse-{number}"
        found(stage.bootstrap, prefix, TWO_LANES, OtherIssuer(prefix), directory)
        gate = GateProcess("gate", directory, gates.environment(stage.bootstrap, prefix))
        if live:
            gate.start()
            stage.until(
                lambda gate=gate: len([e for e in gate.events() if e["event"] == "lane_taken"]) == TWO_LANES, 60
            )
        at = time.monotonic()
        break_it(admin, prefix)
        if not live:
            at = time.monotonic()
            gate.start()
        fault = Fault(row, f"{kind}, while it runs" if live else kind, at)
        within_s = REFUSED_LIVE_WITHIN_S if live else REFUSED_WITHIN_S
        try:
            code = gate.wait(2 * within_s)
        except subprocess.TimeoutExpired:
            gate.signal(signal.SIGKILL)
            stage.broken.append(f"start_refused: a gate ran on although {fault.kind}")
        else:
            took, said = time.monotonic() - at, gate.log_file.read_text(errors="replace").strip()[-600:]
            fault.effective, fault.detail = code != 0, said
            if code == 0 or f"{prefix}{topic}" not in said:
                stage.broken.append(f"start_refused: {fault.kind}: ended with {code}, saying {said}")
            if took > within_s:
                stage.notes.append(f"{fault.kind}: refused after {took:.0f} s")
        stage.note(fault)
        told(number)


# ── F18: the changelog is compacted under load ──


def compaction(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """The cleaner runs all the time; again and again every store is thrown away and restored from what it left.

    One counts when the cleaner went over a part of the changelog since the one before.
    """
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    topic = f"{stage.prefix}idempotency"
    alter(
        admin, topic, segment_ms="1000", min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms="2000",
    )  # fmt: skip
    wanted = KEYS * count // CYCLES
    if not stage.until(lambda: len(stage.watcher.seen["idempotency"]) >= wanted, 2 * KEYS / stage.load.rate):
        stage.notes.append(f"the changelog had less than {wanted:,} entries at first")
    before = _cleanings(stage, topic)
    for number in range(count):
        time.sleep(6)
        for gate in stage.gates:
            gate.kill()
            shutil.rmtree(gate.state_dir, ignore_errors=True)
        now = _cleanings(stage, topic)
        cleaned, before = now - before, now
        fault = Fault(
            row, "all stores restored from a compacted changelog", time.monotonic(), effective=cleaned > 0,
            lanes=list(range(stage.lanes)),
        )  # fmt: skip
        for gate in stage.gates:
            gate.start()
        strikes.recover(stage, [fault])
        told(number)
    stage.notes.append(
        f"the brokers cleaned partitions of the changelog {before} times; it had {len(stage.watcher.seen['idempotency']):,} "
        "entries in the end"
    )


def _cleanings(stage: Stage, topic: str) -> int:
    """How often a broker has told that it cleaned a partition of a topic."""
    return sum(
        topic in line and "cleaned log" in line.lower()
        for path in stage.broker_logs
        for line in path.read_text(errors="replace").splitlines()
    )


# ── F19: the group's offsets ──


def group_offsets(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """The group and its offsets, or a checkpoint, are deleted while no gate runs: no trigger is decided twice."""
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    for number in range(count):
        wanted = TRIGGERS // LOSSES * (number + 1)
        if not stage.until(
            lambda wanted=wanted: stage.watcher.answered >= wanted, 2 * TRIGGERS / LOSSES / stage.load.rate
        ):
            stage.notes.append(
                f"{stage.watcher.answered:,} triggers were decided before loss {number + 1}, asked: {wanted:,}"
            )
        _stop_all(stage)
        if number % 2:
            fault = _lose_checkpoint(stage, row, stage.dice.randrange(stage.lanes))
        else:
            fault = Fault(
                row, "group deleted with its offsets", time.monotonic(), effective=True, lanes=list(range(stage.lanes))
            )
            _delete_group(admin, f"{stage.prefix}gate")
        for gate in stage.gates:
            gate.start()
        strikes.recover(stage, [fault])
        told(number)


def _delete_group(admin: AdminClient, group: str) -> None:
    """Asked again while its coordinator moves."""
    until_s = time.monotonic() + COORDINATOR_WITHIN_S
    while True:
        try:
            for future in admin.delete_consumer_groups([group]).values():
                future.result(30)
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_MOVES or time.monotonic() > until_s:
                raise
            time.sleep(0.5)
        else:
            return


def _stop_all(stage: Stage) -> None:
    for gate in stage.gates:
        gate.expected_down = True
        gate.stop()


def _lose_checkpoint(stage: Stage, row: str, lane: int) -> Fault:
    """A lane without a checkpoint must stop by name; it goes on once an operator has accepted that."""
    producer = Producer({"bootstrap.servers": stage.bootstrap})
    producer.produce(f"{stage.prefix}checkpoints", None, b"%d" % lane, partition=lane)
    fault = Fault(row, CHECKPOINT_LOST, time.monotonic(), lanes=[lane])
    if producer.flush(30):
        return fault
    (gate, *_) = stage.gates
    before = len(gate.events())
    gate.start()
    fault.effective = stage.until(
        lambda: any(e["event"] == "lane_stopped" and e["lane"] == lane for e in gate.events()[before:]), 60
    )
    gate.expected_down = True
    gate.stop()
    words = ("topics", "accept-gap", str(lane), "--reason", "its checkpoint was lost", "--yes")
    done = subprocess.run(
        [*gates.COMMAND, *words], env=gates.environment(stage.bootstrap, stage.prefix), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        stage.broken.append(f"gap_accepted: accept-gap of lane {lane} ended with {done.returncode}: {done.stderr}")
    fault.at = time.monotonic()
    return fault
