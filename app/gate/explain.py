"""Explain: every check of one trigger in its order, which of them passed, and the one that decided.

It judges nothing itself: the decision is made by `decide`, and this tells it in the order of `reasons.py`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from app.gate import decide
from app.gate.decide import Accepted, Admitted, AlreadyCommitted, Duplicate, Held, Memo, Refused, Request, World
from app.gate.reasons import REASONS, Rejected
from app.gate.run_id import make_run_id, run_id_text
from app.gate.token import GrantWanted, KeyWanted, VerifiedToken
from app.gate.trigger import Record, Trigger

Result = Literal["pass", "fail", "not reached"]
OWN_ERROR: Final = "internal_deny"


class Check(msgspec.Struct, frozen=True):
    """One line of the explanation."""

    stage: str
    check: str  # the reason code that a failure would give
    result: Result
    meaning: str  # of a failure
    remedy: str | None = None  # for the one that failed
    detail: str | None = None


class Explanation(msgspec.Struct, frozen=True):
    """What would become of a trigger, and why."""

    outcome: Literal["accepted", "duplicate", "rejected", "held", "away"]
    reason: str | None
    run_id: str | None
    home_lane: int | None
    facts: dict[str, Any]  # what was established: never a token
    checks: list[Check]


def explain(
    record: Record, world: World, packed_entry: bytes | None, lane_clock_ms: int, *, look_away: bool = False
) -> Explanation:
    """Every check of one record of the triggers topic.

    `packed_entry` is what the dedup table holds for its identity, as far as it is known; with `look_away` a trigger
    that is not at home is judged as its home lane would judge it.
    """
    admitted = decide.admit(record, world, Memo(), wait_for_keys=True)
    match admitted:
        case Held():
            return _held(admitted.request, admitted.wanted)
        case Refused(request=presented):
            return _refused(admitted, _facts(presented.trigger, presented.token))
    facts = _facts(admitted.trigger, admitted.token) | {
        "identity": admitted.identity.digest.hex() if admitted.identity else None,
        "home_by": admitted.identity.home_by if admitted.identity else None,
        "params": admitted.authorized.params,
        "definition_version": admitted.authorized.job.version,
    }
    if admitted.identity is not None and admitted.home != record.partition and not look_away:
        return Explanation("away", None, None, admitted.home, facts, _checks("queue_age_exceeded", stops=True))
    return _settled(admitted, decide.settle(admitted, packed_entry, lane_clock_ms, world), world, facts)


def _held(request: Request, wanted: KeyWanted | GrantWanted) -> Explanation:
    facts = _facts(request.trigger, None)
    if isinstance(wanted, GrantWanted):  # whoever explains has just read the grants: there is none
        return _refused(Refused(request, Rejected("token_unknown")), facts)
    what = f"key {wanted.kid}" if wanted.kid else "key set"
    return Explanation(
        "held", None, None, None, facts | {"waits_for": f"the {what} of {wanted.iss}"},
        _checks("kid_unknown", stops=True),
    )  # fmt: skip


def _settled(
    admitted: Admitted, verdict: decide.Verdict | AlreadyCommitted, world: World, facts: dict[str, Any]
) -> Explanation:
    match verdict:
        case Accepted() | Duplicate():
            outcome: Literal["accepted", "duplicate"] = "accepted" if isinstance(verdict, Accepted) else "duplicate"
            return Explanation(outcome, None, verdict.run_id, admitted.home, facts, _checks(None))
        case Refused():
            return _refused(verdict, facts)
        case AlreadyCommitted():
            # The table's entry came from this very record: it was accepted, and this is what it became.
            source = admitted.source
            made = make_run_id(world.run_seed, source.partition, source.offset, source.appended_at_ms)
            run_id = run_id_text(made)
            return Explanation("accepted", None, run_id, admitted.home, facts, _checks(None))


def _refused(refused: Refused, facts: dict[str, Any]) -> Explanation:
    checks = _checks(refused.rejected.code, refused.rejected.detail)
    return Explanation("rejected", refused.rejected.code, refused.first_run_id, None, facts, checks)


def _checks(decided: str | None, detail: str | None = None, *, stops: bool = False) -> list[Check]:
    """The table of reasons as a list of checks: those before `decided` passed. None: all did.

    With `stops` the explanation ends there without a refusal: keys are not loaded, or the trigger goes home.
    """
    checks: list[Check] = []
    result: Result = "pass"
    for reason in REASONS:
        if reason.code == OWN_ERROR and decided != OWN_ERROR:
            continue
        stage, meaning = reason.stage.value, reason.meaning
        if reason.code != decided:
            checks.append(Check(stage, reason.code, result, meaning))
            continue
        if stops:
            checks.append(Check(stage, reason.code, "not reached", meaning))
        else:
            checks.append(Check(stage, reason.code, "fail", meaning, reason.remedy, detail))
        result = "not reached"
    return checks


def _facts(trigger: Trigger | None, token: VerifiedToken | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if trigger is not None:
        facts |= {
            "job": trigger.job,
            "correlation_id": trigger.correlation_id,
            "idempotency_key_beside_token": trigger.idempotency_key,
        }
    if token is not None:
        claims = token.claims
        facts |= {
            "issuer": claims.iss, "subject": claims.sub, "org_id": claims.org_id, "kid": claims.kid, "jti": claims.jti,
            "uses": claims.uses, "issued_at_s": claims.iat, "not_before_s": claims.nbf, "expires_at_s": claims.exp,
            "granted_jobs": list(claims.grant.jobs), "token_fingerprint": token.fingerprint,
        }  # fmt: skip
        if claims.actors:
            facts["actors"] = list(claims.actors)
        if claims.parents:
            facts["parents"] = [parent.jti for parent in claims.parents]
        bound_to = claims.grant.bound_to
        if bound_to is not None:
            facts |= {"bound_to": bound_to.object, "bound_to_birth_id": bound_to.birth_id}
    return facts
