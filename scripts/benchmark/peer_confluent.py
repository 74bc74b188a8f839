"""A plain loop on confluent-kafka: one consumer and one transactional producer for all lanes, one process.

A batch is consumed and decided; jobs, receipts, dead letters, audit, entries and checkpoints are produced, offsets sent
and all committed; then RocksDB gets the entries.
"""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaException, Producer, TopicPartition

from app.gate.records import Checkpoint
from app.gate.trigger import Record
from app.stream.store import Store, open_store
from app.stream.topics import OUTPUT_MAX_BYTES, Topic
from scripts.benchmark.peers import READY, Decider, Setup, headers

BATCH_RECORDS: Final = 2_000  # for each lane, as in a turn of the gate; all lanes share one transaction
WAIT_S: Final = 0.05
COMMIT_TIMEOUT_S: Final = 60


class _Lane:
    """What the loop keeps of one lane."""

    def __init__(self, setup: Setup, number: int) -> None:
        directory = Path(setup.directory) / "peer" / f"lane-{number}"
        self.store: Store = open_store(directory, setup.cluster_id, setup.birth_id, number)[0]
        self.changelog_offset = 0
        self.checkpoint = Checkpoint(
            lane=number, lanes=setup.lanes, birth_id=setup.birth_id, sequence=0, triggers_offset=0, handoffs_offset=0,
            lane_clock_ms=0, audit_head_sha256="0" * 64,
        )  # fmt: skip


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    setup = Setup.from_arguments()
    decider = Decider(setup)
    lanes = [_Lane(setup, number) for number in range(setup.lanes)]
    consumer, producer = _consumer(setup), _producer(setup)
    consumer.subscribe([setup.topic(Topic.TRIGGERS)], on_assign=lambda *_: print(READY, flush=True))
    while True:
        messages = consumer.consume(BATCH_RECORDS * setup.lanes, WAIT_S)
        if messages:
            _transact(setup, decider, lanes, consumer, producer, messages)


def _transact(
    setup: Setup, decider: Decider, lanes: list[_Lane], consumer: Any, producer: Any, messages: list[Any]
) -> None:
    """One batch, one transaction; librdkafka fails the commit when any record of it was not written."""
    by_lane: dict[int, list[Record]] = defaultdict(list)
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
        kind, appended_at_ms = message.timestamp()
        by_broker = kind == TIMESTAMP_LOG_APPEND_TIME
        number = message.partition()
        by_lane[number].append(
            Record(
                number, message.offset(), appended_at_ms, by_broker, message.key(), message.value(),
                tuple(message.headers() or ()),
            )
        )  # fmt: skip
    producer.begin_transaction()
    turns = []
    for number, records in by_lane.items():
        lane = lanes[number]
        turn = decider.turn(number, lane.store, records)
        parts, lane.checkpoint = turn.finish(lane.checkpoint)
        for (topic, partition), outs in parts.items():
            for out in outs:
                producer.produce(topic, out.value, out.key, partition=partition, headers=headers(out))
        producer.poll(0)
        turns.append((lane, turn))
    triggers = setup.topic(Topic.TRIGGERS)
    offsets = [TopicPartition(triggers, number, records[-1].offset + 1) for number, records in by_lane.items()]
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), COMMIT_TIMEOUT_S)
    producer.commit_transaction(COMMIT_TIMEOUT_S)
    for lane, turn in turns:
        lane.changelog_offset += len(turn.overlay)
        lane.store.apply(turn.overlay.items(), lane.changelog_offset)


def _consumer(setup: Setup) -> Any:
    return Consumer(
        {
            "bootstrap.servers": setup.bootstrap, "group.id": f"{setup.prefix}peer", "enable.auto.commit": False,
            "isolation.level": "read_committed", "auto.offset.reset": "earliest", "queued.min.messages": 100_000,
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )  # fmt: skip


def _producer(setup: Setup) -> Any:
    """Large batches, and enough of a queue that a whole transaction fits."""
    producer = Producer(
        {
            "bootstrap.servers": setup.bootstrap, "transactional.id": f"{setup.prefix}peer", "acks": "all",
            "linger.ms": 5, "batch.size": 1_000_000, "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1_000_000, "compression.type": setup.compression,
            "delivery.report.only.error": True, "message.max.bytes": OUTPUT_MAX_BYTES,
        }
    )  # fmt: skip
    producer.init_transactions(COMMIT_TIMEOUT_S)
    return producer


if __name__ == "__main__":
    main()
