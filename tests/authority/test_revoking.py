"""What a revocation may say."""

from __future__ import annotations

import pytest

from app.authority.identities import secret_text
from app.authority.revoking import REASON_MAX_CHARACTERS, reason_fault
from tests.support.tokens import token


@pytest.mark.parametrize("reason", ["", "laptop stolen", "Büro: gestohlen, ref: 12", "x" * REASON_MAX_CHARACTERS])
def test_a_sentence_is_a_reason(reason: str) -> None:
    assert reason_fault(reason) is None


@pytest.mark.parametrize("reason", ["x" * (REASON_MAX_CHARACTERS + 1), "a\nb", "\x1b[2J", "\ud800", "\u202ex"])
def test_a_reason_is_short_and_printable(reason: str) -> None:
    assert reason_fault(reason) is not None


@pytest.mark.parametrize(
    "shown",
    [token()[:150], "ref:" + "A" * 43, secret_text("00" * 8, bytes(32))],
    ids=["part of a token", "handle", "secret"],
)
def test_a_token_a_handle_or_a_secret_is_no_reason(shown: str) -> None:
    assert "shaped like" in (reason_fault(f"lost {shown}"[:REASON_MAX_CHARACTERS]) or "")
