"""The gate and every command as the principals that run them, over SASL: what each may do works, the rest is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AclBindingFilter, AclPermissionType

from app.local.secured import add_acls, bindings_of
from app.stream.access import ROLES, Grant, Operation, Role, grants
from tests.support.doors import DoorProcess, Emitter
from tests.support.emitting import trigger
from tests.support.gates import COMMAND, GateProcess, environment
from tests.support.issuer import JOB, OtherIssuer
from tests.support.secured import STRANGER, Secured

pytestmark = pytest.mark.broker

LANES = 2
TIMEOUT_S = 120
OK, FAILED, NOT_ALLOWED, NOTHING, REJECTED = 0, 1, 4, 5, 3


class Programs:
    """A deployment on the secured broker, and its commands run as somebody."""

    def __init__(self, secured: Secured, prefix: str, directory: Path, lanes: int = LANES) -> None:
        self.secured, self.prefix, self.directory, self.lanes = secured, prefix, directory, lanes
        self.files = secured.settings_files(prefix)
        self.issuer = OtherIssuer(prefix)
        jobs, trust = self.issuer.write_files(directory)
        self.ok(Role.ADMIN, "topics", "create", "--lanes", str(lanes))
        self.ok(Role.OPS, "jobs", "apply", str(jobs))
        self.ok(Role.OPS, "trust", "apply", str(trust))
        (directory / "identities.toml").write_text('[identities."svc:known"]\nroles = ["any"]\n')
        (directory / "policy.toml").write_text(f'[roles.any]\nallow = [{{ jobs = ["{JOB}"] }}]\n')
        self.ok(Role.OPS, "identities", "apply", "identities.toml")
        self.ok(Role.OPS, "policy", "apply", "policy.toml")
        (directory / "known").write_text(self.ok(Role.OPS, "identities", "rotate", "svc:known"))
        self.ok(Role.ISSUER, "keys", "generate")

    def environment(self, user: str) -> dict[str, str]:
        return environment(self.secured.bootstrap, self.prefix) | {"TOLLGATE_CONFIG": str(self.files[user])}

    def run(self, user: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words], env=self.environment(user), cwd=self.directory, input=stdin, capture_output=True,
            text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def ok(self, user: str, *words: str, stdin: str = "") -> str:
        done = self.run(user, *words, stdin=stdin)
        assert done.returncode == OK, (user, words, done.stdout, done.stderr)
        return done.stdout

    def gate(self) -> GateProcess:
        return GateProcess("gate", self.directory, self.environment(Role.GATE))

    def emit(self, token: str, *words: str) -> tuple[int, dict[str, str]]:
        """As an emitter; the exit code and the receipt."""
        done = self.run(Role.EMITTER, "emit", JOB, "--token-file", "-", "--wait", *words, stdin=token)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def programs(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    founded = Programs(secured, "programs.", tmp_path_factory.mktemp("programs"))
    gate = founded.gate()
    gate.start()
    try:
        yield founded
    finally:
        gate.stop()
    assert not [event for event in gate.events() if event["event"] in {"lane_fenced", "lane_stopped", "commit_unknown"}]


@pytest.fixture(scope="module")
def story(programs: Programs) -> dict[str, str]:
    """A job and a refusal that commands can tell of."""
    token = programs.issuer.token("once")
    _, accepted = programs.emit(token)
    code, rejected = programs.emit(token, "--param", "n=1")
    assert (accepted["outcome"], code, rejected["reason"]) == ("accepted", REJECTED, "token_already_used")
    file = programs.directory / "a-trigger.json"
    file.write_text(json.dumps({"job": JOB, "token": programs.issuer.token()}))
    handle = programs.directory / "a-handle"
    handle.write_text(programs.ok(Role.ISSUER, *ISSUE, "--reference"))
    programs.ok(Role.ISSUER, "token", "revoke", "--issuer", "https://x.test", "--jti", "lifted")
    return {
        "accepted": accepted["trigger_id"],
        "rejected": rejected["trigger_id"],
        "run": accepted["run_id"],
        "file": str(file),
        "handle": str(handle),
    }


ISSUE = ("token", "issue", "--job", JOB, "--ttl", "5m")

# What the table of roles names → how it is run here, and the exit code.
RUNS: dict[str, tuple[tuple[str, ...], int]] = {
    "receipts": (("receipts", "--wait", "{accepted}"), OK),
    "jobs tail": (("jobs", "tail"), OK),
    "jobs apply": (("jobs", "apply", "jobs.toml"), OK),
    "jobs list": (("jobs", "list"), OK),
    "jobs remove": (("jobs", "remove", "nobody's"), NOTHING),
    "trust apply": (("trust", "apply", "trust.toml"), OK),
    "trust list": (("trust", "list"), OK),
    "trust register": (("trust", "register", "emitter:ci", "--jwks", "jwks.json", "--job", JOB), OK),
    "trust remove": (("trust", "remove", "emitter:ci"), OK),
    "allowlist suggest": (("allowlist", "suggest", JOB), OK),
    "identities apply": (("identities", "apply", "identities.toml"), OK),
    "identities rotate": (("identities", "rotate", "svc:known"), OK),
    "identities list": (("identities", "list"), OK),
    "identities disable": (("identities", "disable", "svc:known"), OK),
    "identities enable": (("identities", "enable", "svc:known"), OK),
    "identities remove": (("identities", "remove", "svc:nobody"), NOTHING),
    "policy apply": (("policy", "apply", "policy.toml"), OK),
    "policy show": (("policy", "show"), OK),
    "policy remove": (("policy", "remove", "roles.nobodys"), NOTHING),
    "token issue --as": (
        ("token", "issue", "--as", "svc:known", "--job", JOB, "--ttl", "5m", "--secret-file", "known"),
        OK,
    ),
    "audit issuance": (("audit", "issuance"), OK),
    "token issue --reference": ((*ISSUE, "--reference"), OK),
    "token issue --bound-to": ((*ISSUE, "--bound-to", f"job/{JOB}"), OK),
    "token inspect": (("token", "inspect", "--token-file", "{handle}"), OK),
    "token inspect --no-uses": (("token", "inspect", "--token-file", "{handle}", "--no-uses"), OK),
    "revocations list": (("revocations", "list"), OK),
    "revocations lift": (("revocations", "lift", "jti", "lifted", "--issuer", "https://x.test"), OK),
    "revocations clean": (("revocations", "clean"), OK),
    "token revoke": (("token", "revoke", "--issuer", "https://x.test", "--jti", "nobody's"), OK),
    "dead-letters": (("dead-letters", "show", "{rejected}"), OK),
    "audit": (("audit", "--run", "{run}"), OK),
    "audit verify": (("audit", "verify"), OK),
    "explain FILE": (("explain", "{file}"), OK),
    "explain TRIGGER": (("explain", "{accepted}"), OK),
    "topics check": (("topics", "check"), OK),
    "topics create": (("topics", "create"), OK),
    "topics accept-gap": (("topics", "accept-gap", "0", "--reason", "none"), NOTHING),
    "topics accept-gap --yes": (("topics", "accept-gap", "0", "--reason", "none", "--yes"), NOTHING),  # takes the lock
    "doctor": (("doctor",), OK),
}
RUN_BY_FIXTURES = {"gate", "emit", "serve"}


@pytest.mark.parametrize(
    ("role", "command"),
    [(role, command) for role, about in ROLES.items() for command in about.commands if command not in RUN_BY_FIXTURES],
)
def test_a_command_works_as_the_role_that_runs_it(
    programs: Programs, story: dict[str, str], role: Role, command: str
) -> None:
    words, code = RUNS[command]
    done = programs.run(role, *(word.format(**story) for word in words))
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "allow" not in done.stderr


@pytest.mark.parametrize("issues", ["false", "true"])
def test_the_door_works_as_its_own_role_and_issues_only_as_an_issuer_too(programs: Programs, issues: str) -> None:
    env = programs.environment(Role.API) | {"TOLLGATE_SERVE__ISSUES": issues}
    door = DoorProcess(f"door-{issues}", programs.directory, env)
    door.start()
    if issues == "true":
        assert door.wait(60) == NOT_ALLOWED
        assert "does not allow us this" in door.log_file.read_text()
        return
    try:
        door.wait_ready()
        emitter = Emitter(door.url, programs.issuer.token())
        receipt = emitter.decided(JOB, {"n": 1}, idempotency_key="over-http")
        assert receipt["outcome"] == "accepted"
        assert emitter.receipt(receipt["trigger_id"]) == receipt
        told = emitter.post("/v1/explain", json={"job": JOB, "params": {"n": 1}, "idempotency_key": "over-http"}).json()
        assert (told["outcome"], told["run_id"]) == ("duplicate", receipt["run_id"])
        assert emitter.get("/v1/tokens").status_code == 404
        emitter.close()
    finally:
        assert door.stop() == 0


REFUSALS = [
    (Role.EMITTER, "jobs tail", "jobs"),
    (Role.EMITTER, "token revoke", "revocations"),
    (Role.EMITTER, "token issue --reference", "grants"),
    (Role.WORKER, "token inspect", "grants"),
    (Role.ISSUER, "revocations list", "revocations"),
    (Role.EMITTER, "jobs apply", "registry"),
    (Role.WORKER, "receipts", "receipts"),
    (Role.WORKER, "dead-letters", "dead-letters"),
    (Role.OPS, "explain TRIGGER", "triggers"),
    (Role.OPS, "topics accept-gap --yes", "lane-0"),
    (Role.AUDITOR, "jobs apply", "registry"),
    (Role.ISSUER, "audit", "audit"),
    (STRANGER, "topics check", "triggers"),
]


@pytest.mark.parametrize(("user", "command", "named"), REFUSALS)
def test_a_command_that_is_not_allowed_says_so_and_names_what_is_missing(
    programs: Programs, story: dict[str, str], user: str, command: str, named: str
) -> None:
    words, _ = RUNS[command]
    done = programs.run(user, *(word.format(**story) for word in words))
    assert done.returncode == NOT_ALLOWED, (done.stdout, done.stderr)
    assert f"{programs.prefix}{named}" in done.stderr
    assert "allow" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_worker_cannot_emit_and_a_stranger_cannot_run_a_gate(programs: Programs) -> None:
    done = programs.run(Role.WORKER, "emit", JOB, "--token-file", "-", stdin=programs.issuer.token())
    assert (done.returncode, done.stdout) == (NOT_ALLOWED, "")
    for user in (STRANGER, Role.OPS, Role.ADMIN):
        gate = GateProcess(f"gate-of-{user}", programs.directory, programs.environment(user))
        gate.start()
        try:
            if user == STRANGER:
                assert gate.wait(60) == NOT_ALLOWED
                continue
            # These may see that the topics are right. Whatever they get to, no lane of theirs decides anything.
            time.sleep(3)
            assert not [each for each in gate.events() if each["event"] == "lane_taken"]
        finally:
            if gate.alive:
                gate.stop()
    assert programs.emit(programs.issuer.token())[0] == OK


@pytest.mark.parametrize("user", [Role.EMITTER, Role.OPS, STRANGER])
@pytest.mark.parametrize("wrong", ["password", "mechanism", "protocol"])
def test_a_login_that_fails_says_what_to_check(programs: Programs, user: str, wrong: str) -> None:
    bad = programs.directory / "bad.password"
    bad.write_text("not it")
    changed = {
        "password": {"TOLLGATE_KAFKA__SASL_PASSWORD_FILE": str(bad)},
        "mechanism": {"TOLLGATE_KAFKA__SASL_MECHANISM": "SCRAM-SHA-256"},
        "protocol": {"TOLLGATE_KAFKA__SECURITY_PROTOCOL": "PLAINTEXT"},
    }[wrong]
    done = subprocess.run(
        [*COMMAND, "receipts"], env=programs.environment(user) | changed, cwd=programs.directory, capture_output=True,
        text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == (FAILED if wrong == "protocol" else NOT_ALLOWED), done.stderr
    assert "kafka.security_protocol" in done.stderr
    assert ("credentials" in done.stderr) == (wrong != "protocol")
    assert "not it" not in done.stderr


# ── what a stranger on the cluster cannot do to a running gate ──


def test_nobody_takes_back_a_revocation_but_who_may_revoke(programs: Programs) -> None:
    token = programs.issuer.token("many")
    assert programs.emit(token)[0] == OK
    jti = OtherIssuer.claims_of(token)["jti"]
    revoked = json.loads(programs.ok(Role.ISSUER, "token", "revoke", "--issuer", OtherIssuer.issuer, "--jti", jti))
    key = json.dumps([revoked["issuer"], "jti", jti], separators=(",", ":")).encode()
    for user in (Role.EMITTER, Role.WORKER, Role.GATE, Role.AUDITOR, Role.ADMIN, STRANGER):
        refused(programs, user, "revocations", 0, key, None)
    deadline = time.monotonic() + 30
    while (seen := programs.emit(token, "--idempotency-key", f"k{time.monotonic()}"))[1]["reason"] != "token_revoked":
        assert time.monotonic() < deadline, seen
    # The other side of it: who may revoke may un-revoke, by a tombstone.
    producer = Producer(programs.secured.client(Role.OPS))
    producer.produce(f"{programs.prefix}revocations", None, key, partition=0)
    assert producer.flush(30) == 0
    while (seen := programs.emit(token, "--idempotency-key", f"k{time.monotonic()}"))[1]["outcome"] != "accepted":
        assert time.monotonic() < deadline + 30, seen


def test_nobody_frees_a_used_token_by_a_tombstone(programs: Programs) -> None:
    token = programs.issuer.token("once")
    code, first = programs.emit(token)
    assert (code, first["outcome"]) == (OK, "accepted")
    for lane in range(LANES):
        for user in (Role.EMITTER, Role.WORKER, Role.OPS, Role.ADMIN, STRANGER):
            refused(programs, user, "idempotency", lane, b"\0" * 16, None)
    code, again = programs.emit(token)
    assert (again["outcome"], again["run_id"]) == ("duplicate", first["run_id"])


@pytest.mark.parametrize("topic", ["jobs", "handoffs", "receipts", "registry", "checkpoints"])
def test_an_emitter_writes_nothing_that_starts_a_job(programs: Programs, topic: str) -> None:
    refused(programs, Role.EMITTER, topic, 0, b"k", b"{}")


def test_a_stranger_who_wants_a_lanes_lock_is_refused_and_the_lane_never_notices(programs: Programs) -> None:
    for user in (STRANGER, Role.EMITTER, Role.WORKER, Role.OPS):
        for lane in range(LANES):
            thief = Producer(programs.secured.client(user, transactional_id=f"{programs.prefix}lane-{lane}"))
            with pytest.raises(KafkaException, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
                thief.init_transactions(30)
    assert programs.emit(programs.issuer.token())[0] == OK  # the fixture sees that no lane was ever fenced


def refused(programs: Programs, user: str, topic: str, partition: int, key: bytes, value: bytes | None) -> None:
    heard = []
    producer = Producer(programs.secured.client(user, enable_idempotence=False))
    producer.produce(
        f"{programs.prefix}{topic}", value, key, partition=partition, on_delivery=lambda error, _: heard.append(error)
    )
    assert producer.flush(30) == 0
    assert heard[0] is not None
    assert heard[0].name() == "TOPIC_AUTHORIZATION_FAILED"


# ── a gate that lacks one grant ──


def lacking() -> list[Grant]:
    """Each grant of the gate, one operation at a time, but for those its others imply."""
    return [
        grant._replace(operations=(operation,))
        for grant in grants("lacking.")
        for operation in grant.operations
        if grant.role is Role.GATE and operation is not Operation.DESCRIBE
        # Settings are all asked in one request; one topic stands for them.
        and (operation is not Operation.DESCRIBE_CONFIGS or grant.name == "lacking.triggers")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lame(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(secured, "lacking.", tmp_path_factory.mktemp("lacking"))


@pytest.mark.slow
@pytest.mark.parametrize("grant", lacking(), ids=lambda grant: f"{grant.name}-{grant.operations[0]}")
def test_a_gate_that_lacks_a_grant_says_which_and_decides_everything_once_it_has_it(
    lame: Programs, grant: Grant
) -> None:
    """It names the resource, in its log or as it ends; and nothing it was sent meanwhile is lost or done twice."""
    superuser = lame.secured.superuser()
    (binding,) = bindings_of(grant)
    one = AclBindingFilter(
        binding.restype, binding.name, binding.resource_pattern_type, binding.principal, None, binding.operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip
    for taken in superuser.delete_acls([one]).values():
        assert len(taken.result(30)) == 1
    gate = lame.gate()
    shutil.rmtree(lame.directory / "gate-state", ignore_errors=True)  # so that the changelog is read
    already = len(gate.log_file.read_text()) if gate.log_file.exists() else 0
    sent = emitted(lame, f"{grant.name}-{binding.operation}")
    gate.start()
    try:
        deadline = time.monotonic() + 40
        while not re.search(rf"{re.escape(grant.name)}\b|{re.escape(grant.name)}\d", said(gate, already)):
            assert time.monotonic() < deadline, said(gate, already)[-3_000:]
            time.sleep(0.1)
        assert "uthoriz" in said(gate, already) or "allow" in said(gate, already), said(gate, already)
        add_acls(superuser, [grant])
        if "does not allow us" in said(gate, already):  # its last word
            gate.wait()
            gate.start()
        done = lame.run(
            Role.EMITTER, "receipts", *(word for each in sent for word in ("--wait", each)), "--timeout", "60"
        )
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["trigger_id"] for row in rows] == sent, done.stderr
        assert [row["reason"] or row["outcome"] for row in rows] == ["accepted", "duplicate"] * 3 + ["token_malformed"]
    finally:
        add_acls(superuser, [grant])
        if gate.alive:
            gate.stop()


def emitted(lame: Programs, name: str) -> list[str]:
    """Three requests, each twice, to both lanes, so that some are away from home; and one without a good token."""
    tokens = [lame.issuer.token(key=None) for _ in range(3)]
    values = [trigger(lame.issuer, f"{name}-{number // 2}", token=tokens[number // 2]) for number in range(6)]
    ids: list[str] = []
    producer = Producer(lame.secured.client(Role.EMITTER))
    for value in (*values, json.dumps({"job": JOB, "token": "no.good.token"}).encode()):
        producer.produce(
            f"{lame.prefix}triggers", value, partition=len(ids) // 2 % LANES,
            on_delivery=lambda error, sent: ids.append(f"{sent.partition()}-{sent.offset()}") if error is None else None,
        )  # fmt: skip
        assert producer.flush(30) == 0
    return ids


def said(gate: GateProcess, already: int) -> str:
    """What it told, less the line that names all it was started with."""
    return "\n".join(line for line in gate.log_file.read_text()[already:].splitlines() if "gate_started" not in line)
