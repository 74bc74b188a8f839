"""M: a worker that runs each job once, and emitters that need nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.rows.aside import Aside
from tests.rows.jobs import NIGHTLY
from tests.rows.outcomes import TIMEOUT_S
from tests.rows.triggers import by_headers, plain
from tests.rows.world import World

QUIET_S = "3"
SHORT_LINES = 20


# ── M-10 ──


def test_the_example_worker_runs_each_accepted_job_once_and_none_of_an_aborted_transaction(
    aside: Aside, checkout: Path, tmp_path: Path
) -> None:
    job = aside.present_one(plain(aside.ours.token(), params={"n": 10})).job
    rogue = Producer({"bootstrap.servers": aside.bootstrap, "transactional.id": aside.topic("rogue")})
    rogue.init_transactions(TIMEOUT_S)
    rogue.begin_transaction()
    rogue.produce(
        aside.topic("jobs"),
        json.dumps(job | {"run_id": "never-committed"}).encode(),
        key=b"never-committed",
        partition=0,
    )
    assert rogue.flush(TIMEOUT_S) == 0
    rogue.abort_transaction(TIMEOUT_S)

    def work() -> list[list[str]]:
        env = os.environ | {"TOLLGATE_PREFIX": aside.prefix, "WORKER_DATABASE": str(tmp_path / "worker.sqlite")}
        command = [sys.executable, checkout / "scripts" / "examples" / "worker.py", aside.bootstrap, QUIET_S]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
        return [line.split(" ", 2) for line in done.stdout.splitlines()]

    # A worker that is too slow to join in its quiet seconds has heard nothing: it is given another chance.
    first = next(ran for _ in range(5) if (ran := work()))
    assert [words[1] for words in first if words[0] == "ran"].count(job["run_id"]) == 1
    assert "never-committed" not in {words[1] for words in first}
    assert all(words[0] == "ran" for words in first)
    # It died before it told the group: all of it is given again.
    group = Consumer({"bootstrap.servers": aside.bootstrap, "group.id": aside.topic("worker.example")})
    group.commit(
        offsets=[TopicPartition(aside.topic("jobs"), lane, 0) for lane in range(aside.lanes)], asynchronous=False
    )
    group.close()
    again = next(ran for _ in range(5) if (ran := work()))
    assert {words[1] for words in again} == {words[1] for words in first}
    assert {words[0] for words in again} == {"seen"}


# ── M-11 ──


@pytest.mark.parametrize("form", ["json", "headers", "cloudevent"])
def test_the_command_emits_a_trigger_and_waits_for_its_receipt(world: World, form: str) -> None:
    words = ("emit", NIGHTLY, "--param", "n:=1", "--form", form, "--wait", "-o", "jsonl")
    done = world.tollgate(*words, env={"TOLLGATE_TOKEN": world.ours.token()})
    receipt = json.loads(done.stdout)
    assert receipt["outcome"] == "accepted"
    (outcome,) = world.outcomes([receipt["trigger_id"]])
    assert outcome.params == {"n": 1}


def test_a_short_program_with_a_plain_client_starts_a_job(world: World, checkout: Path) -> None:
    program = checkout / "scripts" / "examples" / "emit.py"
    token = world.ours.token()
    env = os.environ | {"TOLLGATE_TOKEN": token, "TOLLGATE_PREFIX": world.prefix}
    done = subprocess.run([sys.executable, program, world.bootstrap, NIGHTLY, '{"n": 2}'], env=env, capture_output=True,
                          text=True, timeout=120, check=True)  # fmt: skip
    (outcome,) = world.outcomes([done.stdout.strip()])
    assert (outcome.verdict, outcome.params) == ("accepted", {"n": 2})
    assert "tollgate" not in imported(program)
    assert len(lines_of_code(program)) <= SHORT_LINES


def test_a_short_program_in_java_with_kafkas_own_client_starts_a_job(world: World, checkout: Path) -> None:
    asked = subprocess.run([sys.executable, "-m", "tests.support.java_command"], cwd=checkout, capture_output=True, text=True,
                           timeout=300, check=True)  # fmt: skip
    java = json.loads(asked.stdout)
    program = checkout / "scripts" / "examples" / "Emit.java"
    env = os.environ | {"TOLLGATE_TOKEN": world.ours.token(), "TOLLGATE_PREFIX": world.prefix}
    done = subprocess.run(
        [java["java"], "-cp", java["class_path"], program, world.bootstrap, NIGHTLY, '{"n": 3}'], env=env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "jdk.compiler" in done.stderr:
        pytest.skip("this Java runtime runs no source file: it has no compiler")
    assert done.returncode == 0, done.stderr
    (outcome,) = world.outcomes([done.stdout.split()[-1]])
    assert (outcome.verdict, outcome.params) == ("accepted", {"n": 3})
    assert len(lines_of_code(program)) <= SHORT_LINES + 2  # those that only close a brace


def test_a_record_made_by_hand_starts_a_job(world: World) -> None:
    value = f'{{"job": "{NIGHTLY}", "token": "{world.ours.token()}"}}'
    by_hand = world.outcomes([world.send(value.encode())])[0]
    assert [by_hand.verdict, world.present_one(by_headers(world.ours.token())).verdict] == ["accepted", "accepted"]


def imported(program: Path) -> str:
    return " ".join(line for line in program.read_text().splitlines() if line.startswith(("import ", "from ")))


def lines_of_code(program: Path) -> list[str]:
    """Less its imports, comments, documentation and what is empty."""
    text = program.read_text()
    if text.count('"""') == 2:
        text = text.split('"""')[0] + text.split('"""')[2]
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "//", "import ", "from "))]
