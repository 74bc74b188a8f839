"""Rows T-03, X-08 and the rest of X-10: handles, what tokens are bound to, and revocations taken back."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.aside import Aside
from tests.rows.issuers import Issuer
from tests.rows.jobs import NIGHTLY, OTHER
from tests.rows.triggers import by_headers, plain
from tests.rows.world import World
from tests.support.jose import b64, changed, public_jwk, signed
from tests.support.reader import read_topic

NOTHING_MATCHED, FAILED, USAGE, NOT_ALLOWED = 5, 1, 2, 4
STORM = 2_000
FRESH = 100
TOPICS = (
    "triggers", "handoffs", "jobs", "receipts", "dead-letters", "audit", "idempotency", "checkpoints", "registry", "revocations",
    "issuance", "grants",
)  # fmt: skip


def new_handle() -> str:
    return "ref:" + b64(secrets.token_bytes(32))


def hash_of(handle: str) -> str:
    return hashlib.sha256(handle.encode()).hexdigest()


def write(world: World, topic: str, key: str, value: str | None) -> None:
    """As whoever may write there, by a plain client; committed when it returns."""
    heard: list[Any] = []
    producer = Producer({"bootstrap.servers": world.bootstrap, "acks": "all", "linger.ms": 0})
    producer.produce(world.topic(topic), value, key, partition=0, on_delivery=lambda error, _: heard.append(error))
    assert producer.flush(30) == 0
    assert heard == [None]


def grant(
    issuer: Issuer, handle: str, uses: str = "once", private: ec.EllipticCurvePrivateKey | None = None, **claims: Any
) -> str:
    """What a handle stands for, made by hand: with one difference from a good one."""
    return signed(
        json.dumps(issuer.header | {"typ": "grant+jwt"}).encode(),
        json.dumps(changed(issuer.claims(uses=uses) | {"handle_sha256": hash_of(handle)}, claims)).encode(),
        private or issuer.private,
    )


# ── T-03 ──


def test_a_handle_and_a_token_for_one_job_have_the_same_authority(world: World) -> None:
    options = ("--param", "region=eu", "--uses", "many")
    token, handle = world.issue(NIGHTLY, *options), world.issue(NIGHTLY, *options, "--reference")
    assert handle.startswith("ref:")
    assert len(base64.urlsafe_b64decode(handle[4:] + "=")) * 8 >= 128
    by_token, by_handle, in_header = world.present(
        plain(token, NIGHTLY, {"n": 1}), plain(handle, NIGHTLY, {"n": 1}), by_headers(handle, NIGHTLY, {"n": 1})
    )
    for outcome in (by_token, by_handle, in_header):
        assert outcome.verdict == "accepted"
        assert outcome.params == {"region": "eu", "n": 1}
    alike = ("job", "definition_version", "org_id", "params", "identity", "timeout_s")
    assert {name: by_handle.job[name] for name in alike} == {name: by_token.job[name] for name in alike}
    assert by_handle.receipt["emitter"] == by_token.receipt["emitter"]
    assert by_handle.job["token"]["fingerprint"] == hash_of(handle)[:32]
    refused = world.present(plain(token, OTHER), plain(handle, OTHER), plain(token, NIGHTLY, {"region": "us"}),
                            plain(handle, NIGHTLY, {"region": "us"}))  # fmt: skip
    assert [outcome.verdict for outcome in refused] == ["job_not_authorized"] * 2 + ["param_conflict"] * 2


def test_a_one_shot_handle_is_used_once_wherever_it_arrives(world: World) -> None:
    handle = world.issue(NIGHTLY, "--reference")
    seen = world.present(*(plain(handle)._replace(partition=lane) for lane in range(world.lanes)))
    assert Counter(outcome.verdict for outcome in seen) == {"accepted": 1, "duplicate": world.lanes - 1}
    assert len({outcome.run_id for outcome in seen}) == 1
    assert world.present_one(plain(handle, NIGHTLY, {"other": 1})).verdict == "token_already_used"


def test_handles_work_after_a_restart_with_no_issuer_anywhere(broker: str, tmp_path: Path) -> None:
    with World(broker, tmp_path, lanes=2) as small:
        handle = small.issue(NIGHTLY, "--uses", "many", "--reference")
        gate = small.start_gate(workers=1).wait_ready()
        assert small.present_one(plain(handle)).verdict == "accepted"
        gate.stop()
        for pem in small.keys_dir.iterdir():  # nobody can sign any more; the gate has public keys only
            pem.unlink()
        waited = small.send(plain(handle).value, partition=0)
        gate.start().wait_ready()
        after = small.outcomes([waited]) + small.present(*(plain(handle)._replace(partition=lane) for lane in (0, 1)))
        assert [outcome.verdict for outcome in after] == ["accepted"] * 3


def test_an_unknown_handle_is_told_from_one_of_an_expired_grant(world: World) -> None:
    expired, now_s = new_handle(), int(time.time())
    past = {"iat": now_s - 7_200, "nbf": now_s - 7_200, "exp": now_s - 3_600}
    write(world, "grants", hash_of(expired), grant(world.ours, expired, **past))
    malformed = new_handle()[:-1]
    seen = world.present(plain(new_handle()), plain(expired), plain(malformed))
    assert [outcome.verdict for outcome in seen] == ["token_unknown", "token_expired", "token_malformed"]
    assert {outcome.stage for outcome in seen} == {"verify"}
    assert seen[0].receipt["emitter"] is None
    assert seen[0].receipt["detail"] is None


def test_a_handle_may_be_used_the_moment_its_grant_is_committed(world: World) -> None:
    handles = [new_handle() for _ in range(FRESH)]
    ids = []
    for number, handle in enumerate(handles):
        write(world, "grants", hash_of(handle), grant(world.ours, handle))
        ids.append(world.send(plain(handle).value, partition=number % world.lanes))
    assert Counter(outcome.verdict for outcome in world.outcomes(ids)) == {"accepted": FRESH}


def test_a_storm_of_unknown_handles_is_refused_and_honest_triggers_pass(world: World) -> None:
    honest = [plain(world.issue(NIGHTLY, "--reference")), plain(world.ours.token())]
    strangers = [plain(new_handle()) for _ in range(STORM)]
    seen = world.present(*strangers[: STORM // 2], *honest, *strangers[STORM // 2 :])
    assert Counter(outcome.verdict for outcome in seen) == {"token_unknown": STORM, "accepted": 2}


@pytest.fixture(scope="module")
def forged(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A deployment whose grants somebody writes to who may not."""
    with World(broker, tmp_path_factory.mktemp("forged"), lanes=1) as founded:
        founded.start_gate(workers=1).wait_ready()
        yield founded


def test_who_can_write_grants_and_has_no_key_makes_no_handle(forged: World) -> None:
    world = forged
    stranger, good = ec.generate_private_key(ec.SECP256R1()), new_handle()
    copied = grant(world.ours, good)
    claims = world.ours.claims()
    unsigned = ".".join(b64(json.dumps(part).encode()) for part in ({"alg": "none", "typ": "grant+jwt"}, claims)) + "."
    attempts = {
        "signature_invalid": lambda handle: grant(world.ours, handle, private=stranger),
        "issuer_untrusted": lambda handle: grant(world.ours, handle, private=stranger, iss="https://stranger.example"),
        "token_type_invalid": lambda _: world.ours.token(),
        "token_unknown": lambda _: copied,
        "token_malformed": lambda _: unsigned,
    }
    presented = {}
    for verdict, make in attempts.items():
        handle = new_handle()
        write(world, "grants", hash_of(handle), make(handle))
        presented[verdict] = plain(handle)
    odd = new_handle()
    write(world, "grants", hash_of(odd), json.dumps(claims))
    seen = world.present(*presented.values(), plain(odd))
    assert [outcome.verdict for outcome in seen] == [*presented, "token_unknown"]
    # Nor is a grant a token, for whoever reads it off the topic; and the handle it was made for still works.
    write(world, "grants", hash_of(good), copied)
    assert world.present_one(plain(grant(world.ours, new_handle()))).verdict == "token_type_invalid"
    assert world.present_one(plain(good)).verdict == "accepted"


def test_a_tombstone_makes_a_handle_stand_for_nothing(world: World) -> None:
    handle = world.issue(NIGHTLY, "--uses", "many", "--reference")
    world.until("accepted", lambda: plain(handle))
    write(world, "grants", hash_of(handle), None)
    world.until("token_unknown", lambda: plain(handle))


def test_the_commands_take_handles(world: World) -> None:
    handle = world.issue(NIGHTLY, "--uses", "many", "--reference")
    (shown,) = world_rows(world, "token", "inspect", "--token-file", "-", stdin=handle)
    assert shown["unverified_header"]["typ"] == "grant+jwt"
    assert shown["unverified_claims"]["handle_sha256"] == hash_of(handle)
    assert shown["fingerprint"] == hash_of(handle)[:32]
    (verified,) = world_rows(world, "token", "verify", "--token-file", "-", stdin=handle)
    assert (verified["valid"], verified["fingerprint"]) == (True, hash_of(handle)[:32])
    done = world.tollgate("emit", NIGHTLY, "--token-file", "-", "--wait", "-o", "jsonl", stdin=handle)
    receipt = json.loads(done.stdout)
    assert receipt["outcome"] == "accepted"
    file = world.directory / "presented.json"
    file.write_text(json.dumps(plain(handle).value))
    (told,) = [json.loads(line) for line in world.tollgate("explain", str(file), "-o", "jsonl").stdout.splitlines()]
    assert (told["outcome"], told["facts"]["token_fingerprint"]) == ("accepted", hash_of(handle)[:32])

    (revoked,) = world_rows(world, "token", "revoke", "--token-file", "-", stdin=handle)
    assert (revoked["selector"], revoked["value"]) == ("jti", shown["unverified_claims"]["jti"])
    world.until("token_revoked", lambda: plain(handle))
    for words in (("inspect",), ("verify",), ("revoke",)):
        unknown = new_handle()
        said = world.tollgate("token", *words, "--token-file", "-", stdin=unknown, code=FAILED)
        assert "token_unknown" in said.stderr
        assert unknown not in said.stdout + said.stderr
    assert handle not in done.stdout + done.stderr + json.dumps([shown, verified, revoked, told])


def world_rows(world: World, *words: str, stdin: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.tollgate(*words, "-o", "jsonl", stdin=stdin).stdout.splitlines()]


def test_many_handles_are_issued_at_once_and_each_is_good(world: World) -> None:
    done = world.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "10m", "--reference", "--count", "1200")
    handles = done.stdout.split()
    assert len(set(handles)) == 1_200
    seen = world.present(*(plain(handle) for handle in handles[::100]))
    assert {outcome.verdict for outcome in seen} == {"accepted"}


def test_without_a_broker_no_handle_is_printed(world: World) -> None:
    done = world.tollgate(
        "token", "issue", "--job", NIGHTLY, "--ttl", "10m", "--reference",
        env={"TOLLGATE_KAFKA__BOOTSTRAP": "127.0.0.1:1"}, code=FAILED,
    )  # fmt: skip
    assert done.stdout == ""


def test_a_handle_stands_nowhere_but_where_it_was_presented(world: World) -> None:
    kept = world.issue(NIGHTLY, "--uses", "many", "--reference")
    unknown, elsewhere = new_handle(), world.issue(NIGHTLY, "--reference")
    world.present(
        plain(kept), plain(kept, OTHER), plain(unknown), by_headers(unknown), plain(kept, NIGHTLY, {"x": elsewhere}),
        plain(unknown)._replace(key=unknown), plain(unknown, surprise=elsewhere),
        plain(kept)._replace(headers=[("x-mine", kept)]),
    )  # fmt: skip
    written = b"".join(
        part
        for topic in TOPICS[1:]
        for record in read_topic(world.bootstrap, world.topic(topic)).records
        for part in (record.key or b"", record.value or b"", *(content or b"" for _, content in record.headers))
    ) + b"".join(gate.log().encode() for gate in world.gates)
    for handle in (kept, unknown, elsewhere):
        secret = handle[4:].encode()
        for form in (secret, base64.b64encode(handle.encode())[4:-4], secret.hex().encode()):
            assert form not in written
        assert hash_of(handle)[:32].encode() in written


# ── X-08 ──


@pytest.fixture(scope="module")
def device_jwks(world: World) -> Path:
    file = world.directory / "device.json"
    file.write_text(json.dumps({"keys": [public_jwk("device-1", ec.generate_private_key(ec.SECP256R1()))]}))
    return file


@pytest.fixture
def device(world: World, device_jwks: Path) -> Iterator[str]:
    """A device that is registered, by its name."""
    name = f"device:{secrets.token_hex(4)}"
    register(world, name, device_jwks)
    yield name
    world.tollgate("trust", "remove", name, code=None)


def register(world: World, name: str, jwks: Path) -> None:
    world.tollgate("trust", "register", name, "--jwks", str(jwks), "--job", NIGHTLY)


def test_a_token_dies_with_the_object_it_is_bound_to_and_stays_dead(
    world: World, device: str, device_jwks: Path
) -> None:
    bound = ("--bound-to", f"trust/{device}", "--uses", "many")
    token, handle, free = world.issue(NIGHTLY, *bound), world.issue(NIGHTLY, *bound, "--reference"), world.ours.token()
    for presented in (token, handle):
        world.until("accepted", lambda presented=presented: plain(presented))
    register(world, device, device_jwks)  # again: changed is not made anew
    assert world.present_one(plain(token)).verdict == "accepted"

    world.tollgate("trust", "remove", device)
    for presented in (token, handle):
        gone = world.until("bound_object_gone", lambda presented=presented: plain(presented))
        assert gone.stage == "verify"
    assert world.present_one(plain(free)).verdict == "accepted", (
        "no other token of its subject, issuer or job is touched"
    )
    register(world, device, device_jwks)
    anew = world.issue(NIGHTLY, *bound)
    world.until("accepted", lambda: plain(anew))
    assert {each.verdict for each in world.present(plain(token), plain(handle))} == {"bound_object_gone"}


def test_a_token_dies_with_its_job_and_stays_dead_when_it_is_defined_again(world: World) -> None:
    job = f"rows/bound-{secrets.token_hex(3)}"
    world.apply("jobs", f'[jobs."{job}"]\n')
    bound = world.issue(job, "--bound-to", f"job/{job}", "--uses", "many")
    free = world.issue(job, "--uses", "many")
    world.until("accepted", lambda: plain(bound, job))
    world.tollgate("jobs", "remove", job)
    world.until("bound_object_gone", lambda: plain(bound, job))
    assert world.present_one(plain(free, job)).verdict == "job_unknown"
    world.apply("jobs", f'[jobs."{job}"]\n')
    world.until("accepted", lambda: plain(free, job))
    assert world.present_one(plain(bound, job)).verdict == "bound_object_gone"
    world.tollgate("jobs", "remove", "rows/never-there", code=NOTHING_MATCHED)


def test_nothing_is_bound_to_what_is_not_there_and_a_binding_nobody_knows_is_refused(world: World) -> None:
    said = world.tollgate(
        "token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--bound-to", "device/none", code=NOT_ALLOWED
    )
    assert said.stdout == ""
    assert "bound_object_gone" in said.stderr
    seen = world.present(
        plain(world.ours.token(grant={"bound_to": {"object": "device/none"}})),
        plain(world.ours.token(grant={"bound_to": {"object": f"job/{NIGHTLY}"}})),
        plain(world.ours.token(grant={"bound_to": {"object": f"job/{NIGHTLY}", "birth_id": "another"}})),
        plain(world.ours.token(grant={"bound_to": {"object": f"job/{NIGHTLY}", "until": "noon"}})),
    )
    assert [each.verdict for each in seen] == ["bound_object_gone", "accepted", "bound_object_gone", "grant_malformed"]


# ── X-10: taking back, and cleaning ──


def test_a_revocation_is_listed_and_lifted_and_what_it_refused_is_honoured_again(world: World) -> None:
    subject = f"service:lifted-{secrets.token_hex(3)}"
    token = world.issue(NIGHTLY, "--uses", "many", "--subject", subject)
    world.until("accepted", lambda: plain(token))
    world.tollgate("token", "revoke", "--subject", subject, "--reason", "by mistake")
    world.tollgate("token", "revoke", "--subject", f"{subject}-2")
    world.until("token_revoked", lambda: plain(token))
    listed = [row for row in world.rows("revocations", "list", "--selector", "subject") if row["value"] == subject]
    assert [(row["issuer"], row["reason"], row["outlived"]) for row in listed] == [
        (world.ours.iss, "by mistake", False)
    ]
    world.tollgate("revocations", "lift", "subject", subject)
    world.until("accepted", lambda: plain(token))
    left = {row["value"] for row in world.rows("revocations", "list")}
    assert subject not in left
    assert f"{subject}-2" in left
    world.tollgate("revocations", "lift", "subject", subject, code=NOTHING_MATCHED)
    world.tollgate("revocations", "lift", "subjects", subject, code=USAGE)


def test_what_holds_every_lane_is_named_by_the_doctor_and_lifted_by_its_key(aside: Aside) -> None:
    """A selector of a later version: whom it refuses cannot be told, so nobody is let through until it is gone."""
    token = aside.issue(NIGHTLY, "--uses", "many")
    aside.until("accepted", lambda: plain(token))
    later = json.dumps([aside.ours.iss, "tenant", "t-1"], separators=(",", ":"))
    write(aside, "revocations", later, "{}")
    try:
        gate = aside.gate
        deadline = time.monotonic() + 30
        while not any(event.get("cause") == "tables_unread" for event in gate.events()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waiting = aside.send_all([plain(token)])
        findings = [row for row in aside.rows("doctor", code=1) if row["what"] == "revocations"]
        assert [row["verdict"] for row in findings] == ["bad"]
        assert later in findings[0]["mend"]
        assert later in aside.tollgate("revocations", "list").stderr
        aside.tollgate("revocations", "lift", "--key", "[]", code=NOTHING_MATCHED)
        aside.tollgate("revocations", "lift", code=USAGE)
    finally:
        aside.tollgate("revocations", "lift", "--key", later)
    assert [outcome.verdict for outcome in aside.outcomes(waiting)] == ["accepted"]


def test_only_revocations_that_outlived_their_tokens_are_cleaned_away(world: World) -> None:
    now_s, name = int(time.time()), secrets.token_hex(3)

    def revoke(value: str, keep_until_s: int) -> None:
        key = json.dumps([world.ours.iss, "subject", value], separators=(",", ":"))
        record = {"issuer": world.ours.iss, "selector": "subject", "value": value, "since_s": now_s - 90, "reason": "",
                  "by": "", "keep_until_s": keep_until_s}  # fmt: skip
        write(world, "revocations", key, json.dumps(record))

    for value, keep_until_s in ((f"old-{name}", now_s - 60), (f"young-{name}", now_s + 3_600), (f"ever-{name}", 0)):
        revoke(value, keep_until_s)
    world.tollgate("token", "revoke", "--kid", f"kid-{name}")

    def values() -> set[str]:
        return {row["value"] for row in world.rows("revocations", "list") if row["value"].endswith(name)}

    everything = {f"old-{name}", f"young-{name}", f"ever-{name}", f"kid-{name}"}
    assert values() == everything
    would = [row["value"] for row in world.rows("revocations", "clean", "--dry-run")]
    assert f"old-{name}" in would
    assert not everything - {f"old-{name}"} & set(would)
    assert values() == everything
    assert world.rows("revocations", "clean")
    assert values() == everything - {f"old-{name}"}
    assert world.rows("revocations", "clean") == []
    stood = {record.key: record.value for record in read_topic(world.bootstrap, world.topic("revocations")).records}
    key = json.dumps([world.ours.iss, "subject", f"old-{name}"], separators=(",", ":")).encode()
    assert stood[key] is None
