"""What a revocation says: what may stand in it as the reason.

One for the command line and for HTTP. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Final

from app.authority.identities import SECRET_PREFIX
from app.gate.redact import redact

REASON_MAX_CHARACTERS: Final = 160


def reason_fault(reason: str) -> str | None:
    """Why this text may not stand on the revocations topic, which is kept and read by many; or None."""
    if len(reason) > REASON_MAX_CHARACTERS:
        return f"the reason is longer than {REASON_MAX_CHARACTERS} characters"
    if not reason.isprintable():
        return "the reason holds a character that cannot be printed"
    if f"{SECRET_PREFIX}_" in reason or redact(reason.encode(), None)[1]:
        return "the reason holds something shaped like a token or a secret"
    return None
