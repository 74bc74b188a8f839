"""What is remembered of a token changes no decision: a memo that has seen much decides as an empty one does."""

from __future__ import annotations

import random

import msgspec
import pytest

from app.gate import decide, outputs
from app.gate.decide import Admitted, Held, Memo, Refused
from app.gate.keyset import KeySet
from app.gate.original import original
from app.gate.policy import Revocations, revocation_record
from app.gate.reasons import REASONS
from app.gate.token import KeyWanted
from app.gate.trigger import Record
from tests.support.pure_world import JOBS, WORLD, job, record
from tests.support.tokens import ISS, KEYS, NOW_S, RING, fingerprint, token

TOKENS = [
    token(claims={"uses": uses, "jti": f"j{number}{uses}"}, grant={"jobs": list(jobs), "params": params})
    for number, (jobs, params) in enumerate([(JOBS[:1], {}), (JOBS[:1], {"region": "eu"}), (JOBS, {})])
    for uses in ("once", "many")
]


def any_records(seed: int, count: int) -> list[Record]:
    """Some tokens in turn: before, in and after their time and its grace, for their job and others, with and without
    keys."""
    chance = random.Random(seed)
    times = (-61, -60, -1, 0, 1, 300, 600, 601, 660, 661)
    differences = ({}, {}, {}, {"job": JOBS[1]}, {"job": None}, {"params": {"region": "us"}}, {"idempotency_key": "a"})
    return [
        record(number, chance.choice(TOKENS), NOW_S + chance.choice(times), **chance.choice(differences))
        for number in range(count)
    ]


def plain(result: object) -> object:
    return msgspec.to_builtins(result, builtin_types=(bytes, Exception), enc_hook=repr)


@pytest.mark.parametrize("seed", range(4))
def test_a_memo_that_has_seen_much_decides_as_an_empty_one(seed: int):
    memo = Memo()
    outcomes = set()
    for each in any_records(seed, 300):
        remembering = decide.admit(each, WORLD, memo)
        assert plain(remembering) == plain(decide.admit(each, WORLD, Memo()))
        outcomes.add(remembering.rejected.code if isinstance(remembering, Refused) else "admitted")
    assert {"admitted", "token_expired", "token_not_yet_valid", "job_not_authorized", "param_conflict"} <= outcomes
    assert memo.presented


@pytest.mark.parametrize("seed", range(4))
def test_handoffs_are_judged_again_alike_with_and_without_a_memory(seed: int):
    memo, strict = Memo(), msgspec.structs.replace(WORLD, jobs={JOBS[0]: job(JOBS[0], accepts=["webhook"])})
    outcomes = set()
    for each in any_records(seed, 300):
        admitted = decide.admit(each, WORLD, Memo())
        if not isinstance(admitted, Admitted) or admitted.identity is None:
            continue
        redacted, sealed = original(each, admitted.trigger.unverified_token, lambda *_: None)
        handed, source, trigger = outputs.read_handoff(outputs.handoff(admitted, redacted, sealed, 0, 0).value)
        results = []
        for memory in (memo, Memo()):
            seen = memory.handed_token(bytes(handed.claims), handed.token_fingerprint, handed.insecure)
            results.append(decide.readmit(source, trigger, seen, strict, memory))
        assert plain(results[0]) == plain(results[1])
        outcomes.add(results[0].rejected.code if isinstance(results[0], Refused) else "admitted")
    assert {"admitted", "token_class_too_weak"} <= outcomes
    assert memo.handed


def test_a_fingerprint_opens_nothing_to_who_shows_it():
    """Anyone may read fingerprints, and a home lane remembers tokens by them."""
    memo = Memo()
    text = TOKENS[1]
    admitted = decide.admit(record(1, text, NOW_S, idempotency_key="a"), WORLD, memo)
    assert isinstance(admitted, Admitted)
    redacted, _ = original(record(1, text, NOW_S), text, lambda *_: None)
    handed, source, trigger = outputs.read_handoff(outputs.handoff(admitted, redacted, None, 0, 0).value)
    seen = memo.handed_token(bytes(handed.claims), handed.token_fingerprint, handed.insecure)
    assert isinstance(decide.readmit(source, trigger, seen, WORLD, memo), Admitted)

    result = decide.admit(record(2, fingerprint(text), NOW_S, idempotency_key="b"), WORLD, memo)
    assert isinstance(result, Refused)
    assert result.rejected.code == "token_malformed"


def test_other_claims_under_a_known_fingerprint_are_other_claims():
    memo = Memo()
    first = decide.admit(record(1, TOKENS[1], NOW_S), WORLD, Memo())
    assert isinstance(first, Admitted)
    seen = memo.handed_token(bytes(first.standing.claims_json()), "f" * 32, insecure=False)
    changed = msgspec.json.encode(msgspec.structs.replace(first.token.claims, sub="service:other"))
    assert memo.handed_token(changed, "f" * 32, insecure=False).claims.sub == "service:other"
    assert seen.claims.sub == "service:ci"
    assert memo.handed_token(changed, "f" * 32, insecure=True).insecure


def test_a_world_after_a_revocation_remembers_nothing_of_the_one_before():
    before = msgspec.structs.replace(WORLD, memo=Memo())
    presented = record(1, TOKENS[1], NOW_S)
    assert isinstance(decide.admit(presented, before, before.memo), Admitted)
    revocations = Revocations()
    key, value = revocation_record(
        issuer=ISS, selector="subject", value="service:ci", since_s=NOW_S + 1, reason="left", by="ops", keep_until_s=0
    )
    assert revocations.apply(key, value) is None
    after = msgspec.structs.replace(before, revocations=revocations, memo=Memo())
    result = decide.admit(presented, after, after.memo)
    assert isinstance(result, Refused)
    assert result.rejected.code == "token_revoked"
    assert not isinstance(result, Held)


def test_a_handoff_signed_with_a_key_that_its_home_has_not_read_yet_waits_for_one_look():
    """The gate it arrived at may have read a set that this one has not."""
    there, here = (
        msgspec.structs.replace(WORLD, memo=Memo(), ring={ISS: keys})
        for keys in (KEYS, KeySet({"ed1": KEYS.keys["ed1"]}, KEYS.algorithms))
    )
    presented = record(1, TOKENS[1], NOW_S, idempotency_key="a")
    admitted = decide.admit(presented, there, there.memo)
    assert isinstance(admitted, Admitted)
    redacted, _ = original(presented, TOKENS[1], lambda *_: None)
    handed, source, trigger = outputs.read_handoff(outputs.handoff(admitted, redacted, None, 0, 0).value)
    seen = here.memo.handed_token(bytes(handed.claims), handed.token_fingerprint, handed.insecure)

    arrived, at_home = decide.admit(presented, here, here.memo), decide.readmit(source, trigger, seen, here, here.memo)
    for result in (arrived, at_home):
        assert isinstance(result, Held)
        assert result.wanted == KeyWanted(ISS, "k1")
    refused = decide.readmit(source, trigger, seen, here, here.memo, wait_for_keys=False)
    assert isinstance(refused, Refused)
    assert refused.rejected.code == "kid_unknown"
    read = msgspec.structs.replace(here, ring=RING, memo=Memo())
    assert isinstance(decide.readmit(source, trigger, seen, read, read.memo), Admitted)


@pytest.mark.parametrize(
    ("signed_key", "code"), [("other", "idempotency_key_conflict"), (None, "idempotency_key_not_in_token")]
)
def test_of_a_trigger_that_waited_too_long_and_whose_key_is_wrong_the_earlier_fault_is_the_key(
    signed_key: str | None, code: str
):
    text = token(claims={"jti": "q"} | ({"idempotency_key": signed_key} if signed_key else {}))
    refused = decide.admit(record(1, text, NOW_S, params={}, idempotency_key="a"), WORLD, Memo())
    assert isinstance(refused, Refused)
    assert refused.rejected.code == code
    good = decide.admit(record(1, token(claims={"jti": "q"}), NOW_S, params={}), WORLD, Memo())
    assert isinstance(good, Admitted)
    too_late = decide.settle(good, None, NOW_S * 1000 + WORLD.queue_age_cap_ms + 1, WORLD)
    assert isinstance(too_late, Refused)
    codes = [reason.code for reason in REASONS]
    assert codes.index(code) < codes.index(too_late.rejected.code)
