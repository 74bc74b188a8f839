"""The table itself: what must be true of it whatever else changes, and the commands that are printed from it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from app.cli import commands as cli
from app.local.kafka import java_and_class_path
from app.local.secured import bindings_of
from app.stream.access import ROLES, TOPIC_ACCESS, Operation, Resource, Role, allows, commands, grants
from app.stream.topics import Topic
from tests.support.secured import Secured

READ, WRITE = Operation.READ, Operation.WRITE
PREFIX = "tollgate."


def who_may(operation: Operation, topic: Topic) -> set[Role]:
    granted = list(grants(PREFIX))
    return {role for role in Role if allows(granted, role, Resource.TOPIC, topic.named(PREFIX), operation)}


def test_only_gates_read_live_tokens_and_only_gates_start_jobs() -> None:
    assert who_may(READ, Topic.TRIGGERS) == {Role.GATE}
    for topic in (Topic.HANDOFFS, Topic.JOBS, Topic.IDEMPOTENCY, Topic.RECEIPTS, Topic.DEAD_LETTERS):
        assert who_may(WRITE, topic) == {Role.GATE}


def test_an_emitter_writes_triggers_and_reads_receipts_and_a_worker_reads_jobs_and_that_is_all() -> None:
    for role, wanted in (
        (Role.EMITTER, {(Topic.TRIGGERS, WRITE), (Topic.RECEIPTS, READ)}),
        (Role.WORKER, {(Topic.JOBS, READ)}),
    ):
        given = {(topic, each) for topic in Topic for each in TOPIC_ACCESS[topic].get(role, ())}
        assert given == wanted
        others = [grant for grant in grants(PREFIX) if grant.role is role and grant.resource is not Resource.TOPIC]
        assert [(each.resource, each.name) for each in others] == [(Resource.GROUP, f"{PREFIX}{role}")]


def test_the_http_door_writes_triggers_and_nothing_else() -> None:
    assert {topic for topic in Topic if Role.API in who_may(WRITE, topic)} == {Topic.TRIGGERS}
    assert not [each for each in grants(PREFIX) if each.role is Role.API and each.resource is not Resource.TOPIC]


def test_the_root_of_trust_is_not_the_gates_to_write() -> None:
    assert Role.GATE not in who_may(WRITE, Topic.REGISTRY) | who_may(WRITE, Topic.REVOCATIONS)
    assert who_may(WRITE, Topic.REVOCATIONS) == {Role.OPS, Role.ISSUER}
    assert who_may(WRITE, Topic.REGISTRY) == {Role.OPS, Role.ADMIN}


def test_every_command_that_talks_to_a_cluster_is_somebodys() -> None:
    """Else nobody could tell whom to give the rights it needs."""
    local = {"up", "broker", "keys", "token inspect", "token issue", "token verify", "config check"}
    over_http = {"login", "logout", "whoami", "token list"}
    given = [command for about in ROLES.values() for command in about.commands]
    nobodys = set()
    for command in cli.COMMANDS:
        loaded = cli._load(command)
        for words in [f"{command.name} {name}" for name in getattr(loaded, "commands", {})] or [command.name]:
            known = (*given, *local, *over_http)
            if not any(f"{words} ".startswith(f"{each} ") or each.startswith(f"{words} ") for each in known):
                nobodys.add(words)
    assert nobodys == set()


def test_who_looks_changes_nothing() -> None:
    assert not [grant for grant in grants(PREFIX) if grant.role is Role.AUDITOR and set(grant.operations) != {READ}]


def test_a_name_that_is_granted_is_not_anothers_by_beginning_alike() -> None:
    granted = list(grants(PREFIX))
    assert not allows(granted, Role.EMITTER, Resource.TOPIC, f"{PREFIX}triggers-2", WRITE)
    assert not allows(granted, Role.OPS, Resource.TRANSACTIONAL_ID, f"{PREFIX}registry-2", WRITE)
    assert not allows(granted, Role.GATE, Resource.TRANSACTIONAL_ID, "other.lane-0", WRITE)


def test_every_topic_and_every_role_is_in_the_table() -> None:
    assert list(TOPIC_ACCESS) == list(Topic)
    assert list(ROLES) == list(Role)
    assert {grant.role for grant in grants(PREFIX)} == set(Role)


# ── what is printed ──


def printed(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, checkout / "scripts" / "_acls.py", *words],
        cwd=checkout, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_only_roles_with_a_principal_are_printed(checkout: Path) -> None:
    done = printed(
        checkout, "--prefix", "x.", "--bootstrap", "kafka:9093", "--emitter", "User:ci", "--emitter", "User:a b"
    )
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[:3] == ["kafka-acls.sh", "--bootstrap-server", "kafka:9093"]
        assert [words[at + 1] for at, word in enumerate(words) if word == "--allow-principal"] == [
            "User:ci",
            "User:a b",
        ]
    assert "x.triggers" in done.stdout
    assert "x.jobs" not in done.stdout


@pytest.mark.parametrize(
    "words", [(), ("--gate", "gate"), ("--gate", "User:"), ("--gate", "User:g", "--prefix", "a b")]
)
def test_what_would_make_no_sense_is_refused(checkout: Path, words: tuple[str, ...]) -> None:
    done = printed(checkout, *words)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_help_names_every_role_and_what_it_runs(checkout: Path) -> None:
    told = " ".join(printed(checkout, "--help").stdout.split())
    for role, about in ROLES.items():
        assert f"--{role} PRINCIPAL" in told
        assert about.who in told
        for command in about.commands:
            assert command in told


@pytest.mark.broker
@pytest.mark.slow
def test_kafkas_own_tool_makes_of_the_printed_commands_just_what_the_table_says(
    secured: Secured, tmp_path: Path, prefix: str
) -> None:
    properties = tmp_path / "superuser.properties"
    told = secured.security.client()
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{told["sasl.username"]}" password="{told["sasl.password"]}";'
    )
    properties.write_text(f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config={login}\n")
    java, class_path = java_and_class_path()
    # Of two roles, which between them have every kind of grant: each command starts a Java program.
    both = {role: [f"User:{role}"] for role in (Role.GATE, Role.EMITTER)}

    def run(line: str) -> None:
        words = [str(java), "-XX:TieredStopAtLevel=1", "-cp", class_path, "org.apache.kafka.tools.AclCommand"]
        subprocess.run([*words, *shlex.split(line)[1:]], capture_output=True, timeout=120, check=True)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, commands(both, prefix, bootstrap=secured.bootstrap, command_config=str(properties))))
    made = {shown(each) for each in acls_of(secured) if each.name.startswith(prefix)}
    assert made == {shown(each) for grant in grants(prefix) if grant.role in both for each in bindings_of(grant)}


def acls_of(secured: Secured) -> list[AclBinding]:
    every = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    admin = secured.superuser()
    found: list[AclBinding] = admin.describe_acls(every).result(30)
    return found


def shown(binding: AclBinding) -> tuple[object, ...]:
    names = ("restype", "name", "resource_pattern_type", "principal", "host", "operation", "permission_type")
    return tuple(getattr(binding, name) for name in names)
