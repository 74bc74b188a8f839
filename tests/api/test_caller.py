"""Who calls: a handle names its bearer as its token would, and what a token is bound to is asked of the registry."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api.caller import identify
from app.api.problems import Problem
from app.gate.decide import Memo
from app.gate.mapping import Effect, MappingRule
from app.gate.policy import TrustRule
from app.gate.reference import HASH_CLAIM, grant_key, handle_digest
from app.gate.token import CLASSES, EVERY_CLASS, HOST_CLASSES, USER_CLASSES, Classes
from app.stream.tables import Tables
from tests.support.pure_world import WORLD
from tests.support.tokens import CLAIMS, ISS, RING, token

HANDLE = "ref:" + "A" * 43
BOUND = {"object": "job/reports/nightly", "birth_id": "one"}


def live(**more: Any) -> dict[str, Any]:
    """Claims of a token that is good now."""
    now_s = int(time.time())
    return {"iat": now_s, "nbf": now_s, "exp": now_s + 300, **more}


def tables(
    grant: str | None = None, objects: dict[str, str] | None = None, rule: TrustRule = WORLD.rules[ISS]
) -> Tables:
    """Of a door that has just read them whole, with the grant of the handle."""
    keys = SimpleNamespace(version=1, ring=RING)
    world = msgspec.structs.replace(WORLD, memo=Memo())
    made = Tables(None, ("registry", 0), ("revocations", 0), ("grants", 0), keys, world, 1.0)  # type: ignore[arg-type]
    made._task = SimpleNamespace(done=lambda: False)  # type: ignore[assignment]
    made._jobs, made._rules, made._objects = dict(WORLD.jobs), {ISS: rule}, objects or {}
    made._grants_as_of_s = float("inf")
    if grant is not None:
        made._grants.apply(grant_key(handle_digest(HANDLE)), grant.encode(), int(time.time() * 1000))
    made._rebuild()
    return made


def granted() -> str:
    return token({"typ": "grant+jwt"}, live(**{HASH_CLAIM: handle_digest(HANDLE).hex()}))


async def told(made: Tables, presented: str, place: Classes = CLASSES) -> str:
    with pytest.raises(Problem) as raised:
        await identify(made, presented, place)
    return raised.value.code


async def test_a_handle_names_its_bearer_as_its_token_would() -> None:
    assert (await identify(tables(granted()), HANDLE)).emitter == (
        await identify(tables(), token(claims=live()))
    ).emitter


async def test_a_handle_that_stands_for_nothing_and_a_grant_without_its_handle_name_nobody() -> None:
    assert await told(tables(), HANDLE) == "token_unknown"
    assert await told(tables(), granted()) == "token_type_invalid"


async def test_a_token_names_nobody_once_what_it_is_bound_to_is_gone() -> None:
    (details,) = CLAIMS["authorization_details"]
    bound = token(claims=live(authorization_details=[details | {"bound_to": BOUND}]))
    await identify(tables(objects={"job/reports/nightly": "one"}), bound)
    assert await told(tables(objects={"job/reports/nightly": "two"}), bound) == "bound_object_gone"
    assert await told(tables(), bound) == "bound_object_gone"


async def test_who_acts_for_the_bearer_of_a_handle_stands_in_what_was_signed() -> None:
    hashed = {HASH_CLAIM: handle_digest(HANDLE).hex()}
    made = tables(token({"typ": "grant+jwt"}, live(act={"sub": "svc:b"}, **hashed)))
    presented = token(claims=live(act={"sub": "svc:c"}))
    assert (await identify(made, HANDLE)).claims.actors == ("svc:b",)
    assert (await identify(made, presented)).claims.actors == ("svc:c",)


# ── classes ──


def of(typ: str, **claims: Any) -> str:
    return token({"typ": typ}, live(sub="service:ann", platform="hpc", level=1, **claims))


@pytest.mark.parametrize("typ", ["trigger+jwt", "user+jwt", "host+jwt"])
@pytest.mark.parametrize("place", [CLASSES, USER_CLASSES, HOST_CLASSES], ids=lambda place: next(iter(place.values())))
async def test_a_caller_is_of_the_class_that_belongs_there(typ: str, place: Classes) -> None:
    rule = msgspec.structs.replace(WORLD.rules[ISS], classes=("trigger", "user", "host"))
    made = tables(rule=rule)
    if typ in place:
        assert (await identify(made, of(typ), place)).claims.token_class == place[typ]
    else:
        assert await told(made, of(typ), place) == "wrong_client_class"
        assert await told(made, of(typ, exp=1), place) == "wrong_client_class", "whatever else is wrong with it"
    assert await told(made, of("at+jwt"), place) == "token_type_invalid"


async def test_a_user_is_nobody_where_the_trust_rule_says_nothing_of_users() -> None:
    assert await told(tables(), of("user+jwt"), USER_CLASSES) == "class_not_allowed"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [({"exp": -1}, "token_expired"), ({"iat": -100_000, "nbf": -100_000}, "ttl_too_long"), ({"exp": 0}, "token_expired"),
     ({"iat": 61, "nbf": 61}, "token_not_yet_valid")],
)  # fmt: skip
async def test_a_users_time_is_a_day_at_most_and_has_no_grace_at_its_end(claims: dict[str, int], expected: str) -> None:
    rule = msgspec.structs.replace(WORLD.rules[ISS], classes=("user",), max_lifetime_s=7 * 86_400)
    now_s = int(time.time())
    changed = {name: now_s + by for name, by in ({"iat": -300, "nbf": -300, "exp": 300} | claims).items()}
    presented = token({"typ": "user+jwt"}, changed | {"sub": "service:ann"})
    assert await told(tables(rule=rule), presented, USER_CLASSES) == expected


@pytest.mark.parametrize("typ", ["trigger+jwt", "user+jwt", "host+jwt"])
@pytest.mark.parametrize(
    ("effect", "members", "denies"),
    [
        ("deny", {"classes": ("user", "host")}, True), ("deny", {"identities": ("service:ann",)}, True),
        ("deny", {"identities": ("service:bob",)}, False), ("deny", {"classes": ("user", "host"), "jobs": ("*",)}, False),
        ("allow", {"classes": ("user", "host"), "jobs": ("reports/*",)}, False),
    ],
)  # fmt: skip
async def test_a_user_or_host_is_nobody_where_a_rule_without_jobs_denies_it(
    typ: str, effect: Effect, members: dict[str, Any], denies: bool
) -> None:
    rule = msgspec.structs.replace(WORLD.rules[ISS], classes=("trigger", "user", "host"))
    made = tables(rule=rule)
    made._mapping["freeze"] = MappingRule("freeze", 1, effect, **members)
    made._rebuild()
    if denies and typ != "trigger+jwt":
        assert await told(made, of(typ), EVERY_CLASS) == "denied_by_rule"
    else:  # what starts jobs is refused at the gate, and its receipts are its emitter's
        assert (await identify(made, of(typ), EVERY_CLASS)).claims.sub == "service:ann"
