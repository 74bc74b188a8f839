"""What comes on a connection beside requests: it has an end, it is never taken for a header, and it hides no answer."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.api import connections
from app.config import Serve
from app.logs import Event
from tests.api.closed import Closed, closed_door, listening, unconnected
from tests.api.test_caller import live, tables
from tests.support.tokens import token

CHUNKED = b"POST /v1/triggers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BEARER = b"Authorization: Bearer x.e30.y\r\n"
LATER = b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n"
NO_END = {
    "of fields behind the body": (b"0\r\n", b"ab:cd\r\n" * 100),
    "of one field behind the body": (b"0\r\nab:", b"c" * 700),
    "of what a chunk says of itself": (b"5;", b"a" * 700),
    "of empty lines behind the request": (b"0\r\n\r\n", b"\r\n" * 350),
}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    with closed_door(tmp_path_factory.mktemp("wire")) as door:
        yield door


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        yield wire


def answered(wire: socket.socket) -> bytes:
    """One answer, whose body says no more than its length; the connection stays."""
    with wire.makefile("rb") as reader:
        head = b"".join(iter(reader.readline, b"\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + reader.read(length)


def test_beyond_so_many_connections_the_next_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, int]] = []
    monkeypatch.setattr(connections.log, "warning", lambda _, **said: logged.append(said))
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with closed_door(tmp_path, connections_max=2) as door:
        with connected(door.public_at) as first, connected(door.public_at) as second:
            first.sendall(asked)
            assert answered(first).startswith(b"http/1.1 200 ")
            with connected(door.public_at) as third:
                told = answered(third)
                assert told.startswith(b"http/1.1 503 ")
                assert b"retry-after: 1\r\n" in told
                assert b"overloaded" in told
                assert logged == [{"connections": 2, "refused": 1}]
            second.sendall(asked)  # who was there stays
            assert answered(second).startswith(b"http/1.1 200 ")
        deadline = time.monotonic() + 10
        told = b""
        while not told.startswith(b"http/1.1 200 "):  # a place that was given back is seen a moment later
            assert time.monotonic() < deadline
            with connected(door.public_at) as again:
                again.sendall(asked)
                told = answered(again)


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "raised", "given"),
    [(1_024, 4_096, 100, None, 100), (1_024, 4_096, 1_000, 2_200, 1_000), (1_024, 1_024, 1_000, 1_024, 412),
     (1_024, -1, 1_000, 2_200, 1_000), (-1, -1, 1_000, None, 1_000), (64, 64, 1_000, 64, 1)],
)  # fmt: skip
def test_connections_leave_descriptors_for_kafka(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, asked: int, raised: int | None, given: int
) -> None:
    limits: list[tuple[int, int]] = []
    warned: list[object] = []
    monkeypatch.setattr(connections.log, "warning", lambda event, **_: warned.append(event))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert connections.most(Serve(connections_max=asked)) == given
    assert limits == ([] if raised is None else [(raised, hard)])
    assert warned == ([Event.SERVE_FEWER] if given < asked else [])


def takes(wire: socket.socket, more: bytes, count: int) -> bool:
    """Whether the door still takes what is sent when as many have been."""
    try:
        for _ in range(count):
            wire.sendall(more)
            time.sleep(0.001)  # so that it can answer
    except ConnectionError:
        return False
    return True


def is_ended(wire: socket.socket) -> bool:
    """Whether the door ends the connection, whatever it says before."""
    try:
        while wire.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("listener", ["public_at", "internal_at"])
@pytest.mark.parametrize("what", NO_END)
def test_there_is_an_end_of_what_belongs_to_no_head_and_no_body(door: Closed, what: str, listener: str) -> None:
    begin, more = NO_END[what]
    with connected(getattr(door, listener)) as wire:
        wire.sendall(CHUNKED + begin)
        answered(wire)
        assert not takes(wire, more, 1_000)


def test_a_field_behind_the_body_is_no_header(door: Closed) -> None:
    with connected(door.public_at) as wire:
        wire.sendall(CHUNKED + b"2\r\n{}\r\n0\r\n" + BEARER + b"\r\n")
        assert b'"reason":"token_missing"' in answered(wire)
        wire.sendall(LATER)
        assert answered(wire).startswith(b"http/1.1 404 ")


def test_who_is_answered_before_its_body_has_ended_may_end_it_and_go_on(door: Closed) -> None:
    with connected(door.public_at) as wire:
        wire.sendall(CHUNKED)
        assert b'"reason":"token_missing"' in answered(wire)
        for _ in range(8):
            wire.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        wire.sendall(b"0\r\n\r\n" + LATER)
        assert answered(wire).startswith(b"http/1.1 404 ")


def test_a_body_that_goes_on_after_its_answer_goes_on_only_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REST_TIMEOUT_S", 0.3)
    with closed_door(tmp_path) as door, connected(door.public_at) as wire:
        wire.sendall(CHUNKED)
        assert b'"reason":"token_missing"' in answered(wire)
        assert not takes(wire, b"1\r\nx\r\n", 5_000)


@pytest.mark.parametrize("said", [CHUNKED + b"0\r\n\r\n", LATER], ids=["early", "late"])
def test_a_connection_on_which_no_request_begins_is_ended_whatever_else_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(connections, "IDLE_TIMEOUT_S", 1)
    with closed_door(tmp_path) as door, connected(door.public_at) as wire:
        wire.sendall(said[:-2])
        time.sleep(0.1)
        wire.sendall(said[-2:])  # the end of the request, for some after its answer
        answered(wire)
        wire.sendall(b"\r\n")
        assert is_ended(wire)


@pytest.mark.parametrize("behind", [b"garbage\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"\0"])
def test_what_is_no_request_is_told_nothing_where_another_waits_for_its_answer(door: Closed, behind: bytes) -> None:
    with connected(door.public_at) as wire:
        wire.sendall(b"POST /v1/triggers HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + BEARER + b"\r\n{}" + behind)
        assert wire.makefile("rb").read() == b""


async def test_a_stream_is_ended_by_what_is_no_request_and_holds_nothing_of_its_refusal(tmp_path: Path) -> None:
    service = unconnected(tmp_path)
    service.tables = tables()
    bearer = f"Authorization: Bearer {token(claims=live())}\r\n".encode()
    async with listening(service) as url:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(b"GET /v1/receipts/stream HTTP/1.1\r\nHost: x\r\n" + bearer + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"\n\n\r\n")  # its first chunk
        writer.write(b"garbage\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
