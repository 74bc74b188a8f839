"""Row P-06, and what must hold of everything the rows before have left on the topics: hence last in the directory."""

import base64
import hashlib
import json
import re
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import jsonschema_rs
import pytest

from tests.rows.jobs import NIGHTLY
from tests.rows.triggers import Trigger, plain
from tests.support.canaries import of_record
from tests.support.reader import read_topic

SCHEMAS = Path(__file__).parents[2] / "schemas"
TOPICS = (
    "triggers", "handoffs", "jobs", "receipts", "dead-letters", "audit", "idempotency", "checkpoints", "registry", "revocations",
    "issuance", "grants",
)  # fmt: skip
BY_REGISTRY_KEY = {
    "job": "registry-job", "trust": "registry-trust", "deployment": "registry-deployment",
    "identity": "registry-identity", "role": "registry-role", "rule": "registry-rule",
    "platform": "registry-platform",
}  # fmt: skip
BY_EVENT = {"issued": "issued", "issue_denied": "issue-denied"}


def validator(name):
    (newest,) = SCHEMAS.glob(f"{name}.v*.schema.json")
    return jsonschema_rs.Draft202012Validator(json.loads(newest.read_text()))


def in_json(record):
    return None if record.value is None else json.loads(record.value)


def in_hex(record):
    return {"key": record.key.hex(), "value": None if record.value is None else record.value.hex()}


def in_text(record):
    return {"key": record.key.decode(), "value": None if record.value is None else record.value.decode()}


def as_dead_letter(record):
    def encoded(data):
        return None if data is None else base64.b64encode(data).decode()

    headers = {name: (content or b"").decode() for name, content in record.headers}
    return {"key": encoded(record.key), "value": encoded(record.value), "headers": headers}


SCHEMA_OF = {
    "handoffs": ("handoff", in_json), "jobs": ("job", in_json), "receipts": ("receipt", in_json), "audit": ("audit", in_json),
    "dead-letters": ("dead-letter", as_dead_letter), "idempotency": ("idempotency", in_hex),
    "checkpoints": ("checkpoint", in_json), "revocations": ("revocation", in_json),
    "grants": ("grant", in_text),
}  # fmt: skip


@pytest.fixture(scope="module")
def dump(world):
    """Every record of every topic, once everything sent has been decided."""
    world.outcomes(
        world.send_all(
            plain(token)._replace(partition=lane)
            for token in (
                world.ours.token(uses="many", idempotency_key="the last"),
                world.ours.token(private=world.partner.private),
            )
            for lane in range(world.lanes)
        )
    )
    world.tollgate("token", "revoke", "--jti", "0" * 32)
    world.apply("identities", '[identities."svc:dump"]\nroles = ["dumper"]\n')
    world.apply(
        "policy",
        f'[roles.dumper]\nallow = [{{ jobs = ["{NIGHTLY}"] }}]\n[rules.dump]\neffect = "deny"\njtis = ["0"]\n'
        "[platforms.dump]\nlevel = 1\n",
    )
    secret = world.tollgate("identities", "rotate", "svc:dump").stdout
    for ttl, code in (("5m", 0), ("25h", 4)):
        world.tollgate(
            "token",
            "issue",
            "--as",
            "svc:dump",
            "--secret-file",
            "-",
            "--job",
            NIGHTLY,
            "--ttl",
            ttl,
            stdin=secret,
            code=code,
        )
    world.issue(NIGHTLY, "--reference")
    found = {topic: read_topic(world.bootstrap, world.topic(topic)).records for topic in TOPICS}
    ids = [f"{record.partition}-{record.offset}" for record in found["triggers"]]
    world.outcomes(ids)
    return found


@pytest.mark.parametrize("topic", SCHEMA_OF)
def test_every_record_of_a_topic_fits_its_schema(dump, topic):
    name, shape = SCHEMA_OF[topic]
    schema = validator(name)
    assert dump[topic]
    for record in dump[topic]:
        shaped = shape(record)
        if shaped is not None:
            schema.validate(shaped)


def test_every_record_of_the_registry_fits_the_schema_of_its_kind(dump):
    schemas = {kind: validator(name) for kind, name in BY_REGISTRY_KEY.items()}
    kinds = Counter()
    for record in dump["registry"]:
        kind = record.key.decode().partition("/")[0]
        if record.value is not None and kind in schemas:
            schemas[kind].validate(json.loads(record.value))
        kinds[kind] += 1
    assert kinds.keys() >= BY_REGISTRY_KEY.keys()


def test_every_record_of_issuing_fits_the_schema_of_its_event(dump):
    schemas = {event: validator(name) for event, name in BY_EVENT.items()}
    events = Counter()
    for record in dump["issuance"]:
        told = json.loads(record.value)
        schemas[told["event"]].validate(told)
        events[told["event"]] += 1
    assert events.keys() == BY_EVENT.keys()


def test_every_accepted_plain_trigger_fits_its_schema(dump, world):
    schema, seen = validator("trigger"), 0
    for record in dump["triggers"]:
        names = {name.lower() for name, _ in record.headers}
        if f"{record.partition}-{record.offset}" in world.tail.jobs and not names & {
            "tollgate-job",
            "ce_subject",
            "content-type",
        }:
            schema.validate(json.loads(record.value))
            seen += 1
    assert seen


def test_every_token_accepted_fits_the_schema_of_tokens(world):
    schema = validator("trigger-token")
    for issuer in (world.ours, world.partner):
        schema.validate(issuer.claims(NIGHTLY))


def test_a_changed_field_does_not_fit(dump):
    schema = validator("receipt")
    receipt = json.loads(dump["receipts"][0].value)
    for wrong in ({"outcome": "perhaps"}, {"decided_at_ms": "now"}, {"surprise": 1}):
        assert not schema.is_valid(receipt | wrong)
    receipt.pop("run_id")
    assert not schema.is_valid(receipt)


# ── the books balance ──


def test_each_trigger_has_one_receipt_one_audit_entry_and_one_of_job_duplicate_or_dead_letter(dump, world):
    sent = {f"{record.partition}-{record.offset}" for record in dump["triggers"]}
    receipts = Counter(json.loads(record.value)["trigger_id"] for record in dump["receipts"])
    audited = Counter(
        each["trigger_id"] for record in dump["audit"] for each in json.loads(record.value)["presentations"]
    )
    assert receipts == audited == dict.fromkeys(sent, 1)
    outcomes = defaultdict(set)
    for record in dump["receipts"]:
        receipt = json.loads(record.value)
        outcomes[receipt["outcome"]].add(receipt["trigger_id"])
    jobs = Counter(json.loads(record.value)["trigger"]["id"] for record in dump["jobs"])
    assert jobs == dict.fromkeys(outcomes["accepted"], 1)
    runs = [json.loads(record.value)["run_id"] for record in dump["jobs"]]
    assert len(set(runs)) == len(runs)
    headers = [dict(record.headers) for record in dump["dead-letters"]]
    dead = Counter(f"{each['tollgate-partition'].decode()}-{each['tollgate-offset'].decode()}" for each in headers)
    assert dead == dict.fromkeys(outcomes["rejected"], 1)


def test_the_audit_chain_is_whole(dump, world):
    heads = {}
    for record in sorted(dump["audit"], key=lambda each: (each.partition, each.offset)):
        audit = json.loads(record.value)
        if record.partition in heads:
            assert (audit["sequence"], audit["previous_sha256"]) == heads[record.partition]
        heads[record.partition] = (audit["sequence"] + 1, hashlib.sha256(record.value).hexdigest())
    world.tollgate("audit", "verify")


# ── T-04: nothing is kept by who sent it ──

KEYS = {
    "jobs": rb"[0-9a-f-]{36}", "receipts": rb"[0-9]+-[0-9]+", "audit": rb"[0-9]+", "checkpoints": rb"[0-9]+",
    "idempotency": rb"(?s:.{16})", "handoffs": rb"(?s:.{16})", "grants": rb"[0-9a-f]{64}",
    # An identity is what ops register, whether or not it ever connects; a refusal names the one that was claimed.
    "registry": rb"(job|trust|deployment|identity|role|rule|platform)/.+",
    "issuance": rb"[0-9a-f]{32}|(svc|u|host):.+|\?",
}  # fmt: skip


@pytest.mark.parametrize("topic", KEYS)
def test_no_record_is_keyed_by_an_emitter_or_its_connection(dump, topic):
    odd = {record.key for record in dump[topic] if not re.fullmatch(KEYS[topic], record.key or b"")}
    assert not odd


# ── B13, B16: no token is anywhere but on the triggers topic ──


def test_no_token_presented_stands_on_any_other_topic_in_a_log_or_in_the_metrics(dump, world):
    """Nor any that a command printed or a door issued, no handle and no client's secret."""
    canaries = world.canaries
    canaries.note(*map(of_record, dump["triggers"]))
    assert sum(canaries.kinds.values()) > 100
    assert any(canaries.found_in(of_record(record)) for record in dump["triggers"]), "where they are, they are found"
    places = {topic: map(of_record, dump[topic]) for topic in TOPICS[1:]}
    places |= {str(log): [log.read_bytes()] for log in world.logs}
    for gate in world.gates:
        places[f"log of {gate.name}"] = [gate.log().encode()]
        for port in gate.ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                places[f"metrics at {port}"] = [answer.read()]
    assert canaries.leaks(places) == {}


def test_a_token_hidden_anywhere_in_a_refused_record_is_taken_out(world):
    token = world.ours.token()
    places = [
        Trigger({"job": NIGHTLY, "token": token, "surprise": 1}),
        Trigger(f"not json at all {token}".encode()),
        Trigger({"params": {"deep": [{"er": token}]}}),
        Trigger({}, [("x-token", token)]),
        Trigger({}, [("x", b"\xff" + token.encode())]),
        Trigger(b"{}", (), token.encode()),
        Trigger({"x": base64.b64encode(token.encode()).decode()}),
    ]
    signature = token.rpartition(".")[2].encode()
    inner = base64.b64encode(token.encode())[400:440]
    for outcome in world.present(*places):
        letter = outcome.dead_letter
        left = b"".join([letter.key or b"", letter.value or b"", *(text.encode() for text in letter.headers.values())])
        assert signature not in left
        assert inner not in left
