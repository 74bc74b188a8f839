"""What the gate says of a token, in one word."""

from app.gate.reasons import Rejected, Stage
from app.gate.token import VerifiedToken, verify
from tests.support.tokens import AUD, RING, token

VALID = token()
H, P, S = VALID.split(".")  # its header, payload and signature


def verdict(presented: str, ring=RING, audience=AUD) -> str:
    """The reason code, `wanted`, or `accepted`."""
    got = verify(presented, ring, audience)
    if isinstance(got, Rejected):
        assert got.reason.stage is Stage.VERIFY
        return got.code
    return "accepted" if isinstance(got, VerifiedToken) else "wanted"
