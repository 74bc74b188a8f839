"""No privilege escalation: whatever an exchanged token starts, the token it came of could have started itself.

Both are judged by the gate, in worlds, tokens, requests and triggers made at random: nothing here says what "more" is.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from app.api import exchange
from app.api.caller import Caller
from app.api.forms import OAuthError
from app.authority.decide import IssueRequest
from app.gate import decide
from app.gate.canonical import canonical
from app.gate.claims import Claims, nested
from app.gate.decide import Admitted, Memo, World
from app.gate.identities import DisabledIdentities
from app.gate.mapping import MappingRule, MappingRules
from app.gate.policy import Revocations, revocation_record
from app.gate.token import VerifiedToken, verify
from app.issuer.issuing import Wanted, token_request
from app.issuer.keystore import SigningKey
from app.issuer.mint import Refusal, TriggerTokenRequest, mint
from tests.support.pure_world import JOBS, WORLD, job, record
from tests.support.tokens import AUD, ISS, NOW_S, PRIVATE, RING, token

CASES = 3_000
KEY = SigningKey("k1", "ES256", PRIVATE)
ACTORS = ("svc:b", "svc:c")
ONE_SHOT_ONLY, WEBHOOK_ONLY, TOKEN_WINS = "reports/once", "reports/many", "reports/wins"
ALL_JOBS = (*JOBS, ONE_SHOT_ONLY, WEBHOOK_ONLY, TOKEN_WINS)
DEFINED: dict[str, Any] = {
    **{name: job(name) for name in JOBS}, ONE_SHOT_ONLY: job(ONE_SHOT_ONLY, accepts=["one_shot"]),
    WEBHOOK_ONLY: job(WEBHOOK_ONLY, accepts=["webhook"]), TOKEN_WINS: job(TOKEN_WINS, on_param_conflict="token_wins"),
}  # fmt: skip
OBJECTS = {"job/one": "born", "job/two": "born"}
PLAIN: World = msgspec.structs.replace(WORLD, jobs=DEFINED, objects=OBJECTS, memo=Memo())


def usually(value: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Most of a case is plain, so that a difference or two come through to a decision."""
    return st.integers(0, 9).flatmap(lambda n: st.just(value) if n < 7 else st.sampled_from(others))


# Few, so that what a token fixes, what a digest is of and what a trigger sends often meet. One name looks like another:
# a gate takes it for an attempt on that one.
PARAMS: list[dict[str, Any]] = [{}, {"region": "eu"}, {"region": "us"}, {"\uff52egion": "us"}, {"n": 1, "region": "eu"}]
params = st.sampled_from([{}, *PARAMS])
digests = st.sampled_from([None, None, *(sha256(canonical(sent)).hexdigest() for sent in PARAMS[:2])])
keys = usually(None, "k1", "k2")
some_jobs = st.lists(st.sampled_from(ALL_JOBS), min_size=1, max_size=3, unique=True)


@st.composite
def first_tokens(draw: DrawFn) -> str:
    """A token of the issuer, as somebody with its keys might have signed it: more or less than the commands make."""
    grant: dict[str, Any] = {"jobs": draw(some_jobs), "params": draw(params)}
    grant["actions"] = draw(usually(["106-Trigger"], ["read", "106-Trigger"], ["read"]))
    if (digest := draw(digests)) is not None:
        grant["params_sha256"] = digest
    if (bound := draw(usually("", "job/one", "job/two"))) != "":
        grant["bound_to"] = {"object": bound, "birth_id": "born"}
    claims: dict[str, Any] = {
        "uses": "many", "jti": "p0", "exp": NOW_S + draw(usually(600, 1, 59)),
        "iat": NOW_S - 100, "nbf": NOW_S - 100,
    }  # fmt: skip
    if (named := draw(keys)) is not None:
        claims["idempotency_key"] = named
    if draw(st.booleans()):
        claims["act"] = nested(["svc:a"])
    return token(claims=claims, grant=grant)


@st.composite
def wanted(draw: DrawFn) -> Wanted:
    return Wanted(
        tuple(draw(usually([], JOBS[:1], [ONE_SHOT_ONLY], [TOKEN_WINS]))), draw(st.sampled_from(["once", "many"])),
        draw(usually(300, 1, 2_000)), draw(usually(None, "service:ci")), draw(params), draw(digests),
        draw(keys),
    )  # fmt: skip


@st.composite
def worlds(draw: DrawFn) -> World:
    """What may be or have changed: rights, rules, revocations, objects; all of them by what the first token is known by."""
    revocations, disabled = Revocations(), DisabledIdentities()
    rules: dict[str, tuple[MappingRule, ...]] = {}
    match draw(st.sampled_from(["", "revoked", "since", "disabled", "deny", "allow"])):
        case "revoked" | "since" as how:
            named = draw(
                st.sampled_from([("jti", "p0"), ("subject", "service:ci"), ("subject", "svc:a"), ("job", JOBS[0])])
            )
            since_s = NOW_S - 100 if how == "since" else NOW_S
            revocations.apply(*revocation_record(ISS, *named, since_s=since_s, reason="", by="", keep_until_s=0))
        case "disabled":
            disabled = DisabledIdentities(frozenset({(ISS, draw(st.sampled_from(["service:ci", "svc:a"])))}))
        case "deny" | "allow" as effect:
            rule = MappingRule(name="one", version=1, effect=effect, jtis=("p0",), jobs=tuple(draw(some_jobs)))
            rules = {effect: (rule,)}
    return msgspec.structs.replace(
        WORLD, jobs=DEFINED, revocations=revocations, disabled=disabled, mapping=MappingRules(**rules),
        objects=draw(usually(OBJECTS, {}, OBJECTS | {"job/one": "born again"})), memo=Memo(),
    )  # fmt: skip


def verified(text: str) -> Claims:
    made = verify(text, RING, AUD)
    assert isinstance(made, VerifiedToken), made
    return made.claims


def exchanged(given_token: str, asked: Wanted, actor: str) -> str | None:
    """As the door does it: for a token that is honoured, what comes of it; None when nothing does."""
    claims = verified(given_token)
    if Caller(claims, "").fault(PLAIN, NOW_S * 1000) is not None:
        return None
    try:
        made = exchange.narrowed(claims, asked, NOW_S, actor)
    except OAuthError:
        return None
    request = IssueRequest(made.subject or "", claims.org_id, made.lifetime_s, made.jobs, uses=made.uses)
    to_mint = token_request(made, request, ISS, AUD)
    assert isinstance(to_mint, TriggerTokenRequest)
    minted = mint(to_mint, KEY, NOW_S)
    return None if isinstance(minted, Refusal) else minted.token


Trigger = tuple[str, dict[str, Any], str | None]  # job, params, key beside the token


def admitted(text: str, trigger: Trigger, at_s: int, world: World) -> Admitted | None:
    name, sent, beside = trigger
    asked = {"job": name, "params": sent} | ({} if beside is None else {"idempotency_key": beside})
    result = decide.admit(record(0, text, at_s, **asked), world, Memo())
    return result if isinstance(result, Admitted) else None


def could_have(parent: str, child: Admitted, trigger: Trigger, at_s: int, world: World) -> bool:
    """Whether the parent starts the same job with the same parameters and under the same key, however it asks."""
    _, sent, beside = trigger
    name = child.authorized.job.name
    key = child.token.claims.idempotency_key or beside
    for payload in (sent, child.authorized.requested):
        found = admitted(parent, (name, payload, key), at_s, world)
        if found is not None and found.authorized.params == child.authorized.params:
            return True
    return False


@pytest.mark.slow
@settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
@given(first_tokens(), st.lists(wanted(), min_size=1, max_size=2), worlds(), st.data())
def test_whatever_an_exchanged_token_starts_the_one_it_came_of_could_have_started(
    first: str, asked: list[Wanted], after: World, data: st.DataObject
) -> None:
    family = [first]
    for want, actor in zip(asked, ACTORS, strict=False):
        made = exchanged(family[-1], want, actor)
        if made is None:
            return
        family.append(made)
    parent, child = verified(family[-2]), verified(family[-1])
    assert (child.iss, child.sub, child.org_id, child.token_class) == (
        parent.iss,
        parent.sub,
        parent.org_id,
        parent.token_class,
    )
    assert child.actors[1:] == parent.actors
    assert child.exp <= parent.exp
    for _ in range(3):
        name = data.draw(st.sampled_from([*child.grant.jobs] * 5 + [*ALL_JOBS]))
        trigger: Trigger = (name, data.draw(params), data.draw(keys))
        at_s = NOW_S + data.draw(usually(0, 1, 300, 600, 660, 661))
        started = admitted(family[-1], trigger, at_s, after)
        event("refused" if started is None else "started")
        if started is None:
            continue
        for ancestor in family[:-1]:
            more = None if could_have(ancestor, started, trigger, at_s, after) else (verified(ancestor), child, trigger)
            assert more is None
