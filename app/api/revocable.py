"""What a client shows to have it taken back (RFC 7009): a token that some gate may yet honour, or one that none will.

Only of the latter is it said without a record that it is revoked. A signature that cannot be verified here, because the
key is not known, proves nothing; it may be good at a gate that has read the key. So its claims count no further than
where nothing is lost if they are false:

  1 malformed, expired or revoked by its own words: forged or not, no gate takes it
  2 its jti is on the record of what was issued: whose it is, the record says
  3 of another issuer: not ours to take back, whatever it is
  4 of a key that the issuer's set, as it is now, lacks, and that no gate can have kept of a set before: nobody's
  5 anything else may be good: not now
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from app.api.caller import verified_as
from app.api.issuing import Issuing
from app.api.problems import Problem
from app.api.service import Service
from app.gate.claims import ClaimRefused, Claims, read_claims
from app.gate.jws import parse_unverified
from app.gate.reasons import Rejected
from app.gate.reference import GRANT_TYP, HANDLE_START, handle_digest
from app.gate.token import EVERY_CLASS

_CLASS_OF: Final = {**EVERY_CLASS, GRANT_TYP: "trigger"}


class Revocable(NamedTuple):
    """A token that may yet be good, and who may take it back."""

    iss: str
    org_id: str
    jti: str
    owners: frozenset[str]


async def revocable(service: Service, issuing: Issuing, unverified_token: str) -> Revocable | None:
    """None: no gate will ever take it. Raises Problem when that cannot be told.

    One that is merely not honoured now, because its identity is disabled or its time has not come, is like any other.
    """
    came_at_s = time.monotonic()
    try:
        claims = (await verified_as(service.tables, unverified_token, EVERY_CLASS)).claims
    except Problem as problem:
        if problem.code == "kid_unknown":
            return await _of_unknown_key(service, issuing, unverified_token, came_at_s)
        if problem.status == 503:
            raise
        return None
    if _is_dead(service, claims):
        return None
    record = issuing.of(claims.jti)
    owners = {claims.sub} if record is None else {claims.sub, record.identity}
    return Revocable(claims.iss, claims.org_id, claims.jti, frozenset(owners))


async def _of_unknown_key(
    service: Service, issuing: Issuing, unverified_token: str, came_at_s: float
) -> Revocable | None:
    unverified = _unverified_claims(service, unverified_token)
    if unverified is None or _is_dead(service, unverified):
        return None
    if unverified.iss != service.settings.issuer.issuer:
        return Revocable(unverified.iss, unverified.org_id, unverified.jti, frozenset())
    record = issuing.of(unverified.jti)
    if record is not None:
        return Revocable(record.issuer, record.org_id, record.jti, frozenset((record.subject, record.identity)))
    kept_until_s = await issuing.published_until_s(unverified.kid) + service.settings.gate.jwks_max_stale_s
    if service.tables.keys_read_at_s(unverified.iss) >= came_at_s and kept_until_s < time.time():
        return None
    raise Problem("not_ready", "the token's key is not known here, or not yet")


def _unverified_claims(service: Service, unverified_token: str) -> Claims | None:
    """What it says of itself, or what is kept under its handle; None where that is nothing that a gate would take."""
    world, text = service.tables.world, unverified_token
    if text.startswith(HANDLE_START):
        text = world.grants.get(handle_digest(text)) or ""
    read = parse_unverified(text)
    if isinstance(read, Rejected):
        return None
    header = read.unverified_header
    try:
        return read_claims(read.unverified_claims, header["kid"], _CLASS_OF[header["typ"]], world.audience)
    except ClaimRefused:
        return None


def _is_dead(service: Service, claims: Claims) -> bool:
    """Whether it is over for every gate: also for what was sent in its time and waits to be judged."""
    gate = service.settings.gate
    over = claims.exp + gate.grace_s + gate.queue_age_cap_s <= time.time()
    return over or service.tables.world.revocations.covers(claims)
