"""What is judged: all that a stage left, read with a client that is not the gates', or again from what was saved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from tests.campaign.journals import Journals
from tests.campaign.watch import digest_of, place_of
from tests.support import reader
from tests.support.gates import events_of
from tests.support.invariants import Ledger, Read, Seen, Sent
from tests.support.reader import Isolation

COMPACT_JWS = re.compile(rb"eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{20,}")
NEVER_COMPACTED = ("jobs", "receipts", "dead-letters", "audit", "handoffs", "idempotency")


class GateTraces(NamedTuple):
    """What a gate leaves on its own disk."""

    name: str
    state_dir: Path
    log_file: Path

    def events(self) -> list[dict[str, Any]]:
        return events_of(self.log_file)


class Strike(NamedTuple):
    """What the judge wants to know of a fault."""

    kind: str
    detail: str
    at: float  # CLOCK_MONOTONIC, as the journals have it


@dataclass
class Evidence:
    """What a stage left beside its topics."""

    prefix: str
    journals: Journals
    gates: Sequence[GateTraces]
    meant: Mapping[bytes, Sent]  # the ledger, by uid
    taken: set[bytes]  # acknowledged
    seen: Mapping[str, Mapping[int, int]]  # by the concurrent reader: topic → place → digest
    changed: Sequence[str] = ()  # one offset, read twice, with two values
    reader_error: str | None = None
    broken: Sequence[str] = ()  # found by the rows themselves
    strikes: Sequence[Strike] = ()


class Topics(Protocol):
    """Where the topics are read, by their names after the prefix."""

    def read(self, name: str, isolation: Isolation = "read_committed", *, lean: bool = False) -> reader.Topic: ...


class OnBrokers(NamedTuple):
    """Those of a deployment, as they stand now."""

    bootstrap: str
    prefix: str

    def read(self, name: str, isolation: Isolation = "read_committed", *, lean: bool = False) -> reader.Topic:
        return reader.read_topic(self.bootstrap, self.prefix + name, isolation, lean=lean)


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("trigger_id", "outcome", "run_id", "reason")}


def _of_trigger(row: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": row.get("run_id"), "trigger": {"id": row["trigger"]["id"]}}


# Of rows of these topics the checks ask for so much.
SLIM: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "receipts": _outcome, "jobs": _of_trigger, "handoffs": _of_trigger,
}  # fmt: skip
HEADERS_KEPT = ("tollgate-partition", "tollgate-offset")
TOKENLESS = ("handoffs", "jobs", "receipts", "dead_letters", "audit")


def _slim(record: Read, headers: tuple[str, ...] = ()) -> Read:
    kept = tuple(each for each in record.headers if each[0] in headers)
    return record._replace(value=None, headers=kept)


def _holds_token(record: Read) -> bool:
    texts = (record.value or b"", *(content or b"" for _, content in record.headers))
    return any(b"eyJ" in text and COMPACT_JWS.search(text) for text in texts)


@dataclass
class Case:
    """All there is to judge."""

    evidence: Evidence
    ledger: Ledger
    seen: Seen
    lost: list[str] = field(default_factory=list)  # acknowledged, and not on the topic
    hanging: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    digests: dict[str, dict[int, int]] = field(default_factory=dict)  # committed, by topic: place → digest
    offsets: dict[str, set[int]] = field(default_factory=dict)  # the same places
    attempted: int = 0  # records that a reader of everything sees beyond those committed
    indeterminate: Counter[str] = field(default_factory=Counter)


def collect(evidence: Evidence, topics: Topics) -> Case:
    """Read every topic twice: as committed, and whole. Of what is large only what the checks ask for is kept."""
    kept: dict[str, list[Read]] = {}
    rows: dict[str, list[tuple[Read, dict[str, Any]]]] = {}
    case = Case(evidence, Ledger(), Seen([], [], [], [], [], [], [], []))
    for name in Seen.topics():
        topic = name.replace("_", "-")
        committed = topics.read(topic, lean=name == "triggers")
        whole = topics.read(topic, "read_uncommitted", lean=True)
        case.attempted += len(whole.records) - len(committed.records)
        everything = {place_of(record.partition, record.offset) for record in whole.records}
        case.hanging += [
            f"{name} {record.id} is committed and not there for a reader of everything"
            for record in committed.records
            if place_of(record.partition, record.offset) not in everything
        ]
        case.hanging += [
            f"{name}[{number}] is readable to {committed.ends[number]}, its end is {high}"
            for number, high in committed.highs.items()
            if committed.ends[number] != high
        ]
        if name != "triggers":
            case.digests[topic] = {
                place_of(record.partition, record.offset): digest_of(record.key, record.value)
                for record in committed.records
            }
        if name in TOKENLESS:
            case.tokens += [f"{name} {record.id} holds a token" for record in committed.records if _holds_token(record)]
        if name in SLIM:
            rows[name] = [
                (_slim(record), SLIM[name](orjson.loads(record.value or b"null"))) for record in committed.records
            ]
            kept[name] = [record for record, _ in rows[name]]
        else:
            kept[name] = [_slim(record, HEADERS_KEPT) for record in committed.records] if name == "dead_letters" else (
                committed.records
            )  # fmt: skip
    case.seen = seen = Seen(**kept)
    # What the properties would parse, were the values still there.
    vars(seen).update(job_rows=rows["jobs"], receipt_rows=rows["receipts"], handoff_rows=rows["handoffs"])
    meant, taken = evidence.meant, evidence.taken
    ledger = case.ledger
    times: Counter[bytes] = Counter()
    lost: list[str] = []
    for record in seen.triggers:
        uid = record.key or b""
        times[uid] += 1
        if uid in meant:
            ledger.sent[record.id] = meant[uid]
        else:
            lost.append(f"trigger {record.id} is of nobody's ledger")
    lost += [f"trigger {uid.decode()} was acknowledged and is not there" for uid in taken if not times[uid]]
    case.lost = lost
    # A client may write again what a broker that was killed had taken. Each is a trigger of its own, with its own receipt.
    case.indeterminate["triggers written twice by the emitter's client"] = sum(n - 1 for n in times.values())
    case.indeterminate["triggers not acknowledged, there"] = len(times) - len(taken)
    case.indeterminate["triggers not acknowledged, not there"] = len(meant) - len(times)
    case.offsets = {topic: set(case.digests[topic]) for topic in NEVER_COMPACTED}
    return case
