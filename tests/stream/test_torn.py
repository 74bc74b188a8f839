"""A transaction that Kafka ends by halves, as when its coordinator is fenced amid the markers, is made whole."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import proxy
from tests.support.deployments import Deployment
from tests.support.markers import write_markers
from tests.support.proxy import Fate, Frame, KafkaProxy, Side

WRITTEN = ("jobs", "receipts", "dead-letters", "audit", "idempotency", "checkpoints", "handoffs")


class Tear:
    """Cuts off requests to commit of a lane, from its first turn on, each after it told some partitions of a commit."""

    def __init__(self, bootstrap: str, transactional_id: str, *halves: Sequence[tuple[str, int]]) -> None:
        self._bootstrap, self._id = bootstrap, transactional_id
        self._halves = list(halves)
        self._topics = 0  # in the lane's transaction under way

    def __call__(self, frame: Frame) -> Fate:
        if frame.side is not Side.REQUEST or frame.api_key not in (proxy.ADD_PARTITIONS_TO_TXN, proxy.END_TXN):
            return Fate.PASS
        fields = frame.request_fields
        size = int.from_bytes(fields[:2], "big")
        if fields[2 : 2 + size].decode() != self._id:
            return Fate.PASS
        if frame.api_key == proxy.ADD_PARTITIONS_TO_TXN:  # behind the producer's id and epoch
            (self._topics,) = struct.unpack_from(">i", fields, 2 + size + 10)
        elif self._topics > 1 and self._halves:  # one is a checkpoint alone
            half = self._halves.pop(0)
            if half:
                write_markers(self._bootstrap, *struct.unpack_from(">qh", fields, 2 + size), half)
            return Fate.CUT
        return Fate.PASS


class Torn(NamedTuple):
    """Two lanes, of which the first's first turn is torn."""

    deployment: Deployment
    number: int
    other: int
    state_dir: Path
    logged: list[Any]

    def partition(self, name: str) -> tuple[str, int]:
        return self.deployment.topic(name), self.other if name == "handoffs" else self.number

    def halves(self, stands: set[str]) -> list[list[str]]:
        """What is told where these stand and no others."""
        return [
            sorted("{}[{}]".format(*self.partition(name)) for name in names)
            for names in (stands, set(WRITTEN) - stands)
        ]

    async def decide(self, *halves: Sequence[str]) -> list[list[str]]:
        """Three accepted, one refused and one for the other lane, in one turn, then one more: all is there once.

        What was told of torn transactions: which partitions stood, which did not, and of which nobody can tell.
        """
        deployment, number, other = self.deployment, self.number, self.other
        records = [deployment.good(number) for _ in range(3)]
        sent = await deployment.send(number, *records, b"no trigger", deployment.good(other))
        tear = Tear(
            deployment.bootstrap, f"{deployment.prefix}lane-{number}",
            *([self.partition(name) for name in names] for names in halves),
        )  # fmt: skip
        with KafkaProxy(deployment.bootstrap, tear) as between:
            async with deployment.worker(number, other, bootstrap=between.bootstrap, state_dir=self.state_dir):
                answers = await deployment.answers(sent[:4])
                await deployment.receipts_of(other, 1)
                again = await deployment.send(number, *records[:1])
                answers += await deployment.answers(again)
        assert answers == ["accepted"] * 3 + ["json_malformed", "duplicate"]
        found = await asyncio.gather(
            *(deployment.read(name, lane) for name in ("receipts", "jobs", "idempotency") for lane in (number, other)),
            *(deployment.read(name, number) for name in ("dead-letters", "audit")),
            deployment.read("handoffs", other),
        )
        told, told_other, *_, audit, _ = found
        assert sorted(json.loads(r.value or b"")["trigger_id"] for r in told + told_other) == sorted(sent + again)
        assert [len(records) for records in found[2:]] == [3, 1, 3, 1, 1, 2, 1]
        assert [json.loads(record.value or b"")["sequence"] for record in audit] == [1, 2]
        told = [event for event in self.logged if event["event"] == "transaction_torn"]
        assert not any(event["too_late"] or event["unknown"] for event in told)
        return [[event["committed"], event["aborted"]] for event in told]


@pytest.fixture
def torn(deployment: Deployment, state_dir: Path, logged: list[Any]) -> Torn:
    return Torn(deployment, deployment.lane(), deployment.lane(), state_dir, logged)


@pytest.mark.parametrize(
    "stands",
    [{"handoffs"}, {"idempotency"}, {"checkpoints"}]
    + [set(WRITTEN) - {name} for name in ("jobs", "handoffs", "checkpoints")],
    ids=lambda stands: f"{min(stands)} alone" if len(stands) == 1 else f"all but {min(set(WRITTEN) - stands)}",
)
async def test_what_is_missing_is_written_and_nothing_twice(torn: Torn, stands: set[str]) -> None:
    assert await torn.decide(sorted(stands)) == [torn.halves(stands)]


async def test_what_stands_whole_or_not_at_all_is_left_as_it_is(torn: Torn) -> None:
    assert await torn.decide(WRITTEN) == []


async def test_what_was_taken_back_whole_is_decided_anew(torn: Torn) -> None:
    assert await torn.decide([]) == []


async def test_what_is_missing_is_written_though_that_fails_too(torn: Torn) -> None:
    assert await torn.decide(["audit"], [], []) == [torn.halves({"audit"})]


async def test_what_is_missing_is_written_though_that_is_torn_too(torn: Torn) -> None:
    assert await torn.decide(["audit"], ["jobs", "checkpoints"]) == [
        torn.halves({"audit"}),
        torn.halves({"audit", "jobs", "checkpoints"}),
    ]


async def test_what_was_missing_and_is_written_without_an_answer_is_not_written_again(torn: Torn) -> None:
    assert await torn.decide(["audit"], sorted(set(WRITTEN) - {"audit"})) == [torn.halves({"audit"})]
