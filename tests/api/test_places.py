"""Work that takes long: whoever asks for much of it delays nobody else, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.errors import KafkaError

from app.api import reading
from app.api.places import Places
from app.api.problems import Problem
from app.gate.explain import Explanation
from app.stream.log import OffsetGone, Watermarks
from tests.api.closed import listening, unconnected
from tests.api.test_caller import live, tables
from tests.support.tokens import token


class Work:
    """Begun by callers, and done when it is let go."""

    def __init__(self, places: Places) -> None:
        self.places, self.under_way, self.go = places, list[str](), asyncio.Event()

    async def of(self, caller: str) -> str:
        async with self.places.place(caller):
            self.under_way.append(caller)
            await self.go.wait()
        return caller

    async def begin(self, *callers: str) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.of(caller)) for caller in callers]
        await asyncio.sleep(0.01)
        return tasks


async def test_a_caller_who_fills_its_share_delays_nobody_else() -> None:
    work = Work(Places(4, 2, 10, 30, late="search_exhausted"))
    tasks = await work.begin(*["much"] * 10, "one", "other")
    assert sorted(work.under_way) == ["much", "much", "one", "other"]
    with pytest.raises(Problem) as refused:
        await work.of("much")
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers["Retry-After"]
    tasks += await work.begin("third")
    assert "third" not in work.under_way  # there are no more at once, whoever they are
    work.go.set()
    assert sorted(await asyncio.gather(*tasks)) == ["much"] * 10 + ["one", "other", "third"]
    assert work.places._lines == {}


async def test_places_are_given_in_turn_not_to_whoever_asks_most() -> None:
    work = Work(Places(2, 1, 10, 30, late="search_exhausted"))
    tasks = await work.begin("a", "b", *["a"] * 5, "c", *["b"] * 5)
    work.go.set()
    await asyncio.gather(*tasks)
    assert work.under_way.index("c") <= 4


@pytest.mark.parametrize(("others", "code"), [(0, "search_exhausted"), (1, "overloaded")])
async def test_neither_the_work_nor_the_wait_for_it_lasts_longer_than_a_request_may(others: int, code: str) -> None:
    work = Work(Places(1, 1, 10, 0.2, late="search_exhausted"))
    tasks = await work.begin(*["a"] * others, "b")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    last = results[-1]
    assert isinstance(last, Problem)
    assert (last.status, last.code) == (503, code)
    assert int(last.headers["Retry-After"]) >= 1
    assert work.places._lines == {}


async def test_what_fails_gives_its_place_back() -> None:
    places = Places(1, 1, 1, 30, late="overloaded")
    for _ in range(3):
        with pytest.raises(KeyError):
            async with places.place("a"):
                raise KeyError
    async with places.place("a"):
        pass


@pytest.mark.parametrize(
    "error", [KafkaError("receipts[1] has no leader now"), OffsetGone(("receipts", 1), 1, 5, 9)], ids=repr
)
async def test_who_asks_while_a_partition_fails_over_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    service = unconnected(tmp_path)
    service.tables = tables()
    service.receipts.covers_from_ms = 1

    async def watermarks(_: tuple[str, int]) -> Watermarks:
        return Watermarks(0, 9)

    async def first_since(_: tuple[str, int], __: int) -> tuple[int, int]:
        raise error

    monkeypatch.setattr(service.cluster, "watermarks", watermarks)
    monkeypatch.setattr(service.cluster, "first_since", first_since)
    bearer = {"authorization": f"Bearer {token(claims=live(uses='once'))}"}
    async with listening(service) as url, httpx.AsyncClient(base_url=url, headers=bearer, timeout=10) as client:
        for answer in (await client.get("/v1/receipts/1-5"), await client.post("/v1/explain", json={})):
            assert (answer.status_code, answer.json()["reason"]) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) >= 1


async def test_an_emitter_that_asks_for_much_is_told_to_wait_and_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dry runs and searches whose Kafka answers nothing for one emitter, and at once for another."""
    monkeypatch.setattr(reading, "EXPLAIN_TIMEOUT_S", 1.0)
    service = unconnected(tmp_path)
    service.tables = tables()
    service.search._places._timeout_s = 1.0
    slow = asyncio.Event()

    async def judged(_cluster: Any, _tables: Any, _prefix: str, record: Any) -> Explanation:
        if b'"slow"' in record.value:
            await slow.wait()
        return Explanation("accepted", None, None, None, {}, [])

    async def watermarks(partition: tuple[str, int]) -> Watermarks:
        if partition[1] == 1:
            await slow.wait()
        return Watermarks(0, 0)

    monkeypatch.setattr(reading, "judged", judged)
    monkeypatch.setattr(service.cluster, "watermarks", watermarks)
    much, other = (
        {"authorization": f"Bearer {token(claims=live(sub=sub))}"} for sub in ("service:ci", "service:other")
    )
    async with listening(service) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        flood = [client.post("/v1/explain", json={"job": "slow"}, headers=much) for _ in range(40)]
        flood += [client.get("/v1/receipts/1-5", headers=much) for _ in range(40)]
        flooding = asyncio.gather(*flood)
        await asyncio.sleep(0.3)
        explained = await client.post("/v1/explain", json={"job": "quick"}, headers=other)
        searched = await client.get("/v1/receipts/0-5", headers=other)
        assert not flooding.done()
        assert (explained.status_code, searched.status_code) == (200, 404)
        answers = await flooding
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["reason"] for answer in answers} == {"overloaded", "search_exhausted"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
