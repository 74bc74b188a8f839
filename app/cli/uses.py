"""What the audit knows of one token: how often it started a job, and when last. Of an unverified token, it is asked by
its fingerprint and by issuer and jti, which stand in the audit only where a gate has verified them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from app.cli import common

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.config import Settings

CONNECT_TIMEOUT_S: Final = 15.0
UNKNOWN: Final = {"use_count": None, "duplicates": None, "rejected": None, "last_used": None}


def uses_of(settings: Settings, fingerprint: str, unverified_claims: Mapping[str, Any]) -> dict[str, Any]:
    """Its presentations by outcome, and when it last started a job; where the audit cannot be read, says why."""
    try:
        return common.run(_count(settings, fingerprint, unverified_claims))
    except Exception as error:
        told = common.sentence_of(error)
        if told is None:
            raise
        common.say(f"its uses are not known, for the audit could not be read (--no-uses does not ask it): {told[0]}")
        return dict(UNKNOWN)


async def _count(settings: Settings, fingerprint: str, unverified_claims: Mapping[str, Any]) -> dict[str, Any]:
    from app.cli.audit import SLACK_MS, rows_of
    from app.cli.reading import Window, entries
    from app.cli.when import utc
    from app.gate.limits import NUMERIC_DATE_MAX_S
    from app.stream.topics import Topic

    issuer, jti, iat = (unverified_claims.get(name) for name in ("iss", "jti", "iat"))
    # Before it was issued no gate has accepted it; from a stranger's iat on, nothing of his matters.
    since_ms = max(0, iat * 1_000 - SLACK_MS) if type(iat) is int and 0 <= iat <= NUMERIC_DATE_MAX_S else None
    needles = [fingerprint.encode(), *([jti.encode()] if type(jti) is str and jti and jti.isascii() else [])]
    outcomes: Counter[str] = Counter()
    last_ms: int | None = None
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reading = entries(settings, Topic.AUDIT, Window(since_ms), doing="counting its uses in the audit")
            batches = await stack.enter_async_context(reading)
        async for batch in batches:
            for entry in batch:
                if entry.value is None or not any(needle in entry.value for needle in needles):
                    continue
                for row in rows_of(entry):
                    of_it = row.get("token_fingerprint") == fingerprint
                    if of_it or (jti is not None and (row.get("issuer"), row.get("jti")) == (issuer, jti)):
                        outcomes[str(row.get("outcome"))] += 1
                        if row.get("outcome") == "accepted":
                            last_ms = max(last_ms or 0, entry.timestamp_ms)
    return {
        "use_count": outcomes["accepted"], "duplicates": outcomes["duplicate"], "rejected": outcomes["rejected"],
        "last_used": None if last_ms is None else utc(last_ms),
    }  # fmt: skip
