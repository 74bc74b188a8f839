"""Strikes at the wire between gates and brokers, by the proxies of a stage: ends held back, and bad weather."""

from __future__ import annotations

import struct
import threading
import time

from tests.campaign.stage import Fault, Stage
from tests.support import proxy
from tests.support.proxy import Fate, Frame, KafkaProxy, Side, Weather

DUE_S = 30.0
FENCE_LATER_S = 0.3
LATE_END_S = 0.03  # after the first records of a transaction
OTHERS_S = 0.12  # and its other records after both
FULL_PRODUCE_BYTES = 2_000  # more than a checkpoint: the transaction decides triggers
BOTH = frozenset(Side)
HELD = {proxy.END_TXN: "EndTxn", proxy.INIT_PRODUCER_ID: "InitProducerId"}


class Ends:
    """Holds requests of one kind back at the wire: the client's connection is closed, the request itself reaches the
    broker between the first Produce of the lane's next transaction, whoever writes that, and those to other brokers.

    An InitProducerId is how a gate aborts, so that is the abort form of the same fault.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._wanted: dict[int, int] = {}  # API key → how many more to hold
        self._held: dict[bytes, tuple[KafkaProxy, int, Fault]] = {}  # by transactional id
        self._provoked: set[bytes] = set()
        self._deciding: set[tuple[int, int]] = set()
        self._halved: dict[bytes, float] = {}  # until when their other records wait
        self._row = ""
        self.before_fence = False  # deliver what is held before the lane's next owner fences it, not after
        for between in stage.proxies:
            between.judge = lambda frame, between=between: self._judge(between, frame)

    def hold(self, row: str, api_key: int, count: int) -> None:
        with self._lock:
            self._row = row
            self._wanted[api_key] = self._wanted.get(api_key, 0) + count

    @property
    def idle(self) -> bool:
        return not any(self._wanted.values()) and not self._held and not self._provoked

    def _judge(self, between: KafkaProxy, frame: Frame) -> Fate | float:
        place = (id(between), frame.connection)
        with self._lock:
            if frame.side is Side.ANSWER:
                return Fate.PASS
            match frame.api_key:
                case proxy.ADD_PARTITIONS_TO_TXN:
                    self._deciding.discard(place)
                case proxy.PRODUCE:
                    is_full = len(frame.body) > FULL_PRODUCE_BYTES
                    if is_full:
                        self._deciding.add(place)
                    if not self.before_fence:
                        return self._produce(_transactional_id(frame), is_full)
                case proxy.END_TXN if place in self._deciding and self._wanted.get(proxy.END_TXN):
                    kept = self._keep(between, frame)
                    self._wanted[proxy.END_TXN] -= kept is Fate.ORPHAN
                    return kept
                case proxy.INIT_PRODUCER_ID if self.before_fence and _transactional_id(frame) in self._held:
                    self._release(_transactional_id(frame))
                    return FENCE_LATER_S
                case proxy.END_TXN if place in self._deciding and self._wanted.get(proxy.INIT_PRODUCER_ID):
                    return self._provoke(frame)
                case proxy.INIT_PRODUCER_ID if _transactional_id(frame) in self._provoked:
                    self._provoked.discard(_transactional_id(frame))
                    return self._keep(between, frame)
                case proxy.END_TXN:
                    return self._after_late_end(_transactional_id(frame))
        return Fate.PASS

    def _produce(self, name: bytes, is_full: bool) -> Fate | float:
        """The first brings on what is held; those to other brokers, and the end, come after it: if it is taken, it ends
        a part."""
        if is_full and name in self._held:
            self._release(name, LATE_END_S)
            self._halved[name] = time.monotonic() + OTHERS_S
            return Fate.PASS
        return self._after_late_end(name)

    def _after_late_end(self, name: bytes) -> Fate | float:
        left_s = self._halved.get(name, 0.0) - time.monotonic()
        return left_s if left_s > 0 else Fate.PASS

    def _provoke(self, frame: Frame) -> Fate:
        """Lose a commit, so that its gate aborts: that request is the one to hold."""
        name = _transactional_id(frame)
        if name in self._held or name in self._provoked:
            return Fate.PASS
        self._wanted[proxy.INIT_PRODUCER_ID] -= 1
        self._provoked.add(name)
        return Fate.CUT

    def _keep(self, between: KafkaProxy, frame: Frame) -> Fate:
        name = _transactional_id(frame)
        if name in self._held or not name:
            return Fate.PASS
        lane = int(name.rpartition(b"-")[2])
        fault = Fault(self._row, f"held {HELD[frame.api_key]}", time.monotonic(), lanes=[lane])
        self._held[name] = (between, frame.connection, fault)
        return Fate.ORPHAN

    def _release(self, name: bytes, after_s: float = 0.0) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            between, connection, fault = held
            between.deliver(connection, after_s)
            fault.effective = True  # it reached the broker within a later transaction of the lane
            self._stage.note(fault)

    def give_up(self) -> None:
        """Deliver what is still held."""
        with self._lock:
            self._wanted.clear()
            for between, connection, fault in self._held.values():
                between.deliver(connection)
                self._stage.note(fault)
            self._held.clear()


def _transactional_id(frame: Frame) -> bytes:
    """The first field of Produce, EndTxn and InitProducerId requests of the versions aiokafka speaks."""
    fields = frame.request_fields
    size = struct.unpack_from(">h", fields)[0]
    return fields[2 : 2 + size] if size > 0 else b""


# name → what befalls every frame; how long it lasts, seconds
FORMS: dict[str, tuple[Weather, tuple[float, ...]]] = {
    "latency 200 ± 200 ms": (Weather(delay_s=0.2, jitter_s=0.2), (4, 8)),
    "64 KB/s": (Weather(bytes_per_s=65_536), (4, 8)),
    "black hole both ways": (Weather(holes=BOTH), (5, 5, 15, 45)),
    "black hole of requests": (Weather(holes=frozenset({Side.REQUEST})), (5, 5, 15)),
    "black hole of answers": (Weather(holes=frozenset({Side.ANSWER})), (5, 5, 15)),
    "slices of 1 to 7 bytes": (Weather(slice_bytes=4), (4, 6)),
    "RST": (Weather(), (0.0,)),
    "slow close": (Weather(holes=BOTH), (2.0,)),
}


def episode(stage: Stage, row: str, form: str, between: KafkaProxy, longest_s: float = 60.0) -> Fault:
    """One spell of bad weather at one gate's proxy, before one broker or all of them."""
    weather, lasts = FORMS[form]
    broker = stage.dice.choice((None, None, 0, 1, 2))
    long_s = min(stage.dice.choice(lasts), longest_s)
    gate = stage.gates[stage.proxies.index(between)]
    where = "all brokers" if broker is None else f"broker {broker + 1}"
    fault = Fault(row, form, time.monotonic(), lanes=gate.lanes, detail=f"{gate.name}, {where}, {long_s} s")
    before = between.met
    if form == "RST":
        between.reset()
    else:
        between.weather = Weather(
            weather.delay_s, weather.jitter_s, weather.bytes_per_s, stage.dice.randint(1, 7) if weather.slice_bytes else 0,
            weather.holes, broker,
        )  # fmt: skip
        time.sleep(long_s)
        between.weather = None
        if form == "slow close":
            between.reset()
    fault.at = time.monotonic()
    fault.effective = stage.until(lambda: between.met > before, 1)
    return stage.note(fault)
