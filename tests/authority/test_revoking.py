"""What a revocation may say."""

from __future__ import annotations

import pytest

from app.authority.identities import secret_text
from app.authority.revoking import REASON_MAX_CHARACTERS, reason_fault, shown
from app.gate import limits
from app.gate.revocation import Revocation, Selector
from tests.support.tokens import token


@pytest.mark.parametrize("reason", ["", "laptop stolen", "Büro: gestohlen, ref: 12", "x" * REASON_MAX_CHARACTERS])
def test_a_sentence_is_a_reason(reason: str) -> None:
    assert reason_fault(reason) is None


@pytest.mark.parametrize("reason", ["x" * (REASON_MAX_CHARACTERS + 1), "a\nb", "\x1b[2J", "\ud800", "\u202ex"])
def test_a_reason_is_short_and_printable(reason: str) -> None:
    assert reason_fault(reason) is not None


@pytest.mark.parametrize(
    "secret",
    [token()[:150], "ref:" + "A" * 43, secret_text("00" * 8, bytes(32))],
    ids=["part of a token", "handle", "secret"],
)
def test_a_token_a_handle_or_a_secret_is_no_reason(secret: str) -> None:
    assert "shaped like" in (reason_fault(f"lost {secret}"[:REASON_MAX_CHARACTERS]) or "")


@pytest.mark.parametrize(
    ("selector", "since_s", "told"),
    [("subject", 1_800_000_000, 1_800_000_000), ("jti", limits.NUMERIC_DATE_MAX_S, None),
     ("jti", 1_800_000_000, 1_800_000_000),  # not by us: as gates read it
     ("subject", 1 << 62, None), ("kid", 1_800_000_000, None), ("issuer", 1_800_000_000, None)],
)  # fmt: skip
def test_since_when_is_told_unless_tokens_of_any_time_are_refused(
    selector: Selector, since_s: int, told: int | None
) -> None:
    assert shown(Revocation("https://i", selector, "x", since_s, "", "ops", 0))["since_s"] == told
