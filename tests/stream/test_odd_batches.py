"""Batches of a stranger that a broker takes and readers do not agree on: each offset is decided, and no other is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import reader
from tests.support.deployments import Deployment, is_running
from tests.support.emitting import Raw
from tests.support.odd_batches import ODD, produce

KEY_BYTES = 62_000


@pytest.mark.parametrize("what", ODD)
async def test_each_offset_is_decided_and_the_triggers_after_it_too(
    deployment: Deployment, state_dir: Path, what: str
) -> None:
    number = deployment.lane()
    topic = deployment.topic("triggers")
    values = [deployment.good(number), deployment.good(number)]
    first = await deployment.send(number, deployment.good(number))
    async with deployment.running(number, state_dir=state_dir) as lane:
        base = await produce(deployment.bootstrap, topic, number, ODD[what](values))
        assert base == 1
        found = await deployment.answers([*first, f"{number}-1", f"{number}-2"])
        assert found == ["accepted", "batch_unreadable", "batch_unreadable"]
        after = await deployment.send(number, *[deployment.good(number) for _ in range(3)])
        assert after == [f"{number}-{offset}" for offset in (3, 4, 5)]
        assert await deployment.answers(after) == ["accepted"] * 3
        await is_running(lane)
    async with deployment.running(number, state_dir=state_dir) as lane:
        last = await deployment.send(number, deployment.good(number))
        assert await deployment.answers(last) == ["accepted"]
        assert lane._tenure is not None
        assert lane._tenure._triggers.position == 7
    receipts = await asyncio.to_thread(
        reader.read_topic, deployment.bootstrap, deployment.topic("receipts"), partitions=[number]
    )
    assert len(receipts.records) == 7


async def test_keys_and_headers_count_in_what_a_turn_writes(deployment: Deployment, state_dir: Path) -> None:
    """Found in review: batches of little that expand to thousands of large keys made one transaction of 137 MB."""
    number = deployment.lane()
    junk = [Raw(b"{}", key=b"k" * KEY_BYTES) for _ in range(600)]
    ids = await deployment.send(number, *junk, compression_type="zstd", batch_size=7_000_000, linger_ms=200)
    ids += await deployment.send(number, deployment.good(number))
    async with deployment.running(number, state_dir=state_dir, compression="lz4"):
        found = await deployment.answers(ids)
    assert set(found[:-1]) == {"token_missing"}
    assert found[-1] == "accepted"
    audit = await deployment.read("audit", number)
    assert len(audit) > len(junk) * KEY_BYTES // (4 << 20)
