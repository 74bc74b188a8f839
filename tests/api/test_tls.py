"""The door with TLS of its own: a client that checks certificates gets in, nothing goes in clear, old versions do not."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.api import connections
from tests.api.closed import Closed, closed_door
from tests.api.conftest import Deployment
from tests.cli.program import tollgate
from tests.support.certificates import certificates
from tests.support.doors import DoorProcess
from tests.support.issuer import JOB

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
ASKED = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def secured(deployment: Deployment, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Host and port of a door with TLS, and the authority to check it by."""
    authority, chain = certificates(tmp_path)
    door = DoorProcess("secured", tmp_path, deployment.settings_for(serve__tls_certfile=str(chain)))
    door.start()
    try:
        door.wait_ready()
        yield door.url.removeprefix("http://"), authority
    finally:
        assert door.stop() == 0


@pytest.mark.broker
def test_a_door_with_a_certificate_takes_triggers_over_tls_alone(
    deployment: Deployment, secured: tuple[str, Path]
) -> None:
    address, authority = secured
    bearer = {"authorization": f"Bearer {deployment.issuer.token()}"}
    trusting = ssl.create_default_context(cafile=str(authority))
    with httpx.Client(base_url=f"https://{address}", verify=trusting, headers=bearer, timeout=40) as client:
        answer = client.post(f"/v1/triggers/{JOB}", json={}, headers={"prefer": "wait=25"})
        assert (answer.status_code, answer.json()["outcome"]) == (200, "accepted")
        assert client.get("/.well-known/jwks.json").json()["keys"]
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{address}/v1/triggers/{JOB}", json={}, headers=bearer)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{address}/.well-known/jwks.json")
    trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{address}/.well-known/jwks.json", verify=trusting)


@pytest.mark.broker
@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "of something else"])
def test_a_certificate_that_cannot_be_loaded_is_told_by_its_setting(
    deployment: Deployment, tmp_path: Path, content: str | None
) -> None:
    chain = tmp_path / "chain.pem"
    if content is not None:
        chain.write_text(content)
    said = tollgate(deployment.settings_for(serve__tls_certfile=str(chain), serve__port="0"), "serve")
    assert said.code == 2
    assert "serve.tls_certfile" in said.err
    assert "Traceback" not in said.err


# ── connections, with nothing behind the door ──


@contextmanager
def closed(directory: Path, **serve: int) -> Iterator[tuple[Closed, ssl.SSLContext]]:
    authority, chain = certificates(directory)
    with closed_door(directory, tls_certfile=chain, **serve) as door:
        yield door, ssl.create_default_context(cafile=str(authority))


@contextmanager
def connected(door: Closed) -> Iterator[socket.socket]:
    host, _, port = door.public_at.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        yield silent


def is_served(door: Closed, trusting: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"https://{door.public_at}/openapi.json", verify=trusting).status_code == 200
    except httpx.TransportError:
        return False


def until_served(door: Closed, trusting: ssl.SSLContext) -> None:
    deadline = time.monotonic() + 10
    while not is_served(door, trusting):
        assert time.monotonic() < deadline


def test_a_connection_has_a_place_before_it_has_said_a_word(tmp_path: Path) -> None:
    with closed(tmp_path, connections_max=2) as (door, trusting):
        with connected(door), connected(door) as second:
            assert not is_served(door, trusting)
            with trusting.wrap_socket(second, server_hostname="127.0.0.1") as secured:  # who was there stays
                secured.sendall(ASKED)
                assert secured.recv(12) == b"HTTP/1.1 200"
                assert not is_served(door, trusting)
        until_served(door, trusting)


def test_a_connection_that_shakes_no_hands_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    with closed(tmp_path, connections_max=1) as (door, trusting), connected(door) as silent:
        until_served(door, trusting)
        assert silent.recv(1) == b""


def test_a_peer_that_does_not_close_its_side_keeps_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE_TIMEOUT_S", "REST_TIMEOUT_S"):
        monkeypatch.setattr(connections, name, 0.3)
    with closed(tmp_path, connections_max=1) as (door, trusting), connected(door) as raw:
        idle = trusting.wrap_socket(raw, server_hostname="127.0.0.1")
        idle.sendall(ASKED)
        assert idle.recv(12) == b"HTTP/1.1 200"
        until_served(door, trusting)


@pytest.mark.timeout(60)
def test_a_client_without_a_request_does_not_keep_a_door_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connections, "REST_TIMEOUT_S", 600.0)
    with closed(tmp_path, stop_timeout_s=300) as (door, trusting):
        host, _, port = door.public_at.partition(":")
        raw = socket.create_connection((host, int(port)), timeout=10)
        idle = trusting.wrap_socket(raw, server_hostname="127.0.0.1")
        idle.sendall(ASKED)
        assert idle.recv(12) == b"HTTP/1.1 200"
    idle.close()  # it has not heard that the door is closing: it reads nothing


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED])
async def test_accepting_goes_on_after_what_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(connections, "ACCEPT_AGAIN_S", 0.0)
    accepted, ended = asyncio.Event(), list[None]()

    async def accept(_: socket.socket) -> None:
        if not accepted.is_set():
            accepted.set()
            raise OSError(number, "told")
        await asyncio.Event().wait()

    secured = accepting(monkeypatch, accept, ended)
    await accepted.wait()
    await asyncio.sleep(0.01)
    assert not ended
    secured.close()
    await secured.wait_closed()


async def test_whatever_else_ends_the_accepting_ends_the_door_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[None]()

    async def accept(_: socket.socket) -> None:
        raise OSError(errno.EBADF, "no listener")

    secured = accepting(monkeypatch, accept, ended)
    with pytest.raises(OSError, match="no listener"):
        await secured.wait_closed()
    assert ended == [None]


def accepting(
    monkeypatch: pytest.MonkeyPatch, accept: Callable[[socket.socket], Awaitable[None]], ended: list[None]
) -> connections.Secured:
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", accept)
    with socket.socket() as listener:
        return connections.Secured(
            listener, ssl.create_default_context(), connections.Places(1), (), asyncio.Protocol,
            lambda: ended.append(None),
        )  # fmt: skip


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(tmp_path: Path) -> None:
    with closed(tmp_path) as (door, trusting), connected(door) as raw:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65_536))
        client.write(ASKED)
        raw.sendall(outgoing.read())  # the last of the handshake, and the request
        answer = b""
        while not answer:
            incoming.write(raw.recv(65_536))
            try:
                answer = client.read(12)
            except ssl.SSLWantReadError:
                continue
        assert answer == b"HTTP/1.1 200"
