"""Handles: what they stand for is judged as a token is, and nobody without a key makes one stand for anything."""

from __future__ import annotations

import json
import secrets
import string
from typing import Any

import msgspec
import pytest

from app.gate import decide
from app.gate.claims import BoundTo
from app.gate.decide import Admitted, Held, Memo, Refused, World
from app.gate.explain import explain
from app.gate.original import original, original_of_verified
from app.gate.policy import revocation_record
from app.gate.reasons import Rejected
from app.gate.reference import HASH_CLAIM, KEPT_MIN, LIFETIME_MAX_MS, Grants, grant_key, handle_digest, is_handle
from app.gate.revocation import Revocations
from app.gate.token import GrantWanted, KeyWanted, VerifiedToken, verify
from tests.gate.test_standing import JOBS, WORLD, record
from tests.support.jose import ABSENT, b64
from tests.support.tokens import AUD, CLAIMS, HEADER, ISS, NOW_S, OTHER, RING, fingerprint, signed, token

HANDLE = "ref:" + b64(bytes(range(220, 252)))
DIGEST = handle_digest(HANDLE)


def granted(
    handle: str = HANDLE, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None, **more: Any
) -> str:
    """The grant of a handle, with one difference."""
    return token(
        {"typ": "grant+jwt"} | (header or {}), {HASH_CLAIM: handle_digest(handle).hex()} | (claims or {}), **more
    )


def table(jws: str | None = None, handle: str = HANDLE) -> Grants:
    """A table in which a handle stands for this grant (None: a good one)."""
    made = Grants()
    assert made.apply(grant_key(handle_digest(handle)), (jws or granted()).encode(), NOW_S * 1000) is None
    return made


def code(presented: str, grants: Grants, ring: Any = RING) -> str:
    got = verify(presented, ring, AUD, grants)
    match got:
        case Rejected():
            return got.code
        case VerifiedToken():
            return "accepted"
        case KeyWanted():
            return "key wanted"
        case GrantWanted():
            return "grant wanted"


# ── the handle ──


def test_a_handle_has_one_spelling():
    assert is_handle(HANDLE)
    assert "-" in HANDLE
    ends = [end for end in string.ascii_letters + string.digits + "-_" if is_handle(HANDLE[:-1] + end)]
    assert sorted(ends) == sorted({b64(bytes(31) + bytes((last,)))[-1] for last in range(256)})
    assert len(ends) == 16, "two spare bits are zero"


@pytest.mark.parametrize(
    "presented",
    ["ref:", HANDLE + "A", HANDLE[:-1], HANDLE[:-1] + "5", HANDLE + "=", HANDLE + "\n", HANDLE.replace("-", "+"),
     "ref:" + "A" * 42 + "é", "ref:" + token(), "ref:" + "A" * 7_000],
)  # fmt: skip
def test_what_only_begins_as_a_handle_is_malformed(presented: str):
    assert code(presented, table()) == "token_malformed"


def test_a_handle_is_measured_before_it_is_read():
    assert code("ref:" + "A" * 8_192, Grants()) == "token_too_large"


@pytest.mark.parametrize("presented", ["REF:" + HANDLE[4:], " " + HANDLE, HANDLE[4:], "Ref:" + HANDLE[4:]])
def test_what_does_not_begin_as_a_handle_is_no_token_either(presented: str):
    assert code(presented, table()) == "token_malformed"


# ── what it stands for ──


def test_a_handle_becomes_the_claims_of_its_grant_and_is_known_by_its_own_fingerprint():
    by_handle, by_token = verify(HANDLE, RING, AUD, table()), verify(token(), RING, AUD)
    assert isinstance(by_handle, VerifiedToken)
    assert isinstance(by_token, VerifiedToken)
    assert by_handle.claims == by_token.claims
    assert by_handle.fingerprint == fingerprint(HANDLE) == DIGEST.hex()[:32]


def test_a_handle_nobody_issued_is_wanted_and_no_other_opens_it():
    assert code(HANDLE, Grants()) == "grant wanted"
    assert code("ref:" + b64(secrets.token_bytes(32)), table()) == "grant wanted"


DIFFERENCES: list[dict[str, Any]] = [
    {"header": {"alg": "none"}},
    {"header": {"kid": ABSENT}},
    {"header": {"kid": "k9"}},
    {"header": {"jku": "https://a"}},
    {"claims": {"iss": "https://other.example"}},
    {"claims": {"aud": "tollgate:other."}},
    {"claims": {"exp": NOW_S + 30}},
    {"claims": {"jti": ABSENT}},
    {"claims": {"org_id": ABSENT}},
    {"claims": {"uses": "twice"}},
    {"claims": {"sub": "a\nb"}},
    {"claims": {"iat": "now"}},
    {"grant": {"type": "another"}},
    {"grant": {"condition": 1}},
    {"grant": {"jobs": []}},
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=str)
def test_a_grant_is_refused_for_what_a_token_is_refused_for(difference: dict[str, Any]):
    presented = token(**difference)
    as_token = verify(presented, RING, AUD)
    by_handle = verify(HANDLE, RING, AUD, table(granted(**difference)))
    if isinstance(as_token, VerifiedToken):
        assert isinstance(by_handle, VerifiedToken)
        assert by_handle.claims == as_token.claims
    else:
        assert by_handle == as_token


# ── whoever can write the topic and has no key ──


def test_a_grant_of_a_stranger_stands_for_nothing():
    header, claims = json.dumps(HEADER | {"typ": "grant+jwt"}), json.dumps(CLAIMS | {HASH_CLAIM: DIGEST.hex()})
    forged = signed(header.encode(), claims.encode(), OTHER)
    assert code(HANDLE, table(forged)) == "signature_invalid"
    good = granted()
    assert code(HANDLE, table(good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"))) == "signature_invalid"


def test_a_good_grant_under_another_handles_hash_stands_for_nothing():
    mine = "ref:" + b64(secrets.token_bytes(32))
    assert code(mine, table(granted(), mine)) == "token_unknown"
    assert code(HANDLE, table(token({"typ": "grant+jwt"}))) == "token_unknown", "one that names no handle"


def test_neither_a_token_nor_a_grant_is_taken_in_the_others_place():
    assert code(granted(), Grants()) == "token_type_invalid"
    assert code(HANDLE, table(token(claims={HASH_CLAIM: DIGEST.hex()}))) == "token_type_invalid"


@pytest.mark.parametrize("value", [b"", b"{}", b"a.b.c", b"\xff.\xff.\xff", b"x" * 9_000, HANDLE.encode()])
def test_what_is_no_grant_takes_away_the_one_before_it(value: bytes):
    grants = table()
    assert grants.apply(grant_key(DIGEST), value, NOW_S * 1000)
    assert code(HANDLE, grants) == "grant wanted"
    assert grants.taken_away == 1


def test_a_key_that_is_no_hash_is_complained_of_and_changes_nothing():
    grants = table()
    for key in (None, b"", DIGEST, HANDLE.encode(), DIGEST.hex().upper().encode(), DIGEST.hex().encode() + b"\n"):
        assert grants.apply(key, None, NOW_S * 1000)
    assert code(HANDLE, grants) == "accepted"


# ── the table ──


def test_a_tombstone_takes_a_grant_away_and_a_repeated_record_changes_nothing():
    grants, grant = table(), granted()
    assert grants.apply(grant_key(DIGEST), str(grants.get(DIGEST)).encode(), NOW_S * 1000) is None
    assert grants.taken_away == 0, "the same record again: a producer's retry"
    assert grants.apply(grant_key(DIGEST), grant.encode(), NOW_S * 1000) is None
    assert grants.taken_away == 1, "another signature is another grant"
    assert grants.apply(grant_key(DIGEST), None, NOW_S * 1000) is None
    assert (len(grants), grants.taken_away) == (0, 2)
    assert grants.apply(grant_key(DIGEST), None, NOW_S * 1000) is None
    assert grants.taken_away == 2


def test_expired_grants_are_forgotten_by_the_brokers_clock_after_grace_and_the_longest_wait():
    grants, slack_s = Grants(slack_s=100), 100

    def add(number: int, exp: int, at_s: int) -> bytes:
        digest = number.to_bytes(32, "big")
        payload = b64(json.dumps({"exp": exp}).encode())
        assert grants.apply(grant_key(digest), f"e30.{payload}.AA".encode(), at_s * 1000) is None
        return digest

    first = add(0, NOW_S + 10, NOW_S)
    for number in range(1, 5 * KEPT_MIN):
        add(number, NOW_S + 1_000_000, NOW_S + 10 + slack_s)
    assert grants.get(first), "a trigger may have waited since"
    for number in range(5 * KEPT_MIN, 11 * KEPT_MIN):
        last = add(number, NOW_S + 1_000_000 if number == 11 * KEPT_MIN - 1 else NOW_S + 1, NOW_S + 11 + slack_s)
    assert grants.get(first) is None
    assert grants.get(last)
    assert len(grants) <= 2 * 5 * KEPT_MIN, "never more than twice what is needed"


def test_a_grant_that_says_it_lives_for_ever_stays_as_long_as_a_token_may():
    grants, at_ms = Grants(slack_s=100), NOW_S * 1000

    def add(number: int, at_ms: int) -> bytes:
        digest = number.to_bytes(32, "big")
        payload = b64(json.dumps({"exp": 99_999_999_999}).encode())
        assert grants.apply(grant_key(digest), f"e30.{payload}.AA".encode(), at_ms) is None
        return digest

    for number in range(10 * KEPT_MIN):
        add(number, at_ms)
    for number in range(10 * KEPT_MIN, 40 * KEPT_MIN):
        last = add(number, at_ms + LIFETIME_MAX_MS + 100_001)
    assert grants.get(bytes(32)) is None
    assert grants.get(last)


# ── the decision ──


def world(**changes: Any) -> World:
    return msgspec.structs.replace(WORLD, memo=Memo(), **changes)


def judged(presented: str, where: World, memo: Memo, at_s: int = NOW_S, *, wait: bool = False) -> Any:
    return decide.admit(record(1, presented, at_s), where, memo, wait_for_keys=wait)


@pytest.mark.parametrize("uses", ["once", "many"])
def test_a_handle_starts_what_its_token_would_start(uses: str):
    where = world(grants=table(granted(claims={"uses": uses}, grant={"params": {}})))
    by_token = judged(token(claims={"uses": uses}, grant={"params": {}}), where, Memo())
    memo = Memo()
    for _ in range(2):  # the second time a webhook token's standing is remembered
        by_handle = judged(HANDLE, where, memo)
        assert isinstance(by_handle, Admitted)
        assert (by_handle.identity, by_handle.home, by_handle.authorized) == (
            by_token.identity, by_token.home, by_token.authorized,
        )  # fmt: skip
        assert by_handle.token.claims == by_token.token.claims
    assert bool(memo.presented) is (uses == "many")


def test_an_unknown_handle_is_held_until_the_table_is_known_to_be_whole_and_then_unknown():
    held = judged(HANDLE, world(), Memo(), wait=True)
    assert isinstance(held, Held)
    assert held.wanted == GrantWanted(DIGEST)
    refused = judged(HANDLE, world(), Memo())
    assert isinstance(refused, Refused)
    assert refused.rejected.code == "token_unknown"
    assert refused.rejected.reason.transient


@pytest.mark.parametrize(
    ("at_s", "verdict"), [(600 + 60, "admitted"), (600 + 61, "token_expired"), (-61, "token_not_yet_valid")]
)
def test_a_handle_is_in_its_time_as_its_grant_says(at_s: int, verdict: str):
    got = judged(HANDLE, world(grants=table()), Memo(), NOW_S + at_s)
    assert (got.rejected.code if isinstance(got, Refused) else "admitted") == verdict


@pytest.mark.parametrize(
    ("selector", "value"),
    [("jti", CLAIMS["jti"]), ("subject", "service:ci"), ("subject_prefix", ""), ("job", JOBS[0]), ("class", "trigger"),
     ("kid", "k1"), ("issuer", ISS)],
)  # fmt: skip
def test_what_is_revoked_is_revoked_for_handles(selector: Any, value: str):
    revocations = Revocations()
    assert (
        revocations.apply(*revocation_record(ISS, selector, value, since_s=NOW_S, reason="", by="", keep_until_s=0))
        is None
    )
    got = judged(HANDLE, world(grants=table(), revocations=revocations), Memo())
    assert got.rejected.code == "token_revoked"


def test_a_handle_waits_for_the_keys_of_its_issuer_and_falls_with_them():
    grants = table()
    held = judged(HANDLE, world(grants=grants, ring={ISS: None}), Memo())
    assert isinstance(held, Held)
    assert held.wanted == KeyWanted(ISS, None)
    assert judged(HANDLE, world(grants=grants, ring={}), Memo()).rejected.code == "issuer_untrusted"


@pytest.mark.parametrize("known", [True, False])
def test_no_dead_letter_holds_a_handle(known: bool):
    trigger = record(1, HANDLE, NOW_S + 10_000 * known)
    where = world(grants=table() if known else Grants())
    refused = judged(HANDLE, where, Memo(), NOW_S + 10_000 * known)
    assert refused.rejected.code == ("token_expired" if known else "token_unknown")
    for redacted, _ in (
        original(trigger, HANDLE, lambda *_: None),
        original_of_verified(trigger, refused.request.trigger, fingerprint(HANDLE), lambda *_: None),
    ):
        assert HANDLE[4:].encode() not in b"".join([redacted.key or b"", redacted.value or b""])
        assert DIGEST.hex()[:16].encode() in (redacted.value or b"")


def test_explain_tells_an_unknown_handle_as_refused_and_a_known_one_by_its_facts():
    unknown = explain(record(1, HANDLE, NOW_S), world(), None, NOW_S * 1000)
    assert (unknown.outcome, unknown.reason) == ("rejected", "token_unknown")
    assert [check.check for check in unknown.checks if check.result == "fail"] == ["token_unknown"]
    told = explain(record(1, HANDLE, NOW_S), world(grants=table(granted(grant={"params": {}}))), None, NOW_S * 1000)
    assert told.outcome in ("accepted", "away")
    assert (told.facts["issuer"], told.facts["token_fingerprint"]) == (ISS, fingerprint(HANDLE))
    assert HANDLE not in str(msgspec.to_builtins(told))


# ── what a token is bound to ──

BOUND = {"object": "job/reports/nightly", "birth_id": "b1"}


def verdict_of(bound_to: Any, objects: dict[str, str]) -> str:
    presented = token(grant={"params": {}, "bound_to": bound_to})
    got = judged(presented, world(objects=objects), Memo())
    return got.rejected.code if isinstance(got, Refused) else "admitted"


@pytest.mark.parametrize(
    ("bound_to", "objects", "verdict"),
    [
        (BOUND, {"job/reports/nightly": "b1"}, "admitted"),
        (BOUND, {}, "bound_object_gone"),
        (BOUND, {"job/reports/nightly": "b2"}, "bound_object_gone"),  # made anew
        (BOUND, {"job/reports/nightly": ""}, "bound_object_gone"),
        (BOUND, {"job/reports/weekly": "b1"}, "bound_object_gone"),
        ({"object": "trust/emitter:7"}, {"trust/emitter:7": "b9"}, "admitted"),
        ({"object": "trust/emitter:7"}, {"trust/emitter:7": ""}, "admitted"),
        ({"object": "trust/emitter:7"}, {}, "bound_object_gone"),
    ],
)
def test_a_token_lives_as_long_as_what_it_is_bound_to(bound_to: Any, objects: dict[str, str], verdict: str):
    assert verdict_of(bound_to, objects) == verdict


@pytest.mark.parametrize(
    "bound_to",
    [None, "job/x", [], {}, {"birth_id": "b1"}, {"object": ""}, {"object": 1}, {"object": "a" * 301},
     {"object": "a\nb"}, {"object": "a", "birth_id": ""}, {"object": "a", "birth_id": None},
     {"object": "a", "birth_id": "b" * 65}, {"object": "a", "until": 3}],
    ids=str,
)  # fmt: skip
def test_a_binding_that_cannot_be_read_refuses_the_token(bound_to: Any):
    assert verdict_of(bound_to, {"a": "b1", "job/x": "b1"}) == "grant_malformed"


def test_a_home_lane_judges_again_what_a_token_is_bound_to():
    claims = verify(token(grant={"params": {}, "bound_to": BOUND}), RING, AUD)
    assert isinstance(claims, VerifiedToken)
    assert claims.claims.grant.bound_to == BoundTo(**BOUND)
    handed = Memo().handed_token(msgspec.json.encode(claims.claims), claims.fingerprint, False)
    assert handed.claims == claims.claims
    source, trigger = decide.source_at(0, 1, NOW_S * 1000), judged(token(grant={"params": {}}), world(), Memo()).trigger
    there = {"job/reports/nightly": "b1"}
    assert isinstance(decide.readmit(source, trigger, handed, world(objects=there), Memo()), Admitted)
    gone = decide.readmit(source, trigger, handed, world(), Memo())
    assert isinstance(gone, Refused)
    assert gone.rejected.code == "bound_object_gone"


def test_revocation_is_told_before_what_is_gone():
    revocations = Revocations()
    revocations.apply(*revocation_record(ISS, "issuer", None, since_s=0, reason="", by="", keep_until_s=0))
    presented = token(grant={"params": {}, "bound_to": BOUND})
    assert judged(presented, world(revocations=revocations), Memo()).rejected.code == "token_revoked"


def test_other_claims_of_a_grant_are_passed_over_as_in_a_token():
    assert code(HANDLE, table(granted(claims={"client_id": "x"}))) == "accepted"
