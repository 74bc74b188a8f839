"""The concurrent reader: follows what the gates write, under read_committed, while faults are being injected."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from tests.support.background import Background
from tests.support.reader import CHUNK, TIMEOUT_S, consumer_of

OFFSET_BITS = 40
WAIT_S = 0.1


class Expected:
    """Triggers whose receipts somebody waits for: told when the broker had taken them, and when they were answered.

    Filled by one thread, struck off by another.
    """

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}
        self._answered: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, trigger_id: str) -> None:
        with self._lock:
            self._taken[trigger_id] = time.monotonic()

    def answered(self, trigger_id: str) -> None:
        with self._lock:
            self._answered[trigger_id] = time.monotonic()

    def all_answered(self, count: int) -> bool:
        with self._lock:
            return len(self._taken) == count and self._taken.keys() <= self._answered.keys()

    def seconds(self) -> list[float]:
        """How long each waited that was answered. Who was answered before its acknowledgement came waited for nothing."""
        with self._lock:
            return [max(self._answered[each] - at, 0.0) for each, at in self._taken.items() if each in self._answered]


class Watcher(Background):
    """A digest of every record as it was first seen. `receipts` counts those, which is how progress is told."""

    def __init__(self, bootstrap: str, prefix: str, topics: Sequence[str]) -> None:
        super().__init__("watcher")
        self._bootstrap, self._prefix, self._topics = bootstrap, prefix, topics
        self.seen: dict[str, dict[int, int]] = {topic: {} for topic in topics}
        self.changed: list[str] = []  # one offset, two values
        self.receipts: Counter[int] = Counter()  # by lane
        self.last_receipt_at = time.monotonic()
        self.error: str | None = None
        self._expected: Expected | None = None

    @property
    def answered(self) -> int:
        return len(self.seen["receipts"])

    def expect(self) -> Expected:
        """From now on, note whose receipts are seen; one at a time."""
        self._expected = Expected()
        return self._expected

    def _run(self) -> None:
        consumer = consumer_of(self._bootstrap)
        try:
            known = consumer.list_topics(timeout=TIMEOUT_S).topics
            consumer.assign(
                [
                    TopicPartition(self._prefix + topic, number, OFFSET_BEGINNING)
                    for topic in self._topics
                    for number in known[self._prefix + topic].partitions
                ]
            )
            while not self._stop.is_set():
                for message in consumer.consume(CHUNK, timeout=WAIT_S):
                    if message.error() is None:  # errors are of connections: the library goes on by itself
                        topic = message.topic().removeprefix(self._prefix)
                        self._take(topic, message.partition(), message.offset(), message.key(), message.value())
        except KafkaException as error:
            self.error = str(error)
        finally:
            consumer.close()

    def _take(self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
        place, digest = place_of(partition, offset), digest_of(key, value)
        if self.seen[topic].setdefault(place, digest) != digest:
            self.changed.append(f"{topic} {partition}-{offset} was read twice, with two values")
        if topic == "receipts":
            self.receipts[partition] += 1
            if self._expected is not None:
                self._expected.answered((key or b"").decode())
            self.last_receipt_at = time.monotonic()


def place_of(partition: int, offset: int) -> int:
    return partition << OFFSET_BITS | offset


def digest_of(key: bytes | None, value: bytes | None) -> int:
    """The same in every process; nothing and an empty text differ."""
    return crc32(value or b"", crc32(key or b"", (key is None) * 2 + (value is None)))
