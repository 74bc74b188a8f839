"""The judge is itself judged: on a stage that is in order it finds nothing, and whatever is planted there it finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.campaign.case import Evidence, GateTraces, Strike
from tests.campaign.history import save, saved
from tests.campaign.journals import Journals
from tests.campaign.judge import CHECKS, STANDS_FOR, judge
from tests.campaign.stage import LEDGER
from tests.campaign.watch import digest_of, place_of
from tests.kill.test_invariants import world
from tests.support import invariants, reader
from tests.support.invariants import Read, Seen, Sent
from tests.support.reader import Isolation
from tests.support.stores import opened

PREFIX = "judged."
GATE = "gate-0"
TOKEN = b"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzZXJ2aWNlIn0." + b"x" * 86
LANES = 2


class Planted(NamedTuple):
    """Topics as a test wants them: what is committed, and what a reader of everything sees beyond that."""

    committed: dict[str, list[Read]]
    aborted: dict[str, list[Read]]
    highs: dict[tuple[str, int], int]

    def read(self, name: str, isolation: Isolation = "read_committed", *, lean: bool = False) -> reader.Topic:
        records = list(self.committed[name])
        ends = {
            lane: max([each.offset for each in records if each.partition == lane], default=-1) + 1
            for lane in range(LANES)
        }
        if isolation == "read_uncommitted":
            records = sorted(records + self.aborted.get(name, []))
        if lean:
            records = [each._replace(value=None, headers=()) for each in records]
        return reader.Topic(records, ends, {lane: self.highs.get((name, lane), end) for lane, end in ends.items()})


class Judged:
    """A stage in order, with its journal: two lanes of one gate, in epoch 1, each trigger decided once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ledger, seen = world()
        committed = {name.replace("_", "-"): list(getattr(seen, name)) for name in Seen.topics()}
        committed["triggers"] = [each._replace(key=each.id.encode()) for each in committed["triggers"]]
        self.topics = Planted(committed, {}, {})
        self.meant = {uid.encode(): sent for uid, sent in ledger.sent.items()}
        self.seen = {
            topic: {place_of(each.partition, each.offset): digest_of(each.key, each.value) for each in committed[topic]}
            for topic in ("jobs", "receipts", "dead-letters", "audit", "idempotency")
        }
        self.changed: list[str] = []
        self.reader_error: str | None = None
        self.broken: list[str] = []
        self.strikes: list[Strike] = []
        self.lines: list[dict[str, Any]] = []
        for lane, end in ((0, 2), (1, 0)):
            self.transaction(lane, {"checkpoints": end})
        self.log = directory / f"{GATE}.log"
        self.log.write_text('{"event": "gate_started"}\n')

    def transaction(
        self, lane: int, bases: dict[str, int], *, epoch: int = 1, run: str = f"{GATE}/1", end: str = "committed",
        asked: bool = True,
    ) -> None:  # fmt: skip
        """One record to each topic, at these offsets."""
        of = {"run": run, "lane": lane, "producer": 7, "epoch": epoch}
        where = {f"{PREFIX}{topic}/{lane}": base for topic, base in bases.items()}
        events: list[dict[str, Any]] = [
            {"e": "begin", "counts": dict.fromkeys(where, 1)}, {"e": "placed", "bases": where},
        ]  # fmt: skip
        events += [{"e": "end"}] if asked else []
        events += [{"e": end, "decided": True, "why": "", "what": ""}]
        self.lines += [{"at": len(self.lines) + n, **of, **event} for n, event in enumerate(events)]

    def evidence(self) -> Evidence:
        (self.directory / f"{GATE}.journal").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        (self.directory / LEDGER).write_text(
            "".join(
                f"{uid.decode()}\t{sent.intended}\t{sent.reason or '-'}\t{sent.identity or '-'}\n"
                for uid, sent in self.meant.items()
            )
        )
        journals = Journals(self.directory)
        journals.update()
        traces = GateTraces(GATE, self.directory / f"{GATE}-state", self.log)
        return Evidence(
            PREFIX, journals, [traces], self.meant, set(self.meant), self.seen, self.changed, self.reader_error,
            self.broken, self.strikes,
        )  # fmt: skip

    def store(self, lane: int, extra: bytes | None = None) -> None:
        """The gate's local store of a lane, as its changelog; with one entry more."""
        entries = [each for each in self.topics.committed["idempotency"] if each.partition == lane]
        state_dir = self.directory / f"{GATE}-state"
        state_dir.mkdir(exist_ok=True)
        store = opened(state_dir / f"lane-{lane}")
        store.apply([(each.key or b"", each.value) for each in entries], entries[-1].offset + 1)
        if extra is not None:
            store.apply([(extra, b"of nobody")], entries[-1].offset + 1)
        store.close()


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    stage = Judged(tmp_path)
    for lane in range(LANES):
        stage.store(lane)
    return stage


def found(stage: Judged) -> set[str]:
    return {what.split()[1].rstrip(":") for what in judge(stage.evidence(), stage.topics).violations}


def _vanish(stage: Judged) -> None:
    stage.seen["jobs"][place_of(1, 40)] = 1


def _behind_the_back(stage: Judged) -> None:
    stage.seen["receipts"].popitem()


def _otherwise(stage: Judged) -> None:
    stage.seen["audit"][next(iter(stage.seen["audit"]))] += 1


def _unread(stage: Judged) -> None:
    stage.changed.append("receipts 0-1 was read twice, with two values")


def _held_back(stage: Judged) -> None:
    stage.topics.highs["receipts", 0] = 9


def _not_in_the_log(stage: Judged) -> None:
    job = stage.topics.committed["jobs"][0]
    stage.topics.aborted["jobs"] = []
    whole = stage.topics.read("jobs", "read_uncommitted", lean=True)
    stage.topics = _Losing(*stage.topics, lost=whole.records.index(job._replace(value=None)))  # type: ignore[assignment]


class _Losing:
    """A reader of everything who does not see one of the jobs."""

    def __init__(self, *planted: Any, lost: int) -> None:
        self._planted, self._lost = Planted(*planted), lost

    def read(self, name: str, isolation: Isolation = "read_committed", *, lean: bool = False) -> reader.Topic:
        told = self._planted.read(name, isolation, lean=lean)
        if name == "jobs" and isolation == "read_uncommitted":
            del told.records[self._lost]
        return told


def _duplicate_before_its_run(stage: Judged) -> None:
    receipts = stage.topics.committed["receipts"]
    first, second = receipts[:2]
    receipts[:2] = [second._replace(offset=0), first._replace(offset=1)]


def _token_in_a_job(stage: Judged) -> None:
    jobs = stage.topics.committed["jobs"]
    jobs[0] = jobs[0]._replace(headers=(("authorization", b"Bearer " + TOKEN),))


def _token_in_the_log(stage: Judged) -> None:
    stage.log.write_bytes(b'{"event": "x", "why": "%s"}\n' % TOKEN)


def _lane_stops(stage: Judged) -> None:
    stage.log.write_text('{"event": "lane_stopped", "lane": 1, "why": "it holds no checkpoint"}\n')


PLANTED: dict[str, tuple[str, Callable[[Judged], object]]] = {
    "an acknowledged trigger is not there": ("emitted", lambda it: it.topics.committed["triggers"].pop()),
    "a trigger is of nobody": (
        "emitted", lambda it: it.topics.committed["triggers"].append(Read(1, 9, b"another", b"")),
    ),
    "a duplicate stands before its run": ("first_admissible_wins", _duplicate_before_its_run),
    "a transaction is torn": ("transactions_whole", lambda it: it.transaction(1, {"jobs": 0, "receipts": 9}, end="failed")),
    "an acknowledged transaction is not there": ("transactions_whole", lambda it: it.transaction(1, {"jobs": 9})),
    "a transaction that was never to be committed is": (
        "transactions_whole", lambda it: it.transaction(1, {"jobs": 0}, end="failed", asked=False),
    ),
    "a record is gone that was read": ("concurrent_reader_agrees", _vanish),
    "a record comes where reading is over": ("concurrent_reader_agrees", _behind_the_back),
    "a record has changed": ("concurrent_reader_agrees", _otherwise),
    "an offset had two values": ("concurrent_reader_agrees", _unread),
    "a transaction is open": ("nothing_hangs", _held_back),
    "a committed record is not in the log": ("nothing_hangs", _not_in_the_log),
    "a store holds more": ("stores_as_their_changelogs", lambda it: it.store(0, b"C" * 16)),
    "no store holds the last entry": (
        "stores_as_their_changelogs", lambda it: shutil.rmtree(it.directory / f"{GATE}-state" / "lane-1"),
    ),
    "an older epoch commits later": (
        "epochs_never_go_back", lambda it: it.transaction(0, {"checkpoints": 9}, epoch=0, run="gate-1/2"),
    ),
    "two commit in one epoch": (
        "epochs_never_go_back", lambda it: it.transaction(0, {"checkpoints": 9}, run="gate-1/2"),
    ),
    "an epoch is used again after a failure": (
        "epochs_recycled",
        lambda it: [it.transaction(0, {"checkpoints": 8}, end="failed"), it.transaction(0, {"checkpoints": 9})],
    ),
    "a token is on an output": ("no_token_on_any_output", _token_in_a_job),
    "a token is in a log": ("no_token_on_any_output", _token_in_the_log),
    "a lane stops for good": ("no_lane_stopped", _lane_stops),
}  # fmt: skip


def test_a_stage_in_order_has_no_violation(judged: Judged) -> None:
    assert judge(judged.evidence(), judged.topics).violations == []


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(judged: Judged, fault: str) -> None:
    check, plant = PLANTED[fault]
    plant(judged)
    assert check in found(judged)


def test_every_check_is_shown_to_see_something() -> None:
    assert {check.__name__ for check in CHECKS} == {check for check, _ in PLANTED.values()}
    assert {check.__name__ for check in (*CHECKS, *invariants.CHECKS)} <= STANDS_FOR.keys()


def test_a_torn_transaction_that_its_gate_has_completed_is_none(judged: Judged) -> None:
    torn = {"jobs": 0, "receipts": 9}
    judged.transaction(1, torn, end="failed")
    judged.transaction(1, {"receipts": 0}, epoch=2)
    assert judge(judged.evidence(), judged.topics).violations == []


@pytest.mark.parametrize("fault", [None, *PLANTED])
def test_what_was_saved_is_judged_the_same(judged: Judged, fault: str | None) -> None:
    if fault is not None:
        PLANTED[fault][1](judged)
    evidence = judged.evidence()
    save(evidence, judged.topics, judged.directory)
    again, topics = saved(judged.directory)
    assert again.meant == evidence.meant
    told, now = judge(evidence, judged.topics), judge(again, topics)
    assert now.violations == told.violations
    assert now == told


def test_bytes_that_are_no_text_are_saved_as_they_are(judged: Judged, tmp_path: Path) -> None:
    odd = Read(1, 90, b"\xff\x00", None, (("h", b"\xfe"), ("none", None)))
    judged.topics.committed["handoffs"].append(odd)
    save(judged.evidence(), judged.topics, tmp_path)
    assert saved(tmp_path)[1].read("handoffs").records[-1] == odd


def test_what_rows_and_the_reader_found_is_told_and_saved(judged: Judged) -> None:
    judged.broken.append("drained: 3 receipts for 4 triggers")
    judged.reader_error = "it lost its broker"
    told = judge(judged.evidence(), judged.topics)
    assert told.violations == [
        "L2 drained: 3 receipts for 4 triggers", "the concurrent reader failed: it lost its broker",
    ]  # fmt: skip
    save(judged.evidence(), judged.topics, judged.directory)
    assert judge(*saved(judged.directory)) == told


@pytest.mark.parametrize(("at", "violations"), [(-1.0, True), (100.0, False)])
def test_a_damaged_store_is_judged_once_somebody_has_opened_it_since(
    judged: Judged, at: float, violations: bool
) -> None:
    judged.store(0, b"C" * 16)
    judged.lines.append({"e": "epoch", "at": 50.0, "run": f"{GATE}/1", "lane": 0, "producer": 7, "epoch": 1})
    judged.strikes.append(Strike("swapped", f"{GATE}-state/lane-0 {GATE}-state/lane-1", at))
    told = judge(judged.evidence(), judged.topics)
    assert bool([what for what in told.violations if "stores_as" in what and "lane-0" in what]) is violations
    save(judged.evidence(), judged.topics, judged.directory)
    assert judge(*saved(judged.directory)) == told


def test_a_sent_trigger_is_read_from_the_ledger_as_it_was_meant(judged: Judged) -> None:
    judged.meant[b"9-9"] = Sent(None, "rejected", "token_expired")
    save(judged.evidence(), judged.topics, judged.directory)
    assert saved(judged.directory)[0].meant[b"9-9"] == Sent(None, "rejected", "token_expired")
