"""Who calls: the identity of a verified token, judged now by the same rules as a trigger's at its append time."""

from __future__ import annotations

import time
from typing import NamedTuple

from app.api.problems import Problem
from app.gate.reasons import Rejected
from app.gate.standing import World, bearer_of, check_honoured, emitter
from app.gate.token import Claims, GrantWanted, KeyWanted, VerifiedToken, verify
from app.stream.tables import Tables


class Caller(NamedTuple):
    """One identity, for as long as its token lives."""

    claims: Claims
    emitter: str  # as receipts name it

    def fault(self, world: World, now_ms: int | None = None) -> Rejected | None:
        """Why the token is not honoured, in this world and now; None: it is."""
        bearer = bearer_of(self.claims, world, world.memo)
        if bearer is None:
            return Rejected("issuer_untrusted")
        return check_honoured(self.claims, bearer, now_ms or time.time_ns() // 1_000_000, world)


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
    shown_at_s, looked_for = time.monotonic(), set[KeyWanted | GrantWanted]()
    found = _verify(tables, unverified_token)
    # A handle's grant is looked for, and then the key it is signed with; each of them once.
    while (
        isinstance(found, KeyWanted | GrantWanted) and found not in looked_for and tables.may_fetch(found, shown_at_s)
    ):
        looked_for.add(found)
        await tables.fetch(found)
        found = _verify(tables, unverified_token)
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


def _verify(tables: Tables, unverified_token: str) -> VerifiedToken | Rejected | KeyWanted | GrantWanted:
    world = tables.world
    return verify(unverified_token, world.ring, world.audience, world.grants)
