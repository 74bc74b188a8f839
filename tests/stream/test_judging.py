"""Judging with a server's JWK Set: what names a key that is not there waits for one look, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from app.gate import outputs
from app.gate.decide import Admitted, Held, Memo
from app.gate.original import original
from app.gate.trigger import Record
from app.stream.holding import Waiting
from app.stream.judging import Judge
from app.stream.tables import Tables
from tests.support.jwks_server import Server, document, following, rule
from tests.support.pure_world import WORLD, record
from tests.support.tokens import ISS, NOW_S, OTHER, public_jwk, token

WEBHOOK = token(claims={"uses": "many"})


@asynccontextmanager
async def gate(server: Server, **settings: float) -> AsyncIterator[tuple[Tables, Judge]]:
    """The tables of a gate that has just read the set, and a judge of one of its lanes."""
    async with following({ISS: rule(server.url)}, **settings) as keys:
        empty = msgspec.structs.replace(WORLD, ring={}, memo=Memo())
        tables = Tables(None, ("registry", 0), ("revocations", 0), ("grants", 0), keys, empty, 1.0)  # type: ignore[arg-type]
        tables._jobs, tables._rules = dict(WORLD.jobs), dict(WORLD.rules)
        tables._rebuild()
        yield tables, Judge(0, tables)


async def handoff(presented: Record) -> Record:
    """What a gate that knows all keys writes for the home lane of a trigger."""
    async with Server(document(public_jwk("k1"))) as server, gate(server) as (tables, judge):
        (judged,) = judge.slice([], [presented], tables.world, 0.0).triggers
    assert isinstance(judged.result, Admitted)
    redacted, sealed = original(presented, WEBHOOK, lambda *_: None)
    out = outputs.handoff(judged.result, redacted, sealed, 0, 0)
    return Record(judged.result.home, 0, presented.appended_at_ms, True, out.key, out.value, ())


async def test_a_handoff_whose_key_another_gate_has_read_first_waits_for_one_look_at_the_set():
    handed = await handoff(record(1, WEBHOOK, NOW_S, idempotency_key="a"))
    async with Server(document(public_jwk("k0", OTHER))) as server, gate(server) as (tables, judge):
        server.body = document(public_jwk("k0", OTHER), public_jwk("k1"))
        before = server.requests
        judged = judge.slice([handed], [], tables.world, 0.0)
        assert judged.handoffs == []
        assert isinstance(judged.handoffs_wait, Held)

        await tables.fetch(judged.handoffs_wait.wanted)
        (item,) = judge.slice([handed], [], tables.world, 0.0).handoffs
        assert isinstance(item.result, Admitted)
        assert server.requests == before + 1


async def test_a_handoff_whose_key_is_in_no_set_any_more_is_refused_after_one_look():
    handed = await handoff(record(1, WEBHOOK, NOW_S, idempotency_key="a"))
    async with Server(document(public_jwk("k0", OTHER))) as server, gate(server) as (tables, judge):
        before = server.requests
        wait = judge.slice([handed], [], tables.world, 0.0).handoffs_wait
        assert isinstance(wait, Held)
        await tables.fetch(wait.wanted)
        for _ in range(3):  # and no more looks for those that come after it
            (item,) = judge.slice([handed], [], tables.world, 0.0).handoffs
            assert item.result.rejected.code == "kid_unknown"
        assert server.requests == before + 1


@pytest.mark.parametrize("away", [False, True], ids=["a trigger", "a handoff"])
async def test_a_record_waits_for_its_key_once_however_often_its_issuer_may_be_asked(away: bool):
    """A look takes longer here than another must be away from it."""
    presented = record(1, WEBHOOK, NOW_S, idempotency_key="a")
    handed = await handoff(presented)
    async with (
        Server(document(public_jwk("k0", OTHER))) as server,
        gate(server, jwks_refetch_floor_s=0.1) as (tables, judge),
    ):
        server.delay_s = 0.2
        waiting, looks, woken = Waiting(), 0, asyncio.Event()
        waiting.records = [handed if away else presented]
        while True:  # as a lane does
            assert looks < 5, "it would wait for ever"
            looked_for = waiting.looked_for
            to_judge = waiting.to_judge
            judged = judge.slice(
                to_judge if away else [], [] if away else to_judge, tables.world, 0.0, (looked_for, looked_for)
            )
            held = judged.handoffs_wait if away else judged.triggers_wait
            if held is None:
                break
            assert isinstance(held, Held)
            looks += 1
            woken.clear()
            waiting.wait_for(held.wanted, tables.fetch(held.wanted), woken.set)
            await woken.wait()
        (item,) = judged.handoffs if away else judged.triggers
        assert item.result.rejected.code == "kid_unknown"
        assert looks == 1
        waiting.decided(1)
        assert waiting.looked_for is None, "the next may wait for its own"
