"""Following a topic ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from app.cli.reading import Reader, Window


class Deaf:
    """A consumer whose wait swallows a cancellation, as asyncio.wait_for may when its answer comes at that moment."""

    def __init__(self) -> None:
        self.asked = 0

    async def getmany(self, **_: Any) -> dict[Any, Any]:
        self.asked += 1
        assert self.asked < 50, "it goes on"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
        return {}


async def test_ctrl_c_ends_it_even_when_the_consumer_swallows_it() -> None:
    consumer: Any = Deaf()

    async def follow() -> None:
        async for _ in Reader(consumer, {}, {}).batches(Window(follow=True)):
            pass

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
