"""What must hold on the topics of a deployment that has come to rest, judged from what an independent reader saw.

Imports nothing of the program: the formats are read by their documentation in `schemas/`. Every violation is one
sentence; none is a deployment whose triggers were each decided once and together with all they became.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, NamedTuple

EXAMPLES_MAX = 5  # of one kind of violation
NO_AUDIT_YET = "0" * 64
# version, run id, fingerprint, jti digest, source partition and offset, append time, end of the window
_ENTRY = struct.Struct(">B16s16s8sIQQQ")


class Read(NamedTuple):
    """A record as a consumer gave it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int = 0
    timestamp_type: int = 2

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"


class Sent(NamedTuple):
    """What the emitter meant by a trigger. Identity: what must run once; None where each trigger is its own."""

    identity: str | None
    intended: Literal["good", "rejected"]
    reason: str | None = None  # the code a refusal must give, where one is meant


@dataclass
class Ledger:
    """What was sent and acknowledged, by trigger id."""

    sent: dict[str, Sent] = field(default_factory=dict)


@dataclass
class Seen:
    """All topics of a deployment, as read under read_committed after it came to rest."""

    triggers: list[Read]
    handoffs: list[Read]
    jobs: list[Read]
    receipts: list[Read]
    dead_letters: list[Read]
    audit: list[Read]
    idempotency: list[Read]
    checkpoints: list[Read]
    # By lane, where emitters write in transactions: a marker of theirs may be what stands last.
    triggers_end: dict[int, int] = field(default_factory=dict)

    @classmethod
    def topics(cls) -> list[str]:
        """The members that hold a topic's records, named as it is but for its dashes."""
        return [name for name in cls.__dataclass_fields__ if name != "triggers_end"]

    @cached_property
    def job_rows(self) -> list[tuple[Read, dict[str, Any]]]:
        return _parsed(self.jobs)

    @cached_property
    def receipt_rows(self) -> list[tuple[Read, dict[str, Any]]]:
        return _parsed(self.receipts)

    @cached_property
    def audit_rows(self) -> list[tuple[Read, dict[str, Any]]]:
        return _parsed(self.audit)

    @cached_property
    def handoff_rows(self) -> list[tuple[Read, dict[str, Any]]]:
        return _parsed(self.handoffs)

    @cached_property
    def last_checkpoints(self) -> dict[int, dict[str, Any]]:
        """By lane. Later offsets overwrite earlier ones."""
        return {record.partition: row for record, row in _parsed(self.checkpoints)}


def _parsed(records: list[Read]) -> list[tuple[Read, dict[str, Any]]]:
    return [(record, json.loads(record.value or b"null")) for record in records]


def violations(ledger: Ledger, seen: Seen) -> list[str]:
    """Every invariant that does not hold; empty when all do."""
    found: list[str] = []
    for check in CHECKS:
        broken = list(check(ledger, seen))
        found += [f"{check.__name__}: {what}" for what in broken[:EXAMPLES_MAX]]
        if len(broken) > EXAMPLES_MAX:
            found.append(f"{check.__name__}: and {len(broken) - EXAMPLES_MAX} more")
    return found


def emitted(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """What was acknowledged is on the topic, and nothing else."""
    yield from _same("trigger", ledger.sent, [record.id for record in seen.triggers])


def one_receipt_per_trigger(ledger: Ledger, seen: Seen) -> Iterator[str]:
    yield from _same("receipt of trigger", ledger.sent, [row["trigger_id"] for _, row in seen.receipt_rows])
    for record, row in seen.receipt_rows:
        if record.key != row["trigger_id"].encode():
            yield f"receipt {record.id} is keyed {record.key!r}, its trigger is {row['trigger_id']}"


def verdicts_as_intended(ledger: Ledger, seen: Seen) -> Iterator[str]:
    for _, row in seen.receipt_rows:
        sent = ledger.sent.get(row["trigger_id"])
        if sent is not None and (sent.intended == "rejected") is not (row["outcome"] == "rejected"):
            yield f"trigger {row['trigger_id']} was meant {sent.intended}, is {row['outcome']} ({row['reason']})"
        elif sent is not None and sent.reason not in (None, row["reason"]):
            yield f"trigger {row['trigger_id']} was meant {sent.reason}, is {row['reason']}"


def one_job_per_identity(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Exactly one for every identity of a good trigger, over all partitions; no run id twice."""
    jobs: Counter[str] = Counter()
    for record, row in seen.job_rows:
        sent = ledger.sent.get(row["trigger"]["id"])
        if sent is None or sent.intended == "rejected":
            yield f"job {record.id} comes from trigger {row['trigger']['id']}, which was not sent or not good"
        else:
            jobs[sent.identity or row["trigger"]["id"]] += 1
    wanted = {sent.identity or trigger_id for trigger_id, sent in ledger.sent.items() if sent.intended == "good"}
    yield from _same("job of identity", wanted, list(jobs.elements()))
    yield from _twice("run id", [row["run_id"] for _, row in seen.job_rows])


def receipts_name_the_run(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """An accepted receipt names its own job; every duplicate of an identity names the run of the accepted one."""
    run_of_trigger = {row["trigger"]["id"]: row["run_id"] for _, row in seen.job_rows}
    run_of_identity: dict[str, str] = {}
    for trigger_id, run_id in run_of_trigger.items():
        sent = ledger.sent.get(trigger_id)
        if sent is not None and sent.identity is not None:
            run_of_identity[sent.identity] = run_id
    for _, row in seen.receipt_rows:
        trigger_id, run_id = row["trigger_id"], row["run_id"]
        sent = ledger.sent.get(trigger_id)
        match row["outcome"]:
            case "accepted" if run_of_trigger.get(trigger_id) != run_id:
                yield f"receipt of {trigger_id} names run {run_id}, its job is {run_of_trigger.get(trigger_id)}"
            case "duplicate" if sent is not None and run_of_identity.get(sent.identity or "") != run_id:
                yield f"duplicate {trigger_id} of {sent.identity} names run {run_id}"
            case "rejected" | "duplicate" if trigger_id in run_of_trigger:
                yield f"trigger {trigger_id} is {row['outcome']} and has a job"


def entries_and_jobs(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Every job of a trigger with an identity has its idempotency entry in the same lane, and each entry its job."""
    entries: dict[str, tuple[int, str]] = {}
    keys: list[str] = []
    for record in seen.idempotency:
        if record.value is None:
            continue
        version, run_id, _, _, partition, offset, _, _ = _ENTRY.unpack(record.value)
        if version != 1:
            yield f"entry {record.id} has version {version}"
        entries[run_id.hex()] = (record.partition, f"{partition}-{offset}")
        keys.append((record.key or b"").hex())
    yield from _twice("entry of identity", keys)
    jobs = {}
    for record, row in seen.job_rows:
        sent = ledger.sent.get(row["trigger"]["id"])
        if sent is None or sent.identity is not None:
            jobs[row["run_id"].replace("-", "")] = (record.partition, row["trigger"]["id"])
    for run_id, where in jobs.items():
        if entries.get(run_id) != where:
            yield f"job {run_id} (lane, trigger) {where} has the entry {entries.get(run_id)}"
    for run_id in entries.keys() - jobs.keys():
        yield f"entry of run {run_id} has no job"


def one_dead_letter_per_refusal(ledger: Ledger, seen: Seen) -> Iterator[str]:
    refused = [row["trigger_id"] for _, row in seen.receipt_rows if row["outcome"] == "rejected"]
    letters = []
    for record in seen.dead_letters:
        headers = dict(record.headers)
        letters.append(f"{_text(headers, 'tollgate-partition')}-{_text(headers, 'tollgate-offset')}")
    yield from _same("dead letter of trigger", set(refused), letters)


def handoffs_out_and_in(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """A trigger is handed off at most once, and decided by exactly the lane it was handed to; others at home."""
    home = {row["trigger"]["id"]: record.partition for record, row in seen.handoff_rows}
    yield from _twice("handoff of trigger", [row["trigger"]["id"] for _, row in seen.handoff_rows])
    for trigger_id in home.keys() - ledger.sent.keys():
        yield f"a handoff of trigger {trigger_id}, which was not sent"
    for record, row in seen.receipt_rows:
        lane = home.get(row["trigger_id"], int(row["trigger_id"].partition("-")[0]))
        if record.partition != lane:
            yield f"trigger {row['trigger_id']} belongs to lane {lane}, lane {record.partition} answered"


def audit_is_whole(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """Each trigger presented once; sequences without gap, hashes chained, the last one in the checkpoint."""
    presented = [shown["trigger_id"] for _, row in seen.audit_rows for shown in row["presentations"]]
    yield from _same("presentation of trigger", ledger.sent, presented)
    heads: dict[int, tuple[int, str]] = defaultdict(lambda: (0, NO_AUDIT_YET))
    outcomes = {row["trigger_id"]: (row["outcome"], row["run_id"], row["reason"]) for _, row in seen.receipt_rows}
    for record, row in seen.audit_rows:
        sequence, head = heads[record.partition]
        if row["lane"] != record.partition or row["sequence"] != sequence + 1:
            yield f"audit {record.id} is sequence {row['sequence']} of lane {row['lane']}, after {sequence}"
        if row["previous_sha256"] != head:
            yield f"audit {record.id} does not continue the record before it"
        heads[record.partition] = (row["sequence"], sha256(record.value or b"").hexdigest())
        for shown in row["presentations"]:
            told = (shown["outcome"], shown["run_id"], shown["reason"])
            if outcomes.get(shown["trigger_id"]) != told:
                yield f"audit says {told} of {shown['trigger_id']}, its receipt {outcomes.get(shown['trigger_id'])}"
    for lane, (sequence, head) in heads.items():
        stands = seen.last_checkpoints.get(lane, {})
        if (stands.get("sequence"), stands.get("audit_head_sha256")) != (sequence, head):
            yield f"the checkpoint of lane {lane} is at sequence {stands.get('sequence')}, its audit at {sequence}"


def checkpoints_at_the_ends(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """No committed input lies at or after a lane's offsets, and none of them is beyond the last by more than markers."""
    for name, records in (("triggers_offset", seen.triggers), ("handoffs_offset", seen.handoffs)):
        last: dict[int, int] = {}
        for record in records:
            last[record.partition] = max(last.get(record.partition, -1), record.offset)
        for lane, offset in last.items():
            stands = seen.last_checkpoints.get(lane, {}).get(name, -1)
            end = seen.triggers_end.get(lane, offset + 1)
            if stands <= offset or (name == "triggers_offset" and stands > end):
                yield f"{name} of lane {lane} is {stands}, the last record is at {offset}"


def offsets_never_move_back(ledger: Ledger, seen: Seen) -> Iterator[str]:
    before: dict[int, dict[str, Any]] = {}
    for record, row in _parsed(seen.checkpoints):
        old = before.get(record.partition, {})
        if row is None:  # lost: where the lane stood is found from its records, so without the markers behind them
            before[record.partition] = {"sequence": old.get("sequence", 0)}
            continue
        for name in ("triggers_offset", "handoffs_offset", "sequence", "lane_clock_ms"):
            if row[name] < old.get(name, 0):
                yield f"checkpoint {record.id}: {name} went from {old[name]} to {row[name]}"
        before[record.partition] = row


def outputs_in_input_order(ledger: Ledger, seen: Seen) -> Iterator[str]:
    """A lane answers its triggers in their order, and those handed to it in the order of the handoffs; and hands off
    one partition's triggers in theirs."""
    handed = {row["trigger"]["id"]: record.offset for record, row in seen.handoff_rows}
    orders = [
        (f"receipt of {row['trigger_id']}", (record.partition, "handoff" if row["trigger_id"] in handed else "trigger"),
         handed.get(row["trigger_id"], _offset(row["trigger_id"])))
        for record, row in seen.receipt_rows
    ]  # fmt: skip
    orders += [
        (f"handoff of {row['trigger']['id']}", (record.partition, f"from {row['trigger']['id'].partition('-')[0]}"),
         _offset(row["trigger"]["id"]))
        for record, row in seen.handoff_rows
    ]  # fmt: skip
    last: dict[tuple[int, str], int] = {}
    for what, order, offset in orders:
        if offset <= last.get(order, -1):
            yield f"{what} stands after that of offset {last[order]}"
        last[order] = offset


def _offset(trigger_id: str) -> int:
    return int(trigger_id.partition("-")[2])


CHECKS = (
    emitted, one_receipt_per_trigger, verdicts_as_intended, one_job_per_identity, receipts_name_the_run,
    entries_and_jobs, one_dead_letter_per_refusal, handoffs_out_and_in, audit_is_whole, checkpoints_at_the_ends,
    offsets_never_move_back, outputs_in_input_order,
)  # fmt: skip


def _same(what: str, wanted: Any, found: list[str]) -> Iterator[str]:
    """Each wanted one is found exactly once, and no other."""
    counts = Counter(found)
    for name in wanted:
        if counts[name] != 1:
            yield f"{what} {name}: {counts[name]} times"
    for name in counts.keys() - set(wanted):
        yield f"{what} {name}: not expected"


def _twice(what: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {name}: {count} times"


def _text(headers: dict[str, bytes | None], name: str) -> str:
    return (headers.get(name) or b"?").decode()
