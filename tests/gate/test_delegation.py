"""Tokens that came of others by exchange: who acts for whom is kept, judged and audited, and a token dies with those."""

import msgspec
import pytest

from app.gate import decide, outputs
from app.gate.claims import Claims, nested
from app.gate.decide import Admitted, Memo, Refused, World
from app.gate.identities import DisabledIdentities
from app.gate.keyset import KeySet
from app.gate.mapping import MappingRules, mapping_from_record
from app.gate.policy import Revocations, revocation_record
from app.gate.records import Presentation
from app.gate.token import verify
from tests.support.pure_world import JOBS, WORLD, job, record
from tests.support.tokens import AUD, ISS, KEYS, NOW_S, RING, token

CHAIN = ("svc:c", "svc:b", "svc:a")


def admitted(text: str, world: World = WORLD) -> Admitted | Refused:
    result = decide.admit(record(0, text, NOW_S), world, Memo())
    assert isinstance(result, Admitted | Refused)
    return result


def delegated(actors: tuple[str, ...] = CHAIN, **claims: object) -> str:
    return token(claims={"act": nested(actors)} | claims, grant={"jobs": list(JOBS[:1])})


# The last was issued at NOW_S to svc:c, for one that svc:b had a minute before, for one that svc:a had a minute before
# that, for the first, which the subject had yet a minute before.
PARENTS = [{"jti": f"p{number}", "kid": "k1", "iat": NOW_S - 60 * number} for number in (1, 2, 3)]


def came_of(world: World = WORLD, **claims: object) -> str:
    """`admitted`, or why the exchanged token is refused."""
    result = admitted(delegated(**({"parents": PARENTS} | claims)), world)
    return result.rejected.code if isinstance(result, Refused) else "admitted"


def revoked(selector: str, value: str, since_s: int = NOW_S) -> World:
    revocations = Revocations()
    revocations.apply(*revocation_record(ISS, selector, value, since_s=since_s, reason="", by="", keep_until_s=0))
    return msgspec.structs.replace(WORLD, revocations=revocations, memo=Memo())


def test_the_chain_is_read_from_the_last_actor_to_the_first():
    assert verify(delegated(), RING, AUD).claims.actors == CHAIN
    assert verify(token(), RING, AUD).claims.actors == ()


def test_the_audit_tells_who_acted_and_says_nothing_where_nobody_did():
    written = {}
    for name, text in (("delegated", delegated()), ("own", delegated((), act={"sub": "svc:c"}))):
        result = admitted(text)
        written[name] = msgspec.json.encode(outputs.presentation(result, "accepted", JOBS[0]))
        assert msgspec.json.decode(written[name], type=Presentation).subject == "service:ci"
    plain = msgspec.json.encode(outputs.presentation(admitted(token()), "accepted", JOBS[0]))
    assert msgspec.json.decode(written["delegated"])["actors"] == list(CHAIN)
    assert msgspec.json.decode(written["own"])["actors"] == ["svc:c"]
    assert "actors" not in msgspec.json.decode(plain)


def test_a_handoff_keeps_the_chain():
    result = admitted(delegated())
    assert isinstance(result, Admitted)
    carried = msgspec.json.decode(result.standing.claims_json(), type=Claims)
    assert carried == result.token.claims
    assert carried.actors == CHAIN


@pytest.mark.parametrize("who", ["service:ci", *CHAIN])
def test_whoever_is_disabled_in_the_chain_starts_nothing_and_nobody_else_is_touched(who: str):
    world = msgspec.structs.replace(WORLD, disabled=DisabledIdentities(frozenset({(ISS, who)})), memo=Memo())
    result = admitted(delegated(), world)
    assert isinstance(result, Refused)
    assert result.rejected.code == "identity_disabled"
    others = delegated(tuple(actor for actor in CHAIN if actor != who), sub="service:other")
    assert isinstance(admitted(others, world), Admitted)


def test_what_is_known_of_a_subject_is_not_known_of_who_acts_for_it():
    """One memo sees a subject alone and with a disabled actor: neither is taken for the other."""
    world = msgspec.structs.replace(WORLD, disabled=DisabledIdentities(frozenset({(ISS, "svc:c")})))
    memo = Memo()
    own, acted = token(claims={"uses": "many"}), delegated(uses="many", jti="j2")
    for text, expected in ((own, Admitted), (acted, Refused), (own, Admitted), (acted, Refused)):
        assert isinstance(decide.admit(record(0, text, NOW_S), world, memo), expected)


def test_a_token_is_as_good_as_those_it_came_of():
    assert came_of() == "admitted"


@pytest.mark.parametrize(
    ("selector", "value", "since_s", "expected"),
    [
        *(("jti", f"p{number}", NOW_S, "token_revoked") for number in (1, 2, 3)),
        ("jti", "p4", NOW_S, "admitted"),
        ("jti", "p1", NOW_S - 61, "admitted"),  # since before it was issued
        ("kid", "k1", NOW_S, "token_revoked"),
        # The subject's: by the time of the first, though it was exchanged later.
        ("subject", "service:ci", NOW_S - 180, "token_revoked"),
        ("subject", "service:ci", NOW_S - 181, "admitted"),
        ("subject_prefix", "service:", NOW_S - 180, "token_revoked"),
        ("class", "trigger", NOW_S - 180, "token_revoked"),
        ("job", JOBS[0], NOW_S - 180, "token_revoked"),
        ("job", JOBS[1], NOW_S, "admitted"),
        # Who acts: by the time of the token it had.
        ("subject", "svc:c", NOW_S, "token_revoked"),
        ("subject", "svc:c", NOW_S - 1, "admitted"),
        ("subject", "svc:b", NOW_S - 60, "token_revoked"),
        ("subject", "svc:b", NOW_S - 61, "admitted"),
        ("subject", "svc:a", NOW_S - 120, "token_revoked"),
        ("subject", "svc:a", NOW_S - 121, "admitted"),
        ("subject_prefix", "svc:", NOW_S - 120, "token_revoked"),
        ("subject", "svc:d", NOW_S, "admitted"),
    ],
)
def test_what_reaches_a_token_reaches_what_it_was_exchanged_for(selector: str, value: str, since_s: int, expected: str):
    assert came_of(revoked(selector, value, since_s)) == expected


def test_actors_of_an_issuer_that_names_no_parents_are_reached_too():
    result = admitted(delegated(), revoked("subject", "svc:a"))
    assert isinstance(result, Refused)
    assert result.rejected.code == "token_revoked"


def test_a_token_dies_with_the_key_of_one_that_it_came_of():
    assert came_of(parents=[PARENTS[0], PARENTS[1] | {"kid": "k0"}]) == "kid_unknown"
    more = {ISS: KeySet({**KEYS.keys, "k0": KEYS.keys["k1"]}, KEYS.algorithms)}
    world = msgspec.structs.replace(WORLD, ring=more, memo=Memo())
    assert came_of(world, parents=[PARENTS[0], PARENTS[1] | {"kid": "k0"}]) == "admitted"


@pytest.mark.parametrize(("effect", "code"), [("deny", "denied_by_rule"), ("allow", "not_allowed_by_rule")])
def test_a_rule_for_a_token_is_one_for_what_it_was_exchanged_for(effect: str, code: str):
    members = {"jtis": ["p3"], "jobs": [JOBS[0] if effect == "deny" else JOBS[1]]}
    value = msgspec.json.encode({"name": "one", "version": 1, "effect": effect, "reason": ""} | members)
    rule = mapping_from_record(b"rule/one", value)
    assert not isinstance(rule, str), rule
    world = msgspec.structs.replace(WORLD, mapping=MappingRules(**{effect: (rule,)}), memo=Memo())
    assert came_of(world) == code
    assert isinstance(admitted(delegated(parents=PARENTS[:2]), world), Admitted)


def test_a_one_shot_token_that_was_a_webhook_token_starts_no_job_that_takes_none():
    world = msgspec.structs.replace(WORLD, jobs={JOBS[0]: job(JOBS[0], accepts=["one_shot"])}, memo=Memo())
    assert came_of(world) == "token_class_too_weak"
    assert isinstance(admitted(delegated(), world), Admitted)
    # One memo, of which neither answer is taken for the other.
    memo = Memo()
    for text, expected in ((delegated(), Admitted), (delegated(parents=PARENTS, jti="j2"), Refused)) * 2:
        assert isinstance(decide.admit(record(0, text, NOW_S), world, memo), expected)
