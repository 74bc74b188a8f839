"""The decision: record and world in, one value out. No I/O, no clock, no randomness, and it never raises.

    record ─ 1 parse ─ 2 verify ─ 3 authorize ─ 4 dedupe ─ Accepted | Duplicate | Refused | away to its home lane

`admit` takes a trigger through stages 1 to 3, `readmit` takes a handoff through what may have changed since,
`settle` is stage 4 against the one entry its identity has. An error of our own becomes `internal_deny`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from hashlib import blake2b
from typing import Final

import msgspec

from app.gate import idempotency
from app.gate.idempotency import Entry, Identity
from app.gate.policy import Authorized, Job, Revocations, TrustRule, authorize, check_token, within_grace
from app.gate.reasons import Rejected
from app.gate.keyset import KeyRing
from app.gate.token import Claims, KeyWanted, VerifiedToken, verify
from app.gate.trigger import Record, Trigger, parse

VERIFIED_MEMO_MAX: Final = 20_000  # webhook tokens; about 2 KiB each


class World(msgspec.Struct, frozen=True):
    """Everything a decision may know beside the record: one value, replaced whole when a table changes."""

    audience: str
    lanes: int
    grace_s: int
    queue_age_cap_ms: int
    max_window_ms: int  # what the idempotency topic is sure to keep
    run_seed: bytes  # digest of cluster and topic: run ids of two deployments never meet
    ring: KeyRing
    rules: Mapping[str, TrustRule]
    jobs: Mapping[str, Job]
    revocations: Revocations
    registry_offset: int = 0  # how far the two tables had been read
    revocations_offset: int = 0


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a trigger stands on the triggers topic: its coordinates are its id, which nobody can choose."""

    partition: int
    offset: int
    appended_at_ms: int

    @property
    def trigger_id(self) -> str:
        return f"{self.partition}-{self.offset}"


class Request(msgspec.Struct, frozen=True):
    """What a decision speaks about; as much as was established before it fell."""

    source: Source
    trigger: Trigger | None = None
    token: VerifiedToken | None = None
    within_grace: bool = False


class Admitted(msgspec.Struct, frozen=True):
    """Stages 1 to 3 passed: this token may start this job with these parameters, if it has not yet."""

    request: Request
    authorized: Authorized
    identity: Identity | None
    home: int  # lane; where it arrived when there is no identity


class Refused(msgspec.Struct, frozen=True):
    """A refusal at any stage."""

    request: Request
    rejected: Rejected
    first_run_id: bytes | None = None  # of the run an identity already has


class Held(msgspec.Struct, frozen=True):
    """It cannot be decided yet: an issuer's keys are missing. Never a refusal."""

    request: Request
    wanted: KeyWanted


class Accepted(msgspec.Struct, frozen=True):
    """One job starts. `entry` is the table's new row, None for a trigger without identity."""

    admitted: Admitted
    run_id: bytes
    entry: Entry | None
    replaces: bool  # False when the row that is there, of a later trigger, must stay


class Duplicate(msgspec.Struct, frozen=True):
    """The same request again: its receipt names the first run."""

    admitted: Admitted
    run_id: bytes


class AlreadyCommitted(msgspec.Struct, frozen=True):
    """The entry came from this very record: the lane reads what it has committed before. It must stop, loudly."""

    admitted: Admitted


Verdict = Accepted | Duplicate | Refused
Memo = MutableMapping[str, VerifiedToken]


def admit(record: Record, world: World, memo: Memo, *, wait_for_keys: bool = True) -> Admitted | Refused | Held:
    """Stages 1 to 3 of a record of the triggers topic.

    `memo` keeps verified webhook tokens; it must be emptied whenever `world.ring` changes. With `wait_for_keys`
    false a kid that a loaded key set lacks is refused (`kid_unknown`) instead of held.
    """
    source = Source(record.partition, record.offset, record.appended_at_ms)
    try:
        return _admit(record, source, world, memo, wait_for_keys)
    except Exception as error:
        return Refused(Request(source), internal_deny(error))


def _admit(
    record: Record, source: Source, world: World, memo: Memo, wait_for_keys: bool
) -> Admitted | Refused | Held:
    # 1 parse
    trigger = Rejected("batch_too_large") if record.batch_too_large else parse(record)
    if isinstance(trigger, Rejected):
        return Refused(Request(source), trigger)
    # 2 verify
    token = memo.get(trigger.unverified_token)
    if token is None:
        verified = verify(trigger.unverified_token, world.ring, world.audience)
        if isinstance(verified, Rejected):
            return Refused(Request(source, trigger), verified)
        if isinstance(verified, KeyWanted):
            if verified.kid is None or wait_for_keys:
                return Held(Request(source, trigger), verified)
            return Refused(Request(source, trigger), Rejected("kid_unknown"))
        token = verified
        if token.claims.uses == "many":
            if len(memo) >= VERIFIED_MEMO_MAX:
                memo.clear()
            memo[trigger.unverified_token] = token
    return _judge(source, trigger, token, world)


def readmit(source: Source, trigger: Trigger, token: VerifiedToken, world: World) -> Admitted | Refused | Held:
    """What a home lane judges again of a trigger another lane verified: age, key, trust, revocation and job."""
    claims = token.claims
    request = Request(source, trigger, token)
    try:
        if claims.iss in world.rules:
            keys = world.ring.get(claims.iss)
            if keys is None:
                return Held(request, KeyWanted(claims.iss, None))
            if claims.kid not in keys.keys:
                return Refused(request, Rejected("kid_unknown", "the key was removed"))
        return _judge(source, trigger, token, world)
    except Exception as error:
        return Refused(request, internal_deny(error))


def internal_deny(error: Exception) -> Rejected:
    """Fail closed on an error of our own. Its text may hold a stranger's words, so only its type and place show."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}" if place is not None else "?"
    return Rejected("internal_deny", f"{type(error).__name__} in {where}")


def _judge(source: Source, trigger: Trigger, token: VerifiedToken, world: World) -> Admitted | Refused:
    claims = token.claims
    appended_at_ms = source.appended_at_ms
    request = Request(source, trigger, token, within_grace(claims, appended_at_ms, world.grace_s))
    rule = world.rules.get(claims.iss)
    if rule is None:
        return Refused(request, Rejected("issuer_untrusted"))
    refusal = check_token(claims, rule, world.revocations, appended_at_ms, world.grace_s)
    if refusal is not None:
        return Refused(request, refusal)
    # 3 authorize
    authorized = authorize(claims, rule, world.jobs, trigger.job, trigger.params, trigger.params_sha256)
    if isinstance(authorized, Rejected):
        return Refused(request, authorized)
    if _window_ms(claims, authorized.job, world) > world.max_window_ms:
        return Refused(request, Rejected("window_too_long"))
    # 4 dedupe, the part that needs no table
    identity = idempotency.identify(claims, trigger, authorized)
    if isinstance(identity, Rejected):
        return Refused(request, identity)
    home = source.partition if identity is None else idempotency.home_lane(identity.home_by, world.lanes)
    return Admitted(request, authorized, identity, home)


def _window_ms(claims: Claims, job: Job, world: World) -> int:
    lifetime_s = claims.exp - claims.iat + world.grace_s if claims.uses == "once" else 0
    return max(lifetime_s, job.dedup_window_s) * 1000


def settle(
    admitted: Admitted, packed_entry: bytes | None, lane_clock_ms: int, world: World
) -> Verdict | AlreadyCommitted:
    """Stage 4 in the home lane: the entry of the trigger's identity, if any, decides.

    `packed_entry` is what the table holds for `admitted.identity` (batch overlay included); `lane_clock_ms` is
    the lane's clock, by which a trigger's queue age goes.
    """
    source = admitted.request.source
    if lane_clock_ms - source.appended_at_ms > world.queue_age_cap_ms:
        return Refused(admitted.request, Rejected("queue_age_exceeded"))
    run_id = make_run_id(world.run_seed, source)
    if admitted.identity is None:
        return Accepted(admitted, run_id, None, replaces=False)
    token = admitted.request.token
    assert token is not None  # an admitted trigger has a verified token  # noqa: S101
    claims = token.claims
    job = admitted.authorized.job
    entry = Entry(
        run_id=run_id,
        fingerprint=idempotency.fingerprint(admitted.authorized),
        jti_digest=idempotency.jti_digest(claims),
        partition=source.partition,
        offset=source.offset,
        appended_at_ms=source.appended_at_ms,
        expires_at_ms=idempotency.window_end_ms(claims, job.dedup_window_s, source.appended_at_ms, world.grace_s),
    )
    if packed_entry is None:
        return Accepted(admitted, run_id, entry, replaces=True)
    old = idempotency.unpack(packed_entry)
    match idempotency.compare(entry, old):
        case None:
            return Accepted(admitted, run_id, entry, replaces=entry.appended_at_ms >= old.appended_at_ms)
        case "duplicate":
            return Duplicate(admitted, old.run_id)
        case "same_source":
            return AlreadyCommitted(admitted)
        case "token_already_used" | "idempotency_key_reused" as code:
            return Refused(admitted.request, Rejected(code), old.run_id)


def make_run_id(seed: bytes, source: Source) -> bytes:
    """A UUID (RFC 9562 version 7): append time first, the rest from the coordinates. Reprocessing gives the same."""
    coordinates = b"%d-%d" % (source.partition, source.offset)
    rest = blake2b(seed + coordinates, digest_size=10).digest()
    number = (source.appended_at_ms & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(rest, "big")
    # version 7 in bits 76-79, variant 0b10 in bits 62-63
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    return number.to_bytes(16, "big")


def run_id_text(run_id: bytes) -> str:
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def run_seed(cluster_id: str, topic: str) -> bytes:
    """What run ids of one triggers topic have in common."""
    return blake2b(f"{len(cluster_id)}:{cluster_id}{topic}".encode(), digest_size=16).digest()
