"""How much of what is sent at once the door holds: so many bytes of large bodies, and nothing twice."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.publisher import Placed
from app.api.requests import SMALL_BYTES
from tests.api.closed import listening, unconnected
from tests.support.tokens import token

BEARER = {"authorization": f"Bearer {token()}"}
LARGE = b'{"a":"' + b"x" * 600_000


async def test_large_bodies_have_a_limit_together_and_small_ones_go_on(tmp_path: Path) -> None:
    service = unconnected(tmp_path, bodies_max_bytes=1_000_000)
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield LARGE
        await go.wait()
        yield b'"}'

    async with listening(service) as url, httpx.AsyncClient(base_url=url, headers=BEARER, timeout=10) as client:
        first = asyncio.create_task(client.post("/v1/triggers", content=slowly()))
        async with asyncio.timeout(10):
            while service.bodies._left > 1_000_000 - len(LARGE) + SMALL_BYTES:  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0.01)
        refused = await client.post("/v1/triggers", content=LARGE + b'"}')
        assert (refused.status_code, refused.json()["reason"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        small = b'{"a":"' + b"x" * (SMALL_BYTES - 8) + b'"}'
        assert (await client.post("/v1/triggers", content=small)).json()["reason"] == "kafka_unavailable"
        go.set()
        assert (await first).json()["reason"] == "kafka_unavailable"
        assert (await client.post("/v1/triggers", content=LARGE + b'"}')).json()["reason"] == "kafka_unavailable"
    assert service.bodies._left == 1_000_000


@pytest.mark.parametrize("wait", [{}, {"prefer": "wait=5"}])
async def test_parameters_are_not_kept_while_kafka_takes_them_nor_the_record_while_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: dict[str, str]
) -> None:
    service = unconnected(tmp_path)
    held: list[tuple[bool, int]] = []

    def hold() -> None:
        parsed = any(type(each) is dict and "only_here" in each for each in gc.get_objects())
        held.append((parsed, 64_000_000 - service.bodies._left))

    async def publish(_: Any) -> Placed:
        await asyncio.sleep(0)
        hold()
        return Placed("0-1", 0)

    async def receipt(_trigger_id: str, _timeout_s: float) -> bytes | None:
        hold()
        return None

    monkeypatch.setattr(service.publisher, "publish", publish)
    monkeypatch.setattr(service.receipts, "wait", receipt)
    body = b'{"only_here":[1],"a":"' + b"x" * 100_000 + b'"}'
    async with listening(service) as url, httpx.AsyncClient(base_url=url, headers=BEARER, timeout=10) as client:
        answer = await client.post("/v1/triggers", content=body, headers=wait)
    assert answer.status_code == 202, answer.text
    assert held == [(False, len(body) - SMALL_BYTES), (False, 0)][: 1 + len(wait)]
