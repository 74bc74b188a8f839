"""Who calls: the identity of a verified token, judged now by the same rules as a trigger's at its append time."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from app.api.problems import Problem
from app.authority.roles import CLASS_LIFETIME_MAX_S
from app.gate.reasons import Rejected
from app.gate.standing import World, bearer_of, check_honoured, emitter
from app.gate.token import (
    CLASSES,
    HOST_CLASSES,
    USER_CLASSES,
    Claims,
    Classes,
    GrantWanted,
    KeyWanted,
    VerifiedToken,
    verify,
)
from app.stream.tables import Tables


class Caller(NamedTuple):
    """One identity, for as long as its token lives."""

    claims: Claims
    emitter: str  # as receipts name it

    def fault(self, world: World, now_ms: int | None = None, *, grace: bool = True) -> Rejected | None:
        """Why the token is not honoured, in this world and now; None: it is. Without grace, by its own times alone."""
        bearer = bearer_of(self.claims, world, world.memo)
        if bearer is None:
            return Rejected("issuer_untrusted")
        at_ms = now_ms or time.time_ns() // 1_000_000
        refused = _over(self.claims, at_ms) or (None if grace else _beside(self.claims, at_ms))
        refused = refused or check_honoured(self.claims, bearer, at_ms, world)
        if refused is None and bearer.mapping is not None and self.claims.token_class in _OF_CLIENTS:
            refused = bearer.mapping.refuse(self.claims, None)  # of what starts jobs, the gate asks at each job
        return refused


def _over(claims: Claims, now_ms: int) -> Rejected | None:
    """Of users and hosts: the cap of the class, and no grace at the end, for the clock is our own."""
    if claims.token_class not in _OF_CLIENTS:
        return None
    cap_s = CLASS_LIFETIME_MAX_S["user" if claims.token_class == "user" else "host"]  # noqa: S105 - a class
    if claims.exp - claims.iat > cap_s:
        return Rejected("ttl_too_long", f"{claims.exp - claims.iat} s; at most {cap_s} s")
    return Rejected("token_expired") if now_ms >= claims.exp * 1000 else None


def _beside(claims: Claims, now_ms: int) -> Rejected | None:
    """Of any class, and at both ends: who is told that a token is active takes its times for what they say."""
    if now_ms >= claims.exp * 1000:
        return Rejected("token_expired")
    return Rejected("token_not_yet_valid") if now_ms < max(claims.iat, claims.nbf) * 1000 else None


_OF_CLIENTS: Final = frozenset((*USER_CLASSES.values(), *HOST_CLASSES.values()))


async def identify(tables: Tables, unverified_token: str, classes: Classes = CLASSES) -> Caller:
    """Raises Problem with the reason a gate would give, or `not_ready`."""
    verified = await verified_as(tables, unverified_token, classes)
    caller = Caller(verified.claims, emitter(verified.claims))
    refused = caller.fault(tables.world)
    if refused is not None:
        raise Problem(refused.code, refused.detail)
    return caller


def require_fresh(tables: Tables) -> None:
    """Fail closed: what is revoked now is not known to a view that is behind."""
    complaint = tables.complaint()
    if complaint is not None:
        raise Problem("not_ready", complaint)


async def verified_as(tables: Tables, unverified_token: str, classes: Classes) -> VerifiedToken:
    """The token, if it is of one of the classes, and its signature and the form of its claims hold. Raises Problem."""
    require_fresh(tables)
    shown_at_s, looked_for = time.monotonic(), set[KeyWanted | GrantWanted]()
    found = _verify(tables, unverified_token, classes)
    # A handle's grant is looked for, and then the key it is signed with; each of them once.
    while (
        isinstance(found, KeyWanted | GrantWanted) and found not in looked_for and tables.may_fetch(found, shown_at_s)
    ):
        looked_for.add(found)
        await tables.fetch(found)
        found = _verify(tables, unverified_token, classes)
    match found:
        case VerifiedToken():
            return found
        case KeyWanted(kid=None):
            raise Problem("not_ready", "the issuer's keys are not loaded")
        case KeyWanted():
            raise Problem("kid_unknown")
        case GrantWanted():
            if tables.may_fetch(found, shown_at_s):  # Kafka could not be asked
                raise Problem("not_ready", "what handles stand for is not known now")
            raise Problem("token_unknown")
        case Rejected():
            raise Problem(found.code)  # a detail is for those whose token verified


def _verify(
    tables: Tables, unverified_token: str, classes: Classes
) -> VerifiedToken | Rejected | KeyWanted | GrantWanted:
    world = tables.world
    return verify(unverified_token, world.ring, world.audience, world.grants, classes)
