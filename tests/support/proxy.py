"""A Kafka-aware TCP proxy: sees every frame, and may drop, hold or change the fate of one by its API key.

Frame: int32 length, then of a request int16 api_key, int16 api_version, int32 correlation id; of an answer the
correlation id alone, so the proxy remembers what each was asked. Clients reconnect to the address a broker
advertises; in the answers that hold it, its port is replaced by the proxy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

PRODUCE, FETCH, METADATA, FIND_COORDINATOR = 0, 1, 3, 10
INIT_PRODUCER_ID, ADD_PARTITIONS_TO_TXN, END_TXN, DESCRIBE_CLUSTER = 22, 24, 26, 60
_HOLD_ADDRESSES = {METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER}
_HOST = "127.0.0.1"
WEATHER_TICK_S = 0.05


class Side(Enum):
    REQUEST = "request"
    ANSWER = "answer"


class Fate(Enum):
    """What becomes of a frame. A dropped or held one leaves its connection standing."""

    PASS = "pass"
    DROP = "drop"
    HOLD = "hold"  # until `let_go`; later frames of the same direction of the connection queue behind it
    CUT = "cut"  # both sides of its connection are closed, and it is gone
    ORPHAN = "orphan"  # the client's side is closed; the request reaches the broker when `deliver` says so


@dataclass(frozen=True, slots=True)
class Frame:
    side: Side
    connection: int
    api_key: int
    api_version: int
    body: bytes  # an answer's from its correlation id on

    @property
    def request_fields(self) -> bytes:
        """A request's fields after its header version 1 (client id as a nullable string)."""
        size = struct.unpack_from(">h", self.body, 8)[0]
        return self.body[10 + max(size, 0) :]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an InitProducerId answer gave."""

    error: int
    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Weather:
    """What befalls every frame; of one broker, by its place in the order of `_brokers`, or of all."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0  # 0: unlimited
    slice_bytes: int = 0  # most bytes of one write; 0: whole frames
    holes: frozenset[Side] = frozenset()  # nothing of these passes while it lasts
    broker: int | None = None


@dataclass(slots=True)
class _Orphan:
    """A request whose client has gone, and its way to the broker."""

    data: bytes
    reader: asyncio.StreamReader | None = None  # the broker's side, once the client's is closed
    writer: asyncio.StreamWriter | None = None


Judge = Callable[[Frame], Fate | float]  # a number: seconds for which this frame waits, and what follows it


def _pass(_: Frame) -> Fate:
    return Fate.PASS


class KafkaProxy:
    """A proxy before all brokers of a cluster, on a thread of its own; one port per broker.

    `judge` is called for every frame, on that thread, before it is passed on.
    """

    def __init__(self, bootstrap: str, judge: Judge = _pass) -> None:
        self._bootstrap = bootstrap
        self.judge = judge
        self.seen: Counter[tuple[Side, int]] = Counter()
        self.epochs: list[Epoch] = []
        self.late: list[int] = []  # error codes the broker gave orphans (EndTxn and InitProducerId: after the throttle)
        self.weather: Weather | None = None
        self.met = 0  # frames that came upon weather, and connections that were reset
        self._dice = random.Random(1)
        self._orphans: dict[int, _Orphan] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kafka-proxy", daemon=True)
        self._ports: dict[tuple[str, int], int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{_HOST}:{port}" for port in self._ports.values())

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start(_brokers(self._bootstrap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def let_go(self) -> None:
        """Pass on what is held."""
        self._loop.call_soon_threadsafe(self._open.set)

    def deliver(self, connection: int, after_s: float = 0.0) -> None:
        """Send the orphan of a connection on to its broker, now or a moment later."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._deliver(connection, after_s)))

    def reset(self) -> None:
        """RST on both sides of every connection."""
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        self.met += len(self._writers)
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _spawn(self, work) -> None:  # type: ignore[no-untyped-def]
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, connection: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        orphan = self._orphans[connection]
        while orphan.reader is None or orphan.writer is None:  # noqa: ASYNC110 - a moment, once
            await asyncio.sleep(0.001)
        del self._orphans[connection]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            orphan.writer.write(orphan.data)
            size = await orphan.reader.readexactly(4)
            answer = await orphan.reader.readexactly(int.from_bytes(size, "big"))
            self.late.append(int.from_bytes(answer[8:10], "big", signed=True))
        orphan.writer.close()

    def _call(self, work) -> None:  # type: ignore[no-untyped-def]
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self, brokers: list[tuple[str, int]]) -> None:
        for broker in brokers:
            server = await asyncio.start_server(
                lambda reader, writer, broker=broker: self._connected(reader, writer, broker), _HOST, 0
            )
            self._servers.append(server)
            self._ports[broker] = server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, broker: tuple[str, int]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection(*broker)
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        asked: dict[int, tuple[int, int]] = {}
        number = next(self._numbers)
        place = list(self._ports).index(broker)
        self._writers |= {writer, up_writer}
        answers = asyncio.ensure_future(self._pump(Side.ANSWER, number, place, up_reader, writer, asked))
        requests = asyncio.ensure_future(self._pump(Side.REQUEST, number, place, reader, up_writer, asked))
        pumps = [answers, requests]
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `_stop`
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._writers -= {writer, up_writer}
            orphan = self._orphans.get(number)
            if orphan is not None:
                await asyncio.gather(answers, return_exceptions=True)  # it reads no more: the orphan's answer is left
                orphan.reader, orphan.writer = up_reader, up_writer
            for each in (writer,) if orphan is not None else (writer, up_writer):
                with contextlib.suppress(OSError):
                    each.close()
            self._tasks.discard(task)

    async def _pump(
        self, side: Side, number: int, place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        asked: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(size, "big"))
                if side is Side.REQUEST:
                    api_key, version, correlation = struct.unpack_from(">hhi", body)
                    asked[correlation] = (api_key, version)
                else:
                    api_key, version = asked.pop(int.from_bytes(body[:4], "big"), (-1, 0))
                    body = self._rewritten(api_key, body)
                frame = Frame(side, number, api_key, version, body)
                self.seen[(side, api_key)] += 1
                if side is Side.ANSWER and api_key == INIT_PRODUCER_ID and version == 0:
                    self.epochs.append(Epoch(*struct.unpack_from(">hqh", body, 8)))
                match self.judge(frame):
                    case float() as seconds:
                        await asyncio.sleep(seconds)
                    case Fate.DROP:
                        continue
                    case Fate.CUT:
                        return
                    case Fate.ORPHAN:
                        self._orphans[number] = _Orphan(size + body)
                        return
                    case Fate.HOLD:
                        self._open.clear()
                        await self._open.wait()
                    case Fate.PASS:
                        pass
                await self._write(side, place, writer, size + body)

    async def _write(self, side: Side, place: int, writer: asyncio.StreamWriter, data: bytes) -> None:
        weather = self._weather_of(place)
        if weather is None:
            writer.write(data)
            await writer.drain()
            return
        self.met += not weather.holes or side in weather.holes
        while (hole := self._weather_of(place)) is not None and side in hole.holes:  # noqa: ASYNC110
            await asyncio.sleep(WEATHER_TICK_S)
        if weather.delay_s:
            await asyncio.sleep(max(weather.delay_s + self._dice.uniform(-1, 1) * weather.jitter_s, 0))
        step = weather.slice_bytes or len(data)
        if weather.bytes_per_s:
            step = min(step, max(int(weather.bytes_per_s * WEATHER_TICK_S), 1))
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            await asyncio.sleep(step / weather.bytes_per_s if weather.bytes_per_s else 0)

    def _weather_of(self, place: int) -> Weather | None:
        weather = self.weather
        return weather if weather is not None and weather.broker in (None, place) else None

    def _rewritten(self, api_key: int, body: bytes) -> bytes:
        """An answer with our ports in place of the brokers': host as text, then int32 port. Its length stays."""
        if api_key in _HOLD_ADDRESSES:
            for (host, port), ours in self._ports.items():
                body = body.replace(host.encode() + port.to_bytes(4, "big"), host.encode() + ours.to_bytes(4, "big"))
        return body


def _brokers(bootstrap: str) -> list[tuple[str, int]]:
    """The advertised addresses. A proxy can stand only before those on this machine."""
    from confluent_kafka.admin import AdminClient

    found = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).brokers.values()
    return sorted((broker.host, broker.port) for broker in found)


def always(side: Side, api_key: int, fate: Fate) -> Judge:
    def judge(frame: Frame) -> Fate:
        return fate if (frame.side, frame.api_key) == (side, api_key) else Fate.PASS

    return judge


def drop_once(side: Side, api_key: int) -> Judge:
    """Drop the first such frame, pass all others."""
    return once(side, api_key, Fate.DROP)


def once(side: Side, api_key: int, fate: Fate) -> Judge:
    left = [1]

    def judge(frame: Frame) -> Fate:
        if left[0] and frame.side is side and frame.api_key == api_key:
            left[0] -= 1
            return fate
        return Fate.PASS

    return judge
