"""Odd records (B15, B18, V-06): whatever their bytes, each is decided, and the good one behind it too."""

import json
import struct

from confluent_kafka import Producer

from tests.rows.attacks import STRANGER, check, deep
from tests.rows.jobs import NIGHTLY
from tests.rows.triggers import Trigger, by_headers, plain
from tests.support.reader import read_topic

RECORDS = {
    "empty": (b"", "json_malformed"),
    "null": (None, "value_missing"),
    "the word null": (b"null", "json_malformed"),
    "a list": (b"[]", "json_malformed"),
    "an open object": (b"{", "json_malformed"),
    "random bytes": (bytes(range(256)), "json_malformed"),
    "UTF-16": ('{"job":"x"}'.encode("utf-16"), "json_malformed"),
    "a byte order mark": (b'\xef\xbb\xbf{"job":"x"}', "json_malformed"),
    "bad UTF-8": (b'{"job":"\xff"}', "json_malformed"),
    "a lone surrogate": (rb'{"job":"\ud800"}', "json_malformed"),
    "NaN": (b'{"params":{"x":NaN}}', "json_malformed"),
    "a member twice": (b'{"job":"a","job":"a"}', "json_duplicate_member"),
    "a member twice, deeper": (b'{"params":{"a":{"b":1,"b":2}}}', "json_duplicate_member"),
    "too deep": (f'{{"params":{{"x":{deep(9)}}}}}'.encode(), "json_too_deep"),
    "100,000 deep": (deep(100_000).encode(), "json_malformed"),
    "16 digits": (b'{"params":{"x":1234567890123456}}', "json_number_unsafe"),
    "an unknown member": (b'{"surprise":1}', "envelope_malformed"),
    "params are a list": (b'{"params":[]}', "envelope_malformed"),
    "no token": (b"{}", "token_missing"),
}


def test_any_bytes_of_a_record_are_decided_and_the_next_good_trigger_at_once(world):
    refused = {what: (Trigger(value), verdict) for what, (value, verdict) in RECORDS.items()}
    triggers = [trigger for trigger, _ in refused.values()]
    *outcomes, good = world.present(*triggers, plain(world.ours.token()))
    seen = {what: outcome.verdict for what, outcome in zip(refused, outcomes, strict=True)}
    seen["100,000 deep"] = seen["100,000 deep"].replace("json_too_deep", "json_malformed")  # either is said of a list
    assert seen == {what: verdict for what, (_, verdict) in refused.items()}
    assert good.verdict == "accepted"


NASTY = [
    "a\r\nINFO forged line",
    "\x1b[31mred",
    "\u202egnp.exe",
    "%s%n%d",
    "${jndi:ldap://x/a}",
    "<script>",
    "a\0b",
    "x" * 200,
]


def test_b15_a_strangers_words_stay_in_their_line(world):
    many = world.ours.token(uses="many")
    triggers = [
        each
        for text in NASTY
        for each in (
            plain(world.ours.token(header={"kid": text})),
            plain(world.ours.token(sub=text)),
            plain(world.ours.token(jti=text)),
            plain(many, text),
            plain(many, idempotency_key=text),
            plain(many, correlation_id=text),
            plain(many, params={text: 1}),
            plain(many, **{text: 1}),
            by_headers(many, NIGHTLY, {}, (text, "x"), ("x", text), ("traceparent", text)),
        )
    ]
    for outcome in world.present(*triggers):
        assert outcome.verdict != "internal_deny"
        for letter in outcome.dead_letters:
            assert letter.detail.isprintable()
            assert len(letter.detail) <= 2_000
    for gate in world.gates:
        lines = gate.log().splitlines()
        assert all(json.loads(piece) for line in lines for piece in line.replace("}{", "}\n{").split("\n") if piece)
        assert "forged line" not in "".join(line for line in lines if not line.startswith("{"))


def test_b18_odd_records_are_refused_and_the_next_is_decided_at_once(world):
    token = world.ours.token(uses="many")
    job = ("tollgate-job", NIGHTLY)
    bearer = ("authorization", f"Bearer {token}")
    check(
        world,
        {
            "a tombstone": (Trigger(None, (), b"key"), "value_missing"),
            "a tombstone with a token": (Trigger(None, [bearer]), "value_missing"),
            "no value and no params": (Trigger(None, [bearer, job]), "accepted"),
            "1,000 headers": (Trigger({}, [bearer, job, *[("x", b"")] * 998]), "headers_malformed"),
            "65 KB of headers": (Trigger({}, [bearer, job, ("x", b"y" * 66_000)]), "record_too_large"),
            "100 headers": (Trigger({}, [bearer, job, *[("x", b"y")] * 98]), "accepted"),
            "a header without a name": (Trigger({}, [bearer, job, ("", b"y")]), "accepted"),
            "the largest value the topic takes": (
                plain(token, params={"x": "a" * (1_048_588 - 100 - len(token) - 90)}), "payload_too_large",
            ),
        },
    )  # fmt: skip


def test_b18_a_batch_that_expands_beyond_the_limit_is_refused_by_its_coordinates(world):
    bomb = Producer(
        {
            "bootstrap.servers": world.bootstrap,
            "compression.type": "zstd",
            "message.max.bytes": 100_000_000,
            "linger.ms": 50,
        }
    )
    blown = Trigger(b'{"params":{"x":"' + b"a" * 20_000_000 + b'"}}', partition=0)
    good = plain(world.ours.token())._replace(partition=0)
    refused, accepted = world.outcomes([*world.send_all([blown], bomb), *world.send_all([good])])
    assert (refused.verdict, accepted.verdict) == ("batch_too_large", "accepted")
    assert refused.dead_letter.value is None


def test_a_handoff_or_an_entry_is_never_made_of_what_was_refused(world):
    """The bytes of a refused trigger's identity stand nowhere in the table."""
    refused = world.present_one(plain(world.ours.token(private=STRANGER), idempotency_key="never-in-the-table"))
    partition, offset = (int(number) for number in refused.trigger_id.split("-"))
    coordinates = struct.pack(">IQ", partition, offset)
    records = read_topic(world.bootstrap, world.topic("idempotency")).records
    assert not any(coordinates == (record.value or b"")[41:53] for record in records)
