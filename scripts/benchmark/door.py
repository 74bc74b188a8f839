"""The HTTP door: triggers acknowledged with 202, and the time to the receipt of one that waits for it.

The client speaks HTTP/1.1 on connections that stay open, as a server that calls webhooks does, and does next to nothing
beside: what is measured is the door's own CPU, so "on one core" is requests a second of it. A gate decides meanwhile,
and that the door reads the receipts of what it has taken is counted, too. Each trigger has a key of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from statistics import quantiles
from typing import Any, Final

from app.local.ports import free_ports
from scripts.benchmark import traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed, environment
from scripts.benchmark.figures import GOALS, Figure
from scripts.benchmark.processes import Child
from scripts.benchmark.run import Run

LANES: Final = 4
CONNECTIONS: Final = 64
PER_SECOND: Final = 20
WARM_UP: Final = 200
PARAMS: Final = b'{"region":"eu"}'
TOLD_TIMEOUT_S: Final = 120.0
TOLD_EVERY_S: Final = 0.1  # asking is the door's work, too

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Door(Child):
    """`tollgate serve` with its default settings; it issues nothing unless told to."""

    def __init__(self, deployment: Deployment, *, issues: bool = False) -> None:
        self.port, internal = free_ports(2, random.SystemRandom())
        env = environment(
            deployment, TOLLGATE_SERVE__PORT=str(self.port), TOLLGATE_SERVE__INTERNAL_PORT=str(internal),
            TOLLGATE_SERVE__ISSUES=str(issues), TOLLGATE_ISSUER__ISSUER=traffic.ISSUER,
        )  # fmt: skip
        command = [sys.executable, "-m", "app.cli.main", "serve"]
        super().__init__(command, deployment.directory / "serve.log", env, deployment.directory)


def measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    figures: list[Figure] = []
    samples: list[dict[str, Any]] = []
    with (
        deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment,
        Door(deployment) as door,
        Gate(deployment) as gate,
    ):
        door.wait_for_line('"serve_started"')
        gate.wait_ready()
        tokens = [_token_of(request) for request in traffic.webhook(run.issuer, traffic.WEBHOOK_TOKENS)]
        if "http" in names:
            asyncio.run(_told(door.port, tokens[0], asyncio.run(_acknowledged(door.port, tokens, WARM_UP))))
            wall, core = [], []
            for number in range(run.repeats):
                before_s, began_s = door.cpu_s(), time.perf_counter()
                newest = asyncio.run(_acknowledged(door.port, tokens, run.http_triggers))
                wall.append(run.http_triggers / (time.perf_counter() - began_s))
                asyncio.run(_told(door.port, tokens[0], newest))
                core.append(run.http_triggers / max(door.cpu_s() - before_s, 0.01))
                run.say(f"http: repeat {number + 1}: {wall[-1]:,.0f}/s, {core[-1]:,.0f} a second of CPU")
            what = f"POST /v1/triggers with 202, {CONNECTIONS} connections"
            figures += [
                Figure(f"{what}, on one core", core, "/s", GOALS["http"]),
                Figure(f"{what}, by the clock", wall, "/s"),
            ]
            samples.append({"row": "http", "per_cpu_s": core, "per_s": wall})
        if "http-wait" in names:
            asyncio.run(_waits_ms(door.port, tokens, PER_SECOND * 2))
            seen = asyncio.run(_waits_ms(door.port, tokens, max(run.latency_triggers // 5, 2)))
            cuts = quantiles(seen, n=100, method="inclusive")
            what = f"POST /v1/triggers with Prefer: wait, {PER_SECOND}/s, to the receipt"
            figures += [
                Figure(f"{what}: p50", [cuts[49]], "ms", GOALS["http-wait p50"]),
                Figure(f"{what}: p99", [cuts[98]], "ms"),
            ]
            samples.append({"row": "http-wait", "latency_ms": [round(value, 3) for value in seen]})
            run.say(f"http-wait: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f}")
    return figures, samples


def _token_of(request: traffic.Request) -> str:
    token: str = json.loads(request.value)["token"]
    return token


def _request(token: str, key: str, more: str = "") -> bytes:
    head = (
        f"POST /v1/triggers/{traffic.JOB} HTTP/1.1\r\nhost: door\r\nauthorization: Bearer {token}\r\n"
        f"idempotency-key: {key}\r\ncontent-type: application/json\r\ncontent-length: {len(PARAMS)}\r\n{more}\r\n"
    )
    return head.encode() + PARAMS


async def _acknowledged(port: int, tokens: list[str], count: int) -> list[str]:
    """Send them, each connection one after another; every answer must be 202. Returns the last ids of triggers."""
    numbers = iter(range(count))
    run = f"{time.time_ns():x}"
    newest: list[str] = []

    async def connection() -> None:
        wire = await asyncio.open_connection("127.0.0.1", port)
        body = b""
        for number in numbers:
            body = await exchange(wire, _request(tokens[number % len(tokens)], f"{run}-{number}"), b"202")
        wire[1].close()
        if body:
            newest.append(json.loads(body)["trigger_id"])

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return newest


async def _told(port: int, token: str, triggers: list[str]) -> None:
    """Until the door has read the receipts of these. Raises TimeoutError."""
    wire = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(TOLD_TIMEOUT_S):
        for trigger in triggers:
            head = f"GET /v1/receipts/{trigger} HTTP/1.1\r\nhost: door\r\nauthorization: Bearer {token}\r\n\r\n"
            while (await _answer(wire, head.encode()))[0] != b"200":  # noqa: ASYNC110 - it is asked each time
                await asyncio.sleep(TOLD_EVERY_S)
    wire[1].close()


async def _waits_ms(port: int, tokens: list[str], count: int) -> list[float]:
    """One at a time, at the pace; every answer must be a receipt."""
    wire = await asyncio.open_connection("127.0.0.1", port)
    seen, run = [], f"{time.time_ns():x}"
    for number in range(count):
        began_s = time.perf_counter()
        await exchange(wire, _request(tokens[number % len(tokens)], f"{run}-{number}", "prefer: wait=10\r\n"), b"200")
        seen.append((time.perf_counter() - began_s) * 1_000)
        await asyncio.sleep(max(1 / PER_SECOND - seen[-1] / 1_000, 0))
    wire[1].close()
    return seen


async def exchange(wire: Wire, request: bytes, status: bytes) -> bytes:
    """One request on a connection that stays open; the answer's body. Raises RuntimeError for another status."""
    found, body = await _answer(wire, request)
    if found != status:
        raise RuntimeError(f"the door answered {found.decode()}: {body[:300].decode()}")
    return body


async def _answer(wire: Wire, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = wire
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    return head.split(b" ", 2)[1], await reader.readexactly(length)
