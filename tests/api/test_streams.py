"""The stream of receipts where it is resumed: over what retention took, at an instance that is behind, by the revoked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.api import connections, reading
from app.api.places import Places
from app.api.receipts import QUEUE_MAX, Receipts, Told
from app.stream.log import Watermarks
from tests.api.closed import listening, unconnected
from tests.api.test_caller import live, tables
from tests.support.tokens import token


def record(offset: int) -> Any:
    value = b'{"trigger_id":"0-%d","outcome":"accepted","emitter":"me"}' % offset
    return SimpleNamespace(offset=offset, key=b"0-%d" % offset, value=value, appended_at_ms=0)


class Lane:
    """One lane of receipts, every one of them ours."""

    def __init__(self, start: int, high: int) -> None:
        self.start, self.high = start, high

    async def watermarks(self, _: Any) -> Watermarks:
        return Watermarks(self.start, self.high)

    async def read(self, _: Any, start: int, end: int) -> AsyncIterator[tuple[list[Any], int]]:
        for offset in range(start, end):
            yield [record(offset)], offset + 1


class Reader:
    """One who is honoured until told otherwise."""

    emitter = "me"
    honoured = True

    def fault(self, _: Any) -> str | None:
        return None if self.honoured else "token_revoked"


def stream(start: int, high: int, position: int, resume_at: int, caller: Any = None) -> tuple[Receipts, Any]:
    """The events from `resume_at` on at an instance that has read up to `position`."""
    receipts = Receipts(Lane(start, high), "receipts", 1, 1_000)  # type: ignore[arg-type]
    receipts._tails = [SimpleNamespace(position=position)]  # type: ignore[list-item]
    service: Any = SimpleNamespace(receipts=receipts, tables=SimpleNamespace(world=None))
    return receipts, reading._events(service, places(), caller or Reader(), receipts.subscribe("me"), [resume_at])


def places(timeout_s: float = 30) -> Places:
    return Places(reading.RESUME_AT_ONCE, reading.RESUME_OF_ONE, 20, timeout_s, late="overloaded")


async def of(events: Any, count: int) -> list[str]:
    """The ids of the next events, `gap` for one."""
    told = []
    while len(told) < count:
        event = (await asyncio.wait_for(anext(events), 10)).decode()
        if event.startswith(": still here"):
            continue
        told.append("gap" if "event: gap" in event else event.partition("id: ")[2].splitlines()[0])
    return told


async def test_receipts_that_retention_took_are_told_as_a_gap() -> None:
    _, events = stream(start=100, high=103, position=103, resume_at=10)
    assert await of(events, 5) == ["10", "gap", "101", "102", "103"]


async def test_a_stream_that_misses_nothing_tells_of_no_gap() -> None:
    _, events = stream(start=100, high=103, position=103, resume_at=100)
    assert await of(events, 4) == ["100", "101", "102", "103"]


async def test_an_instance_that_is_behind_tells_nothing_twice_and_ids_never_run_backwards() -> None:
    receipts, events = stream(start=0, high=106, position=100, resume_at=104)
    assert await of(events, 1) == ["104"]
    following = asyncio.create_task(of(events, 2))
    await asyncio.sleep(0.05)
    for offset in range(100, 106):
        receipts._arrived(0, record(offset))
    assert await following == ["105", "106"]


async def test_a_position_that_the_topic_has_never_had_is_a_gap_and_the_stream_goes_on_from_its_end() -> None:
    receipts, events = stream(start=0, high=100, position=100, resume_at=9_999)
    assert await of(events, 2) == ["9999", "gap"]
    following = asyncio.create_task(of(events, 1))
    await asyncio.sleep(0.05)
    receipts._arrived(0, record(100))
    assert await following == ["101"]


async def test_one_who_is_revoked_while_resuming_is_told_no_more() -> None:
    reader = Reader()
    _, events = stream(start=0, high=5_000, position=5_000, resume_at=0, caller=reader)
    assert await of(events, 3) == ["0", "1", "2"]
    reader.honoured = False
    assert [event async for event in events] == []


class Slow(Lane):
    """A lane that is read when it is told so."""

    def __init__(self) -> None:
        super().__init__(0, 3)
        self.go, self.under_way = asyncio.Event(), 0

    async def read(self, _: Any, start: int, end: int) -> AsyncIterator[tuple[list[Any], int]]:
        self.under_way += 1
        await self.go.wait()
        async for chunk in super().read(_, start, end):
            yield chunk


def resumed(lane: Slow, emitters: list[str], timeout_s: float = 30) -> list[Any]:
    """Streams of these, all from the beginning."""
    receipts = Receipts(lane, "receipts", 1, 1_000)  # type: ignore[arg-type]
    receipts._tails = [SimpleNamespace(position=3)]  # type: ignore[list-item]
    service: Any = SimpleNamespace(receipts=receipts, tables=SimpleNamespace(world=None))
    resuming, callers = places(timeout_s), [Reader() for _ in emitters]
    for caller, emitter in zip(callers, emitters, strict=True):
        caller.emitter = emitter
    return [
        reading._events(service, resuming, caller, receipts.subscribe(caller.emitter), [0])  # type: ignore[arg-type]
        for caller in callers
    ]


async def test_who_resumes_many_streams_delays_nobody_elses_and_all_are_kept_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "KEEP_ALIVE_S", 0.02)
    lane = Slow()
    streams = resumed(lane, ["me"] * 10 + ["other"])
    for stream in streams:
        assert await of(stream, 1) == ["0"]
    for waiting, under_way in ((0, 1), (1, 1), (-1, 2)):  # of one emitter one is read, and one of another beside
        assert await asyncio.wait_for(anext(streams[waiting]), 10) == b": still here\n\n"
        assert lane.under_way == under_way
    lane.go.set()
    assert [await of(stream, 3) for stream in streams[:-1]] == [["1", "2", "3"]] * 10


async def test_a_stream_whose_turn_to_resume_does_not_come_ends_and_may_come_again() -> None:
    (stream,) = resumed(Slow(), ["me"], 0.1)
    assert [event async for event in stream] == [b"retry: 1000\nid: 0\n\n"]


@asynccontextmanager
async def a_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Receipts, str]]:
    """Its receipts and the address of their stream, with three places for each emitter and five in all."""
    monkeypatch.setattr(reading, "EMITTER_STREAMS_MAX", 3)
    service = unconnected(tmp_path, streams_max=5)
    service.tables = tables()
    async with listening(service) as address:
        yield service.receipts, f"{address}/v1/receipts/stream"


def bearer(sub: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token(claims=live(sub=sub))}"}


async def all_given_back(receipts: Receipts) -> bool:
    for _ in range(500):
        if receipts.subscriptions("") == (0, 0):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_one_emitter_takes_some_of_the_streams_and_all_emitters_no_more_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = bearer("service:ci"), bearer("service:other")
    async with a_door(tmp_path, monkeypatch) as (receipts, url), httpx.AsyncClient(timeout=10) as client:
        opened = [client.send(client.build_request("GET", url, headers=who), stream=True) for who in [one] * 8]
        answers = list(await asyncio.gather(*opened))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 5
        opened = [client.send(client.build_request("GET", url, headers=who), stream=True) for who in [two] * 8]
        answers += await asyncio.gather(*opened)
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 11
        for answer in answers:
            await answer.aclose()
        assert await all_given_back(receipts)


async def test_a_reader_that_reads_nothing_any_more_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT_S", 0.3)
    async with a_door(tmp_path, monkeypatch) as (receipts, url):
        receipts._tails = [SimpleNamespace(position=0)]  # type: ignore[list-item]
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
            wire.connect((host, int(port)))
            who = f"Authorization: {bearer('service:ci')['authorization']}"
            wire.sendall(f"GET /v1/receipts/stream HTTP/1.1\r\nHost: x\r\n{who}\r\n\r\n".encode())
            async with asyncio.timeout(10):
                while not receipts._subscriptions:  # noqa: ASYNC110 - it has no event for it
                    await asyncio.sleep(0.01)
            (subscription,) = receipts._subscriptions
            for offset in range(QUEUE_MAX):
                subscription.offer(Told(0, offset + 1, b"x" * 20_000))
            assert await all_given_back(receipts)


async def test_who_asks_for_the_headers_of_a_stream_gets_them_and_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_door(tmp_path, monkeypatch) as (receipts, url), httpx.AsyncClient(timeout=10) as client:
        for _ in range(10):
            head = await client.head(url, headers=bearer("service:ci"))
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith("text/event-stream")
            assert await all_given_back(receipts)
        assert (await client.head(url)).status_code == 401
