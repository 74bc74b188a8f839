"""Tokens that came of others by exchange: who acts for whom is kept, judged and audited."""

import msgspec
import pytest

from app.gate import decide, outputs
from app.gate.claims import Claims, nested
from app.gate.decide import Admitted, Memo, Refused, World
from app.gate.identities import DisabledIdentities
from app.gate.records import Presentation
from app.gate.token import verify
from tests.support.pure_world import JOBS, WORLD, record
from tests.support.tokens import AUD, ISS, NOW_S, RING, token

CHAIN = ("svc:c", "svc:b", "svc:a")


def admitted(text: str, world: World = WORLD) -> Admitted | Refused:
    result = decide.admit(record(0, text, NOW_S), world, Memo())
    assert isinstance(result, Admitted | Refused)
    return result


def delegated(actors: tuple[str, ...] = CHAIN, **claims: object) -> str:
    return token(claims={"act": nested(actors)} | claims, grant={"jobs": list(JOBS[:1])})


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
