"""Who calls: the identity of a verified token, judged now by the same rules as a trigger's at its append time."""

from __future__ import annotations

import time
from typing import NamedTuple

from app.api.problems import Problem
from app.gate.policy import check_time
from app.gate.reasons import Rejected
from app.gate.standing import World, bearer_of, emitter
from app.gate.token import Claims, KeyWanted, VerifiedToken, verify
from app.stream.tables import Tables


class Caller(NamedTuple):
    """One identity, for as long as its token lives."""

    claims: Claims
    emitter: str  # as receipts name it

    def fault(self, world: World) -> Rejected | None:
        """Why the token is no longer honoured, in this world and now."""
        bearer = bearer_of(self.claims, world, world.memo)
        if bearer is None:
            return Rejected("issuer_untrusted")
        now_ms = time.time_ns() // 1_000_000
        refused = check_time(self.claims, bearer.rule, now_ms, world.grace_s) or bearer.refused
        if refused is None and world.revocations.covers(self.claims):
            return Rejected("token_revoked")
        return refused


async def identify(tables: Tables, unverified_token: str) -> Caller:
    """Raises Problem with the reason a gate would give, or `not_ready`."""
    verified = await verified_as(tables, unverified_token)
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


async def verified_as(tables: Tables, unverified_token: str) -> VerifiedToken:
    """The token, if its signature and the form of its claims hold. Raises Problem."""
    require_fresh(tables)
    found = verify(unverified_token, tables.world.ring, tables.world.audience)
    if isinstance(found, KeyWanted) and tables.may_fetch(found):
        await tables.fetch_key(found)
        found = verify(unverified_token, tables.world.ring, tables.world.audience)
    match found:
        case VerifiedToken():
            return found
        case KeyWanted(kid=None):
            raise Problem("not_ready", "the issuer's keys are not loaded")
        case KeyWanted():
            raise Problem("kid_unknown")
        case Rejected():
            raise Problem(found.code)  # a detail is for those whose token verified
