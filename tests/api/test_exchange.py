"""Token exchange: what comes of it is never more than what was handed over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import exchange
from app.api.forms import OAuthError
from app.api.issuing import Wanted
from app.gate import limits
from app.gate.claims import BoundTo, Claims, Delegation, Grant

NOW_S = 1_700_000_000
JOBS = ["a/1", "a/2", "b/1"]
NAMES = st.sampled_from(["p", "q", "r"])
DIGESTS = st.sampled_from([None, "0" * 64, "1" * 64])
BOUND = st.sampled_from([None, BoundTo("job/a/1", "born"), BoundTo("trust/https://i")])
KEYS = st.sampled_from([None, "k1", "k2"])
PARAMS = st.dictionaries(NAMES, st.integers(0, 1), max_size=3)


@st.composite
def claims(draw: st.DrawFn) -> Claims:
    jobs = tuple(draw(st.lists(st.sampled_from(JOBS), min_size=1, unique=True)))
    grant = Grant(("106-Trigger",), jobs, draw(PARAMS), draw(DIGESTS), draw(BOUND))
    exp = NOW_S + draw(st.integers(1, 10_000))
    uses = draw(st.sampled_from(["once", "many"]))
    return Claims(
        "https://i", "k", "svc:a", "acme", "j", NOW_S - 10, NOW_S - 10, exp, uses, "trigger", grant, draw(KEYS)
    )


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    jobs = tuple(draw(st.lists(st.sampled_from(JOBS), max_size=3, unique=True)))
    subject = draw(st.sampled_from([None, "svc:a", "svc:b"]))
    return Wanted(jobs, draw(st.sampled_from(["once", "many"])), draw(st.integers(1, 20_000)), subject, draw(PARAMS),
                  draw(DIGESTS), draw(KEYS))  # fmt: skip


@given(claims(), wanted())
def test_what_comes_of_it_is_never_more_than_what_was_handed_over(handed: Claims, asked: Wanted) -> None:
    try:
        made = exchange.narrowed(handed, asked, NOW_S, "svc:b")
    except OAuthError:
        return
    assert handed.uses == "many"
    assert made.subject == handed.sub
    assert made.jobs
    assert set(made.jobs) <= set(handed.grant.jobs)
    assert NOW_S + made.lifetime_s <= handed.exp
    assert made.params.items() >= handed.grant.params.items()
    assert handed.grant.params_sha256 in (None, made.params_sha256)
    assert handed.idempotency_key in (None, made.idempotency_key)
    assert made.bound_to == handed.grant.bound_to
    assert made.actors == ("svc:b",)


def test_what_is_asked_for_within_it_is_what_comes() -> None:
    grant = Grant(("106-Trigger",), ("a/1", "a/2"), {"p": 1})
    handed = Claims("https://i", "k", "svc:a", "acme", "j", NOW_S, NOW_S, NOW_S + 600, "many", "trigger", grant)
    handed = msgspec.structs.replace(handed, delegation=Delegation(("svc:c",)))
    made = exchange.narrowed(handed, Wanted(("a/2",), "once", 60, params={"q": 2}), NOW_S, "svc:b")
    assert (made.jobs, made.uses, made.lifetime_s, made.params) == (("a/2",), "once", 60, {"p": 1, "q": 2})
    assert made.actors == ("svc:b", "svc:c")


def test_a_chain_of_actors_has_an_end() -> None:
    grant = Grant(("106-Trigger",), ("a/1",), {})
    handed = Claims("https://i", "k", "svc:a", "acme", "j", NOW_S, NOW_S, NOW_S + 600, "many", "trigger", grant)
    for number in range(limits.ACTORS_MAX):
        actors = exchange.narrowed(handed, Wanted((), "many", 60), NOW_S, f"svc:{number}").actors
        handed = msgspec.structs.replace(handed, delegation=Delegation(actors))
    assert handed.actors == ("svc:3", "svc:2", "svc:1", "svc:0")
    with pytest.raises(OAuthError) as refused:
        exchange.narrowed(handed, Wanted((), "many", 60), NOW_S, "svc:b")
    assert (refused.value.error, refused.value.reason) == ("invalid_request", "delegation_too_deep")


@pytest.mark.parametrize(
    ("grant", "asked", "reason"),
    [
        # Each would start what the token handed over does not.
        (Grant(("read",), ("a/1",), {}), {}, "permission_missing"),
        (Grant((), ("a/1",), {}), {}, "permission_missing"),
        (Grant(("106-Trigger",), ("a/1",), {}, "0" * 64), {"p": 1}, "payload_digest_mismatch"),
        (Grant(("106-Trigger",), ("a/1",), {"p": 1}, "0" * 64), {"p": 1, "q": 1}, "payload_digest_mismatch"),
        (Grant(("106-Trigger",), ("a/1",), {"region": "eu"}), {"\uff52egion": "us"}, "param_conflict"),
        (Grant(("106-Trigger",), ("a/1",), {"region": "eu"}), {"\uff52egion": "eu"}, "param_conflict"),
    ],
)
def test_what_a_token_does_not_let_its_bearer_do_is_not_exchanged_for(
    grant: Grant, asked: dict[str, Any], reason: str
) -> None:
    handed = Claims("https://i", "k", "svc:a", "acme", "j", NOW_S, NOW_S, NOW_S + 600, "many", "trigger", grant)
    with pytest.raises(OAuthError) as refused:
        exchange.narrowed(handed, Wanted((), "many", 60, params=asked), NOW_S, "svc:b")
    assert refused.value.reason == reason
    assert refused.value.error == ("invalid_request" if reason == "permission_missing" else "invalid_scope")


@pytest.mark.parametrize(
    "changed",
    [
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, {"actor_token": "x"}, {"actor_token_type": "x"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, {"subject_token": None},
    ],
)  # fmt: skip
def test_what_cannot_be_exchanged_is_an_invalid_request(changed: dict[str, Any]) -> None:
    form = {"subject_token": "x", "subject_token_type": exchange.JWT, **changed}
    with pytest.raises(OAuthError) as refused:
        exchange.subject_token_of({name: value for name, value in form.items() if value is not None})
    assert refused.value.error == "invalid_request"


def test_a_token_is_told_of_as_what_was_asked_for() -> None:
    assert exchange.issued_type({}) == exchange.JWT
    for kind in exchange.TYPES:
        form = {"subject_token": "x", "subject_token_type": exchange.JWT, "requested_token_type": kind}
        assert exchange.subject_token_of(form) == "x"
        assert exchange.issued_type(form) == kind
