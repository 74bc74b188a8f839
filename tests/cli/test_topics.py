"""`tollgate topics` against a real broker: creation is safe to repeat, and every departure is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from app.stream.topics import Topic
from tests.cli.program import tollgate, within
from tests.support.altering import alter
from tests.support.gates import environment
from tests.support.reader import read_topic

LANES = "2"
Change = Callable[[AdminClient, str], None]


@pytest.fixture
def admin(broker: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker})


@pytest.fixture
def env(broker: str, prefix: str) -> dict[str, str]:
    return environment(broker, prefix)


def test_creating_twice_adds_nothing_the_second_time(env: dict[str, str], broker: str, prefix: str) -> None:
    first = within(env, "topics", "create", "--lanes", LANES)
    assert first.code == 0, first.err
    assert first.err.count("created ") == len(Topic)
    second = within(env, "topics", "create", "--lanes", LANES)
    assert second.code == 0
    assert "nothing was missing" in second.err
    assert len(read_topic(broker, f"{prefix}checkpoints").records) == int(LANES)
    assert len(read_topic(broker, f"{prefix}registry").records) == 1
    assert within(env, "topics", "check").code == 0


def test_lanes_cannot_be_added_later(env: dict[str, str]) -> None:
    within(env, "topics", "create", "--lanes", LANES)
    said = within(env, "topics", "create", "--lanes", "3")
    assert said.code == 1
    assert "2 lanes" in said.err


def test_topics_made_by_others_get_their_founding_records(env: dict[str, str], admin: AdminClient, prefix: str) -> None:
    within(env, "topics", "create", "--lanes", LANES)
    twin = prefix + "twin."
    printed = within(env | {"TOLLGATE_KAFKA__PREFIX": twin}, "topics", "create", "--print", "--lanes", LANES).out
    wanted = [_topic_of(command) for command in printed.replace("\\\n", "").splitlines() if "--create" in command]
    for future in admin.create_topics([topic._replication(1) for topic in wanted]).values():
        future.result(30)
    said = within(env | {"TOLLGATE_KAFKA__PREFIX": twin}, "topics", "create")
    assert said.code == 0, said.err
    assert "created" not in said.err
    assert "founding records" in said.err


class _Printed(NewTopic):
    def _replication(self, factor: int) -> NewTopic:
        config = {name: value for name, value in self.config.items() if name != "min.insync.replicas"}
        return NewTopic(self.topic, self.num_partitions, factor, config=config)


def _topic_of(command: str) -> _Printed:
    words = command.split()
    after = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word != "--config"}
    config = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--config")
    return _Printed(after["--topic"], int(after["--partitions"]), 1, config=config)


def _set(topic: str, name: str, value: str) -> Change:
    def change(admin: AdminClient, prefix: str) -> None:
        alter(admin, prefix + topic, **{name: value})

    return change


def _delete(topic: str) -> Change:
    def change(admin: AdminClient, prefix: str) -> None:
        for future in admin.delete_topics([prefix + topic]).values():
            future.result(30)

    return change


def _recreate(topic: str) -> Change:
    def change(admin: AdminClient, prefix: str) -> None:
        _delete(topic)(admin, prefix)
        for future in admin.create_topics([NewTopic(prefix + topic, int(LANES), 1)]).values():
            future.result(30)

    return change


@pytest.mark.parametrize(
    ("change", "topic", "setting"),
    [
        (_set("triggers", "message.timestamp.type", "CreateTime"), "triggers", "message.timestamp.type"),
        (_set("handoffs", "cleanup.policy", "compact"), "handoffs", "cleanup.policy"),
        (_set("idempotency", "cleanup.policy", "delete"), "idempotency", "cleanup.policy"),
        (_set("idempotency", "retention.ms", "86400000"), "idempotency", "retention.ms"),
        (_set("idempotency", "retention.bytes", "1000000000"), "idempotency", "retention.bytes"),
        (_set("triggers", "max.message.bytes", "4000000"), "jobs", "max.message.bytes"),
        (_delete("receipts"), "receipts", "topic"),
        (_recreate("jobs"), "jobs", "topic id"),
    ],
)
def test_what_breaks_a_guarantee_is_named_and_keeps_a_gate_from_starting(
    env: dict[str, str], admin: AdminClient, prefix: str, change: Change, topic: str, setting: str
) -> None:
    within(env, "topics", "create", "--lanes", LANES)
    change(admin, prefix)
    said = within(env, "topics", "check")
    assert said.code == 1
    found = {(row["topic"], row["setting"]): row for row in said.rows}
    row = found[prefix + topic, setting]
    assert row["level"] == "bad"
    assert all(row[name] for name in ("found", "needed", "why", "mend"))
    gate = tollgate(env, "gate", "--workers", "1")
    assert gate.code == 1
    assert f"{prefix}{topic}: {setting} is " in gate.err


def test_a_deployment_whose_topic_was_deleted_is_not_patched_up_in_silence(
    env: dict[str, str], admin: AdminClient, prefix: str
) -> None:
    within(env, "topics", "create", "--lanes", LANES)
    _delete("checkpoints")(admin, prefix)
    said = within(env, "topics", "create")
    assert said.code == 1
    assert f"{prefix}checkpoints" in said.err
