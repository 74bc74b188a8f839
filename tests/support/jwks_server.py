"""JWK Sets as a server publishes them, and a follower of them."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

from app.config import load
from app.trust import JwksFollower


def document(*jwks) -> bytes:
    return json.dumps({"keys": list(jwks)}).encode()


def rule(jwks, *algorithms) -> SimpleNamespace:
    return SimpleNamespace(jwks=str(jwks), algorithms=algorithms or ("ES256",))


@asynccontextmanager
async def following(rules, **settings):
    follower = JwksFollower(load(**{f"gate__{name}": value for name, value in settings.items()}))
    follower.follow(rules)
    await follower.start()
    try:
        yield follower
    finally:
        await follower.stop()


class Server:
    """A real HTTP server on loopback whose answer a test sets."""

    def __init__(self, body: bytes = b"", status: int = 200, headers: str = "") -> None:
        self.body, self.status, self.headers, self.requests, self.delay_s = body, status, headers, 0, 0.0

    async def _answer(self, reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        await asyncio.sleep(self.delay_s)
        writer.write(
            f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\nconnection: close\r\n{self.headers}\r\n".encode()
        )
        writer.write(self.body)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/jwks.json"
        return self

    async def __aexit__(self, *_):
        self.server.close()
