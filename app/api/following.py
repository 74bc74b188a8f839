"""What follows a topic for the life of a process: a task that never ends but by an error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Follower:
    """The task, from its start to its stop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self, following: Coroutine[Any, Any, None], name: str) -> None:
        self._task = asyncio.create_task(following, name=name)

    @property
    def over(self) -> bool:
        return self._task is not None and self._task.done()

    async def ended(self) -> None:
        """Wait for the end, and raise what it was."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
