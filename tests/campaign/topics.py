"""Rows of what befalls topics and groups: wrong settings at start, compaction in earnest, offsets deleted."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from tests.campaign import strikes
from tests.campaign.stage import Fault, Stage
from tests.support import gates
from tests.support.issuer import OtherIssuer

REFUSED_WITHIN_S = 10.0
TWO_LANES = 2


def set_topic(admin: AdminClient, topic: str, **settings: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


# ── F17: what breaks a guarantee is refused at start ──


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
        "triggers", lambda admin, prefix: set_topic(admin, f"{prefix}triggers", message_timestamp_type="CreateTime"),
    ),
    "the changelog is deleted too soon": (
        "idempotency", lambda admin, prefix: set_topic(admin, f"{prefix}idempotency", retention_ms="60000"),
    ),
    "checkpoints are deleted": (
        "checkpoints", lambda admin, prefix: set_topic(admin, f"{prefix}checkpoints", cleanup_policy="delete"),
    ),
    "jobs are compacted": (
        "jobs", lambda admin, prefix: set_topic(admin, f"{prefix}jobs", cleanup_policy="compact"),
    ),
    "triggers may outgrow their dead letters": (
        "triggers", lambda admin, prefix: set_topic(admin, f"{prefix}triggers", max_message_bytes="10000000"),
    ),
}  # fmt: skip


def refused_at_start(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """A gate that finds a topic which breaks a guarantee ends within ten seconds, and says which."""
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    for number, (kind, (topic, break_it)) in enumerate(list(MISUSES.items())[:count]):
        prefix = f"{stage.prefix}x{number}."
        directory = stage.directory / f"misuse-{number}"
        gates.found(stage.bootstrap, prefix, TWO_LANES, OtherIssuer(prefix), directory)
        break_it(admin, prefix)
        at = time.monotonic()
        fault = Fault(row, kind, at)
        try:
            done = subprocess.run(
                [*gates.COMMAND, "gate", "--workers", "1"], env=gates.environment(stage.bootstrap, prefix), cwd=directory,
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            stage.broken.append(f"start_refused: a gate ran on although {kind}")
        else:
            took = time.monotonic() - at
            fault.effective = done.returncode != 0
            fault.detail = done.stderr.strip()[-300:]
            if done.returncode == 0 or f"{prefix}{topic}" not in done.stderr:
                stage.broken.append(f"start_refused: {kind}: ended with {done.returncode}, saying {fault.detail}")
            if took > REFUSED_WITHIN_S:
                stage.notes.append(f"{kind}: refused after {took:.0f} s, start of the process included")
        stage.note(fault)
        told(number)


# ── F18: the changelog is compacted under load ──


def compaction(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """The cleaner runs all the time; again and again every store is thrown away and restored from what it left."""
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    topic = f"{stage.prefix}idempotency"
    set_topic(
        admin, topic, segment_ms="1000", min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms="2000",
    )  # fmt: skip
    for number in range(count):
        time.sleep(6)
        at = time.monotonic()
        lanes = sorted({lane for gate in stage.gates for lane in gate.lanes})
        for gate in stage.gates:
            gate.kill()
            shutil.rmtree(gate.state_dir, ignore_errors=True)
        for gate in stage.gates:
            gate.start()
        fault = Fault(row, "all stores restored from a compacted changelog", at, effective=True, lanes=lanes)
        strikes.recover(stage, [fault])
        told(number)
    cleaned = sum(_cleanings(path, topic) for path in stage.broker_logs)
    stage.notes.append(f"the brokers cleaned partitions of the changelog {cleaned} times")
    if not cleaned:
        for fault in stage.faults:
            fault.effective = False


def _cleanings(path: Path, topic: str) -> int:
    return sum(
        topic in line and "cleaned log" in line.lower() for line in path.read_text(errors="replace").splitlines()
    )


# ── F19: the group's offsets ──


def group_offsets(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """The group and its offsets are deleted while no gate runs: lanes go on from their checkpoints."""
    admin = AdminClient({"bootstrap.servers": stage.bootstrap})
    group = f"{stage.prefix}gate"
    for number in range(count):
        time.sleep(4)
        lanes = sorted({lane for gate in stage.gates for lane in gate.lanes})
        for gate in stage.gates:
            gate.expected_down = True
            gate.stop()
        at = time.monotonic()
        fault = Fault(row, "group deleted with its offsets", at, lanes=lanes)
        for future in admin.delete_consumer_groups([group]).values():
            future.result(30)
        fault.effective = True
        for gate in stage.gates:
            gate.start()
        strikes.recover(stage, [fault])
        told(number)
