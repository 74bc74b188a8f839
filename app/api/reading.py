"""What an emitter may read: its own receipts, one by one or as a stream, and what would become of a trigger.

The caller is the identity (issuer and subject) of a verified token; reading is no use of it. A receipt of another's, of
nobody's and none at all are told alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from app.api import operations as described
from app.api.caller import Caller, identify
from app.api.places import Places
from app.api.problems import RETRY_AFTER_S, Problem
from app.api.receipts import EMITTER_STREAMS_MAX, Receipts, Subscription, emitter_of
from app.api.requests import answer, bearer_token, headers_of, object_of
from app.api.service import Service
from app.gate.explain import Explanation
from app.gate.token import CLASSES, USER_CLASSES
from app.gate.trigger import AUTHORIZATION, Record
from app.stream.inquiry import judged
from app.telemetry import STREAMS

READERS: Final = {**CLASSES, **USER_CLASSES}  # who emitted, and the person it emitted for
TRIGGER_ID: Final = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,17})")
KEEP_ALIVE_S: Final = 15.0
CHECK_EVERY_S: Final = 1.0  # whether the token is still honoured, and the reader still there
RESUME_MAX: Final = 500_000  # receipts, of everyone, between where a stream resumes and the end
RESUME_TIMEOUT_S: Final = 60.0  # for one chunk of them
RESUME_AT_ONCE, RESUME_OF_ONE, RESUME_LINE_MAX = 2, 1, EMITTER_STREAMS_MAX
EXPLAIN_TIMEOUT_S: Final = 10.0
EXPLAIN_AT_ONCE, EXPLAIN_OF_ONE, EXPLAIN_LINE_MAX = 3, 1, 8
_STILL_HERE: Final = b": still here\n\n"
_NOWHERE: Final = 1 << 50  # an offset that no trigger has: a dry run is no trigger's retry
_TOLD_TO_NOBODY: Final = ("params", "definition_version", "identity", "home_by")  # more than a receipt says


def routes(service: Service) -> list[HTTPRouteHandler]:
    """Receipts, their stream, and the dry run."""
    explaining = Places(EXPLAIN_AT_ONCE, EXPLAIN_OF_ONE, EXPLAIN_LINE_MAX, EXPLAIN_TIMEOUT_S, late="overloaded")
    resuming = Places(RESUME_AT_ONCE, RESUME_OF_ONE, RESUME_LINE_MAX, RESUME_TIMEOUT_S, late="overloaded")

    @get("/v1/receipts/{trigger_id:str}", opt=described.operation(described.GET_RECEIPT))
    async def receipt(request: Request[Any, Any, Any]) -> ASGIResponse:
        caller = await identify(service.tables, bearer_token(headers_of(request.scope)), READERS)
        trigger_id = str(request.path_params["trigger_id"])
        coordinates = TRIGGER_ID.fullmatch(trigger_id)
        if coordinates is None:
            raise Problem("receipt_unknown")
        value = service.receipts.newest(trigger_id)
        if value is None:
            value = await service.search.find(int(coordinates[1]), int(coordinates[2]), caller.emitter)
        if value is None or emitter_of(value) != caller.emitter:
            raise Problem("receipt_unknown")
        return answer(value, headers={"Cache-Control": "private, no-store"})

    @get("/v1/receipts/stream", opt=described.operation(described.GET_STREAM))
    async def stream(request: Request[Any, Any, Any]) -> ASGIResponse:
        headers = headers_of(request.scope)
        caller = await identify(service.tables, bearer_token(headers), READERS)
        starts = _positions_of(headers.get("last-event-id"), service.receipts.lanes)
        subscription = _subscribed(service, caller)
        return _Following(service, subscription, _events(service, resuming, caller, subscription, starts))

    @post("/v1/explain", status_code=200, opt=described.operation(described.POST_EXPLAIN))
    async def explain(request: Request[Any, Any, Any]) -> ASGIResponse:
        headers = headers_of(request.scope)
        token = bearer_token(headers)
        caller = await identify(service.tables, token)
        with service.bodies.counted(request.receive) as receive:
            value = msgspec.json.encode(await object_of(headers, receive, service.settings.serve.body_max_bytes))
            record = Record(
                0, _NOWHERE, time.time_ns() // 1_000_000, True, None, value,
                ((AUTHORIZATION, f"Bearer {token}".encode()),),
            )  # fmt: skip
            async with explaining.place(caller.emitter):
                told = await judged(service.cluster, service.tables, service.settings.kafka.prefix, record)
        return answer(msgspec.json.encode(_for_a_stranger(told)))

    return [receipt, stream, explain]


def _for_a_stranger(told: Explanation) -> Explanation:
    """No more than the gate would say in a receipt, and which check it was."""
    facts = {name: value for name, value in told.facts.items() if name not in _TOLD_TO_NOBODY}
    run_id = told.run_id if told.outcome == "duplicate" else None
    return msgspec.structs.replace(told, run_id=run_id, home_lane=None, facts=facts)


# ── the stream ──


def _positions_of(event_id: str | None, lanes: int) -> list[int] | None:
    """`12.0.45`: the next offset of each lane. None: from now on."""
    if event_id is None or not event_id:
        return None
    parts = event_id.split(".")
    if len(parts) != lanes or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise Problem("event_id_malformed")
    return [int(part) for part in parts]


def _event(positions: list[int], receipt: bytes) -> bytes:
    where = ".".join(map(str, positions)).encode()
    return b"event: receipt\nid: " + where + b"\ndata: " + receipt + b"\n\n"


class _Following(ASGIStreamingResponse):
    """A stream that has its place from the moment it was let in, and gives it back however it ends."""

    __slots__ = ("_receipts", "_subscription")

    def __init__(self, service: Service, subscription: Subscription, events: AsyncIterator[bytes]) -> None:
        super().__init__(
            iterator=events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._receipts, self._subscription = service.receipts, subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._receipts.unsubscribe(self._subscription)


def _subscribed(service: Service, caller: Caller) -> Subscription:
    """A place among the streams, taken where it is counted. Raises Problem where there is none."""
    everyones, its_own = service.receipts.subscriptions(caller.emitter)
    if service.stopping.is_set() or everyones >= service.streams_max:
        raise Problem("overloaded")
    if its_own >= EMITTER_STREAMS_MAX:
        raise Problem("overloaded", f"{its_own} streams of this emitter are open here")
    return service.receipts.subscribe(caller.emitter)


async def _events(
    service: Service, resuming: Places, caller: Caller, subscription: Subscription, starts: list[int] | None
) -> AsyncIterator[bytes]:
    """The caller's receipts for ever: until its token is no longer honoured, or it reads too slowly.

    It ends, too, where what it missed cannot be read in time; by the last id its reader goes on from there.
    """
    with STREAMS.track_inprogress():
        positions = list(subscription.positions)
        # So that one who is cut off before the first receipt can resume, too.
        yield b"retry: %d\nid: %s\n\n" % (RETRY_AFTER_S * 1000, ".".join(map(str, starts or positions)).encode())
        if starts is not None:
            try:
                async for chunk in _missed(service, resuming, caller, starts, positions):
                    yield chunk
            except (Problem, KafkaError, TimeoutError):
                return
        async for chunk in _live(service, caller, subscription, positions):
            yield chunk


async def _missed(
    service: Service, resuming: Places, caller: Caller, starts: list[int], positions: list[int]
) -> AsyncIterator[bytes]:
    """What came between, and where what is live goes on: never before a lane's start, as this instance may be behind.

    Lanes not yet read keep the position they were asked for. What is no longer there, or never was, is told as a gap.
    Whoever resumes has everyone's receipts read: in turn, a chunk at a time, and not at the pace of who reads them.
    """
    receipts, ends = service.receipts, list(positions)
    marks = [await receipts.cluster.watermarks((receipts.topic, lane)) for lane in range(receipts.lanes)]
    at = [min(max(start, mark.start), mark.high) for start, mark in zip(starts, marks, strict=True)]
    positions[:] = map(max, at, ends)
    too_far = sum(max(end - start, 0) for start, end in zip(at, ends, strict=True)) > RESUME_MAX
    if too_far or at != starts:
        yield b": not all of it is there\n\nevent: gap\ndata: {}\n\n"
    if too_far:
        return
    for lane, end in enumerate(ends):
        while at[lane] < end:
            reading = asyncio.create_task(_chunk(receipts, resuming, caller.emitter, at, lane, end))
            try:
                while not (await asyncio.wait({reading}, timeout=KEEP_ALIVE_S))[0]:
                    yield _STILL_HERE
                missed = reading.result()
            finally:
                reading.cancel()
            for event in missed:
                if caller.fault(service.tables.world) is not None:
                    return
                yield event


async def _chunk(
    receipts: Receipts, resuming: Places, emitter: str, at: list[int], lane: int, end: int
) -> list[bytes]:  # fmt: skip
    """The emitter's receipts in the next chunk of a lane, as events; `at` is then behind it. Raises Problem."""
    events: list[bytes] = []
    async with resuming.place(emitter):
        async with contextlib.aclosing(receipts.cluster.read((receipts.topic, lane), at[lane], end)) as chunks:
            chunk, position = await anext(chunks)
        for record in chunk:
            if record.value is not None and emitter_of(record.value) == emitter:
                at[lane] = record.offset + 1
                events.append(_event(at, record.value))
        at[lane] = position
    return events


async def _live(
    service: Service, caller: Caller, subscription: Subscription, positions: list[int]
) -> AsyncIterator[bytes]:
    silent_since = time.monotonic()
    while caller.fault(service.tables.world) is None:
        try:
            told = await subscription.next(CHECK_EVERY_S)
        except StopAsyncIteration:
            return
        if told is not None and told.next_offset <= positions[told.lane]:
            continue  # its reader has had it, of an instance that is ahead of this one
        if told is not None:
            positions[told.lane] = told.next_offset
            yield _event(positions, told.receipt)
        elif time.monotonic() - silent_since < KEEP_ALIVE_S:
            continue
        else:
            yield _STILL_HERE
        silent_since = time.monotonic()
