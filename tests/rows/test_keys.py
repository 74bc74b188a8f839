"""K: signing keys, the sets that publish them, their rotation, and the shared secret of development."""

from __future__ import annotations

import hmac
import json
import re
import threading
import time
from pathlib import Path

import jwt
import pytest

from tests.rows.aside import Aside
from tests.rows.jobs import NIGHTLY
from tests.rows.processes import Gate
from tests.rows.triggers import plain
from tests.rows.world import World
from tests.support.jose import b64
from tests.support.reader import read_topic

STORM = 2_000  # unknown kids; the attack's 100,000 reduced
BEHIND = 60  # good triggers sent while their issuer is out of order
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


# ── K-01 ──


def test_tokens_are_signed_with_es256_and_the_published_set_holds_public_members_only(world: World) -> None:
    header = jwt.get_unverified_header(world.issue())
    published = json.loads(world.jwks_file.read_text())["keys"]
    assert header == {"alg": "ES256", "kid": world.ours.kid, "typ": "trigger+jwt"}
    assert header["kid"] in {key["kid"] for key in published}
    assert all(key["kty"] == "EC" and PRIVATE_MEMBERS.isdisjoint(key) for key in published)


def test_no_private_key_is_found_in_the_memory_of_a_gate(world: World) -> None:
    number = world.ours.private.private_numbers().private_value
    secrets = [number.to_bytes(32, "big"), number.to_bytes(32, "little"), b"-----BEGIN PRIVATE KEY-----\nM"]
    for pid in worker_pids(world.gates[0]):
        found = found_in_memory(pid, [*secrets, world.audience.encode()])
        assert found == {world.audience.encode()}, "its audience is there, and no private key"


# ── K-02, K-07 ──


def test_a_token_of_a_shared_secret_is_refused_by_an_issuer_whose_rule_says_es256(aside: Aside) -> None:
    hs256 = aside.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--insecure-dev-hs256").stdout.strip()
    assert jwt.get_unverified_header(hs256)["alg"] == "HS256"
    assert aside.present_one(plain(hs256)).verdict == "algorithm_not_allowed"


def test_a_token_of_a_shared_secret_is_refused_where_no_secret_is_configured(world: World) -> None:
    (known,) = [key for key in json.loads(world.jwks_file.read_text())["keys"] if key["kid"] == world.ours.kid]
    for secret, kid in ((json.dumps(known), world.ours.kid), ("0" * 64, "dev")):
        header = {"alg": "HS256", "kid": kid, "typ": "trigger+jwt"}
        message = b64(json.dumps(header).encode()) + "." + b64(json.dumps(world.ours.claims()).encode())
        forged = message + "." + b64(hmac.digest(secret.encode(), message.encode(), "sha256"))
        assert world.present_one(plain(forged)).verdict == "algorithm_not_allowed"


def test_a_shared_secret_is_accepted_where_configured_and_everyone_is_told_loudly(aside: Aside) -> None:
    iss = "https://dev.rows.test"
    aside.trust(iss, aside.jwks_file, '"HS256"')
    issued = aside.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--uses", "many", "--insecure-dev-hs256",
                            "--issuer", iss)  # fmt: skip
    token = issued.stdout.strip()
    outcome = aside.until("accepted", lambda: plain(token))
    assert "INSECURE" in issued.stderr
    assert outcome.receipt["insecure"] is True
    assert [event["level"] for event in aside.gate.events() if event["event"] == "insecure_hs256"] == ["warning"]


def test_a_receipt_of_an_asymmetric_token_says_nothing_of_insecurity(aside: Aside) -> None:
    assert "insecure" not in aside.present_one(plain(aside.ours.token())).receipt


def test_there_is_no_built_in_secret(world: World) -> None:
    done = world.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--insecure-dev-hs256", code=2)
    assert not done.stdout
    assert "gate.insecure_dev_hs256" in done.stderr


@pytest.mark.parametrize(
    ("mode", "secret", "bootstrap", "complaint"),
    [
        (None, "", None, "No such file"),
        (0o600, "short", None, "32"),
        (0o644, "a" * 32, None, "everyone may read"),
        (0o600, "a" * 32, "kafka.example:9092", "kafka.example"),
    ],
    ids=["missing", "short", "readable by everyone", "broker elsewhere"],
)
def test_a_secret_that_would_be_unsafe_stops_the_start(
    world: World, tmp_path: Path, mode: int | None, secret: str, bootstrap: str | None, complaint: str
) -> None:
    file = tmp_path / "secret"
    if mode is not None:
        file.write_text(secret)
        file.chmod(mode)
    env = {"TOLLGATE_GATE__INSECURE_DEV_HS256": str(file), "TOLLGATE_TELEMETRY__PORT": "0"}
    words: tuple[str, ...] = ("gate", "--workers", "1")
    if bootstrap is not None:  # a gate would first look for that broker
        env["TOLLGATE_KAFKA__BOOTSTRAP"] = bootstrap
        words = ("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--insecure-dev-hs256")
    done = world.tollgate(*words, code=2, env=env)
    assert complaint in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_the_shared_secret_is_in_no_topic_log_or_metric(aside: Aside) -> None:
    aside.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--insecure-dev-hs256")
    secret = aside.secret.encode()
    places = {"log": aside.gate.log().encode(), "metrics": aside.metrics().encode()}
    for topic in ("triggers", "handoffs", "jobs", "receipts", "dead-letters", "audit", "registry"):
        records = read_topic(aside.bootstrap, aside.topic(topic)).records
        places[topic] = b"\n".join((r.key or b"") + (r.value or b"") + repr(r.headers).encode() for r in records)
    assert [name for name, held in places.items() if secret in held] == []


# ── K-03, X-26 ──


def test_a_storm_of_unknown_kids_costs_its_issuer_one_fetch(aside: Aside) -> None:
    (issuer,) = aside.issuer_over_https("stormy", "st1")
    aside.until("accepted", lambda: plain(issuer.token()))
    before = aside.keys.asked["stormy"]
    storm = [plain(issuer.token(header={"kid": f"unknown-{number}"}))._replace(partition=number % aside.lanes)
             for number in range(STORM)]  # fmt: skip
    outcomes = aside.present(*storm)
    assert {outcome.verdict for outcome in outcomes} == {"kid_unknown"}
    assert aside.keys.asked["stormy"] == before + 1
    assert aside.present_one(plain(issuer.token())).verdict == "accepted"


def test_a_token_of_a_key_published_a_moment_ago_is_held_for_one_fetch_and_accepted(aside: Aside) -> None:
    old, new = aside.issuer_over_https("fresh", "f1", "f2")
    aside.until("accepted", lambda: plain(old.token()))
    before = aside.keys.asked["fresh"]
    aside.publish("fresh", old, new)
    assert aside.present_one(plain(new.token())).verdict == "accepted"
    assert aside.keys.asked["fresh"] == before + 1


def test_a_key_that_one_gate_has_read_before_the_other_refuses_no_trigger_that_goes_home_to_it(aside: Aside) -> None:
    old, new = aside.issuer_over_https("rotating", "r1", "r2")
    second = aside.start_gate("second", workers=1).wait_ready()  # each has one of the two lanes, and its own keys
    try:
        aside.until("accepted", lambda: plain(old.token()))
        before = aside.keys.asked["rotating"]
        aside.publish("rotating", old, new)
        outcomes = aside.present(*(
            plain(new.token(uses="many"), idempotency_key=f"key-{number}")._replace(partition=0) for number in range(16)
        ))  # fmt: skip
        assert {outcome.verdict for outcome in outcomes} == {"accepted"}
        assert aside.keys.asked["rotating"] == before + 2, "one look of the gate they came to, one of the other's"
    finally:
        second.stop()
        aside.gate.wait_ready()


def test_the_last_good_set_serves_while_its_issuer_is_down(aside: Aside) -> None:
    (issuer,) = aside.issuer_over_https("down", "d1")
    aside.until("accepted", lambda: plain(issuer.token()))
    aside.keys.fail("down")
    strange = aside.present_one(plain(issuer.token(header={"kid": "no-such"})))  # asks the issuer, in vain
    assert strange.verdict == "kid_unknown"
    assert {o.verdict for o in aside.present(*(plain(issuer.token()) for _ in range(BEHIND)))} == {"accepted"}


@pytest.mark.parametrize(
    "body",
    [b'{"keys": []}', b"not json", b'{"keys": [{"kty": "EC", "kid": "r1", "crv": "P-256", "x": "AA", "y": "AA"}]}',
     b'{"keys": [{"kty": "oct", "kid": "r1", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}',
     b" " * (2 << 20)],
    ids=["empty", "not JSON", "off the curve", "symmetric", "2 MiB"],
)  # fmt: skip
def test_a_set_that_cannot_be_used_leaves_the_last_good_one(
    aside: Aside, body: bytes, request: pytest.FixtureRequest
) -> None:
    name = f"spoilt-{abs(hash(request.node.name)) % 10_000}"
    (issuer,) = aside.issuer_over_https(name, "r1")
    aside.until("accepted", lambda: plain(issuer.token()))
    before = aside.keys.asked[name]
    aside.keys.answers[name] = 200, body
    assert aside.present_one(plain(issuer.token(header={"kid": "no-such"}))).verdict == "kid_unknown"
    assert aside.keys.asked[name] == before + 1, "the spoilt set was read"
    assert aside.present_one(plain(issuer.token())).verdict == "accepted"


# ── K-04 ──


class Store:
    """A keystore of an issuer of its own, by the program's commands."""

    def __init__(self, world: World, directory: Path, iss: str) -> None:
        self._world, self.iss, self.jwks = world, iss, directory / "jwks.json"
        self._env = {
            "TOLLGATE_ISSUER__ISSUER": iss,
            "TOLLGATE_ISSUER__KEYS_DIR": str(directory / "keys"),
            "TOLLGATE_ISSUER__JWKS_FILE": str(self.jwks),
        }
        self.run("generate")

    def run(self, *words: str, code: int | None = 0) -> str:
        done = self._world.tollgate("keys", *words, code=code, env=self._env)
        return done.stdout + done.stderr

    def made(self, *words: str) -> dict[str, str]:
        return json.loads(self.run(*words, "-o", "jsonl").splitlines()[0])

    def tokens(self, count: int) -> list[str]:
        words = ("token", "issue", "--job", NIGHTLY, "--ttl", "10m", "--count", str(count))
        return self._world.tollgate(*words, env=self._env).stdout.split()

    def kids(self) -> set[str]:
        return {key["kid"] for key in json.loads(self.jwks.read_text())["keys"]}


def test_no_good_token_is_rejected_while_keys_rotate_under_load(world: World, tmp_path: Path) -> None:
    store = Store(world, tmp_path, "https://rotating.rows.test")
    world.apply("trust", world._trust(store.iss, store.jwks, "acme"))
    (first,) = store.tokens(1)
    world.until("accepted", lambda: plain(store.tokens(1)[0]))
    sent: list[str] = []
    signed_by: set[str] = {kid_of(first)}
    failures: list[BaseException] = []
    stop = threading.Event()

    def load() -> None:
        try:
            while not stop.is_set():
                published = store.kids()
                tokens = store.tokens(100)
                signed_by.update(map(kid_of, tokens))
                assert {kid_of(token) for token in tokens} <= published, "a key signed before it was published"
                sent.extend(world.send_all(plain(token) for token in tokens))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(2):
            kid = store.made("rotate", "--overlap", "2s")["kid"]
            while kid not in signed_by and not failures:
                time.sleep(0.1)
    finally:
        stop.set()
        thread.join()
    assert not failures, failures[0]
    assert len(signed_by) == 3
    assert {outcome.verdict for outcome in world.outcomes(sent)} == {"accepted"}

    # The old keys' tokens may still be honoured, so that they stay published; in an emergency they are cut off.
    oldest = kid_of(first)
    assert "emergency" in store.run("retire", oldest, code=1)
    assert oldest in store.kids()


def test_a_rotated_key_is_published_at_once_and_signs_when_its_overlap_is_over(world: World, tmp_path: Path) -> None:
    store = Store(world, tmp_path, "https://overlapping.rows.test")
    (before,) = store.kids()
    new = store.made("rotate", "--overlap", "10m")
    assert store.kids() == {before, new["kid"]}
    assert new["status"] == "next"
    assert kid_of(store.tokens(1)[0]) == before


def test_an_emergency_removal_cuts_a_keys_tokens_off_at_once(world: World, tmp_path: Path) -> None:
    store = Store(world, tmp_path, "https://leaking.rows.test")
    world.apply("trust", world._trust(store.iss, store.jwks, "acme"))
    leaked = store.tokens(40)
    world.until("accepted", lambda: plain(leaked.pop()))
    kid = kid_of(leaked[0])
    store.run("retire", kid, "--emergency")
    (revoked,) = world.rows("token", "revoke", "--kid", kid, "--issuer", store.iss)
    cut_ms = appended_at_ms(world, "revocations", revoked["offset"])
    assert kid not in store.kids()
    deadline = time.monotonic() + 60
    while True:  # a gate's view is never older than a second when it decides
        outcome = world.present_one(plain(leaked.pop() if len(leaked) > 1 else leaked[0]))
        if outcome.verdict in {"kid_unknown", "token_revoked"}:
            break
        assert outcome.job["trigger"]["appended_at_ms"] <= cut_ms + 1_000
        assert time.monotonic() < deadline
    assert {o.verdict for o in world.present(*(plain(leaked[0])._replace(partition=lane) for lane in range(world.lanes)))} <= {
        "kid_unknown", "token_revoked",
    }  # fmt: skip
    assert world.present_one(plain(store.tokens(1)[0])).verdict == "accepted", "its successor signs"


def test_a_key_that_is_removed_and_nothing_else_is_honoured_no_longer(world: World, tmp_path: Path) -> None:
    store = Store(world, tmp_path, "https://removing.rows.test")
    world.apply("trust", world._trust(store.iss, store.jwks, "acme"))
    old = store.tokens(60)
    world.until("accepted", lambda: plain(old.pop()))
    store.run("retire", kid_of(old[0]), "--emergency")
    world.until("kid_unknown", lambda: plain(old.pop() if len(old) > 1 else old[0]))
    assert world.present_one(plain(store.tokens(1)[0])).verdict == "accepted", "its successor signs"


# ── leaves ──


def appended_at_ms(world: World, topic: str, offset: int) -> int:
    """When the broker got a record, as told by its client's clock: the topic has producers' times, on one machine."""
    (at_ms,) = [r.timestamp_ms for r in read_topic(world.bootstrap, world.topic(topic)).records if r.offset == offset]
    return at_ms


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def worker_pids(gate: Gate) -> list[int]:
    """The processes of a gate that decide: its children, or itself when it has none."""
    assert gate.process is not None
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, parent in parents.items() if parent == gate.process.pid] or [gate.process.pid]


def found_in_memory(pid: int, needles: list[bytes]) -> set[bytes]:
    """Which of the needles stand in the writable memory of a process."""
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if span is None or "[v" in line:
                continue
            start, end = int(span[1], 16), int(span[2], 16)
            try:
                memory.seek(start)
                held = memory.read(end - start)
            except (OSError, ValueError):
                continue
            found.update(needle for needle in needles if needle in held)
    return found
