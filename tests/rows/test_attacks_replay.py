"""Replays, squatters and ambiguity (B): tokens and keys shown again, by another, or twice at once."""

import json
import time
from collections import Counter

from confluent_kafka import Producer

from tests.rows.attacks import STRANGER, check
from tests.rows.jobs import NIGHTLY, OTHER
from tests.rows.triggers import Trigger, by_headers, plain


def test_b1_b3_the_same_record_again_names_the_same_job_wherever_it_lands(world):
    trigger = by_headers(world.ours.token(), NIGHTLY, {"n": 1})
    first, *again = world.present_in_turn(*(trigger._replace(partition=lane, key=b"k") for lane in (0, 0, 1, 2, 3)))
    assert first.verdict == "accepted"
    assert [(outcome.verdict, outcome.run_id) for outcome in again] == [("duplicate", first.run_id)] * 4


def test_b2_a_token_for_another_deployment_opens_nothing_here(world):
    check(world, {"staging": (world.ours.token(aud="tollgate:staging."), "audience_mismatch")})


def test_b4_b5_a_captured_token_is_worth_nothing_for_another_request(world):
    token, with_key = world.ours.token(), world.ours.token(idempotency_key="captured")
    webhook = world.ours.token(uses="many", idempotency_key="captured-too")
    for each in (token, with_key, webhook):
        assert world.present_one(plain(each, params={"n": 1})).verdict == "accepted"
    check(
        world,
        {
            "a new key": (plain(token, params={"n": 1}, idempotency_key="new"), "idempotency_key_not_in_token"),
            "a new key beside the signed one": (
                plain(with_key, params={"n": 1}, idempotency_key="new"),
                "idempotency_key_conflict",
            ),
            "the same of a webhook": (
                plain(webhook, params={"n": 1}, idempotency_key="new"),
                "idempotency_key_conflict",
            ),
            "another payload": (plain(token, params={"n": 2}), "token_already_used"),
            "another payload under the signed key": (plain(with_key, params={"n": 2}), "token_already_used"),
            "another job": (plain(token, OTHER, {"n": 1}), "job_not_authorized"),
        },
    )


def test_b6_a_key_used_for_another_request_is_refused(world):
    first, other = world.present_in_turn(
        *(plain(world.ours.token(uses="many"), params={"n": number}, idempotency_key="b6") for number in (1, 2))
    )
    assert (first.verdict, other.verdict) == ("accepted", "idempotency_key_reused")
    assert other.dead_letter.headers["tollgate-first-run-id"] == first.run_id  # to its owner: the key is nobody else's


def test_b7_a_squatter_has_no_effect_on_the_victims_key(world):
    key = "the victim's"
    squats = world.present(
        plain(world.partner.token(uses="many"), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="service:squatter"), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", private=STRANGER), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="person:squatter"), params={"n": 6}, idempotency_key=key),
    )
    assert [each.verdict for each in squats] == ["accepted", "accepted", "signature_invalid", "subject_not_allowed"]
    victim = world.present_one(plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key=key))
    assert victim.verdict == "accepted"
    assert victim.run_id not in {each.run_id for each in squats}


def test_b8_keys_that_look_alike_are_different_keys(world):
    alike = ["b8", "B8", " b8", "b8 ", "é", "e\u0301", "a|b", "a:b", "a/b", "null", "0", "x" * 256]
    split = [("service:a", "bc"), ("service:ab", "c"), ("service:abc", "b8:"), ("service:a\u00e9", "b8")]
    outcomes = world.present(
        *(plain(world.ours.token(uses="many"), idempotency_key=key) for key in alike),
        *(plain(world.ours.token(uses="many", sub=subject), idempotency_key=key) for subject, key in split),
    )
    assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": len(alike) + len(split)}
    assert len({outcome.run_id for outcome in outcomes}) == len(outcomes)
    many = world.ours.token(uses="many")
    check(
        world,
        {
            f"key {key!r:.20}": (plain(many, idempotency_key=key), "idempotency_key_malformed")
            for key in ("", "x" * 10_240, 7, None, ["k"], "b8\0", "b8\n")
        },
    )


def test_b9_what_is_said_twice_is_refused_even_when_it_agrees(world):
    token, other = world.ours.token(uses="many"), world.ours.token(uses="many")
    bearer = ("authorization", f"Bearer {token}")
    job = ("tollgate-job", NIGHTLY)
    in_value = {"job": NIGHTLY, "token": token}
    check(
        world,
        {
            "the same token twice": (Trigger(in_value, [bearer]), "token_ambiguous"),
            "two tokens": (Trigger(in_value | {"token": other}, [bearer]), "token_ambiguous"),
            "two authorization headers": (
                Trigger({}, [bearer, ("authorization", f"Bearer {other}"), job]),
                "header_repeated",
            ),
            "in other letters": (Trigger({}, [bearer, ("Authorization", f"Bearer {token}"), job]), "header_repeated"),
            "two job headers": (Trigger({}, [bearer, job, job]), "header_repeated"),
            "two keys": (
                Trigger({}, [bearer, job, ("idempotency-key", "a"), ("idempotency-key", "a")]),
                "header_repeated",
            ),
            "job and subject disagree": (Trigger({}, [bearer, job, ("ce_subject", OTHER)]), "job_conflict"),
            "another scheme": (Trigger({}, [("authorization", f"Basic {token}"), job]), "authorization_malformed"),
            "no scheme": (Trigger({}, [("authorization", token), job]), "authorization_malformed"),
            "two in one header": (
                Trigger({}, [("authorization", f"Bearer {token} {other}"), job]),
                "authorization_malformed",
            ),
            "a header that is no text": (Trigger({}, [("authorization", b"Bearer \xff"), job]), "headers_malformed"),
            "a null header": (Trigger({}, [("authorization", None), job]), "headers_malformed"),
        },
    )


def test_b10_a_producers_timestamp_buys_nothing(world):
    now_s = int(time.time())
    expired = plain(world.ours.token(iat=now_s - 900, nbf=now_s - 900, exp=now_s - 300))
    good = plain(world.ours.token(uses="many"))
    sent, ids = [(expired, now_s - 600), (good, 1), (good, 4_102_444_800)], []
    producer = Producer({"bootstrap.servers": world.bootstrap})
    for trigger, timestamp_s in sent:
        producer.produce(
            world.topic("triggers"), trigger.encoded(), timestamp=timestamp_s * 1000, partition=0,
            on_delivery=lambda _, message: ids.append(f"{message.partition()}-{message.offset()}"),
        )  # fmt: skip
        assert producer.flush(60) == 0
    outcomes = world.outcomes(ids)
    assert [outcome.verdict for outcome in outcomes] == ["token_expired", "accepted", "accepted"]
    for outcome in outcomes[1:]:
        assert abs(outcome.job["trigger"]["appended_at_ms"] / 1000 - now_s) < 600


def test_b12_a_receipt_of_anothers_key_tells_nothing_of_it(world):
    """Probing: whoever asks with a key that is not theirs gets a run of their own, and learns of no other."""
    key = "order-of-mine"  # nothing that an id, made at random, could hold
    victim = world.present_one(plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key=key))
    probes = world.present(
        plain(world.partner.token(uses="many"), params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="service:curious"), params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(OTHER, uses="many"), OTHER, params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(uses="many", private=STRANGER), params={"n": 1}, idempotency_key=key),
    )
    assert [each.verdict for each in probes] == ["accepted"] * 3 + ["signature_invalid"]
    for each in probes:
        told = json.dumps(each.receipt)
        assert victim.run_id not in told
        assert key not in told
    assert probes[3].receipt["emitter"] is None
    assert len({each.receipt["emitter"] for each in probes[:2]} | {victim.receipt["emitter"]}) == 3


def test_b17_what_is_revoked_is_refused_from_then_on(world):
    subject, now_s = "service:let-go", int(time.time())
    token = world.ours.token(uses="many", sub=subject)
    ahead = world.ours.token(uses="many", sub=subject, iat=now_s + 40)  # its issuer's clock is, within the grace
    assert {each.verdict for each in world.present(plain(token), plain(ahead))} == {"accepted"}
    world.tollgate("token", "revoke", "--subject", subject)
    world.until("token_revoked", lambda: plain(token))
    assert world.present_one(plain(ahead)).verdict == "token_revoked"


def test_b17_a_revocation_up_to_a_moment_leaves_what_was_issued_after_it(world):
    subject, now_s = "service:let-go-once", int(time.time())
    before = world.ours.token(uses="many", sub=subject, iat=now_s - 120)
    world.tollgate("token", "revoke", "--subject", subject, "--since", "1m")
    world.until("token_revoked", lambda: plain(before))
    assert world.present_one(plain(world.ours.token(uses="many", sub=subject))).verdict == "accepted"
