"""A reader that is not ours: confluent-kafka, every partition of a topic from its start to its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.support.invariants import Read

TIMEOUT_S = 60.0
WAIT_S = 0.05  # a call waits so long for its chunk to fill
CHUNK = 5_000

Isolation = Literal["read_committed", "read_uncommitted"]


class Topic(NamedTuple):
    """What one reading of a topic gave."""

    records: list[Read]
    ends: dict[int, int]  # partition → where the reader stood at the end: the last stable offset
    highs: dict[int, int]  # partition → high watermark


def consumer_of(bootstrap: str, isolation: Isolation = "read_committed") -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
            "receive.message.max.bytes": 1_000_000_000,  # what expands beyond bounds is read, too
            "log_level": 2,  # what goes wrong is told by what was read
        }
    )


def count_up_to(
    bootstrap: str, topic: str, wanted: int, timeout_s: float, partitions: Iterable[int] | None = None
) -> int:
    """How many committed records a topic, or some of its partitions, comes to hold.

    Returns at `wanted`, or when none came for `timeout_s`.
    """
    consumer = consumer_of(bootstrap)
    try:
        partitions = partitions or consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        count, last = 0, time.monotonic()
        while count < wanted and time.monotonic() - last < timeout_s:
            came = sum(message.error() is None for message in consumer.consume(CHUNK, timeout=0.2))
            if came:
                count, last = count + came, time.monotonic()
        return count
    finally:
        consumer.close()


def held_back(bootstrap: str, prefix: str) -> list[str]:
    """Partitions of topics with that prefix of which a reader of what is committed does not reach the end.

    Raises KafkaException.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    topics = admin.list_topics(timeout=TIMEOUT_S).topics
    asked = {
        TopicPartition(name, number): OffsetSpec.latest()
        for name, found in topics.items()
        if name.startswith(prefix)
        for number in found.partitions
    }
    ends = [
        {
            (each.topic, each.partition): told.result(TIMEOUT_S).offset
            for each, told in admin.list_offsets(asked, isolation_level=level).items()
        }
        for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
    ]
    return [f"{name}[{number}]" for (name, number), end in ends[0].items() if end != ends[1][name, number]]


def read_topic(
    bootstrap: str, topic: str, isolation: Isolation = "read_committed", partitions: Sequence[int] | None = None,
    *, lean: bool = False,
) -> Topic:  # fmt: skip
    """Everything on a topic or some of its partitions, in the order of offsets; lean: without values and headers.

    Raises KafkaException.
    """
    consumer = consumer_of(bootstrap, isolation)
    try:
        if partitions is None:
            partitions = sorted(consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        records: list[Read] = []
        ends: dict[int, int] = {}
        deadline = time.monotonic() + TIMEOUT_S
        while len(ends) < len(partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: the ends of {len(partitions) - len(ends)} partitions were not reached")
            for message in consumer.consume(CHUNK, timeout=WAIT_S):
                error = message.error()
                if error is None:
                    kind, time_ms = message.timestamp()
                    records.append(
                        Read(
                            message.partition(),
                            message.offset(),
                            message.key(),
                            None if lean else message.value(),
                            () if lean else tuple(message.headers() or ()),
                            time_ms,
                            kind,
                        )
                    )
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends[message.partition()] = message.offset()
                else:
                    raise KafkaException(error)
        highs = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S, cached=False)[1]
            for number in partitions
        }
    finally:
        consumer.close()
    records.sort(key=lambda record: (record.partition, record.offset))
    return Topic(records, ends, highs)
