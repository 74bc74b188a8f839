"""Between gates and brokers: what stands in for aiokafka's connections, with latencies, losses and late arrivals.

A request and its answer are two journeys. A judge says of each request what becomes of it; the client notices a loss as
a closed connection or by its own deadline, never otherwise. Requests of one connection arrive in their order, but a
held one arrives whenever it is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import (
    CoordinatorNotAvailableError,
    KafkaConnectionError,
    NodeNotReadyError,
    RequestTimedOutError,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest

from app.stream.cluster import METADATA_MAX_AGE_MS
from app.stream.connections import Connections
from tests.simulation.log import Broker
from tests.simulation.scheduler import Process, current_process

FETCH_CHECK_S = 0.0003  # a broker answers waiting fetches a moment after something arrived


class Fate(Enum):
    """What becomes of a request."""

    PASS = auto()
    LOSE = auto()  # it never arrives
    LOSE_ANSWER = auto()  # it is done, and nobody learns it
    HOLD = auto()  # it arrives late, and nobody learns that
    TEAR = auto()  # an EndTxn that is half done
    BLACK_HOLE = auto()  # it never arrives, and the connection looks alive


class Verdict:
    """A fate with how long the two journeys take."""

    __slots__ = ("answer_s", "fate", "held_s", "request_s")

    def __init__(self, request_s: float, answer_s: float, fate: Fate = Fate.PASS, held_s: float = 0.0) -> None:
        self.request_s, self.answer_s, self.fate, self.held_s = request_s, answer_s, fate, held_s


Judge = Callable[[Process, int, Any], Verdict]


class Network:
    """The brokers as they are reached."""

    def __init__(self, broker: Broker, judge: Judge) -> None:
        self.broker, self.judge = broker, judge
        self.loop = broker.loop
        self.unknown_ends: set[tuple[str, int, int]] = set()  # writers an end of which was not answered
        self.findings: list[str] = []

    def watch(self, request: Any) -> None:
        """I12: after an end that was not told, the next transaction is begun on a higher epoch."""
        if type(request) is AddPartitionsToTxnRequest:
            writer = (request._transactional_id, request._producer_id, request._producer_epoch)
            if writer in self.unknown_ends:
                self.findings.append(f"epochs_recycled: {writer} began anew after an end that was never answered")


NETWORK: ContextVar[Network] = ContextVar("NETWORK")


class Wire(Connections):
    """One process's connections: what aiokafka's client is to a gate."""

    def __init__(self, *, request_timeout_ms: int, **_: Any) -> None:
        self._network = NETWORK.get()
        process = current_process()
        assert process is not None
        self._process = process
        self._timeout_s = request_timeout_ms / 1000
        self._leaders: dict[tuple[str, int], int] = {}
        self._nodes: list[int] = []
        self._known_at_s = 0.0
        self._updating: asyncio.Future[bool] | None = None
        self._pending: dict[Hashable, dict[asyncio.Future[Any], None]] = {}
        self._last_arrival: dict[tuple[Hashable, int], float] = {}
        self.cluster = SimpleNamespace(leader_for_partition=self._leader_known, brokers=self._brokers)  # type: ignore[assignment]

    def __del__(self, *_: Any) -> None:
        """The one of aiokafka warns."""

    # ── metadata ──

    async def bootstrap(self) -> None:
        await self.force_metadata_update()

    async def set_topics(self, _: Any) -> None:
        await self.force_metadata_update()

    async def close(self) -> None:
        for group in list(self._pending):
            await self.drop(group)

    def _brokers(self) -> list[Any]:
        return [SimpleNamespace(nodeId=node) for node in self._nodes]

    def _leader_known(self, partition: Any) -> int:
        """As last heard."""
        return self._leaders.get((partition.topic, partition.partition), -1)

    def force_metadata_update(self) -> asyncio.Future[bool]:
        """As aiokafka's: begun at once, awaited or not."""
        if self._updating is None or self._updating.done():
            self._updating = asyncio.ensure_future(self._update())
        return asyncio.shield(self._updating)

    async def _update(self) -> bool:
        verdict = self._network.judge(self._process, -1, None)
        await asyncio.sleep(verdict.request_s + verdict.answer_s)
        broker = self._network.broker
        self._leaders = {partition: broker.leader(partition) for partition in broker.logs}
        self._nodes = [node for node in range(broker.nodes) if node not in broker.down]
        self._known_at_s = self._network.loop.time()
        return True

    async def transaction_coordinator(self, transactional_id: str) -> int:
        verdict = self._network.judge(self._process, -1, None)
        await asyncio.sleep(verdict.request_s + verdict.answer_s)
        node = self._network.broker.coordinator(transactional_id)
        if node < 0:
            raise CoordinatorNotAvailableError
        return node

    # ── requests ──

    async def send(self, node: int, request: Any, *, group: Hashable = "default") -> Any:  # type: ignore[override]
        network, loop = self._network, self._network.loop
        now_s = loop._now
        network.watch(request)
        if now_s - self._known_at_s > METADATA_MAX_AGE_MS / 1000:
            self.force_metadata_update()
        verdict = network.judge(self._process, node, request)
        broker = network.broker
        if node in broker.down or not 0 <= node < broker.nodes:
            await asyncio.sleep(verdict.request_s)
            raise NodeNotReadyError(f"node {node} cannot be reached")
        broker.tell(self._process.name, "sends", request, verdict)
        answer: asyncio.Future[Any] = asyncio.Future(loop=loop)
        pending = self._pending.setdefault(group, {})
        pending[answer] = None
        arrives_s = max(now_s + verdict.request_s, self._last_arrival.get((group, node), 0.0))
        if verdict.fate is not Fate.BLACK_HOLE:
            if verdict.fate is not Fate.LOSE:
                held_s = verdict.held_s if verdict.fate is Fate.HOLD else 0.0
                if not held_s:
                    self._last_arrival[group, node] = arrives_s
                loop.call_at(
                    arrives_s + held_s, self._arrive, node, request, answer, verdict, context=loop.world.context
                )
            if verdict.fate in (Fate.LOSE, Fate.HOLD):
                loop.call_at(arrives_s + verdict.answer_s, _cut, answer, context=loop.world.context)
        over = loop.call_at(now_s + self._timeout_s, _time_out, answer, context=self._process.context)
        try:
            return await answer
        except BaseException:
            if type(request) is EndTxnRequest:
                network.unknown_ends.add((request._transactional_id, request._producer_id, request._producer_epoch))
            raise
        finally:
            over.cancel()
            pending.pop(answer, None)

    def _arrive(self, node: int, request: Any, answer: asyncio.Future[Any], verdict: Verdict) -> None:
        """In the world's context: the request is at the broker, whatever became of its sender."""
        broker, loop = self._network.broker, self._network.loop
        if node in broker.down:
            _cut(answer)
            return
        if type(request) is FetchRequest:
            news, response = broker.fetch(node, request)
            if not news:
                self._wait(node, request, response, answer, verdict)
                return
        elif verdict.fate is Fate.TEAR:
            torn = broker.tear(node, request)
            broker.tell("broker", "tears" if torn else "refuses", request)
            _cut(answer)
            return
        else:
            response = broker.handle(node, request)
        if verdict.fate is Fate.PASS:
            broker.tell("broker", "answers", request, response)
            loop.call_later(verdict.answer_s, _answer, answer, response, context=loop.world.context)
        elif verdict.fate is Fate.LOSE_ANSWER:
            broker.tell("broker", "answers into the void", request, response)
            loop.call_later(verdict.answer_s, _cut, answer, context=loop.world.context)
        else:
            broker.tell("broker", "answers late into the void", request, response)

    def _wait(
        self, node: int, request: FetchRequest, nothing: Any, answer: asyncio.Future[Any], verdict: Verdict
    ) -> None:
        """A long poll: until something arrives in one of its partitions, or its time is over."""
        broker, loop = self._network.broker, self._network.loop
        done = woken = False

        def finish(response: Any) -> None:
            nonlocal done
            done = True
            over.cancel()
            if node in broker.down or verdict.fate is not Fate.PASS:
                _cut(answer)
            else:
                loop.call_later(verdict.answer_s, _answer, answer, response, context=loop.world.context)

        def look() -> None:
            nonlocal woken, nothing
            woken = False
            if not done:
                news, response = broker.fetch(node, request)
                if news:
                    finish(response)
                else:
                    nothing = response
                    register()

        def wake() -> None:
            nonlocal woken
            if not done and not woken:
                woken = True
                broker.later(FETCH_CHECK_S, look)

        def register() -> None:
            for topic, rows in request._topics:
                for row in rows:
                    broker.logs[topic, row[0]].waiting.append(wake)

        over = loop.call_later(
            request._max_wait_ms / 1000, lambda: done or finish(broker.fetch(node, request)[1] if woken else nothing),
            context=loop.world.context,
        )  # fmt: skip
        register()

    async def drop(self, group: Hashable) -> None:
        for answer in self._pending.pop(group, {}):
            _cut(answer)


def _answer(answer: asyncio.Future[Any], response: Any) -> None:
    if not answer.done():
        answer.set_result(response)


def _time_out(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(RequestTimedOutError())


def _cut(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(KafkaConnectionError("connection closed"))
