"""A Kafka in memory, at the level of requests: the program's own client code talks to it and sees no difference.

Modelled are the things exactly-once rests on: offsets that markers take too, transactions with producer ids and epochs,
the last stable offset, aborted transactions in fetches, fencing by InitProducerId, the transaction timeout, markers that
reach partitions one by one after the end was answered, sequence numbers, append times, compaction, deletion. It is
trusted as far as `test_contract.py` asks the same of a real broker. Not modelled: replicas, and loss of what was
acknowledged.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final

from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from tests.simulation.partition import (
    CONCURRENT_TRANSACTIONS,
    COORDINATOR_LOADING,
    INVALID_PRODUCER_EPOCH,
    INVALID_PRODUCER_ID_MAPPING,
    INVALID_TXN_STATE,
    NOT_COORDINATOR,
    NOT_LEADER,
    READ_COMMITTED,
    TRANSACTIONAL,
    UNKNOWN_TOPIC_OR_PARTITION,
    Message,
    Partition,
    PartitionLog,
    encode,
)
from tests.simulation.scheduler import BEGAN_MS, Loop

TIMEOUT_SWEEP_S: Final = 1.0  # how often a coordinator looks for transactions that timed out
_EARLIEST: Final = -2


# ── transactions ──


class State(StrEnum):
    EMPTY = "empty"
    ONGOING = "ongoing"
    COMMITTING = "committing"  # PrepareCommit: decided, markers on their way
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Transaction:
    """What the coordinator knows of a transactional id."""

    def __init__(self, name: str, producer_id: int, timeout_ms: int) -> None:
        self.name, self.producer_id, self.timeout_ms = name, producer_id, timeout_ms
        self.epoch = 0
        self.state = State.EMPTY
        self.partitions: dict[Partition, None] = {}
        self.began_at_s = 0.0
        self.unmarked: set[Partition] = set()


class Broker:
    """All brokers of a cluster: their logs and coordinators. `now_ms` is the brokers' clock."""

    def __init__(self, loop: Loop, seed: int, *, nodes: int = 1, marker_max_s: float = 0.002) -> None:
        self.loop, self.nodes, self._marker_max_s = loop, nodes, marker_max_s
        self.random = random.Random(f"broker {seed}")
        self.logs: dict[Partition, PartitionLog] = {}
        self.transactions: dict[str, Transaction] = {}
        self.down: set[int] = set()
        self.moved: dict[Partition | str, int] = {}  # how often a leader or a coordinator has moved on
        self.loading_until_s = 0.0
        self.committed = self.aborted = self.timed_out = 0
        self.tell: Callable[..., None] = lambda *_: None
        self._producer_ids = itertools.count(1_000)

    @property
    def now_ms(self) -> int:
        return BEGAN_MS + int(self.loop.time() * 1000)

    def create(self, topic: str, partitions: int, *, append_time: bool, compacted: bool) -> None:
        for number in range(partitions):
            name = (topic, number)
            self.logs[name] = PartitionLog(name, append_time=append_time, compacted=compacted)

    def leader(self, partition: Partition) -> int:
        """The node that leads a partition now, -1 when none does."""
        return self._node(partition[1] + len(partition[0]) + self.moved.get(partition, 0))

    def coordinator(self, transactional_id: str) -> int:
        return self._node(sum(transactional_id.encode()) + self.moved.get(transactional_id, 0))

    def _node(self, number: int) -> int:
        if not self.down:
            return number % self.nodes
        for step in range(self.nodes):
            node = (number + step) % self.nodes
            if node not in self.down:
                return node
        return -1

    def later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        """Something the brokers do on their own."""
        self.loop.call_later(delay_s, callback, *args, context=self.loop.world.context)

    # ── requests ──

    def handle(self, node: int, request: Any) -> Any:
        """The answer of a node, at once. Fetches, which may have to wait, are for `fetch`."""
        match request:
            case InitProducerIdRequest():
                return self._init(node, request._transactional_id, request._transaction_timeout_ms)
            case AddPartitionsToTxnRequest():
                return self._add(node, request)
            case ProduceRequest():
                return self._produce(node, request)
            case EndTxnRequest():
                return self._end(node, request)
            case OffsetRequest():
                return self._offsets(node, request)
        raise TypeError(f"{type(request).__name__} is not modelled")

    def _refuses(self, node: int, transactional_id: str) -> int:
        if self.coordinator(transactional_id) != node:
            return NOT_COORDINATOR
        return COORDINATOR_LOADING if self.loop.time() < self.loading_until_s else 0

    def _init(self, node: int, name: str, timeout_ms: int) -> Any:
        def answer(code: int, producer_id: int = -1, epoch: int = -1) -> Any:
            return SimpleNamespace(error_code=code, producer_id=producer_id, producer_epoch=epoch)

        if code := self._refuses(node, name):
            return answer(code)
        known = self.transactions.get(name)
        if known is None:
            known = self.transactions[name] = Transaction(name, next(self._producer_ids), timeout_ms)
            return answer(0, known.producer_id, known.epoch)
        match known.state:
            case State.ONGOING:
                self._abort_fencing(known)
                return answer(CONCURRENT_TRANSACTIONS)
            case State.COMMITTING | State.ABORTING:
                return answer(CONCURRENT_TRANSACTIONS)
        known.epoch += 1
        known.timeout_ms, known.state = timeout_ms, State.EMPTY
        return answer(0, known.producer_id, known.epoch)

    def _abort_fencing(self, known: Transaction) -> None:
        """End a transaction of an owner that is to be heard no more."""
        known.epoch += 1
        self.tell("broker", "aborts", known.name, "epoch", known.epoch)
        self._decide(known, commit=False)

    def _wrong(self, request: Any) -> tuple[int, Transaction | None]:
        known = self.transactions.get(request._transactional_id)
        if known is None or known.producer_id != request._producer_id:
            return INVALID_PRODUCER_ID_MAPPING, known
        return (INVALID_PRODUCER_EPOCH if request._producer_epoch != known.epoch else 0), known

    def _add(self, node: int, request: Any) -> Any:
        code = self._refuses(node, request._transactional_id)
        wrong, known = self._wrong(request)
        code = code or wrong
        if not code and known is not None:
            if known.state in (State.COMMITTING, State.ABORTING):
                code = CONCURRENT_TRANSACTIONS
            else:
                if known.state is not State.ONGOING:
                    known.state, known.partitions, known.began_at_s = State.ONGOING, {}, self.loop.time()
                    self._watch(known)
                for topic, numbers in request._topics:
                    known.partitions |= dict.fromkeys((topic, number) for number in numbers)
        rows = [(topic, [(number, code) for number in numbers]) for topic, numbers in request._topics]
        return SimpleNamespace(errors=rows)

    def _watch(self, known: Transaction) -> None:
        """The transaction times out unless it ends before; coordinators look once in a while."""
        epoch, began_at_s = known.epoch, known.began_at_s

        def look() -> None:
            if (known.state, known.epoch, known.began_at_s) == (State.ONGOING, epoch, began_at_s):
                self.timed_out += 1
                self._abort_fencing(known)

        self.later(known.timeout_ms / 1000 + self.random.random() * TIMEOUT_SWEEP_S, look)

    def _produce(self, node: int, request: Any) -> Any:
        known = self.transactions.get(request._transactional_id) if request._transactional_id else None
        topics = []
        for topic, batches in request._topics:
            rows = []
            for number, raw in batches:
                partition = (topic, number)
                code, base, log = 0, -1, self.logs.get(partition)
                producer_id, epoch = struct.unpack_from(">qh", raw, 43)
                if log is None:
                    code = UNKNOWN_TOPIC_OR_PARTITION
                elif self.leader(partition) != node:
                    code = NOT_LEADER
                elif request._transactional_id and (
                    # The leader asks the coordinator whether the partition is in an open transaction (KIP-890 part 1).
                    known is None
                    or known.state is not State.ONGOING
                    or (known.producer_id, known.epoch) != (producer_id, epoch)
                    or partition not in known.partitions
                ):
                    fenced = known is not None and epoch < known.epoch
                    code = INVALID_PRODUCER_EPOCH if fenced else INVALID_TXN_STATE
                else:
                    code, base = log.produce(raw, self.now_ms)
                at_ms = self.now_ms if log is not None and log.append_time and not code else -1
                rows.append((number, code, base, at_ms))
            topics.append((topic, rows))
        return SimpleNamespace(topics=topics)

    def _end(self, node: int, request: Any) -> Any:
        code = self._refuses(node, request._transactional_id)
        wrong, known = self._wrong(request)
        code = code or wrong
        commit = request._transaction_result
        if not code and known is not None:
            ended = (State.COMMITTING, State.COMMITTED) if commit else (State.ABORTING, State.ABORTED)
            if known.state is State.ONGOING:
                self._decide(known, commit=bool(commit))
            elif known.state is ended[0]:
                code = CONCURRENT_TRANSACTIONS
            elif known.state is not ended[1]:
                code = INVALID_TXN_STATE
        return SimpleNamespace(error_code=code)

    def tear(self, node: int, request: EndTxnRequest) -> bool:
        """An end as a coordinator does it that is fenced meanwhile: some partitions are told of a commit, and whoever
        coordinates from now on has not heard of it. Whether there was anything to tear.
        """
        wrong, known = self._wrong(request)
        if self._refuses(node, request._transactional_id) or wrong or known is None or known.state is not State.ONGOING:
            return False
        for partition in self.random.sample(sorted(known.partitions), self.random.randint(0, len(known.partitions))):
            self.logs[partition].mark(known.producer_id, known.epoch, True, self.now_ms)
        return True

    def _decide(self, known: Transaction, *, commit: bool) -> None:
        """From here on the outcome is settled; markers go out to the partitions one by one."""
        if commit:
            self.committed += 1
        else:
            self.aborted += 1
        known.state = State.COMMITTING if commit else State.ABORTING
        known.unmarked = set(known.partitions)
        for partition in known.partitions:
            self.later(self.random.random() * self._marker_max_s, self._mark, known, partition, known.epoch, commit)
        if not known.partitions:
            known.state = State.COMMITTED if commit else State.ABORTED

    def _mark(self, known: Transaction, partition: Partition, epoch: int, commit: bool) -> None:
        if self.leader(partition) < 0:
            self.later(0.05, self._mark, known, partition, epoch, commit)
            return
        self.logs[partition].mark(known.producer_id, epoch, commit, self.now_ms)
        known.unmarked.discard(partition)
        if not known.unmarked:
            known.state = State.COMMITTED if commit else State.ABORTED

    def _offsets(self, node: int, request: Any) -> Any:
        topics = []
        for topic, rows in request._topics:
            out = []
            for number, which in rows:
                log = self.logs.get((topic, number))
                if log is None or self.leader((topic, number)) != node:
                    out.append((number, UNKNOWN_TOPIC_OR_PARTITION if log is None else NOT_LEADER, -1, -1))
                    continue
                latest = log.stable if request._isolation_level == READ_COMMITTED else log.end
                out.append((number, 0, -1, log.start if which == _EARLIEST else latest))
            topics.append((topic, out))
        return SimpleNamespace(topics=topics)

    def fetch(self, node: int, request: Any) -> tuple[bool, Any]:
        """Whether there is anything to say yet, and the answer as it would be now."""
        topics, news = [], request._max_wait_ms == 0
        isolation = request._isolation_level
        for topic, rows in request._topics:
            out = []
            for number, position, max_bytes in rows:
                partition = (topic, number)
                log = self.logs.get(partition)
                if log is None or self.leader(partition) != node:
                    news = True
                    out.append((number, UNKNOWN_TOPIC_OR_PARTITION if log is None else NOT_LEADER, -1, -1, (), b""))
                    continue
                row = log.fetch(number, position, isolation, max_bytes)
                if row[1] or row[5]:
                    news = True
                out.append(row)
            topics.append((topic, out))
        return news, SimpleNamespace(topics=topics)

    # ── what emitters and ops do ──

    def write(self, partition: Partition, messages: Sequence[Message]) -> int:
        """Append as a plain producer does; the first offset."""
        raw = encode(list(enumerate(messages)), last_delta=len(messages) - 1)
        return self.logs[partition].append(raw, self.now_ms)

    def begin_foreign(self, partition: Partition, messages: Sequence[Message]) -> tuple[int, int]:
        """Append in an open transaction of an emitter's; its producer id and the first offset."""
        producer_id = next(self._producer_ids)
        log = self.logs[partition]
        raw = encode(list(enumerate(messages)), last_delta=len(messages) - 1, attributes=TRANSACTIONAL,
                     producer_id=producer_id, epoch=0, sequence=0)  # fmt: skip
        return producer_id, log.produce(raw, self.now_ms)[1]

    def end_foreign(self, partition: Partition, producer_id: int, *, commit: bool) -> None:
        self.logs[partition].mark(producer_id, 0, commit, self.now_ms)
