"""Faust with processing_guarantee="exactly_once": an agent, a table in memory, and the same decision.

Faust keeps the dedup table and its changelog itself, commits on its timer, and writes neither audit records nor
checkpoints: less than the gate does. Runs in the environment of requirements-bench.lock.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import faust  # type: ignore[import-not-found]

from app.gate.trigger import Record
from app.stream.topics import Topic
from scripts.benchmark.peers import READY, Decider, Setup, headers

COMMIT_EVERY_S: Final = 2.8  # this and the next are its defaults; tried from 0.5 s on, neither made it faster
COMMIT_EVERY_RECORDS: Final = 10_000
LINGER_MS: Final = 5
BUFFER_RECORDS: Final = 16_384

setup = Setup.from_arguments()
decider = Decider(setup)
app = faust.App(
    f"{setup.prefix}faust",
    broker=f"kafka://{setup.bootstrap}",
    processing_guarantee="exactly_once",
    store="memory://",
    topic_partitions=setup.lanes,
    topic_replication_factor=1,
    broker_commit_interval=COMMIT_EVERY_S,
    broker_commit_every=COMMIT_EVERY_RECORDS,
    stream_buffer_maxsize=BUFFER_RECORDS,
    producer_linger=LINGER_MS / 1_000,
    producer_compression_type=None if setup.compression == "none" else setup.compression,
    consumer_auto_offset_reset="earliest",
    key_serializer="raw",
    value_serializer="raw",
    web_enabled=False,
    datadir=setup.directory,
)
triggers = app.topic(setup.topic(Topic.TRIGGERS))
written = {
    setup.topic(topic): app.topic(setup.topic(topic)) for topic in (Topic.JOBS, Topic.RECEIPTS, Topic.DEAD_LETTERS)
}
entries = app.Table("entries", partitions=setup.lanes, key_type=bytes, value_type=bytes)


class _TableAsStore:
    """The table as the decision asks for it."""

    def get_many(self, identities: list[bytes]) -> list[bytes | None]:
        return [entries.get(identity) for identity in identities]


store = _TableAsStore()


@app.agent(triggers)  # type: ignore[untyped-decorator]
async def decide_each(stream: Any) -> None:
    async for event in stream.events():
        message = event.message
        record = Record(
            message.partition, message.offset, int(message.timestamp * 1_000), message.timestamp_type == 1,
            message.key, message.value, tuple((message.headers or {}).items()),
        )  # fmt: skip
        turn = decider.turn(message.partition, store, [record])
        for identity, packed in turn.overlay.items():
            entries[identity] = packed
        for (name, partition), outs in turn.parts.items():
            topic = written.get(name)
            if topic is not None:  # the table has its own changelog
                for out in outs:
                    await topic.send(key=out.key, value=out.value, partition=partition, headers=dict(headers(out)))


@app.task  # type: ignore[untyped-decorator]
async def tell() -> None:
    print(READY, flush=True)


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--loglevel", "warn", "--without-web"]
    app.main()
