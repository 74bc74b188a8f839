"""The gate's port: /metrics for Prometheus, /livez and /readyz for whoever restarts it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.config import ConfigError

Verdict = Callable[[], tuple[bool, str]]


class Probes:
    """A small HTTP server on a thread of its own; the verdicts are read, never computed, by it."""

    def __init__(self, host: str, port: int, ready: Verdict, live: Verdict) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(ready, live))
        except OSError as error:
            raise ConfigError(
                f"telemetry port {host}:{port} cannot be opened ({error.strerror}): set telemetry.port (0: a free one)"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(ready: Verdict, live: Verdict) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
                case "/livez":
                    self._verdict(*live())
                case "/readyz":
                    self._verdict(*ready())
                case _:
                    self._answer(404, b"/metrics, /livez, /readyz\n", "text/plain; charset=utf-8")

        def _verdict(self, good: bool, why: str) -> None:
            self._answer(200 if good else 503, f"{why}\n".encode(), "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads an access log of probes."""

    return Handler
