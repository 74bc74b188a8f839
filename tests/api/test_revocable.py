"""What a client may take back: every token that a gate may yet take, honoured now or not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api import oauth
from app.api.problems import Problem
from app.authority.identities import Identity
from app.config import Settings
from app.gate.decide import Memo
from app.gate.identities import Identities
from tests.api.test_caller import live, tables
from tests.support.tokens import ISS, token


async def revocable(made: Any, text: str) -> bool:
    service: Any = SimpleNamespace(tables=made, settings=Settings())
    return await oauth._revocable(service, text) is not None


async def test_a_token_whose_identity_is_disabled_can_be_taken_back() -> None:
    made, identities = tables(), Identities()
    disabled = Identity("service:ci", 1, "service", ISS, "acme", disabled=True)
    identities.apply("service:ci", msgspec.json.encode(disabled))
    made._world = msgspec.structs.replace(made._world, disabled=identities.disabled(), memo=Memo())
    assert await revocable(made, token(claims=live()))


async def test_a_token_whose_time_has_not_come_can_be_taken_back() -> None:
    now_s = int(time.time())
    assert await revocable(tables(), token(claims=live(nbf=now_s + 600, exp=now_s + 900)))


async def test_what_no_gate_will_take_needs_no_revocation() -> None:
    made = tables()
    for dead in (token(claims=live(exp=1_700_000_000)), "x", token(claims=live())[:-4] + "AAAA"):
        assert not await revocable(made, dead)


async def test_a_token_whose_key_has_not_been_read_yet_is_asked_for_again() -> None:
    made = tables()
    made._keys = SimpleNamespace(version=1, ring=made._keys.ring, may_fetch=lambda _: False)  # type: ignore[assignment]
    with pytest.raises(Problem) as refused:
        await revocable(made, token({"kid": "k9"}, live()))
    assert (refused.value.code, refused.value.status) == ("not_ready", 503)
