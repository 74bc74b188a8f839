"""`tollgate serve`: one process, one event loop, two listeners; told to stop, it finishes what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app import __version__
from app.api.application import internal, public
from app.api.problems import MEDIA_TYPE, Problem
from app.api.service import Service, serving
from app.config import ConfigError, Serve, Settings
from app.logs import Event, log
from app.stream.topic_check import Deployment

HEAD_TIMEOUT_S: Final = 10.0  # from a request's first byte, or the connection's begin, to the end of its headers
REST_TIMEOUT_S: Final = 10.0  # for the rest of a body that was answered before its end
IDLE_TIMEOUT_S: Final = 75
LOOK_EVERY_S: Final = 0.5  # how late a connection's end in time may be: a timer for each step costs every request
UNREAD_TIMEOUT_S: Final = 60.0  # for who is answered to read what no buffer takes any more
BACKLOG: Final = 2_048
DESCRIPTORS_KEPT: Final = 200  # beside connections of clients: for Kafka, keys and the log
NO_HTTP: Final = "not HTTP/1.1, or of a method that there is not"


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
        servers = [
            (_Server(_config(public(service), serve, tls=True)), outside),
            (_Server(_config(internal(service), serve, tls=False)), inside),
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


def _config(app: Any, serve: Serve, *, tls: bool) -> uvicorn.Config:
    # What it says of malformed requests is a stranger's to repeat; what matters, our own events say.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app, http=_protocol(serve), loop="none", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=serve.stop_timeout_s, backlog=BACKLOG,
        ssl_certfile=serve.tls_certfile if tls else None, ssl_keyfile=serve.tls_keyfile if tls else None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:
        raise ConfigError(f"setting serve.tls_certfile: {serve.tls_certfile} cannot be loaded: {error}") from None
    return config


def _connections_max(serve: Serve) -> int:
    """Of one listener: as configured, or what the process may have descriptors for, so that Kafka is not out of reach
    for want of one. Its own limit is raised as far as that is permitted.
    """
    wanted = 2 * serve.connections_max + DESCRIPTORS_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:  # below 0: without limit
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return serve.connections_max if soft < 0 else max(1, (min(wanted, soft) - DESCRIPTORS_KEPT) // 2)


class _Server(uvicorn.Server):
    """One of two in a process that has its own way to be told to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol(serve: Serve) -> type[HttpToolsProtocol]:
    connections_max = _connections_max(serve)

    class Guarded(HttpToolsProtocol):
        """uvicorn's, with limits on bytes and time where the application, which reads the body, sets none.

        A head, what stands between a body's parts and behind it, and what follows a request have as many bytes as
        headers may have. The rest of a body that was answered before its end is dropped as it comes, for a while.
        """

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._in_head = False
            self._body_over = True
            self._unread: asyncio.TimerHandle | None = None
            self._end_in(HEAD_TIMEOUT_S)
            self._look()
            self._go_on()
            if len(self.connections) > connections_max:
                self._refuse(Problem("overloaded", "there are as many connections as may be"))

        def connection_lost(self, exc: Exception | None) -> None:
            self._looking.cancel()
            self._end_of_unread()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            self._go_on()
            self._end_in(HEAD_TIMEOUT_S)

        def on_header(self, name: bytes, value: bytes) -> None:
            # A field behind the body is no header (RFC 9110 section 6.5.1), and there is no end of such fields.
            if self._in_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._end_s = math.inf
            self._in_head = self._body_over = False
            self._go_on()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._go_on()
            super().on_body(body)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._body_over = True
            self._go_on()
            if self.cycle.response_complete:
                self._end_in(IDLE_TIMEOUT_S)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.cycle.response_complete or self._in_head:
                return  # another request is under way
            # Most clients send all of a body before they read: closing at once would lose them the answer.
            self._end_in(IDLE_TIMEOUT_S if self._body_over else REST_TIMEOUT_S)

        def data_received(self, data: bytes) -> None:
            self._went_on = False
            super().data_received(data)
            # What came with the end of one part is not all of the next: counting begins with what comes alone.
            if not self._went_on and not self.transport.is_closing():
                self._came_bytes += len(data)
                if self._came_bytes > serve.headers_max_bytes:
                    self._refuse(Problem("headers_too_large"))

        def _go_on(self) -> None:
            """Another part begins, or more of a body is there: bytes are counted anew."""
            self._came_bytes, self._went_on = 0, True

        def _end_in(self, timeout_s: float) -> None:
            self._end_s = self.loop.time() + timeout_s

        def _look(self) -> None:
            if self.loop.time() < self._end_s:
                self._looking = self.loop.call_later(LOOK_EVERY_S, self._look)
            elif self.transport.get_write_buffer_size():
                self.transport.abort()  # closed, it would wait for its reader
            elif not self.transport.is_closing():
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._end_of_unread()
            self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

        def resume_writing(self) -> None:
            self._end_of_unread()
            super().resume_writing()

        def _end_of_unread(self) -> None:
            if self._unread is not None:
                self._unread.cancel()

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says more
            self._refuse(Problem("request_malformed", NO_HTTP))

        def _refuse(self, problem: Problem) -> None:
            """To what is no request, and will never be one; while another waits for its answer, it would be that."""
            if self.cycle is None or self.cycle.response_complete:
                body = problem.body()
                fields = {"content-type": MEDIA_TYPE, "content-length": len(body), **problem.headers}
                head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "connection: close\r\n\r\n"
                self.transport.write(STATUS_LINE[problem.status] + head.encode() + body)
            self._end_in(REST_TIMEOUT_S)
            self.transport.close()

    return Guarded
