"""`tollgate serve`: one process, one event loop, two listeners; told to stop, it finishes what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import uvicorn

from app import __version__
from app.api import connections
from app.api.application import internal, public
from app.api.service import Service, serving
from app.config import ConfigError, Serve, Settings
from app.logs import Event, log
from app.stream.topic_check import Deployment

BACKLOG: Final = 2_048


def run(settings: Settings, found: Deployment) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or KafkaError."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, found))


async def _run(settings: Settings, found: Deployment) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    serve = settings.serve
    async with AsyncExitStack() as stack:
        outside, inside = (
            stack.enter_context(contextlib.closing(_bound(*where)))
            for where in (
                ("serve.port", serve.host, serve.port, serve.reuse_port),
                ("serve.internal_port", serve.internal_host, serve.internal_port),
            )
        )
        _warn_if_exposed(serve)
        service = await stack.enter_async_context(serving(settings, found))
        _listen("serve.port", outside)
        _listen("serve.internal_port", inside)
        most = connections.most(serve)
        service.streams_max = min(serve.streams_max, most // 2)  # streams leave room for triggers
        servers = [
            (_Server(public(service), serve, most, _certificate(serve)), outside),
            (_Server(internal(service), serve, most), inside),
        ]
        await _until_told(service, servers, told)
    log.info(Event.SERVE_STOPPED, pid=os.getpid())


async def _until_told(service: Service, servers: list[tuple[_Server, socket.socket]], told: asyncio.Event) -> None:
    """Ends by an error where a part ends that never does."""
    running = [asyncio.create_task(server.serve([listener])) for server, listener in servers]
    ends = [asyncio.create_task(told.wait()), asyncio.create_task(service.ended()), *running]
    (public_at, internal_at) = (_address(listener) for _, listener in servers)
    log.info(Event.SERVE_STARTED, version=__version__, pid=os.getpid(), public=public_at, internal=internal_at)
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info(Event.SERVE_STOPPING, pid=os.getpid())
        service.stopping.set()
        service.receipts.let_go()
        for server, _ in servers:
            server.should_exit = True
        for task in ends[:2]:
            task.cancel()
        results = await asyncio.gather(*ends, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _bound(setting: str, host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """A socket at its address that is given no connections yet: the kernel shares those of one port among listeners."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _unusable(setting, f"{host}:{port}", error) from None
    return listener


def _listen(setting: str, listener: socket.socket) -> None:
    """From here on the kernel gives it connections."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another that was bound as early has begun to listen
        raise _unusable(setting, _address(listener), error) from None


def _unusable(setting: str, address: str, error: OSError) -> ConfigError:
    return ConfigError(f"{address} cannot be listened on ({error.strerror}): set {setting} (0: a free one)")


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _warn_if_exposed(serve: Serve) -> None:
    if serve.tls_certfile is None and not _is_loopback(serve.host):
        log.warning(
            Event.SERVE_EXPOSED, host=serve.host,
            why="tokens come in clear: set serve.tls_certfile, or let only a proxy that ends TLS reach this port",
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _certificate(serve: Serve) -> ssl.SSLContext | None:
    if serve.tls_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(serve.tls_certfile, serve.tls_keyfile)
    except OSError as error:
        raise ConfigError(f"setting serve.tls_certfile: {serve.tls_certfile} cannot be loaded: {error}") from None
    return context


class _Server(uvicorn.Server):
    """One of two in a process that has its own way to be told to stop."""

    def __init__(self, app: Any, serve: Serve, most: int, certificate: ssl.SSLContext | None = None) -> None:
        # What it says of malformed requests is a stranger's to repeat; what matters, our own events say.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._certificate, self._places = certificate, connections.Places(most)
        http = connections.protocol(serve, self._places)
        super().__init__(uvicorn.Config(
            app, http=http, loop="none", ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=connections.IDLE_TIMEOUT_S,
            timeout_graceful_shutdown=serve.stop_timeout_s, backlog=BACKLOG,
        ))  # fmt: skip
        self.config.load()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._certificate is None or sockets is None:
            await super().startup(sockets)
            return
        await self.lifespan.startup()
        made: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        make = functools.partial(
            made, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )  # fmt: skip
        there = self.server_state.connections
        servers: list[Any] = []  # what is asked of an asyncio.Server here they have
        for each in sockets:
            each.listen(BACKLOG)
            servers.append(connections.Secured(each, self._certificate, self._places, there, make, self._stop))
        self.servers = servers
        self.started = True

    def _stop(self) -> None:
        self.should_exit = True
