"""A second world for what would disturb the shared one: stopped gates, broken issuers, bombs, everything logged.

One lane more than one, one worker, log level debug; JWK Sets over HTTPS from a server of its own, which counts what it
is asked. Whatever is sent is searched for tokens, so that a test can look for them where they must not be.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.issuers import ORG, RULE, Issuer
from tests.rows.processes import Gate
from tests.rows.triggers import Trigger
from tests.rows.world import World
from tests.support.certificates import certificates
from tests.support.jose import public_jwk

ASIDE_LANES = 2
NEVER_S = 3_600  # the longest floor between two refetches
COMPACT_JWS = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+")
RESIDENT = re.compile(r"VmRSS:\s+(\d+) kB")
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


class KeyServer:
    """JWK Sets over HTTPS, with a certificate of a local authority; each path answers what it is told to."""

    def __init__(self, directory: Path) -> None:
        self.cafile, chain = certificates(directory)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="keys", daemon=True)
        self._thread.start()

    def url(self, path: str) -> str:
        return f"https://localhost:{self._server.server_address[1]}/{path}"

    def publish(self, path: str, *keys: dict[str, Any]) -> None:
        self.answers[path] = 200, json.dumps({"keys": list(keys)}).encode()

    def fail(self, path: str, status: int = 503) -> None:
        self.answers[path] = status, b"out of order"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                outer.asked[path] += 1
                status, body = outer.answers.get(path, (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class Aside(World):
    """A world that keeps every token it is sent."""

    def __init__(self, bootstrap: str, directory: Path) -> None:
        self.secret_file = directory / "dev-secret"
        self.secret = secrets.token_hex(32)
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(self.secret)
        self.keys = KeyServer(directory)
        self.tokens: set[bytes] = set()
        super().__init__(
            bootstrap, directory, ASIDE_LANES, telemetry__log_level="debug", gate__insecure_dev_hs256=str(self.secret_file),
            gate__jwks_cafile=str(self.keys.cafile), gate__jwks_refresh_s="86400", gate__jwks_refetch_floor_s=str(NEVER_S),
        )  # fmt: skip

    def __enter__(self) -> Self:
        super().__enter__()
        self.gate = self.start_gate(workers=1).wait_ready()
        return self

    def send_all(self, triggers: Iterable[Trigger], producer: Producer | None = None) -> list[str]:
        listed = list(triggers)
        for trigger in listed:
            self.tokens.update(COMPACT_JWS.findall(trigger.encoded() or b""))
            for _, content in trigger.headers:
                self.tokens.update(
                    COMPACT_JWS.findall(content.encode() if isinstance(content, str) else content or b"")
                )
        return super().send_all(listed, producer)

    def issuer_over_https(self, name: str, *kids: str, published: int = 1) -> list[Issuer]:
        """An Issuer per key, all of one issuer whose JWK Set is at `name` on the key server and holds the first keys."""
        iss = f"https://{name}.rows.test"
        issuers = [Issuer(iss, kid, ec.generate_private_key(ec.SECP256R1()), self.audience, ORG) for kid in kids]
        if published:
            self.publish(name, *issuers[:published])
        self.trust(iss, self.keys.url(name))
        return issuers

    def trust(self, iss: str, jwks: str | Path, algorithms: str = '"ES256"') -> None:
        self.apply(
            "trust",
            f'[trust."{iss}"]\njwks = "{jwks}"\nalgorithms = [{algorithms}]\norgs = ["{ORG}"]\nclasses = ["trigger"]\n'
            f'subjects = ["service:*"]\njobs = ["{RULE}"]\nmax_lifetime_s = 86400\n',
        )

    def publish(self, path: str, *issuers: Issuer) -> None:
        self.keys.publish(path, *(public_jwk(issuer.kid, issuer.private) for issuer in issuers))

    def metrics(self) -> str:
        return metrics_of(self.gate)

    def memory_bytes(self) -> tuple[int, int]:
        """Resident memory of the gate now, and at its peak since `forget_peak`."""
        status = Path(f"/proc/{self._pid()}/status").read_text()
        return tuple(int(found[1]) * 1024 for found in (RESIDENT.search(status), PEAK.search(status)) if found)  # type: ignore[return-value]

    def forget_peak(self) -> None:
        Path(f"/proc/{self._pid()}/clear_refs").write_text("5")

    def _pid(self) -> int:
        assert self.gate.process is not None
        return self.gate.process.pid


@pytest.fixture(scope="session")
def aside(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aside]:
    with Aside(broker, tmp_path_factory.mktemp("aside")) as founded:
        yield founded
    founded.keys.close()


def metrics_of(gate: Gate) -> str:
    """What Prometheus would get of all its workers."""
    pages = []
    for port in gate.ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)
