"""O: dead letters, the audit, what is traced of a run, that no token leaks, and that no record stops the stream."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections import Counter

from confluent_kafka import KafkaError, Producer

from tests.rows.aside import Aside
from tests.rows.jobs import FORBIDDEN, NIGHTLY
from tests.rows.triggers import Trigger, by_headers, plain
from tests.rows.world import World
from tests.support.canaries import Canaries, of_record
from tests.support.reader import read_topic

MIB = 1 << 20
RECORD_MAX_BYTES = 1_048_516  # of a value without key and headers on a topic of 1,048,588 bytes (message format v2)
BOMB_BYTES = 150 * MIB
MEMORY_MAX_BYTES = 256 * MIB  # above idle
FUZZED = 1_500
OUTPUTS = (
    "handoffs",
    "jobs",
    "receipts",
    "dead-letters",
    "audit",
    "idempotency",
    "checkpoints",
    "registry",
    "revocations",
    "issuance",
    "grants",
)


# ── O-01 ──


def test_each_refused_trigger_is_one_dead_letter_as_it_came_less_its_token(world: World) -> None:
    token = world.ours.token(FORBIDDEN)
    by_value = plain(token, FORBIDDEN, {"n": 1})._replace(
        key=b"my key", headers=[("x-mine", b"kept"), ("cookie", b"c=1")]
    )
    by_header = by_headers(token, FORBIDDEN, {"n": 2})._replace(key=b"\xff\x00")
    garbage = Trigger(b"\xfe\xff not json " + token.encode() + b" at all", key=token.encode())
    first, second, third = world.present(by_value, by_header, garbage)
    for outcome, code in ((first, "job_not_authorized"), (second, "job_not_authorized"), (third, "json_malformed")):
        assert outcome.verdict == code
        told = outcome.dead_letter.headers
        assert f"{told['tollgate-partition']}-{told['tollgate-offset']}" == outcome.trigger_id
        assert told["tollgate-topic"] == world.topic("triggers")
        assert told["tollgate-replay-count"] == "0"
        for name in ("tollgate-detail", "tollgate-timestamp", "tollgate-decided-at", "tollgate-version"):
            assert told[name]
        whole = (outcome.dead_letter.key or b"") + (outcome.dead_letter.value or b"") + repr(told).encode()
        assert token.encode() not in whole
        assert token.rpartition(".")[2].encode() not in whole
    assert first.dead_letter.key == b"my key"
    assert first.dead_letter.headers["x-mine"] == "kept"
    assert "cookie" not in first.dead_letter.headers
    shown = json.loads(first.dead_letter.value or b"")
    assert (shown["job"], shown["params"]) == (FORBIDDEN, {"n": 1})
    assert shown["token"].startswith("[redacted")
    assert second.dead_letter.key == b"\xff\x00"
    assert second.dead_letter.value == b'{"n": 2}'
    assert "authorization" not in second.dead_letter.headers
    assert (third.dead_letter.value or b"").startswith(b"\xfe\xff not json ")


# ── O-02 ──


def test_every_presentation_is_in_the_audit_once_and_the_chain_holds(world: World) -> None:
    good = plain(world.ours.token())
    world.present_in_turn(good, good, plain("e30.e30.e30"))
    for _ in range(30):  # until nothing is on its way
        triggers = {r.id for r in read_topic(world.bootstrap, world.topic("triggers")).records}
        audit = [json.loads(r.value or b"") for r in read_topic(world.bootstrap, world.topic("audit")).records]
        presented = Counter(each["trigger_id"] for record in audit for each in record["presentations"])
        receipts = Counter(json.loads(r.value or b"")["trigger_id"]
                           for r in read_topic(world.bootstrap, world.topic("receipts")).records)  # fmt: skip
        if presented.keys() == triggers:
            break
        time.sleep(0.2)
    assert presented.keys() == triggers
    assert presented == receipts
    assert set(presented.values()) == {1}
    assert {row["verdict"] for row in world.rows("audit", "verify")} <= {"good", "empty"}


# ── O-03 ──


def test_the_audit_tells_who_started_a_run_with_what_and_what_came_of_it(world: World) -> None:
    token = world.ours.token()
    first, again, other = world.present_in_turn(
        plain(token, params={"n": 1}), plain(token, params={"n": 1}), plain(token)
    )
    done = world.tollgate("audit", "--run", first.run_id or "", "-o", "json")
    story = json.loads(done.stdout)
    assert story["emitter"] == {"issuer": world.ours.iss, "subject": "service:ci"}
    assert story["token"]["fingerprint"] == first.audit[0]["token_fingerprint"]
    assert story["token"]["kid"] == world.ours.kid
    assert story["trigger"]["id"] == first.trigger_id
    assert story["decision"]["outcome"] == "accepted"
    assert [row["trigger_id"] for row in story["duplicates"] if row["outcome"] == "duplicate"] == [again.trigger_id]
    assert other.trigger_id in {row["trigger_id"] for row in story["refused_reuses"]}
    as_table = world.tollgate("audit", "--run", first.run_id or "", "-o", "table").stdout
    for text in (world.ours.iss, "service:ci", first.trigger_id, story["token"]["fingerprint"]):
        assert text in as_table


# ── O-05 ──


def test_no_token_nor_part_of_a_signature_is_in_any_log_metric_or_topic_but_the_triggers(aside: Aside) -> None:
    ours, now_s = aside.ours, int(time.time())
    good, twice = plain(ours.token()), by_headers(ours.token(uses="many"), NIGHTLY, {}, ("idempotency-key", "o05"))
    aside.present(
        good, good, twice, twice._replace(value={"n": 2}),
        *(plain(ours.token(uses="many"), idempotency_key=f"o05-{number}") for number in range(20)),  # half hand over
        plain(ours.token(exp=now_s - 90)), plain(ours.token()[:-6] + "AAAAAA"), plain(ours.token(FORBIDDEN), FORBIDDEN),
        plain(ours.token(header={"kid": "../../" + "x" * 90})), plain(ours.token(iss="https://stranger.test")),
        plain(ours.token(), params={"hidden": ours.token()}), plain(ours.token(), correlation_id=ours.token()),
        plain(ours.token(), more=ours.token()), plain(ours.token(), idempotency_key=ours.token()),
        plain(ours.token(), ours.token()), Trigger(b"{" + ours.token().encode(), key=ours.token()),
        plain(ours.token())._replace(headers=[("x-token", ours.token()), ("traceparent", ours.token())]),
        by_headers(ours.token(), ours.token()), by_headers(ours.token(), NIGHTLY, {}, ("authorization", ours.token())),
        Trigger(b"\xff\xfe" + plain(ours.token()).value["token"].encode("utf-16-le")),
    )  # fmt: skip
    assert len(aside.tokens) > 40
    (refused,) = aside.present(plain(ours.token(FORBIDDEN), FORBIDDEN))
    commands = [
        aside.tollgate(*words, code=None)
        for words in (
            ("explain", refused.trigger_id, "--all"), ("dead-letters", "list"), ("dead-letters", "show", refused.trigger_id),
            ("audit",), ("receipts",), ("jobs", "tail"), ("doctor",),
        )
    ]  # fmt: skip
    places = {
        "log": aside.gate.log().encode(),
        "metrics": aside.metrics().encode(),
        "commands": "".join(done.stdout + done.stderr for done in commands).encode(),
    }
    for topic in OUTPUTS:
        records = read_topic(aside.bootstrap, aside.topic(topic), "read_uncommitted").records
        places[topic] = b"\n".join(map(of_record, records))
    for name in ("livez", "readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{aside.gate.ports[0]}/{name}", timeout=30) as answer:
            places[name] = answer.read()
    files = [file for file in aside.gate.state_dir.rglob("*") if file.is_file()]
    assert files
    places["local stores"] = b"\n".join(file.read_bytes() for file in files)
    canaries = Canaries()
    canaries.note(*aside.tokens)
    # The control: where tokens are, they are found.
    triggers = b"\n".join(r.value or b"" for r in read_topic(aside.bootstrap, aside.topic("triggers")).records)
    assert len(canaries.found_in(triggers)) > 30
    assert canaries.leaks({name: [held] for name, held in places.items()}) == {}


# ── O-07, bad input ──


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def test_each_bad_record_has_its_reason_and_the_next_good_trigger_is_handled(aside: Aside) -> None:
    token = aside.ours.token()
    good = json.dumps({"job": NIGHTLY, "token": token})
    bad: list[tuple[Trigger, str]] = [
        (Trigger(None), "value_missing"),
        (Trigger(None, key=b"a tombstone"), "value_missing"),
        (Trigger(b""), "json_malformed"),
        (Trigger(b"\x80\x81\xfe\xff"), "json_malformed"),
        (Trigger(b"\x00\x00\x00\x00\x07" + good.encode()), "json_malformed"),  # the magic byte of a schema registry
        (Trigger(good.encode("utf-16")), "json_malformed"),
        (Trigger(b"\xef\xbb\xbf" + good.encode()), "json_malformed"),
        (Trigger(good[:-1].encode() + b', "params": {"n": NaN}}'), "json_malformed"),
        (Trigger(good[:-1].encode() + b', "params": {"n": "\\ud800"}}'), "json_malformed"),
        (Trigger(good[:-1].encode() + b', "job": "' + NIGHTLY.encode() + b'"}'), "json_duplicate_member"),
        (Trigger(good[:-1].encode() + b', "params": ' + deep(20) + b"}"), "json_too_deep"),
        (Trigger(good[:-1].encode() + b', "params": ' + deep(80_000) + b"}"), "json_too_deep"),
        (Trigger(good[:-1].encode() + b', "params": {"n": 1e400}}'), "json_number_unsafe"),
        (Trigger(good[:-1].encode() + b', "params": {"n": 12345678901234567890}}'), "json_number_unsafe"),
        (Trigger(b"[1]"), "json_malformed"),
        (Trigger(good.encode(), [(f"h{number}", b"v") for number in range(1_000)]), "headers_malformed"),
        (Trigger({}, [("authorization", f"Bearer {token}"), ("tollgate-job", b"\xff\xfe")]), "headers_malformed"),
        (Trigger({}, [("authorization", f"Bearer {token}"), ("tollgate-job", None)]), "headers_malformed"),
        (Trigger({}, [("authorization", f"Bearer {token}")] * 2 + [("tollgate-job", NIGHTLY)]), "header_repeated"),
    ]  # fmt: skip
    between = [plain(aside.ours.token()) for _ in bad]
    outcomes = aside.present(*(t._replace(partition=0) for (b, _), g in zip(bad, between, strict=True) for t in (b, g)))
    assert [each.verdict for each in outcomes[::2]] == [code for _, code in bad]
    assert {each.verdict for each in outcomes[1::2]} == {"accepted"}
    assert aside.present_one(Trigger(good.encode())).verdict == "accepted", "no refusal used the token up"


def test_any_bytes_and_any_headers_are_decided(aside: Aside) -> None:
    dice = random.Random(7)
    whole = plain(aside.ours.token(uses="many"), params={"n": 1}).encoded() or b""
    names = ("authorization", "tollgate-job", "idempotency-key", "ce_id", "content-type", "traceparent", "x", "")

    def mutated() -> bytes:
        value = bytearray(whole if dice.random() < 0.7 else dice.randbytes(dice.randrange(400)))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(value) + 1)
            value[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        return bytes(value)

    triggers = [
        Trigger(mutated(), [(dice.choice(names), dice.choice((dice.randbytes(8), b"", None))) for _ in range(dice.choice((0, 0, 2)))],
                key=dice.choice((None, dice.randbytes(5))))
        for _ in range(FUZZED)
    ]  # fmt: skip
    verdicts = Counter(outcome.verdict for outcome in aside.present(*triggers))
    assert verdicts.total() == FUZZED
    assert "internal_deny" not in verdicts
    assert aside.present_one(plain(aside.ours.token())).verdict == "accepted"


def test_the_largest_record_the_topic_takes_is_decided_and_one_byte_more_never_gets_there(aside: Aside) -> None:
    start, end = json.dumps({"job": NIGHTLY, "token": aside.ours.token(), "params": {"a": "?"}}).split("?")
    largest = (start + "x" * (RECORD_MAX_BYTES - len(start) - len(end)) + end).encode()
    wide = Producer({"bootstrap.servers": aside.bootstrap, "message.max.bytes": 4 * MIB, "linger.ms": 0})
    outcome, garbage = aside.outcomes(
        [aside.send_all([Trigger(value, partition=1)], wide)[0] for value in (largest, b"\xff" * RECORD_MAX_BYTES)]
    )
    assert (outcome.verdict, garbage.verdict) == ("payload_too_large", "json_malformed")
    errors: list[KafkaError | None] = []
    wide.produce(aside.topic("triggers"), largest + b" ", on_delivery=lambda error, _: errors.append(error))
    wide.flush(60)
    assert errors[0] is not None
    assert errors[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_a_batch_that_expands_to_150_mb_is_dead_lettered_by_its_offsets_within_256_mb(aside: Aside) -> None:
    aside.present_one(plain(aside.ours.token()))
    aside.forget_peak()
    idle, _ = aside.memory_bytes()
    zeros = bytes(1_000_000)
    bomber = Producer(
        {
            "bootstrap.servers": aside.bootstrap,
            "compression.type": "zstd",
            "linger.ms": 60_000,
            "acks": "all",
            "message.max.bytes": 400 * MIB,
            "batch.size": 400 * MIB,
            "queue.buffering.max.kbytes": MIB,
        }
    )
    count = BOMB_BYTES // len(zeros) + 1
    bomb = aside.send_all([Trigger(zeros, partition=0)] * count, bomber)
    after = aside.send(plain(aside.ours.token()).value, partition=0)
    *bombed, good = aside.outcomes([*bomb, after])
    assert Counter(each.verdict for each in bombed) == {"batch_too_large": count}
    assert good.verdict == "accepted"
    _, peak = aside.memory_bytes()
    assert peak - idle <= MEMORY_MAX_BYTES, f"{(peak - idle) / MIB:.0f} MiB above idle"
