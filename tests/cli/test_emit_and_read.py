"""Emitters and readers around a running gate: what is sent is found again, by its receipt, its job and its audit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from app.cli.checks import gates
from app.gate.reasons import BY_CODE
from app.gate.records import Checkpoint
from app.stream.inspection import FoundCheckpoint
from tests.cli.program import PROGRAM, Said, tollgate
from tests.support.founding import found
from tests.support.gates import GateProcess, environment
from tests.support.issuer import JOB, OtherIssuer

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
PREFIX = "cli."
READ_TIMEOUT_S = 30


class Deployment:
    """A gate that runs, and an issuer it trusts."""

    def __init__(self, env: dict[str, str], issuer: OtherIssuer) -> None:
        self.env = env
        self.issuer = issuer

    def emit(self, *arguments: str, token: str | None = None) -> Said:
        return tollgate(self.env | {"TOLLGATE_TOKEN": token or self.issuer.token()}, "emit", JOB, *arguments)


@pytest.fixture(scope="module")
def deployment(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("cli")
    prefix = f"{PREFIX}{os.getpid()}."
    issuer, env = OtherIssuer(prefix), environment(broker, prefix)
    found(broker, prefix, 3, issuer, directory)
    gate = GateProcess("gate", directory, env)
    gate.start()
    yield Deployment(env, issuer)
    gate.stop()


@pytest.mark.parametrize("form", ["json", "headers", "cloudevent"])
def test_each_form_of_a_trigger_is_accepted(deployment: Deployment, form: str) -> None:
    said = deployment.emit("--form", form, "--param", "region=eu", "--correlation-id", "c-1", "--wait")
    assert said.code == 0, said.err
    receipt = said.rows[0]
    assert (receipt["outcome"], receipt["job"], receipt["correlation_id"]) == ("accepted", JOB, "c-1")


def test_the_same_key_starts_one_job_and_the_receipt_names_the_first_run(deployment: Deployment) -> None:
    first = deployment.emit("--idempotency-key", "twice", "--wait").rows[0]
    again = deployment.emit("--idempotency-key", "twice", "--wait")
    assert again.code == 0
    assert (again.rows[0]["outcome"], again.rows[0]["run_id"]) == ("duplicate", first["run_id"])


def test_a_number_in_the_key_makes_each_of_many_its_own_request(deployment: Deployment) -> None:
    said = deployment.emit("--idempotency-key", "many-{n}", "--count", "50", "--wait")
    assert said.code == 0
    assert len({row["run_id"] for row in said.rows}) == 50
    same = deployment.emit("--idempotency-key", "one", "--count", "50", "--wait")
    assert len({row["run_id"] for row in same.rows}) == 1


def test_a_trigger_with_its_key_arrives_home(deployment: Deployment) -> None:
    first = deployment.emit("--idempotency-key", "home-1").rows[0]["trigger_id"]
    again = deployment.emit("--idempotency-key", "home-1").rows[0]["trigger_id"]
    assert first.partition("-")[0] == again.partition("-")[0]


def test_the_rate_is_kept(deployment: Deployment) -> None:
    started = time.monotonic()
    assert len(deployment.emit("--count", "30", "--rate", "20").rows) == 30
    assert time.monotonic() - started >= 29 / 20


def test_a_rejected_trigger_exits_3_and_its_dead_letter_says_why(deployment: Deployment) -> None:
    now_s = int(time.time())
    expired = deployment.issuer.token(iat=now_s - 7200, nbf=now_s - 7200, exp=now_s - 3600)
    said = deployment.emit("--param", "secret=dead-letter-1", "--wait", token=expired)
    assert said.code == 3
    receipt = said.rows[0]
    assert receipt["reason"] == "token_expired"
    assert BY_CODE["token_expired"].meaning in said.err
    assert BY_CODE["token_expired"].remedy in said.err
    listed = tollgate(deployment.env, "dead-letters", "list", "--reason", "token_expired").rows
    assert receipt["trigger_id"] in {row["trigger_id"] for row in listed}
    shown = tollgate(deployment.env, "dead-letters", "show", receipt["trigger_id"])
    assert "dead-letter-1" in shown.rows[0]["value"]
    assert expired not in shown.out
    assert expired.split(".")[1] not in shown.out


def test_a_token_of_many_uses_without_a_key_is_told_that_repeats_are_new_runs(deployment: Deployment) -> None:
    assert "starts a new run" in deployment.emit().err
    assert deployment.emit("--idempotency-key", "said").err == ""
    keyed = deployment.issuer.token(key="in-token")
    once = deployment.issuer.token("once")
    assert [deployment.emit(token=token).err for token in (keyed, once)] == ["", ""]


def test_coordinates_where_nothing_is_are_told_from_those_that_cannot_be(deployment: Deployment) -> None:
    beyond = tollgate(deployment.env, "explain", "99-0")
    assert (beyond.code, beyond.out) == (5, "")
    assert "there are 3 lanes, 0 to 2" in beyond.err
    env = deployment.env | {"TOLLGATE_KAFKA__PREFIX": deployment.env["TOLLGATE_KAFKA__PREFIX"] + "empty."}
    assert tollgate(env, "topics", "create", "--lanes", "1").code == 0
    empty = tollgate(env, "explain", "0-0")
    assert empty.code == 5
    assert "is empty" in empty.err


def test_an_explanation_off_a_terminal_is_one_line_of_json_as_all_other_output(deployment: Deployment) -> None:
    trigger_id = deployment.emit("--idempotency-key", "explained", "--wait").rows[0]["trigger_id"]
    (row,) = tollgate(deployment.env, "explain", trigger_id).rows
    assert row["outcome"] == "accepted"
    assert "token_expired" in tollgate(deployment.env, "explain", trigger_id, "-o", "table").out


def test_nothing_heard_in_time_exits_124(deployment: Deployment) -> None:
    said = tollgate(deployment.env, "receipts", "--wait", "0-999999999", "--timeout", "1")
    assert said.code == 124


def test_filters_that_match_nothing_exit_5(deployment: Deployment) -> None:
    assert tollgate(deployment.env, "receipts", "--job", "no/such").code == 5
    assert tollgate(deployment.env, "dead-letters", "list", "--reason", "batch_too_large").code == 5
    assert tollgate(deployment.env, "audit", "--identity", "nobody").code == 5


def test_a_receipt_can_be_read_later_by_another_process(deployment: Deployment) -> None:
    """P-02, R-02: the emitter is gone when somebody asks by trigger id."""
    trigger_id = deployment.emit("--param", "region=eu").rows[0]["trigger_id"]
    said = tollgate(deployment.env, "receipts", "--wait", trigger_id)
    assert said.code == 0
    assert said.rows[0]["trigger_id"] == trigger_id
    assert said.rows[0]["run_id"]


def test_the_audit_tells_everything_of_a_run(deployment: Deployment) -> None:
    """O-03."""
    token = deployment.issuer.token()
    first = deployment.emit("--idempotency-key", "story", "--param", "n:=1", "--wait", token=token).rows[0]
    again = deployment.emit("--idempotency-key", "story", "--param", "n:=1", "--wait", token=token).rows[0]
    other = deployment.emit("--idempotency-key", "story", "--param", "n:=2", "--wait", token=token).rows[0]
    assert other["outcome"] == "rejected"
    story = tollgate(deployment.env, "audit", "--run", first["run_id"]).rows[0]
    assert story["emitter"] == {"issuer": "https://issuer.test", "subject": "service:ci"}
    assert story["trigger"]["id"] == first["trigger_id"]
    assert story["job"]["params"] == {"n": 1}
    assert story["token"]["kid"] == "k1"
    assert len(story["token"]["fingerprint"]) == 32
    assert [row["trigger_id"] for row in story["duplicates"]] == [again["trigger_id"]]
    assert [row["trigger_id"] for row in story["refused_reuses"]] == [other["trigger_id"]]
    assert token not in str(story)


def test_the_chains_hold_until_somebody_writes_to_the_topic(deployment: Deployment) -> None:
    deployment.emit("--count", "20", "--wait")
    said = tollgate(deployment.env, "audit", "verify")
    assert said.code == 0
    assert all(row["verdict"] == "good" for row in said.rows)
    assert sum(row["records"] for row in said.rows)
    copy = dict(deployment.env)  # a forged record goes to a lane of the same topic, so this test is last of its kind
    producer = Producer({"bootstrap.servers": copy["TOLLGATE_KAFKA__BOOTSTRAP"]})
    topic = copy["TOLLGATE_KAFKA__PREFIX"] + "audit"
    producer.produce(topic, b'{"lane":1,"sequence":99999,"previous_sha256":"00","presentations":[]}', partition=1)
    producer.flush(10)
    said = tollgate(deployment.env, "audit", "verify")
    assert said.code == 1
    assert [row["lane"] for row in said.rows if row["verdict"] == "broken"] == [1]


def test_following_ends_cleanly_on_ctrl_c(deployment: Deployment) -> None:
    deployment.emit("--wait")
    process = subprocess.Popen(
        [PROGRAM, "receipts", "--follow"], env=deployment.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    watch = threading.Timer(READ_TIMEOUT_S, process.kill)
    watch.start()
    assert process.stdout.readline().startswith("{")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    watch.cancel()
    assert (process.returncode, err) == (130, "")


def test_the_doctor_finds_nothing_bad_here(deployment: Deployment) -> None:
    said = tollgate(deployment.env, "doctor")
    assert said.code == 0, said.out
    assert {"broker", "topics", "transactions", "gates", "lag", "clock"} <= {row["what"] for row in said.rows}
    (version,) = [row["found"] for row in said.rows if row["what"] == "broker version"]
    assert re.match(r"Kafka (newer than )?\d+\.\d+ ", version)


@pytest.mark.parametrize(("topic", "mend"), [("triggers", "kafka-transactions.sh"), ("receipts", "nothing is decided")])
def test_the_doctor_names_an_open_transaction_that_holds_records_back(
    deployment: Deployment, topic: str, mend: str
) -> None:
    env = deployment.env | {"TOLLGATE_GATE__TRANSACTION_TIMEOUT_MS": "1000"}
    producer = Producer(
        {"bootstrap.servers": env["TOLLGATE_KAFKA__BOOTSTRAP"], "transactional.id": f"left-open-{topic}"}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(env["TOLLGATE_KAFKA__PREFIX"] + topic, b"{}", partition=2)
    producer.flush(10)
    try:
        said = tollgate(env, "doctor")
    finally:
        producer.abort_transaction(20)
    assert said.code == 1
    (held,) = [row for row in said.rows if row["what"].startswith("transactions on")]
    assert f"{topic}, partition 2" in held["what"]
    assert mend in held["mend"]


def test_the_doctor_tells_of_triggers_that_nobody_decides(broker: str, prefix: str, tmp_path: Path) -> None:
    issuer, env = OtherIssuer(prefix), environment(broker, prefix)
    found(broker, prefix, 2, issuer, tmp_path)
    assert Deployment(env, issuer).emit().code == 0
    said = tollgate(env, "doctor")
    assert said.code == 1
    rows = {row["what"]: row for row in said.rows}
    assert (rows["gates"]["verdict"], rows["lag"]["verdict"]) == ("bad", "warn")
    assert "nobody decides" in rows["lag"]["found"]
    assert rows["lag"]["mend"]


@pytest.mark.parametrize(
    ("moved", "written_anew", "age_s", "still"),
    [(0, False, 5, False), (0, False, 85, False), (0, False, 95, True), (0, True, 0, True), (1, True, 0, False)],
    ids=["perhaps idle before a marker", "the same", "nobody writes", "held, or failing", "at work"],
)
def test_the_doctor_tells_a_lane_that_decides_nothing_from_one_at_work(
    monkeypatch: pytest.MonkeyPatch, moved: int, written_anew: bool, age_s: int, still: bool
) -> None:
    monkeypatch.setattr(gates, "MOVES_WITHIN_S", 0.2)
    monkeypatch.setattr(gates, "LOOK_EVERY_S", 0.05)
    at_ms = int((time.time() - age_s) * 1_000)

    def one(triggers_offset: int, appended_at_ms: int) -> FoundCheckpoint:
        return FoundCheckpoint(Checkpoint(3, 4, "birth", 1, triggers_offset, 1, at_ms, ""), appended_at_ms)

    before, after = one(10, at_ms), one(10 + moved, at_ms + written_anew)
    found = gates.standing_still(lambda _: {3: after}, {3: 7}, {3: before})
    assert found == ({3} if still else set())
    row = gates.lag_of({3: 7}, found, gates=True)
    assert row.verdict == ("bad" if still else "ok")
    assert ("in lane(s) 3" in row.found) == still


def test_the_doctor_tells_of_a_lane_that_is_held(broker: str, prefix: str, tmp_path: Path) -> None:
    """It writes a checkpoint every second, so that its newest is never old."""
    issuer, env = OtherIssuer(prefix), environment(broker, prefix)
    found(broker, prefix, 1, issuer, tmp_path)
    (tmp_path / "jwks.json").unlink()
    gate = GateProcess("gate", tmp_path, env)
    gate.start()
    try:
        assert Deployment(env, issuer).emit().code == 0
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not any(event["event"] == "lane_held" for event in gate.events()):
            assert time.monotonic() < deadline, gate.events()[-3:]
            time.sleep(0.1)
        said = tollgate(env, "doctor")
    finally:
        gate.stop()
    assert said.code == 1
    (lag,) = [row for row in said.rows if row["what"] == "lag"]
    assert lag["verdict"] == "bad"
    assert "in lane(s) 0" in lag["found"]


# ── programs that are not ours (M-11, M-10) ──

EMITTERS = [("python", [sys.executable, str(EXAMPLES / "emit.py")])]
if shutil.which("javac"):
    EMITTERS.append(("java", ["java"]))


@pytest.mark.parametrize(("language", "command"), EMITTERS)
def test_the_example_emitters_start_jobs(deployment: Deployment, language: str, command: list[str]) -> None:
    env = deployment.env | {"TOLLGATE_PREFIX": deployment.env["TOLLGATE_KAFKA__PREFIX"]}
    env["TOLLGATE_TOKEN"] = deployment.issuer.token()
    if language == "java":
        from app.local.kafka import java_and_class_path

        command = [*command, "-cp", java_and_class_path()[1], str(EXAMPLES / "Emit.java")]
    arguments = [*command, env["TOLLGATE_KAFKA__BOOTSTRAP"], JOB, '{"by": "an example"}']
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=60, check=True)
    said = tollgate(deployment.env, "receipts", "--wait", done.stdout.split()[-1])
    assert said.rows[0]["outcome"] == "accepted"


def test_the_example_worker_runs_each_job_once_though_it_is_given_twice(deployment: Deployment, tmp_path: Path) -> None:
    run_ids = {row["run_id"] for row in deployment.emit("--count", "5", "--wait").rows}
    env = deployment.env | {
        "TOLLGATE_PREFIX": deployment.env["TOLLGATE_KAFKA__PREFIX"],
        "WORKER_DATABASE": str(tmp_path / "worker.sqlite"),
    }
    jobs = tollgate(deployment.env, "jobs", "tail").out.splitlines()
    producer = Producer({"bootstrap.servers": env["TOLLGATE_KAFKA__BOOTSTRAP"]})
    repeated = next(line for line in jobs if any(run_id in line for run_id in run_ids))
    producer.produce(env["TOLLGATE_PREFIX"] + "jobs", repeated.encode())  # as after a crash before the commit
    producer.flush(10)
    worker = [sys.executable, str(EXAMPLES / "worker.py"), env["TOLLGATE_KAFKA__BOOTSTRAP"], "6"]
    done = subprocess.run(worker, env=env, capture_output=True, text=True, timeout=90, check=True)
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran")]
    assert len(ran) == len(set(ran))
    assert run_ids <= set(ran)
    assert "seen" in done.stdout
