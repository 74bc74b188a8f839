"""How much a lane takes at once: the largest records, batches that expand, backlogs; and what a transaction may hold."""

from __future__ import annotations

import base64
import gc
import json
import os
from pathlib import Path

from tests.support import memory
from tests.support.deployments import Deployment
from tests.support.emitting import Raw, trigger
from tests.support.memory import MIB


async def test_the_largest_record_the_topic_takes_is_decided(deployment: Deployment, state_dir: Path) -> None:
    number = deployment.lane()
    largest = 1_048_588 - 61 - 30  # less the batch's header and the record's own fields
    envelope = len(trigger(deployment.issuer, "x" * 20, params={"fill": ""}))
    records = [
        Raw(b"\xff" * largest),
        Raw(b'"' + b"a" * (largest - 2) + b'"'),
        Raw(b"k" * 500_000, key=b"k" * (largest - 500_000)),
        Raw(b"{}", [("big", b"h" * (largest - 200))]),
        Raw(trigger(deployment.issuer, deployment.key(number), params={"fill": "x" * (largest - envelope - 100)})),
        Raw(trigger(deployment.issuer, deployment.key(number), params={"fill": "x" * 500_000})),
        Raw(deployment.good(number)),
    ]
    async with deployment.running(number, state_dir=state_dir):
        found = await deployment.answers(await deployment.send(number, *records))
    assert found[4:] == ["payload_too_large", "accepted", "accepted"]
    assert set(found[:4]) <= {"json_malformed", "envelope_malformed", "headers_malformed", "record_too_large"}


async def test_a_batch_that_expands_to_150_mb_is_refused_offset_by_offset_within_bounded_memory(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    bomb = [Raw(bytes(50 * MIB)) for _ in range(3)]
    ids = await deployment.send(number, *bomb, compression_type="zstd", batch_size=200_000_000, linger_ms=1_000)
    ids += await deployment.send(number, deployment.good(number))
    del bomb
    gc.collect()
    async with deployment.worker(state_dir=state_dir) as worker:
        memory.begin_peak_anew()
        idle = memory.peak_bytes()
        await worker.assigned({number})
        found = await deployment.answers(ids)
        grown = memory.peak_bytes() - idle
    assert found == ["batch_too_large"] * 3 + ["accepted"]
    assert grown < 256 * MIB
    letters = await deployment.read("dead-letters", number)
    offsets = [dict(letter.headers)["tollgate-offset"] for letter in letters]
    assert offsets == [b"0", b"1", b"2"]


async def test_a_backlog_is_decided_in_few_transactions_and_idle_records_one_by_one(
    deployment: Deployment, state_dir: Path
) -> None:
    number = deployment.lane()
    backlog = await deployment.send(number, *(deployment.good(number) for _ in range(1_000)))
    async with deployment.running(number, state_dir=state_dir):
        assert set(await deployment.answers(backlog)) == {"accepted"}
        for _ in range(5):
            single = await deployment.send(number, deployment.good(number))
            assert await deployment.answers(single) == ["accepted"]
    audit = await deployment.read("audit", number)
    sizes = [len(json.loads(record.value or b"")["presentations"]) for record in audit]
    assert sum(sizes) == 1_005
    assert sizes[-5:] == [1] * 5
    assert max(sizes) >= 100
    assert len(sizes) <= 5 + 20


async def test_what_a_small_batch_expands_to_never_makes_a_transaction_that_no_topic_takes(
    deployment: Deployment, state_dir: Path
) -> None:
    """Found in review: some records before a batch that expands to just under the limit."""
    number = deployment.lane()
    text = base64.b64encode(os.urandom(750_000))
    junk = [Raw(text[n * 9_000 : (n + 1) * 9_000]) for n in range(100)]
    ids = await deployment.send(number, *junk)
    ids += await deployment.send(
        number, *[Raw(text[:1_000_000])] * 8,
        compression_type="zstd", batch_size=200_000_000, linger_ms=1_000,
    )  # fmt: skip
    ids += await deployment.send(
        number, *[Raw(b"{}", key=text[:1_000_000])] * 6,
        compression_type="zstd", batch_size=200_000_000, linger_ms=1_000,
    )  # fmt: skip
    ids += await deployment.send(number, deployment.good(number))
    async with deployment.running(number, state_dir=state_dir):
        found = await deployment.answers(ids)
    assert found[-1] == "accepted"
    assert set(found[:-1]) == {"json_malformed", "token_missing"}


async def test_the_largest_triggers_are_handed_off_in_transactions_that_every_topic_takes(
    deployment: Deployment, state_dir: Path
) -> None:
    here, home = deployment.lane(), deployment.lane()
    fill = base64.b64encode(os.urandom(370_000)).decode()
    token = deployment.issuer.token("many")
    records = [
        Raw(trigger(deployment.issuer, deployment.key(home), token=token, params={"fill": fill, "n": n}))
        for n in range(16)
    ]
    sent = await deployment.send(here, *records, compression_type="zstd", batch_size=200_000_000, linger_ms=1_000)
    async with deployment.worker(here, home, state_dir=state_dir):
        found = await deployment.receipts_of(home, len(sent))
    assert {json.loads(each.value or b"")["outcome"] for each in found} == {"accepted"}
