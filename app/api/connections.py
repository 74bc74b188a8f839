"""A connection to the door: limits on what comes, how long it takes and how many there are, below the application."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import resource
import socket
import ssl
import time
from collections.abc import Callable, Sized
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, Problem
from app.config import Serve
from app.logs import Event, log
from app.telemetry import CONNECTIONS_REFUSED

HEAD_TIMEOUT_S: Final = 10.0  # from a request's first byte, or the connection's begin, to the end of its headers
REST_TIMEOUT_S: Final = 10.0  # for the rest of a body that was answered before its end, and for a peer to close, too
IDLE_TIMEOUT_S: Final = 75
LOOK_EVERY_S: Final = 0.5  # how late a connection's end in time may be: a timer for each step costs every request
UNREAD_TIMEOUT_S: Final = 60.0  # for who is answered to read what no buffer takes any more
ACCEPT_AGAIN_S: Final = 1.0
FULL_AGAIN_S: Final = 60.0
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
GONE: Final = (errno.ECONNABORTED, errno.EPROTO, errno.EINTR)  # before it was accepted
STOP_TIMEOUT_S: Final = 1.0  # for who has no request under way to close, when the door does
DESCRIPTORS_KEPT: Final = 200  # beside connections of clients: for Kafka, keys and the log
NO_HTTP: Final = "not HTTP/1.1, or of a method that there is not"


class Places:
    """How many connections a listener may have; of those refused it tells at once, then each minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._refused, self._tell_at_s = 0, -math.inf

    def refuse(self) -> None:
        CONNECTIONS_REFUSED.inc()
        self._refused += 1
        now_s = time.monotonic()
        if now_s >= self._tell_at_s:
            log.warning(Event.SERVE_FULL, connections=self.most, refused=self._refused)
            self._refused, self._tell_at_s = 0, now_s + FULL_AGAIN_S


class Secured:
    """Accepts connections of one listener and sees to their TLS, in place of `asyncio.Server`.

    That one tells nobody of a connection until its TLS stands. Here it has a place and a time from its first moment.
    """

    def __init__(
        self, listener: socket.socket, certificate: ssl.SSLContext, places: Places, connections: Sized,
        make: Callable[[], asyncio.Protocol], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self._certificate, self._places = certificate, places
        self._connections, self._make = connections, make
        self._handshakes: set[asyncio.Task[None]] = set()
        # A copy: the other is closed while this one waits.
        self._accepting = asyncio.create_task(self._accept(listener.dup()))
        self._accepting.add_done_callback(lambda _: ended())

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno in NO_ROOM:
                        log.error(Event.SERVE_ERROR, what=f"no connection is accepted for now: {error}")
                        await asyncio.sleep(ACCEPT_AGAIN_S)
                    elif error.errno not in GONE:
                        raise
                    continue
                if len(self._handshakes) + len(self._connections) >= self._places.most:
                    connection.close()  # without TLS there is no way to say why
                    self._places.refuse()
                    continue
                task = loop.create_task(self._shake_hands(connection))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, connection, ssl=self._certificate, ssl_handshake_timeout=HEAD_TIMEOUT_S,
                ssl_shutdown_timeout=REST_TIMEOUT_S,
            )  # fmt: skip
        except OSError:  # no TLS, none of ours, or not in time
            connection.close()

    def close(self) -> None:
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Raises what ended the accepting, where that was not `close`."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting


def protocol(serve: Serve, places: Places) -> type[HttpToolsProtocol]:
    """What uvicorn makes one of for each connection to a listener that has so many places."""

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
            if len(self.connections) > places.most:
                places.refuse()
                self.connections.discard(self)  # until it is closed it takes nobody's place
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
            elif self.transport.is_closing() or self.transport.get_write_buffer_size():
                self.transport.abort()  # closed, it would wait for its peer
            else:
                self.transport.close()
                self._looking = self.loop.call_later(REST_TIMEOUT_S, self._look)

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

        def shutdown(self) -> None:
            super().shutdown()
            if self.transport.is_closing():
                self._end_in(STOP_TIMEOUT_S)

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


def most(serve: Serve) -> int:
    """Of one listener: as configured, or what the process may have descriptors for, so that Kafka is not out of reach
    for want of one. Its own limit is raised as far as that is permitted.
    """
    wanted = 2 * serve.connections_max + DESCRIPTORS_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:  # below 0: without limit
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = serve.connections_max if soft < 0 else max(1, (min(wanted, soft) - DESCRIPTORS_KEPT) // 2)
    if most < serve.connections_max:
        why = f"the process may have {soft} files, not {wanted}: raise its limit (ulimit -n, LimitNOFILE=)"
        log.warning(Event.SERVE_FEWER, connections=most, connections_max=serve.connections_max, why=why)
    return most
