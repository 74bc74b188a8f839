"""What a turn may hold: no more than a transaction takes, no world that has passed, and none that others wait for."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from app.gate.revocation import revocation_key
from app.logs import log
from app.stream import lane as lane_module
from app.stream import tail as tail_module
from app.stream.judging import Judge, Slice
from app.stream.lane import Lane
from app.stream.log import CommitUnknown, ReadRecord
from app.stream.pollers import Pollers
from app.stream.tail import KafkaTail
from app.stream.topics import Topic
from app.stream.transaction import KafkaWriter
from tests.stream.test_batch import _of
from tests.support import reader
from tests.support.deployments import Deployment
from tests.support.emitting import trigger, until
from tests.support.issuer import ISSUER, OtherIssuer

LATE = "https://late.test"
WAITING = 250  # more than a slice


async def test_triggers_are_decided_while_any_number_of_handoffs_waits(deployment: Deployment) -> None:
    here, home = deployment.lane(), deployment.lane()
    late, file = OtherIssuer(deployment.prefix), deployment.directory / "late.json"
    file.write_text(json.dumps(late.jwks()))
    deployment.trust(LATE, file)
    away = [
        trigger(late, deployment.key(home), token=late.token("many", iss=LATE, jti=f"late-{n}")) for n in range(WAITING)
    ]
    ids = await deployment.send(here, *away)
    async with deployment.running(here, state_dir=deployment.new_directory()):
        await _holds(deployment, "handoffs", home, WAITING)
    whole = file.read_bytes()
    file.unlink()
    async with deployment.worker(home, state_dir=deployment.new_directory()) as worker:
        sent = await deployment.send(home, *[deployment.good(home) for _ in range(WAITING)])
        assert await deployment.answers(sent) == ["accepted"] * WAITING
        assert worker.lanes[home]._kept.holds
        assert len(await deployment.read("receipts", home)) == WAITING
        file.write_bytes(whole)
        await _holds(deployment, "receipts", home, 2 * WAITING)
        assert await deployment.answers(sent) == ["accepted"] * WAITING
    assert len(ids) == WAITING


async def _holds(deployment: Deployment, topic: str, lane: int, count: int) -> None:
    there = await asyncio.to_thread(
        reader.count_up_to, deployment.bootstrap, deployment.topic(topic), count, 60.0, [lane]
    )
    assert there == count


async def test_what_is_revoked_within_a_turn_is_refused_from_then_on(
    deployment: Deployment, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = deployment.lane()
    token = deployment.issuer.token("many", jti="taken-back")
    sent = await deployment.send(
        number, *[trigger(deployment.issuer, deployment.key(number), token=token) for _ in range(1_000)]
    )
    decided: list[int] = []
    whole = Judge.slice

    def revokes_after_the_first(self: Judge, *args: Any) -> Slice:
        judged = whole(self, *args)
        if judged.triggers and not decided:
            key = revocation_key(ISSUER, "jti", "taken-back")
            self._tables._apply(Topic.REVOCATIONS, ReadRecord(0, key, b"unreadable, so of any time"))
            self._tables._rebuild()
        decided.append(len(judged.triggers))
        return judged

    async with deployment.worker(state_dir=state_dir) as worker:
        monkeypatch.setattr(Judge, "slice", revokes_after_the_first)
        await worker.assigned({number})
        found = Counter(await deployment.answers(sent))
    first = next(count for count in decided if count)
    assert 0 < first < len(sent)
    assert found == {"accepted": first, "token_revoked": len(sent) - first}


async def test_turns_that_cannot_be_committed_shrink_until_they_can(
    deployment: Deployment, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = deployment.lane()
    commit = KafkaWriter.commit

    async def takes_little(self: KafkaWriter, parts: Any) -> Any:
        if len(parts.get((deployment.topic("receipts"), number), ())) > 1:
            raise CommitUnknown("the message is larger than the broker takes")
        return await commit(self, parts)

    monkeypatch.setattr(KafkaWriter, "commit", takes_little)
    sent = await deployment.send(number, *[deployment.good(number) for _ in range(10)])
    async with deployment.worker(number, state_dir=state_dir) as worker:
        assert await deployment.answers(sent) == ["accepted"] * 10
        await until("it went on", lambda: worker.lanes[number].failing_s == 0)


class _Nobody:
    """A cluster for a tail that nobody polls."""

    def wake(self) -> None:
        """Nobody sleeps."""

    def forget(self, tail: KafkaTail) -> None:
        """Nobody remembers."""


async def test_a_table_is_confirmed_by_what_was_taken_of_it_not_by_what_was_fetched() -> None:
    tail = KafkaTail(_Nobody(), ("revocations", 0), 0, asyncio.Event(), 1 << 20, False)  # type: ignore[arg-type]
    tail.caught_up(1.0)
    assert tail.confirmed_at_s == 1.0, "there was nothing"
    tail.arrived(_of(-1, 0, b"a", b"b", b"c"), None, 3)
    tail.caught_up(2.0)
    assert tail.confirmed_at_s == 1.0
    assert len(tail.take(2, 1 << 20)) == 2
    assert tail.confirmed_at_s == 1.0
    assert len(tail.take(2, 1 << 20)) == 1
    assert tail.confirmed_at_s == 2.0


async def test_a_partition_that_cannot_be_read_is_told_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "FAILED_TOLD_AFTER_S", 0.0)
    tail = KafkaTail(_Nobody(), ("triggers", 3), 0, asyncio.Event(), 1 << 20, True)  # type: ignore[arg-type]
    told: list[dict[str, Any]] = []
    with log.into(told):
        for _ in range(3):
            assert Pollers._deliver(None, tail, (3, 2, -1, -1, None, b""), 0.0) is False  # type: ignore[arg-type]
    assert [(event["event"], event["partition"], event["error"]) for event in told] == [
        ("fetch_failed", 3, "CorruptRecordException")
    ]
    assert not tail.wants, "the broker's other partitions are asked for without it"
    assert tail.failing_s > 0
    tail.arrived(_of(-1, 0, b"a"), None, 1)
    assert tail.failing_s == 0


async def test_a_lane_that_kafka_left_alone_for_long_does_not_stop_at_the_first_odd_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane_module, "FAILING_MAX_S", 0.2)
    monkeypatch.setattr(lane_module, "RETRY_MAX_S", 0.05)

    class Odd:
        """A Kafka that is away for longer than that, and odd from then on."""

        def __init__(self) -> None:
            self.began_s, self.odd_s = time.monotonic(), 0.0

        async def fence(self, *_: Any) -> Any:
            if time.monotonic() - self.began_s < 0.4:
                raise KafkaConnectionError("away")
            self.odd_s = self.odd_s or time.monotonic()
            raise ValueError("odd")

    source, shared = (
        Odd(),
        SimpleNamespace(prefix="t.", owner="o", batch_max_records=1, state_dir=None, cluster_id="", birth_id=""),
    )
    lane = Lane(0, shared, source, None)  # type: ignore[arg-type]
    lane.start()
    await until("it stops", lambda: lane.stopped_because is not None)
    assert time.monotonic() - source.odd_s >= 0.2
    await lane.release()
