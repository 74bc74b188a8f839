"""Places for work on Kafka that takes long: few at once, of one caller fewer, and none for longer than a request may.

Who fills its own share waits in a line of its own, and delays nobody else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.errors import KafkaError

from app.api.problems import Problem
from app.stream.log import OffsetGone


class _Line:
    """One caller's."""

    def __init__(self, of_one: int) -> None:
        self.free = asyncio.Semaphore(of_one)
        self.length = 0


class Places:
    """`of_one` of `at_once` are one caller's at most, and `line_max` of its requests are under way or wait.

    `late` is the code of the problem that work is which takes longer than `timeout_s`, the wait included.
    """

    def __init__(self, at_once: int, of_one: int, line_max: int, timeout_s: float, late: str) -> None:
        self._free = asyncio.Semaphore(at_once)  # callers get them in the order in which they come to wait
        self._of_one, self._line_max, self._timeout_s, self._late = of_one, line_max, timeout_s, late
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """Raises Problem: `overloaded` where there is none in time, `late` when the work is not done in time, and
        `not_ready` where Kafka fails it: a partition has no leader, or what is read was deleted meanwhile.
        """
        line = self._lines.setdefault(caller, _Line(self._of_one))
        if line.length >= self._line_max:
            raise Problem("overloaded", f"{line.length} such requests of this caller are under way")
        line.length += 1
        begun = False
        try:
            async with asyncio.timeout(self._timeout_s), line.free, self._free:
                begun = True
                yield
        except TimeoutError:
            again = {"Retry-After": str(math.ceil(self._timeout_s))}
            raise Problem(self._late if begun else "overloaded", headers=again) from None
        except (KafkaError, OffsetGone):
            raise Problem("not_ready", "Kafka cannot tell now") from None
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[caller]
