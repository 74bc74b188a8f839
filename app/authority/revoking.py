"""What a revocation says: which tokens it ends, how long it is kept, and what may stand in it as the reason.

One for the command line and for HTTP. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from app.authority.identities import SECRET_PREFIX
from app.authority.records import Record
from app.gate import limits
from app.gate.redact import redact
from app.gate.revocation import KEEP_FOR_EVER, Revocation, Selector, revocation_record

REASON_MAX_CHARACTERS: Final = 160
_WHOLE: Final = ("kid", "issuer")  # revoked with all that is, whenever it was issued


def reason_fault(reason: str) -> str | None:
    """Why this text may not stand on the revocations topic, which is kept and read by many; or None."""
    if len(reason) > REASON_MAX_CHARACTERS:
        return f"the reason is longer than {REASON_MAX_CHARACTERS} characters"
    if not reason.isprintable():
        return "the reason holds a character that cannot be printed"
    if f"{SECRET_PREFIX}_" in reason or redact(reason.encode(), None)[1]:
        return "the reason holds something shaped like a token or a secret"
    return None


def revocation(
    issuer: str, selector: Selector, value: str, *, now_s: int, grace_s: int, queue_age_cap_s: int, reason: str,
    by: str, since_s: int | None = None,
) -> Revocation:  # fmt: skip
    """Of tokens issued up to `since_s`; one token, a key or an issuer is revoked whole.

    Not given, it is now and the grace: a gate takes an iat that lies ahead by as much, so up to now alone, a token made
    where the clock is ahead would live on.
    """
    if since_s is None:
        since_s = now_s + grace_s
    # A token issued up to then has expired by then, however long it waits to be judged.
    dead_s = max(now_s, since_s) + limits.WEBHOOK_LIFETIME_MAX_S + 2 * grace_s + queue_age_cap_s
    return Revocation(
        issuer, selector, value, limits.NUMERIC_DATE_MAX_S if selector == "jti" else since_s, reason, by,
        KEEP_FOR_EVER if selector in {"kid", "issuer"} else dead_s,
    )  # fmt: skip


def shown(entry: Revocation) -> dict[str, Any]:
    """Its members for people and programs; `since_s` is None where tokens of any time are refused."""
    members: dict[str, Any] = msgspec.to_builtins(entry)
    whole = entry.selector in _WHOLE or entry.since_s >= limits.NUMERIC_DATE_MAX_S
    return members | {"since_s": None} if whole else members


def record_of(entry: Revocation) -> Record:
    """Key and value on the revocations topic."""
    return revocation_record(
        entry.issuer, entry.selector, entry.value, since_s=entry.since_s, reason=entry.reason, by=entry.by,
        keep_until_s=entry.keep_until_s,
    )  # fmt: skip
