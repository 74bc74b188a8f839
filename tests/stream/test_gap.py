"""A lane whose records were deleted undecided stops by name; ops accept the gap, and the audit keeps it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

LANES = 2


def tollgate(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli.main", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def env(broker: str, prefix: str, tmp_path: Path) -> dict[str, str]:
    settings = {
        "TOLLGATE_BOOTSTRAP": broker, "TOLLGATE_PREFIX": prefix, "TOLLGATE_GATE__STATE_DIR": str(tmp_path / "state"),
        "TOLLGATE_TELEMETRY__PORT": "0", "TOLLGATE_TELEMETRY__LOG_FORMAT": "json",
    }  # fmt: skip
    env = os.environ | settings
    assert tollgate(env, "topics", "create", "--lanes", str(LANES), "--replication-factor", "1").returncode == 0
    return env


def delete_undecided(broker: str, prefix: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": broker})
    for _ in range(count):
        producer.produce(prefix + "triggers", value=b"{}", partition=0)
    producer.flush()
    admin = AdminClient({"bootstrap.servers": broker})
    for done in admin.delete_records([TopicPartition(prefix + "triggers", 0, count)]).values():
        done.result()


def records(broker: str, topic: str) -> list[dict[str, object]]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": topic, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    end = consumer.get_watermark_offsets(TopicPartition(topic, 0))[1]
    found: list[dict[str, object]] = []
    while consumer.position([TopicPartition(topic, 0)])[0].offset < end:
        message = consumer.poll(1.0)
        if message is not None and not message.error():
            found.append(json.loads(message.value()))
    consumer.close()
    return found


def stop_of_lane(env: dict[str, str], tmp_path: Path) -> str | None:
    """Run a gate until lane 0 is taken or has stopped; what it said of the stop, None when it was taken."""
    log = tmp_path / f"gate-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        gate = subprocess.Popen([sys.executable, "-m", "app.cli.main", "gate", "--workers", "1"], env=env, stderr=out)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                for line in log.read_text().splitlines():
                    event = json.loads(line) if line.startswith("{") else {}
                    if event.get("lane") == 0 and event["event"] == "lane_stopped":
                        return str(event["why"])
                    if event.get("lane") == 0 and event["event"] == "lane_taken":
                        return None
                time.sleep(0.1)
            raise AssertionError(log.read_text())
        finally:
            gate.terminate()
            gate.wait(30)


def test_a_gap_is_a_named_stop_until_it_is_accepted(env, broker, prefix, tmp_path):
    delete_undecided(broker, prefix, 5)
    why = stop_of_lane(env, tmp_path)
    assert why is not None
    assert f"{prefix}triggers[0]" in why

    told = tollgate(env, "topics", "accept-gap", "0", "--reason", "retention too short")
    assert told.returncode == 0
    assert "offsets 0 to 4 will never be decided" in told.stderr
    assert stop_of_lane(env, tmp_path) is not None, "only told, not accepted"

    accepted = tollgate(env, "topics", "accept-gap", "0", "--reason", "retention too short", "--by", "ann", "--yes")
    assert accepted.returncode == 0, accepted.stderr
    assert stop_of_lane(env, tmp_path) is None
    audit = records(broker, prefix + "audit")
    assert audit[0]["gaps"] == [
        {"topic": "triggers", "from_offset": 0, "to_offset": 5, "by": "ann", "reason": "retention too short"}
    ]
    assert tollgate(env, "audit", "verify").returncode == 0


def test_a_lane_that_stands_beyond_the_end_goes_on_at_the_end_and_not_at_the_start(env, broker, prefix, tmp_path):
    producer = Producer({"bootstrap.servers": broker})
    for _ in range(3):
        producer.produce(prefix + "triggers", value=b"{}", partition=0)
    stands = records(broker, prefix + "checkpoints")[-1] | {"triggers_offset": 1_000}
    producer.produce(prefix + "checkpoints", json.dumps(stands).encode(), b"0", partition=0)
    producer.flush()
    assert stop_of_lane(env, tmp_path) is not None
    accepted = tollgate(env, "topics", "accept-gap", "0", "--reason", "the log was cut", "--yes")
    assert "triggers[0]: it goes on at offset 3" in accepted.stderr
    assert stop_of_lane(env, tmp_path) is None
    assert records(broker, prefix + "checkpoints")[-1]["triggers_offset"] == 3


def test_where_nothing_is_missing_there_is_nothing_to_accept(env):
    done = tollgate(env, "topics", "accept-gap", "1", "--reason", "none", "--yes")
    assert done.returncode == 5
    assert "nothing is missing" in done.stderr
