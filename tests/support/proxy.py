"""A Kafka-aware TCP proxy: sees every frame, and may drop, hold or change the fate of one by its API key.

Frame: int32 length, then of a request int16 api_key, int16 api_version, int32 correlation id; of an answer the
correlation id alone, so the proxy remembers what each was asked. Clients reconnect to the address a broker
advertises; in the answers that hold it, its port is replaced by the proxy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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


class Side(Enum):
    REQUEST = "request"
    ANSWER = "answer"


class Fate(Enum):
    """What becomes of a frame. A dropped or held one leaves its connection standing."""

    PASS = "pass"
    DROP = "drop"
    HOLD = "hold"  # until `let_go`; later frames of the same direction of the connection queue behind it
    CUT = "cut"  # both sides of its connection are closed, and it is gone


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


Judge = Callable[[Frame], Fate]


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
        pumps = [
            asyncio.ensure_future(self._pump(Side.REQUEST, number, reader, up_writer, asked)),
            asyncio.ensure_future(self._pump(Side.ANSWER, number, up_reader, writer, asked)),
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `_stop`
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for each in (writer, up_writer):
                with contextlib.suppress(OSError):
                    each.close()
            self._tasks.discard(task)

    async def _pump(
        self, side: Side, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
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
                    case Fate.DROP:
                        continue
                    case Fate.CUT:
                        return
                    case Fate.HOLD:
                        self._open.clear()
                        await self._open.wait()
                    case Fate.PASS:
                        pass
                writer.write(size + body)
                await writer.drain()

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
