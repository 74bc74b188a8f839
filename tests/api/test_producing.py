"""A producer that failed is replaced, whatever its library does while it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.api import producing
from app.api.producing import Producer
from app.config import Kafka
from tests.api.closed import NOWHERE


class Failing:
    """As much of the library's producer as is used; each time it is started or stopped, what is next comes of it."""

    comes: list[BaseException | None] = []  # noqa: RUF012 - set by each test
    stopped = 0

    def __init__(self, **_: Any) -> None: ...

    async def start(self) -> None:
        await asyncio.sleep(0)
        error = self.comes.pop(0)
        if error is not None:
            raise error

    async def stop(self) -> None:
        Failing.stopped += 1
        await self.start()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Producer:
    monkeypatch.setattr(producing, "AIOKafkaProducer", Failing)
    monkeypatch.setattr(producing, "RETRY_S", 0.001)
    return Producer(Kafka(bootstrap=NOWHERE))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError()], ids=repr)
async def test_a_producer_that_cannot_be_stopped_is_replaced_all_the_same(made: Producer, error: BaseException) -> None:
    Failing.comes = [None, error, None, None]
    await made.start()
    broken: Any = made.current
    made.renew(broken)
    assert made.current is None
    made.renew(broken)
    await asyncio.wait_for(made._renewing, 10)  # type: ignore[arg-type]
    assert made.current not in (None, broken)
    await made.stop()
    assert (made.current, Failing.comes) == (None, [])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError()], ids=repr)
async def test_one_that_cannot_be_started_is_tried_again_and_leaves_nothing_open(
    made: Producer, error: BaseException
) -> None:
    Failing.comes, Failing.stopped = [None, None, error, None, error, None, None], 0
    await made.start()
    made.renew(made.current)  # type: ignore[arg-type]
    await asyncio.wait_for(made._renewing, 10)  # type: ignore[arg-type]
    assert (Failing.stopped, Failing.comes) == (3, [])  # the broken one, and two that did not start
    assert made.current is not None


async def test_a_renewal_ends_with_its_process(made: Producer) -> None:
    Failing.comes = [None, None, *(RuntimeError("a bug"), None) * 10_000]
    await made.start()
    made.renew(made.current)  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    await asyncio.wait_for(made.stop(), 10)
    assert made.current is None
