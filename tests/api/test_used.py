"""Whether a one-shot token was used: wherever in the table its entry can be, and whoever else asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api.used import OF_ONE, Used
from app.gate.claims import Claims
from app.gate.idempotency import JTI_DIGEST_BYTES, home_lane, jti_identity, jti_scope, of_one_shot, pack
from app.gate.token import VerifiedToken, verify
from app.stream.inquiry import CLOCKS_DIFFER_MS, judged
from app.stream.log import ReadRecord, Watermarks
from tests.api.test_caller import live
from tests.support.pure_world import WORLD, record
from tests.support.tokens import token

GRACE_S, LANES = 600, WORLD.lanes


def verified(shown: str) -> Claims:
    found = verify(shown, WORLD.ring, WORLD.audience, WORLD.grants)
    assert isinstance(found, VerifiedToken)
    return found.claims


class Table:
    """A changelog that holds one token's entry, as old as that, in its lane."""

    def __init__(self, claims: Claims, written_at_ms: int) -> None:
        identity = of_one_shot(claims)
        assert identity is not None
        jti = jti_identity(jti_scope(claims.iss), claims.jti)[:JTI_DIGEST_BYTES]
        entry = pack(bytes(16), bytes(16), jti, 1, 7, written_at_ms, written_at_ms + 3_600_000)
        self._lane = home_lane(identity.home_by, LANES)
        self._record = ReadRecord(0, identity.digest, entry, written_at_ms)

    async def first_since(self, partition: tuple[str, int], since_ms: int) -> tuple[int, int] | None:
        assert partition[1] == self._lane
        return (self._record.appended_at_ms, 0) if self._record.appended_at_ms >= since_ms else None

    async def watermarks(self, _: Any) -> Watermarks:
        return Watermarks(0, 1)

    async def read(self, _: Any, start: int, end: int) -> AsyncIterator[tuple[list[Any], int]]:
        yield [self._record][start:end], end


# A gate takes a token that long before its time, and the clock of the broker that dates its entry may be behind.
@pytest.mark.parametrize(("early_ms", "found"), [(0, True), (GRACE_S * 1000 + CLOCKS_DIFFER_MS, True),
                                                 (GRACE_S * 1000 + CLOCKS_DIFFER_MS + 1, False)])  # fmt: skip
async def test_an_entry_is_found_however_early_the_token_was_taken(early_ms: int, found: bool) -> None:
    claims = verified(shown := token(claims=live()))
    table: Any = Table(claims, claims.iat * 1000 - early_ms)
    assert await Used(table, "idempotency", LANES, GRACE_S).was(claims, "svc:ci") is found
    seen: Any = SimpleNamespace(world=msgspec.structs.replace(WORLD, grace_s=GRACE_S))
    told = await judged(table, seen, "tollgate.", record(1, shown, int(time.time())))
    assert (told.reason or told.outcome) == ("token_already_used" if found else "accepted")


class Unanswering(Table):
    """One that does not answer until it is told to."""

    def __init__(self, claims: Claims) -> None:
        super().__init__(claims, claims.iat * 1000)
        self.asked, self.go = 0, asyncio.Event()

    async def first_since(self, partition: tuple[str, int], since_ms: int) -> tuple[int, int] | None:
        self.asked += 1
        await self.go.wait()
        return await super().first_since(partition, since_ms)


async def test_a_client_that_asks_of_many_subjects_tokens_delays_no_other_client() -> None:
    claims = verified(token(claims=live()))
    table: Any = Unanswering(claims)
    used = Used(table, "idempotency", LANES, GRACE_S)
    of_many = [msgspec.structs.replace(claims, sub=f"service:{number}") for number in range(8)]
    asking = [asyncio.create_task(used.was(each, "svc:much")) for each in of_many]
    await asyncio.sleep(0.01)
    assert table.asked == OF_ONE
    asking.append(asyncio.create_task(used.was(claims, "svc:other")))
    await asyncio.sleep(0.01)
    assert table.asked == OF_ONE + 1
    table.go.set()
    assert await asyncio.gather(*asking) == [True] * 9
