"""Writing single triggers, and waiting for what became of them, with a client that is not ours."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Producer

from tests.support import reader
from tests.support.invariants import Read
from tests.support.issuer import JOB, OtherIssuer

WAIT_S = 30.0
POLL_S = 0.05


class Raw(NamedTuple):
    """A record to send, as any client may make it."""

    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    key: bytes | None = None


def emit(bootstrap: str, topic: str, partition: int, records: Iterable[Raw | bytes], **options: Any) -> list[str]:
    """Send in order; the trigger ids, in order. Raises when one was not taken."""
    failed: list[Any] = []
    offsets: dict[int, int] = {}
    settings = {"bootstrap.servers": bootstrap, "linger.ms": 20, "message.max.bytes": 200_000_000}
    producer = Producer(settings | {name.replace("_", "."): value for name, value in options.items()})

    def delivered(number: int) -> Callable[[Any, Any], None]:
        def told(error: Any, message: Any) -> None:
            if error is not None:
                failed.append(error)
            else:
                offsets[number] = message.offset()

        return told

    for number, record in enumerate(records):
        raw = record if isinstance(record, Raw) else Raw(record)
        producer.produce(
            topic, raw.value, raw.key, partition=partition, headers=list(raw.headers), on_delivery=delivered(number)
        )
    assert producer.flush(WAIT_S) == 0
    assert not failed, failed
    return [f"{partition}-{offsets[number]}" for number in sorted(offsets)]


async def until(what: str, holds: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait for something to become true; its value. Fails, saying what, when it does not."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(POLL_S)


async def receipts(
    bootstrap: str, prefix: str, trigger_ids: Sequence[str], timeout_s: float = WAIT_S
) -> dict[str, dict[str, Any]]:
    """The receipts of these triggers, decided in the lanes they were sent to, once all are there."""
    lanes = sorted({int(each.partition("-")[0]) for each in trigger_ids})
    deadline = time.monotonic() + timeout_s
    while True:
        topic = await asyncio.to_thread(reader.read_topic, bootstrap, f"{prefix}receipts", partitions=lanes)
        found: dict[str, dict[str, Any]] = {}
        for record in topic.records:
            row = json.loads(record.value or b"")
            assert row["trigger_id"] not in found, f"a second receipt of {row['trigger_id']}"
            found[row["trigger_id"]] = row
        missing = [each for each in trigger_ids if each not in found]
        if not missing:
            return {each: found[each] for each in trigger_ids}
        assert time.monotonic() < deadline, f"{len(missing)} of {len(trigger_ids)} receipts missing, first {missing[0]}"
        await asyncio.sleep(POLL_S)


async def read_lane(bootstrap: str, topic: str, lane: int) -> list[Read]:
    return (await asyncio.to_thread(reader.read_topic, bootstrap, topic, partitions=[lane])).records


_numbers = itertools.count()


def home_key(lane: int, lanes: int) -> str:
    """A key, never given before, that is at home in a lane."""
    from app.gate.idempotency import home_lane

    return next(key for key in (f"key-{number}" for number in _numbers) if home_lane(key, lanes) == lane)


def trigger(issuer: OtherIssuer, key: str | None = None, **members: Any) -> bytes:
    """A good webhook trigger; `members` are added or replace."""
    given = {"job": JOB, "params": {}, "token": issuer.token("many")} | ({"idempotency_key": key} if key else {})
    return json.dumps(given | members).encode()
