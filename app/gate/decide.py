"""The decision: record and world in, one value out. No I/O, no clock, no randomness, and it never raises.

    record ─ 1 parse ─ 2 verify ─ 3 authorize ─ 4 dedupe ─ Accepted | Duplicate | Refused | away to its home lane

`admit` takes a trigger through stages 1 to 3, `readmit` takes a handoff through what may have changed since,
`settle` is stage 4 against the one entry its identity has. An error of our own becomes `internal_deny`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app.gate import idempotency
from app.gate.idempotency import JTI_DIGEST_BYTES, Identity
from app.gate.policy import Authorized, merge_params, within_grace
from app.gate.reasons import Rejected
from app.gate.run_id import make_run_id, run_id_text, run_seed
from app.gate.standing import Memo, Standing, World, bearer_of, emitter, stand
from app.gate.token import GrantWanted, KeyWanted, Signed, VerifiedToken, accept, holds_signature, read_signed
from app.gate.trigger import Record, Trigger, parse

__all__ = [
    "Accepted", "Admitted", "AlreadyCommitted", "Duplicate", "Held", "Memo", "Presented", "Refused", "Request",
    "Source", "Standing", "Verdict", "World", "admit", "admit_all", "emitter", "internal_deny", "make_run_id",
    "readmit", "run_id_text", "run_seed", "settle", "source_at",
]  # fmt: skip


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a trigger stands on the triggers topic: its coordinates are its id, which nobody can choose."""

    partition: int
    offset: int
    appended_at_ms: int
    trigger_id: str


def source_at(partition: int, offset: int, appended_at_ms: int) -> Source:
    return Source(partition, offset, appended_at_ms, f"{partition}-{offset}")


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a refusal speaks about: as much as was established before it fell."""

    source: Source
    trigger: Trigger | None = None
    token: VerifiedToken | None = None
    emitter: str | None = None  # a handle for who emitted, the same for one identity
    within_grace: bool = False


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """Stages 1 to 3 passed: this token may start this job with these parameters, if it has not yet."""

    source: Source
    trigger: Trigger
    token: VerifiedToken
    emitter: str
    within_grace: bool
    standing: Standing
    authorized: Authorized
    identity: Identity | None
    home: int  # lane; where it arrived when there is no identity


Presented = Request | Admitted


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A refusal at any stage."""

    request: Presented
    rejected: Rejected
    first_run_id: str | None = None  # of the run an identity already has


class Held(msgspec.Struct, frozen=True):
    """It cannot be decided yet: an issuer's keys are missing, or what a handle stands for. Never a refusal."""

    request: Request
    wanted: KeyWanted | GrantWanted


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """One job starts. `entry` is the table's new row, packed; None for a trigger without identity."""

    admitted: Admitted
    run_id: str
    entry: bytes | None


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """The same request again: its receipt names the first run."""

    admitted: Admitted
    run_id: str


class AlreadyCommitted(msgspec.Struct, frozen=True):
    """The entry came from this very record: the lane reads what it has committed before. It must stop, loudly."""

    admitted: Admitted


Verdict = Accepted | Duplicate | Refused


def admit(record: Record, world: World, memo: Memo, *, wait_for_keys: bool = True) -> Admitted | Refused | Held:
    """Stages 1 to 3 of a record of the triggers topic.

    `memo` is the world's, or an empty one. With `wait_for_keys` false a kid that a loaded key set lacks is refused
    (`kid_unknown`) instead of held, and a handle that the table of grants lacks (`token_unknown`).
    """
    return admit_all([record], world, memo, wait_for_keys=wait_for_keys)[0]


def admit_all(
    records: Sequence[Record], world: World, memo: Memo, *, wait_for_keys: bool = True
) -> list[Admitted | Refused | Held]:
    """The same for some records, in order. Their signatures are checked one after another, nothing between them:
    that work and the rest of a decision would push each other out of the cache.
    """
    opened = [_open(record, world, memo, wait_for_keys) for record in records]
    checked = [_check(item.signed) if type(item) is _Opened else False for item in opened]
    return [
        _verified(item, holds, world, memo) if isinstance(item, _Opened) else item
        for item, holds in zip(opened, checked, strict=True)
    ]


class _Opened(msgspec.Struct, frozen=True, gc=False):
    """A trigger whose token is read as far as its signature."""

    source: Source
    trigger: Trigger
    signed: Signed


def _open(record: Record, world: World, memo: Memo, wait_for_keys: bool) -> _Opened | Admitted | Refused | Held:
    source = source_at(record.partition, record.offset, record.appended_at_ms)
    try:
        # 1 parse
        trigger = Rejected(record.batch_fault) if record.batch_fault else parse(record)
        if isinstance(trigger, Rejected):
            return Refused(Request(source), trigger)
        # 2 verify, up to the signature
        text = trigger.unverified_token
        known = memo.presented.get(text)
        if known is not None and _stands(known, trigger, source):
            return _admit(source, trigger, known, world)
        token = memo.tokens.get(text)
        if token is not None:
            return _judge(source, trigger, token, world, memo, memo.presented, text)
        signed = read_signed(text, world.ring, world.grants)
    except Exception as error:
        return Refused(Request(source), internal_deny(error))
    match signed:
        case Signed():
            return _Opened(source, trigger, signed)
        case Rejected():
            return Refused(Request(source, trigger), signed)
        case KeyWanted():
            if signed.kid is None or wait_for_keys:
                return Held(Request(source, trigger), signed)
            return Refused(Request(source, trigger), Rejected("kid_unknown"))
        case GrantWanted():
            if wait_for_keys:
                return Held(Request(source, trigger), signed)
            return Refused(Request(source, trigger), Rejected("token_unknown"))


def _check(signed: Signed) -> bool | Exception:
    try:
        return holds_signature(signed)
    except Exception as error:
        return error


def _verified(opened: _Opened, holds: bool | Exception, world: World, memo: Memo) -> Admitted | Refused:
    request = Request(opened.source, opened.trigger)
    if isinstance(holds, Exception):
        return Refused(request, internal_deny(holds))
    try:
        token = accept(opened.signed, holds, world.audience)
        if isinstance(token, Rejected):
            return Refused(request, token)
        text = opened.trigger.unverified_token
        memo.keep(text, token)
        return _judge(opened.source, opened.trigger, token, world, memo, memo.presented, text)
    except Exception as error:
        return Refused(request, internal_deny(error))


def readmit(
    source: Source, trigger: Trigger, token: VerifiedToken, world: World, memo: Memo, *, wait_for_keys: bool = True
) -> Admitted | Refused | Held:
    """What a home lane judges again of a trigger another lane verified: age, key, trust, revocation and job.

    A kid that its key set lacks may be one that the other lane's gate has read already: held as in `admit`.
    """
    request = Request(source, trigger, token)
    try:
        known = memo.handed.get(token.fingerprint)
        if (
            known is not None
            and known.token is token
            and trigger.job == known.permitted.job.name
            and _in_time(known, source)
        ):
            return _admit(source, trigger, known, world)
        claims = token.claims
        if claims.iss in world.rules:
            keys = world.ring.get(claims.iss)
            if keys is None:
                return Held(request, KeyWanted(claims.iss, None))
            if claims.kid not in keys.keys:
                if wait_for_keys:
                    return Held(request, KeyWanted(claims.iss, claims.kid))
                return Refused(request, Rejected("kid_unknown", "the set no longer holds it"))
        return _judge(source, trigger, token, world, memo, memo.handed, token.fingerprint)
    except Exception as error:
        return Refused(request, internal_deny(error))


def internal_deny(error: Exception) -> Rejected:
    """Fail closed on an error of our own. Its text may hold a stranger's words, so only its type and place show."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}" if place is not None else "?"
    return Rejected("internal_deny", f"{type(error).__name__} in {where}")


def _stands(standing: Standing, trigger: Trigger, source: Source) -> bool:
    """Whether what is known of the token holds for this trigger, too."""
    return trigger.job == standing.permitted.job.name and _in_time(standing, source)


def _in_time(standing: Standing, source: Source) -> bool:
    """Whether the token was in its own time, without any grace."""
    return standing.from_ms <= source.appended_at_ms <= standing.until_ms


def _judge(
    source: Source,
    trigger: Trigger,
    token: VerifiedToken,
    world: World,
    memo: Memo,
    seen: dict[str, Standing],
    name: str,
) -> Admitted | Refused:
    """Everything a verified token may be refused for. A standing that passes is kept for the token's next trigger."""
    claims = token.claims
    bearer = bearer_of(claims, world, memo)
    if bearer is None:
        return Refused(Request(source, trigger, token), Rejected("issuer_untrusted"))
    standing = stand(token, bearer, trigger.job, source.appended_at_ms, world)
    if isinstance(standing, Rejected):
        grace = within_grace(claims, source.appended_at_ms, world.grace_s)
        return Refused(Request(source, trigger, token, bearer.emitter, grace), standing)
    result = _admit(source, trigger, standing, world)
    if isinstance(result, Admitted):
        memo.keep_standing(seen, name, standing)
    return result


def _admit(source: Source, trigger: Trigger, standing: Standing, world: World) -> Admitted | Refused:
    """What only the trigger itself can be refused for: its parameters and its key."""
    token, job = standing.token, standing.permitted.job
    claims = token.claims
    grace = not _in_time(standing, source)  # it would have been refused beyond the grace
    # 3 authorize, the parameters
    result: Authorized | Identity | Rejected | None
    result = merge_params(claims.grant, job, trigger.params, trigger.params_sha256, trigger.params_canonical)
    if isinstance(result, Authorized):
        authorized = result
        if _window_ms(standing, world) > world.max_window_ms:
            result = Rejected("window_too_long")
        else:
            # 4 dedupe, the part that needs no table
            result = idempotency.identify(claims, trigger, job, standing.permitted.key_scope, standing.jti_identity)
    if isinstance(result, Rejected):
        return Refused(Request(source, trigger, token, standing.emitter, grace), result)
    identity = result
    home = source.partition if identity is None else idempotency.home_lane(identity.home_by, world.lanes)
    return Admitted(source, trigger, token, standing.emitter, grace, standing, authorized, identity, home)


def _window_ms(standing: Standing, world: World) -> int:
    window_ms, claims = standing.permitted.job.dedup_window_s * 1000, standing.token.claims
    if claims.uses == "once":
        return max(window_ms, (claims.exp - claims.iat + world.grace_s) * 1000)
    return window_ms


def settle(
    admitted: Admitted, packed_entry: bytes | None, lane_clock_ms: int, world: World
) -> Verdict | AlreadyCommitted:
    """Stage 4 in the home lane: the entry of the trigger's identity, if any, decides.

    `packed_entry` is what the table holds for `admitted.identity` (batch overlay included); `lane_clock_ms` is
    the lane's clock, by which a trigger's queue age goes. Raises ValueError for an entry that is none.
    """
    source, identity = admitted.source, admitted.identity
    partition, offset, appended_at_ms = source.partition, source.offset, source.appended_at_ms
    if lane_clock_ms - appended_at_ms > world.queue_age_cap_ms:
        return Refused(admitted, Rejected("queue_age_exceeded"))
    run_id = make_run_id(world.run_seed, partition, offset, appended_at_ms)
    if identity is None:
        return Accepted(admitted, run_id_text(run_id), None)
    claims, job, standing = admitted.token.claims, admitted.authorized.job, admitted.standing
    packed = idempotency.pack(
        run_id, idempotency.fingerprint(standing.permitted.request_scope, admitted.authorized.requested_canonical),
        standing.jti_identity[:JTI_DIGEST_BYTES],
        partition, offset, appended_at_ms,
        idempotency.window_end_ms(claims, job.dedup_window_s, appended_at_ms, world.grace_s),
    )  # fmt: skip
    if packed_entry is None:
        return Accepted(admitted, run_id_text(run_id), packed)
    new, old = idempotency.unpack(packed), idempotency.unpack(packed_entry)
    match idempotency.compare(new, old):
        case None:
            return Accepted(admitted, run_id_text(run_id), packed)
        case "duplicate":
            return Duplicate(admitted, run_id_text(old.run_id))
        case "same_source":
            return AlreadyCommitted(admitted)
        case "token_already_used" | "idempotency_key_reused" as code:
            if claims.uses == "many":
                code = "idempotency_key_reused"  # a webhook token is meant to come again
            return Refused(admitted, Rejected(code), run_id_text(old.run_id))
