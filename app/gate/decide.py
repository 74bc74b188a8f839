"""The decision: record and world in, one value out. No I/O, no clock, no randomness, and it never raises.

    record ─ 1 parse ─ 2 verify ─ 3 authorize ─ 4 dedupe ─ Accepted | Duplicate | Refused | away to its home lane

`admit` takes a trigger through stages 1 to 3, `readmit` takes a handoff through what may have changed since,
`settle` is stage 4 against the one entry its identity has. An error of our own becomes `internal_deny`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from app.gate import idempotency
from app.gate.idempotency import Identity
from app.gate.keyset import KeyRing
from app.gate.policy import (
    Authorized,
    Job,
    Revocations,
    TrustRule,
    check_bearer,
    check_time,
    merge_params,
    permit,
    within_grace,
)  # fmt: skip
from app.gate.reasons import Rejected
from app.gate.token import Claims, KeyWanted, Signed, VerifiedToken, accept, holds_signature, read_signed
from app.gate.trigger import Record, Trigger, parse

VERIFIED_MEMO_MAX: Final = 20_000  # webhook tokens, about 2 KiB each; and bearers
PERMITTED_MAX: Final = 1_000  # kinds of grants of one bearer


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a trigger stands on the triggers topic: its coordinates are its id, which nobody can choose."""

    partition: int
    offset: int
    appended_at_ms: int
    trigger_id: str


def source_at(partition: int, offset: int, appended_at_ms: int) -> Source:
    return Source(partition, offset, appended_at_ms, f"{partition}-{offset}")


class Bearer(msgspec.Struct, frozen=True):
    """What the bearer of a token may in one world: the part of a decision that its tokens have in common."""

    rule: TrustRule
    refused: Rejected | None  # organisation, class or subject
    emitter: str  # a handle that names nobody
    # (uses, actions, jobs granted, job asked for) → the definition and the scope of its keys
    permitted: dict[tuple[object, ...], tuple[Job, bytes]]


class Memo:
    """What one world's decisions have in common. Never carried into another world."""

    def __init__(self) -> None:
        self.tokens: dict[str, VerifiedToken] = {}  # webhook tokens, verified in this world
        self.bearers: dict[tuple[str, str, str, str], Bearer] = {}  # issuer, subject, organisation, class

    def keep(self, text: str, token: VerifiedToken) -> None:
        """One-shot tokens come once: keeping them would only push out the others."""
        if token.claims.uses == "many":
            if len(self.tokens) >= VERIFIED_MEMO_MAX:
                self.tokens.clear()
            self.tokens[text] = token


class World(msgspec.Struct, frozen=True):
    """Everything a decision may know beside the record: one value, replaced whole when a table changes."""

    audience: str
    lanes: int
    grace_s: int
    queue_age_cap_ms: int
    max_window_ms: int  # what the idempotency topic is sure to keep
    run_seed: int  # digest of cluster and topic: run ids of two deployments never meet
    ring: KeyRing
    rules: Mapping[str, TrustRule]
    jobs: Mapping[str, Job]
    revocations: Revocations
    registry_offset: int = 0  # how far the two tables had been read
    revocations_offset: int = 0
    # Of this world alone: what was verified with keys of the one before must not outlive it.
    memo: Memo = msgspec.field(default_factory=Memo)


class Request(msgspec.Struct, frozen=True):
    """What a decision speaks about; as much as was established before it fell."""

    source: Source
    trigger: Trigger | None = None
    token: VerifiedToken | None = None
    emitter: str | None = None  # a handle for who emitted, the same for one identity
    within_grace: bool = False


class Admitted(msgspec.Struct, frozen=True):
    """Stages 1 to 3 passed: this token may start this job with these parameters, if it has not yet."""

    request: Request
    token: VerifiedToken
    authorized: Authorized
    identity: Identity | None
    home: int  # lane; where it arrived when there is no identity


class Refused(msgspec.Struct, frozen=True):
    """A refusal at any stage."""

    request: Request
    rejected: Rejected
    first_run_id: str | None = None  # of the run an identity already has


class Held(msgspec.Struct, frozen=True):
    """It cannot be decided yet: an issuer's keys are missing. Never a refusal."""

    request: Request
    wanted: KeyWanted


class Accepted(msgspec.Struct, frozen=True):
    """One job starts. `entry` is the table's new row, packed.

    None for a trigger without identity, and where the row that is there, of a later trigger, must stay.
    """

    admitted: Admitted
    run_id: str
    entry: bytes | None


class Duplicate(msgspec.Struct, frozen=True):
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
    (`kid_unknown`) instead of held.
    """
    return admit_all([record], world, memo, wait_for_keys=wait_for_keys)[0]


def admit_all(
    records: Sequence[Record], world: World, memo: Memo, *, wait_for_keys: bool = True
) -> list[Admitted | Refused | Held]:
    """The same for some records, in order. Their signatures are checked one after another, nothing between them:
    that work and the rest of a decision would push each other out of the cache.
    """
    opened = [_open(record, world, memo, wait_for_keys) for record in records]
    checked = [_check(item.signed) if isinstance(item, _Opened) else False for item in opened]
    return [
        _judge_opened(item, holds, world, memo) if isinstance(item, _Opened) else item
        for item, holds in zip(opened, checked, strict=True)
    ]


class _Opened(msgspec.Struct, frozen=True):
    """A trigger whose token is known, or read as far as its signature."""

    source: Source
    trigger: Trigger
    token: VerifiedToken | None
    signed: Signed | None


def _open(record: Record, world: World, memo: Memo, wait_for_keys: bool) -> _Opened | Refused | Held:
    source = source_at(record.partition, record.offset, record.appended_at_ms)
    try:
        # 1 parse
        trigger = Rejected("batch_too_large") if record.batch_too_large else parse(record)
        if isinstance(trigger, Rejected):
            return Refused(Request(source), trigger)
        # 2 verify, up to the signature
        token = memo.tokens.get(trigger.unverified_token)
        if token is not None:
            return _Opened(source, trigger, token, None)
        signed = read_signed(trigger.unverified_token, world.ring)
    except Exception as error:
        return Refused(Request(source), internal_deny(error))
    match signed:
        case Signed():
            return _Opened(source, trigger, None, signed)
        case Rejected():
            return Refused(Request(source, trigger), signed)
        case KeyWanted():
            if signed.kid is None or wait_for_keys:
                return Held(Request(source, trigger), signed)
            return Refused(Request(source, trigger), Rejected("kid_unknown"))


def _check(signed: Signed | None) -> bool | Exception:
    try:
        return signed is not None and holds_signature(signed)
    except Exception as error:
        return error


def _judge_opened(opened: _Opened, holds: bool | Exception, world: World, memo: Memo) -> Admitted | Refused:
    request = Request(opened.source, opened.trigger)
    if isinstance(holds, Exception):
        return Refused(request, internal_deny(holds))
    try:
        token = opened.token
        if token is None:
            if opened.signed is None:
                raise AssertionError("neither a token nor one to verify")
            verified = accept(opened.signed, holds, world.audience)
            if isinstance(verified, Rejected):
                return Refused(request, verified)
            token = verified
            memo.keep(opened.trigger.unverified_token, token)
        return _judge(opened.source, opened.trigger, token, world, memo)
    except Exception as error:
        return Refused(request, internal_deny(error))


def readmit(
    source: Source, trigger: Trigger, token: VerifiedToken, world: World, memo: Memo
) -> Admitted | Refused | Held:
    """What a home lane judges again of a trigger another lane verified: age, key, trust, revocation and job."""
    request = Request(source, trigger, token)
    try:
        claims = token.claims
        if claims.iss in world.rules:
            keys = world.ring.get(claims.iss)
            if keys is None:
                return Held(request, KeyWanted(claims.iss, None))
            if claims.kid not in keys.keys:
                return Refused(request, Rejected("kid_unknown", "the key was removed"))
        return _judge(source, trigger, token, world, memo)
    except Exception as error:
        return Refused(request, internal_deny(error))


def _bearer(claims: Claims, world: World, memo: Memo) -> Bearer | None:
    """None when no trust rule names the issuer."""
    name = (claims.iss, claims.sub, claims.org_id, claims.token_class)
    bearer = memo.bearers.get(name)
    if bearer is None:
        rule = world.rules.get(claims.iss)
        if rule is None:
            return None
        bearer = Bearer(rule, check_bearer(claims, rule), emitter(claims), {})
        if len(memo.bearers) >= VERIFIED_MEMO_MAX:
            memo.bearers.clear()
        memo.bearers[name] = bearer
    return bearer


def emitter(claims: Claims) -> str:
    """A handle for who emitted, the same for one identity, that names nobody: a digest of issuer and subject."""
    issuer = claims.iss.encode()
    return blake2b(len(issuer).to_bytes(4, "big") + issuer + claims.sub.encode(), digest_size=16).hexdigest()


def internal_deny(error: Exception) -> Rejected:
    """Fail closed on an error of our own. Its text may hold a stranger's words, so only its type and place show."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}" if place is not None else "?"
    return Rejected("internal_deny", f"{type(error).__name__} in {where}")


def _judge(source: Source, trigger: Trigger, token: VerifiedToken, world: World, memo: Memo) -> Admitted | Refused:
    claims = token.claims
    appended_at_ms = source.appended_at_ms
    bearer = _bearer(claims, world, memo)
    if bearer is None:
        return Refused(Request(source, trigger, token), Rejected("issuer_untrusted"))
    grace = within_grace(claims, appended_at_ms, world.grace_s)
    request = Request(source, trigger, token, bearer.emitter, grace)
    refusal = check_time(claims, bearer.rule, appended_at_ms, world.grace_s) or bearer.refused
    if refusal is not None:
        return Refused(request, refusal)
    if world.revocations.covers(claims):
        return Refused(request, Rejected("token_revoked"))
    # 3 authorize
    grant = claims.grant
    asked = (claims.uses, grant.actions, grant.jobs, trigger.job)
    permitted = bearer.permitted.get(asked)
    if permitted is None:
        job = permit(claims, bearer.rule, world.jobs, trigger.job)
        if isinstance(job, Rejected):
            return Refused(request, job)
        if len(bearer.permitted) >= PERMITTED_MAX:
            bearer.permitted.clear()
        permitted = bearer.permitted[asked] = (job, idempotency.scope(claims, job))
    job, key_scope = permitted
    authorized = merge_params(grant, job, trigger.params, trigger.params_sha256, trigger.params_canonical)
    if isinstance(authorized, Rejected):
        return Refused(request, authorized)
    if _window_ms(claims, job, world) > world.max_window_ms:
        return Refused(request, Rejected("window_too_long"))
    # 4 dedupe, the part that needs no table
    identity = idempotency.identify(claims, trigger, job, key_scope)
    if isinstance(identity, Rejected):
        return Refused(request, identity)
    home = source.partition if identity is None else idempotency.home_lane(identity.home_by, world.lanes)
    return Admitted(request, token, authorized, identity, home)


def _window_ms(claims: Claims, job: Job, world: World) -> int:
    lifetime_s = claims.exp - claims.iat + world.grace_s if claims.uses == "once" else 0
    return max(lifetime_s, job.dedup_window_s) * 1000


def settle(
    admitted: Admitted, packed_entry: bytes | None, lane_clock_ms: int, world: World
) -> Verdict | AlreadyCommitted:
    """Stage 4 in the home lane: the entry of the trigger's identity, if any, decides.

    `packed_entry` is what the table holds for `admitted.identity` (batch overlay included); `lane_clock_ms` is
    the lane's clock, by which a trigger's queue age goes. Raises ValueError for an entry that is none.
    """
    source = admitted.request.source
    if lane_clock_ms - source.appended_at_ms > world.queue_age_cap_ms:
        return Refused(admitted.request, Rejected("queue_age_exceeded"))
    run_id = make_run_id(world.run_seed, source)
    if admitted.identity is None:
        return Accepted(admitted, run_id_text(run_id), None)
    claims, authorized = admitted.token.claims, admitted.authorized
    packed = idempotency.pack(
        run_id,
        idempotency.fingerprint(authorized),
        idempotency.jti_digest(claims, admitted.identity),
        source.partition,
        source.offset,
        source.appended_at_ms,
        idempotency.window_end_ms(claims, authorized.job.dedup_window_s, source.appended_at_ms, world.grace_s),
    )
    if packed_entry is None:
        return Accepted(admitted, run_id_text(run_id), packed)
    new, old = idempotency.unpack(packed), idempotency.unpack(packed_entry)
    match idempotency.compare(new, old):
        case None:
            return Accepted(admitted, run_id_text(run_id), packed if new.appended_at_ms >= old.appended_at_ms else None)
        case "duplicate":
            return Duplicate(admitted, run_id_text(old.run_id))
        case "same_source":
            return AlreadyCommitted(admitted)
        case "token_already_used" | "idempotency_key_reused" as code:
            if claims.uses == "many":
                code = "idempotency_key_reused"  # a webhook token is meant to come again
            return Refused(admitted.request, Rejected(code), run_id_text(old.run_id))


def make_run_id(seed: int, source: Source) -> bytes:
    """A UUID (RFC 9562 version 7): append time first, the rest from the coordinates. Reprocessing gives the same.

    Multiplying by an odd number is a bijection: two coordinates of one topic never meet in the 74 bits.
    """
    rest = ((source.partition << _OFFSET_BITS | source.offset) * _ODD ^ seed) & _REST_MASK
    number = (source.appended_at_ms & _TIME_MASK) << 80 | _VERSION_AND_VARIANT
    return (number | rest >> 62 << 64 | rest & _LOW_MASK).to_bytes(16, "big")


_OFFSET_BITS: Final = 52  # of 74; leaves 22 for the partition
_ODD: Final = 0x2D3_4F52_9B61_C8E5_A7D1 & ((1 << 74) - 1) | 1
_REST_MASK: Final = (1 << 74) - 1
_LOW_MASK: Final = (1 << 62) - 1
_TIME_MASK: Final = (1 << 48) - 1
_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0x2 << 62


def run_id_text(run_id: bytes) -> str:
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def run_seed(cluster_id: str, topic: str) -> int:
    """What run ids of one triggers topic have in common."""
    digest = blake2b(f"{len(cluster_id)}:{cluster_id}{topic}".encode(), digest_size=10).digest()
    return int.from_bytes(digest, "big") & _REST_MASK
