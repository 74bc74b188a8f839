"""The judge of the kill test is itself judged: in a valid world it finds nothing, and every planted fault is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256
from typing import Any

import pytest

from tests.support.invariants import _ENTRY, NO_AUDIT_YET, Ledger, Read, Seen, Sent, violations

RUNS = {"0-0": f"{0:032x}", "1-1": f"{1:032x}"}


def _json(partition: int, offset: int, key: str, row: dict[str, Any]) -> Read:
    return Read(partition, offset, key.encode(), json.dumps(row).encode())


def _receipt(partition: int, offset: int, trigger_id: str, outcome: str, run_id: str | None) -> Read:
    reason = "token_expired" if outcome == "rejected" else None
    row = {"trigger_id": trigger_id, "outcome": outcome, "run_id": run_id, "reason": reason}
    return _json(partition, offset, trigger_id, row)


def _job(partition: int, offset: int, trigger_id: str) -> Read:
    return _json(partition, offset, RUNS[trigger_id], {"run_id": RUNS[trigger_id], "trigger": {"id": trigger_id}})


def _entry(partition: int, offset: int, trigger_id: str, identity: bytes) -> Read:
    lane, number = map(int, trigger_id.split("-"))
    packed = _ENTRY.pack(1, bytes.fromhex(RUNS[trigger_id]), bytes(16), bytes(8), lane, number, 0, 0)
    return Read(partition, offset, identity, packed)


def _audit(lane: int, batches: list[list[tuple[str, str, str | None]]]) -> tuple[list[Read], str]:
    records: list[Read] = []
    head = NO_AUDIT_YET
    for number, batch in enumerate(batches):
        shown = [
            {
                "trigger_id": trigger_id, "outcome": outcome, "run_id": run_id,
                "reason": "token_expired" if outcome == "rejected" else None,
            }
            for trigger_id, outcome, run_id in batch
        ]  # fmt: skip
        row = {"lane": lane, "sequence": number + 1, "previous_sha256": head, "presentations": shown}
        records.append(_json(lane, number, str(lane), row))
        head = sha256(records[-1].value or b"").hexdigest()
    return records, head


def _checkpoint(lane: int, offset: int, **members: Any) -> Read:
    row = {"triggers_offset": 0, "handoffs_offset": 0, "sequence": 0, "lane_clock_ms": 0, "audit_head_sha256": ""}
    return _json(lane, offset, str(lane), row | members)


def world() -> tuple[Ledger, Seen]:
    """Two lanes: 0-0 a job at home, 0-1 its repeat, 0-2 refused; 1-0 a repeat handed to lane 0, 1-1 a job at home."""
    ledger = Ledger(
        {
            "0-0": Sent("a", "good"),
            "0-1": Sent("a", "good"),
            "0-2": Sent(None, "rejected"),
            "1-0": Sent("a", "good"),
            "1-1": Sent("b", "good"),
        }
    )
    first, second = RUNS["0-0"], RUNS["1-1"]
    audit_0, head_0 = _audit(
        0,
        [
            [("0-0", "accepted", first), ("0-1", "duplicate", first)],
            [("0-2", "rejected", None)],
            [("1-0", "duplicate", first)],
        ],
    )
    audit_1, head_1 = _audit(1, [[("1-1", "accepted", second)]])
    seen = Seen(
        triggers=[Read(0, n, None, b"{}") for n in range(3)] + [Read(1, n, None, b"{}") for n in range(2)],
        handoffs=[_json(0, 0, "", {"trigger": {"id": "1-0"}})],
        jobs=[_job(0, 0, "0-0"), _job(1, 0, "1-1")],
        receipts=[
            _receipt(0, 0, "0-0", "accepted", first),
            _receipt(0, 1, "0-1", "duplicate", first),
            _receipt(0, 2, "0-2", "rejected", None),
            _receipt(0, 4, "1-0", "duplicate", first),
            _receipt(1, 0, "1-1", "accepted", second),
        ],
        dead_letters=[
            Read(0, 0, None, b"", (("tollgate-partition", b"0"), ("tollgate-offset", b"2"))),
        ],
        audit=audit_0 + audit_1,
        idempotency=[_entry(0, 0, "0-0", b"A" * 16), _entry(1, 0, "1-1", b"B" * 16)],
        checkpoints=[
            _checkpoint(0, 0, triggers_offset=2, sequence=1),
            _checkpoint(0, 2, triggers_offset=3, handoffs_offset=2, sequence=3, audit_head_sha256=head_0),
            _checkpoint(1, 0, triggers_offset=2, sequence=1, audit_head_sha256=head_1),
        ],
    )
    return ledger, seen


def _changed(record: Read, **members: Any) -> Read:
    return record._replace(value=json.dumps(json.loads(record.value or b"") | members).encode())


def _replace(records: list[Read], at: int, **members: Any) -> None:
    records[at] = _changed(records[at], **members)


PLANTED: dict[str, Callable[[Seen], Any]] = {
    "a receipt is missing": lambda seen: seen.receipts.pop(1),
    "a receipt is there twice": lambda seen: seen.receipts.append(seen.receipts[-1]._replace(offset=9)),
    "a receipt is of no trigger": lambda seen: seen.receipts.append(_receipt(1, 9, "1-9", "duplicate", RUNS["0-0"])),
    "a receipt has another key": lambda seen: seen.receipts.insert(0, seen.receipts.pop(0)._replace(key=b"9-9")),
    "a job is missing": lambda seen: seen.jobs.pop(),
    "a job is there twice": lambda seen: seen.jobs.append(seen.jobs[0]._replace(partition=1, offset=5)),
    "a repeat became a job": lambda seen: seen.jobs.append(
        _json(0, 9, "", {"run_id": f"{9:032x}", "trigger": {"id": "0-1"}})
    ),
    "a refused trigger became a job": lambda seen: seen.jobs.append(
        _json(0, 9, "", {"run_id": f"{9:032x}", "trigger": {"id": "0-2"}})
    ),
    "an entry is missing": lambda seen: seen.idempotency.pop(),
    "an entry has no job": lambda seen: seen.idempotency.append(
        seen.idempotency[0]._replace(key=b"C" * 16, value=_ENTRY.pack(1, b"x" * 16, bytes(16), bytes(8), 0, 2, 0, 0))
    ),
    "an identity has two entries": lambda seen: seen.idempotency.append(seen.idempotency[0]._replace(offset=7)),
    "an entry stands in another lane": lambda seen: seen.idempotency.append(
        seen.idempotency.pop()._replace(partition=0)
    ),
    "a dead letter is missing": lambda seen: seen.dead_letters.pop(),
    "a dead letter is there twice": lambda seen: seen.dead_letters.append(seen.dead_letters[0]),
    "a handoff is lost": lambda seen: seen.handoffs.pop(),
    "a handoff is there twice": lambda seen: seen.handoffs.append(seen.handoffs[0]._replace(offset=1)),
    "another lane answers": lambda seen: seen.receipts.append(seen.receipts.pop()._replace(partition=0, offset=9)),
    "a presentation is missing": lambda seen: _replace(seen.audit, 1, presentations=[]),
    "an audit record is missing": lambda seen: seen.audit.pop(1),
    "the audit chain is broken": lambda seen: _replace(seen.audit, 2, previous_sha256="f" * 64),
    "the last audit record was altered": lambda seen: _replace(seen.audit, 2, altered=True),
    "a checkpoint is behind": lambda seen: seen.checkpoints.pop(1),
    "a checkpoint is beyond the end": lambda seen: _replace(seen.checkpoints, 2, triggers_offset=7),
    "an offset moved back": lambda seen: _replace(seen.checkpoints, 0, triggers_offset=4),
    "a duplicate names another run": lambda seen: _replace(seen.receipts, 1, run_id=RUNS["1-1"]),
    "an accepted receipt names another run": lambda seen: _replace(seen.receipts, 0, run_id=RUNS["1-1"]),
    "a good trigger was refused": lambda seen: _replace(seen.receipts, 1, outcome="rejected"),
    "receipts stand out of order": lambda seen: seen.receipts.insert(0, seen.receipts.pop(1)),
    "a trigger is not on the topic": lambda seen: seen.triggers.pop(),
}


def test_a_valid_world_has_no_violation() -> None:
    assert violations(*world()) == []


def test_a_marker_of_an_emitters_transaction_may_stand_last_and_nothing_beyond_it() -> None:
    ledger, seen = world()
    _replace(seen.checkpoints, 2, triggers_offset=3)  # the last record is at 1
    seen.triggers_end[1] = 3
    assert violations(ledger, seen) == []
    seen.triggers_end[1] = 2
    assert violations(ledger, seen) != []


def _two_handed(first: int, second: int) -> list[str]:
    """Of a world in which lane 1 hands its triggers 0 and 1 to lane 0, answered there at these offsets."""
    ledger, seen = world()
    seen.handoffs.append(_json(0, 1, "", {"trigger": {"id": "1-1"}}))
    answers = {first: "1-0", second: "1-1"}
    receipts = [
        _receipt(0, offset, trigger_id, "duplicate", RUNS["0-0"]) for offset, trigger_id in sorted(answers.items())
    ]
    seen.receipts[:] = seen.receipts[:3] + receipts
    return [what for what in violations(ledger, seen) if what.startswith("outputs_in_input_order")]


def test_what_was_handed_over_is_answered_in_the_order_of_the_handoffs() -> None:
    assert _two_handed(4, 5) == []
    assert _two_handed(5, 4) == ["outputs_in_input_order: receipt of 1-0 stands after that of offset 1"]


def test_what_is_handed_off_stands_in_the_order_of_its_partition() -> None:
    ledger, seen = world()
    seen.handoffs[:] = [_json(0, 0, "", {"trigger": {"id": "1-1"}}), _json(0, 1, "", {"trigger": {"id": "1-0"}})]
    assert "outputs_in_input_order: handoff of 1-0 stands after that of offset 1" in violations(ledger, seen)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    ledger, seen = world()
    changed = deepcopy(seen)
    PLANTED[fault](changed)
    assert violations(ledger, changed) != []
