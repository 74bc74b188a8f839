"""The judge: reads everything a stage left, with a client that is not the gates', and holds it against the ledger.

Besides the invariants of `tests.support.invariants`, which look at the topics alone, it knows the journals (what each
writer meant), the concurrent reader, and the local stores.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from rocksdict import AccessType, Options, Rdict

from tests.campaign.case import COMPACT_JWS, Case, Evidence, Topics, collect
from tests.campaign.journals import Attempt
from tests.campaign.stage import CHECKPOINT_LOST
from tests.campaign.watch import place_of
from tests.support import invariants
from tests.support.invariants import EXAMPLES_MAX, Read

# Which of the reference list each check stands for.
STANDS_FOR = {
    "emitted": "I1", "one_receipt_per_trigger": "I1", "verdicts_as_intended": "I1", "one_job_per_identity": "I2",
    "receipts_name_the_run": "I3", "first_admissible_wins": "I3", "entries_and_jobs": "I4",
    "one_dead_letter_per_refusal": "I4", "handoffs_out_and_in": "I4", "audit_is_whole": "I4",
    "transactions_whole": "I5", "outputs_in_input_order": "I6", "concurrent_reader_agrees": "I7",
    "nothing_hangs": "I8", "stores_as_their_changelogs": "I9", "offsets_never_move_back": "I10",
    "checkpoints_at_the_ends": "I10", "epochs_never_go_back": "I11", "epochs_recycled": "I12",
    "comes_back": "I11", "no_token_on_any_output": "I15", "no_lane_stopped": "L3",
    "keys_follow": "I13", "decides_again": "L1", "drained": "L2", "no_gate_falls": "L3", "points_hit": "F2", "fails_closed": "I13",
    "revoked_in_time": "I14", "gap_accepted": "L1", "poison_apart": "I17", "start_refused": "I16",
    "windows_played": "F24",
}  # fmt: skip
BY_ROWS = {"I13", "I14", "I16", "I17", "F2", "F24"}
NOT_HERE = {
    "I13": "judged by row F20, of keys; of stale tables by stream/test_lane_holding.py", "I14": "judged by row F21",
    "I15 replays": "needs replay of dead letters, which is not there yet", "I16": "judged by row F17 and at start",
    "I17": "memory judged by rows F15 and F16, the wait behind poison told", "I18": "simulation/test_replay.py",
    "L1 within the session and 3 s": "told beside row F1",
}  # fmt: skip


@dataclass
class Verdict:
    violations: list[str]
    triggers: int
    jobs: int
    transactions: int
    taken_back: int
    indeterminate: dict[str, int]


def judge(evidence: Evidence, topics: Topics) -> Verdict:
    """Judge a stage that has come to rest."""
    case = collect(evidence, topics)
    found = [f"{_number(what)} {what}" for what in evidence.broken]
    if evidence.reader_error:
        found.append(f"the concurrent reader failed: {evidence.reader_error}")
    found += [f"{_number(what)} {what}" for what in invariants.violations(case.ledger, case.seen)]
    for check in CHECKS:
        broken = list(check(case))
        name = check.__name__
        found += [f"{STANDS_FOR[name]} {name}: {what}" for what in broken[:EXAMPLES_MAX]]
        if len(broken) > EXAMPLES_MAX:
            found.append(f"{STANDS_FOR[name]} {name}: and {len(broken) - EXAMPLES_MAX} more")
    return Verdict(
        found, len(case.seen.triggers), len(case.seen.jobs), len(case.seen.audit), case.attempted,
        dict(case.indeterminate),
    )  # fmt: skip


def _number(violation: str) -> str:
    return STANDS_FOR[violation.partition(":")[0]]


# ── what needs more than the topics ──


def emitted(case: Case) -> Iterator[str]:
    """Every trigger of the ledger that was acknowledged is on the topic, and nothing else is."""
    yield from case.lost


def first_admissible_wins(case: Case) -> Iterator[str]:
    """In the lane of an identity, the receipt that tells of acceptance stands before those of its duplicates."""
    first: dict[str, int] = {}
    accepted: dict[str, int] = {}
    for record, row in case.seen.receipt_rows:
        sent = case.ledger.sent.get(row["trigger_id"])
        if sent is None or sent.identity is None or row["outcome"] == "rejected":
            continue
        first[sent.identity] = min(first.get(sent.identity, record.offset), record.offset)
        if row["outcome"] == "accepted":
            accepted[sent.identity] = record.offset
    for identity, offset in accepted.items():
        if first[identity] != offset:
            yield f"{identity} was accepted at {offset}, a duplicate of it stands at {first[identity]}"


def transactions_whole(case: Case) -> Iterator[str]:
    """What a gate knows to be committed is there; what it never asked to commit is not; the rest is there wholly or not
    at all, or its gate has written the rest of it next."""
    following: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
    for attempt in case.evidence.journals.attempts:
        following[attempt.run, attempt.lane].append(attempt)
    for attempts in following.values():
        attempts.sort(key=lambda each: each.at)
        for number, attempt in enumerate(attempts):
            there, absent = _found(case, attempt)
            if there or absent:
                yield from _whole(case, attempt, there, absent, attempts[number + 1 :])
            elif attempt.end is None:
                case.indeterminate["transactions whose records' places were never told"] += 1


def _found(case: Case, attempt: Attempt) -> tuple[int, Counter[str]]:
    """Of a transaction's records how many are committed, and how many are not, by where they were put."""
    there, absent = 0, Counter[str]()
    for where, offsets in attempt.offsets():
        topic, number = _topic_of(case, where)
        if topic in case.offsets:
            committed = sum(place_of(number, offset) in case.offsets[topic] for offset in offsets)
            there += committed
            absent[where] += len(offsets) - committed
    return there, +absent


def _completed(case: Case, missing: Counter[str], following: Sequence[Attempt]) -> bool:
    """Whether what is missing of a transaction, and nothing else, was written and committed before anything else."""
    for attempt in following:
        wrote = {where: count for where, count in attempt.counts.items() if _topic_of(case, where)[0] in case.offsets}
        if wrote != missing:
            return False
        if _found(case, attempt)[0]:
            return True  # what is missing of this one is asked of it
    return False


def _whole(
    case: Case, attempt: Attempt, there: int, missing: Counter[str], following: Sequence[Attempt]
) -> Iterator[str]:
    what, absent = f"a transaction of lane {attempt.lane} by {attempt.run} in epoch {attempt.epoch}", missing.total()
    if there and absent:
        if attempt.end_tried and attempt.end != "committed" and _completed(case, missing, following):
            case.indeterminate["transactions ended by halves, completed by their gate"] += 1
        else:
            yield f"{what} is torn: {there} of its records are committed, {absent} are not"
    elif attempt.end == "committed" and absent:
        yield f"{what} was acknowledged, and {absent} of its records are not there"
    elif not attempt.end_tried and there:
        yield f"{what} was never asked to commit, and {there} of its records are committed"
    elif attempt.end != "committed" and attempt.end_tried:
        case.indeterminate[
            f"transactions with an end unknown to the gate: {'committed' if there else 'taken back'}"
        ] += 1


def _topic_of(case: Case, where: str) -> tuple[str, int]:
    topic, _, number = where.rpartition("/")
    return topic.removeprefix(case.evidence.prefix), int(number)


def concurrent_reader_agrees(case: Case) -> Iterator[str]:
    """The reader that looked while faults were injected and the one that looks at rest saw the same records."""
    yield from case.evidence.changed
    for topic, early in case.evidence.seen.items():
        final = case.digests[topic]
        differing = [place for place in early.keys() & final.keys() if early[place] != final[place]]
        if differing:
            yield f"{topic}: {len(differing)} records changed their bytes after they were read"
        if vanished := early.keys() - final.keys():
            yield f"{topic}: {len(vanished)} records were read as committed and are gone"
        if missed := final.keys() - early.keys():
            yield f"{topic}: {len(missed)} records appeared behind the reader's back"


def nothing_hangs(case: Case) -> Iterator[str]:
    yield from case.hanging


def stores_as_their_changelogs(case: Case) -> Iterator[str]:
    """Every local store holds exactly the committed changelog up to the offset it names; whoever stopped last, all."""
    by_lane: dict[int, list[Read]] = defaultdict(list)
    for record in case.seen.idempotency:
        by_lane[record.partition].append(record)
    newest = dict.fromkeys(by_lane, 0)
    damaged = {name: strike.at for strike in case.evidence.strikes for name in strike.detail.split()}
    for gate in case.evidence.gates:
        if not gate.state_dir.exists():
            continue
        for path in sorted(gate.state_dir.glob("lane-*")):
            lane = int(path.name.removeprefix("lane-").partition(".")[0])
            since = damaged.get(f"{path.parent.name}/{path.name}")
            if since is not None and not _opened_since(case, gate.name, lane, since):
                case.indeterminate["stores damaged that nobody has opened since"] += 1
                continue
            try:
                held, offset = _read_store(path)
            except Exception as error:
                # One that was damaged by us, in a block that nobody has read since: whoever reads it notices, too.
                if since is not None:
                    case.indeterminate["stores damaged where nobody has read since"] += 1
                else:
                    yield f"{path.parent.name}/{path.name} cannot be read: {str(error).splitlines()[0][:200]}"
                newest[lane] = sys.maxsize
                continue
            newest[lane] = max(newest.get(lane, 0), offset)
            yield from _as_its_changelog(path, held, offset, by_lane.get(lane, []))
    for lane, records in by_lane.items():
        if newest[lane] <= records[-1].offset:
            yield f"lane {lane} was left in order, and no store holds its changelog's last record {records[-1].offset}"


def _opened_since(case: Case, gate: str, lane: int, since: float) -> bool:
    """Whether a gate has taken a lane, and with it its store."""
    return any(at > since and run.startswith(f"{gate}/") for at, run, _ in case.evidence.journals.epochs[lane])


def store_as_its_changelog(path: Path, changelog: list[Read]) -> Iterator[str]:
    """Whether one store, held open by nobody, is the fold of its lane's committed changelog up to its offset."""
    try:
        held, offset = _read_store(path)
    except Exception as error:
        yield f"{path.parent.name}/{path.name} cannot be read: {str(error).splitlines()[0][:200]}"
    else:
        yield from _as_its_changelog(path, held, offset, changelog)


def _read_store(path: Path) -> tuple[dict[bytes, bytes], int]:
    """What a store holds, and up to where in the changelog; of one that was never written to, nothing up to 0."""
    table = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
    held, rows = {}, table.iter()
    rows.seek_to_first()
    while rows.valid():
        held[rows.key()] = rows.value()
        rows.next()
    rows.status()  # raises; items() would end at a block that is damaged, as at the last
    table.close()
    return held, orjson.loads(held.pop(b"meta"))["changelog_offset"] if held else 0


def _as_its_changelog(path: Path, held: dict[bytes, bytes], offset: int, changelog: list[Read]) -> Iterator[str]:
    model: dict[bytes, bytes] = {}
    for record in changelog:
        if record.offset < offset and record.key is not None:
            if record.value is None:
                model.pop(record.key, None)
            else:
                model[record.key] = record.value
    if held != model:
        more, fewer = held.keys() - model.keys(), model.keys() - held.keys()
        yield f"{path.parent.name}/{path.name} at {offset}: {len(more)} entries beyond the changelog, {len(fewer)} missing"


def epochs_never_go_back(case: Case) -> Iterator[str]:
    """In the order of a lane's checkpoints, whoever commits has an epoch not below the one before: no zombie commits."""
    by_lane: dict[int, list[tuple[int, Attempt]]] = defaultdict(list)
    for attempt in case.evidence.journals.attempts:
        base = attempt.bases.get(f"{case.evidence.prefix}checkpoints/{attempt.lane}")
        if attempt.end == "committed" and base is not None:
            by_lane[attempt.lane].append((base, attempt))
    for lane, placed in by_lane.items():
        placed.sort(key=lambda each: each[0])
        for (_, before), (offset, attempt) in pairwise(placed):
            if attempt.producer == before.producer and attempt.epoch < before.epoch:
                yield f"lane {lane}: {attempt.run} committed at {offset} in epoch {attempt.epoch}, after {before.epoch}"
            if attempt.epoch == before.epoch and attempt.producer == before.producer and attempt.run != before.run:
                yield f"lane {lane}: {attempt.run} and {before.run} both committed in epoch {attempt.epoch}"


def epochs_recycled(case: Case) -> Iterator[str]:
    """After a transaction whose end its gate does not know, that gate begins the next one in another epoch."""
    before: dict[tuple[str, int], Attempt] = {}
    for attempt in case.evidence.journals.attempts:
        last = before.get((attempt.run, attempt.lane))
        if last is not None and last.end != "committed" and (last.producer, last.epoch) == (
            attempt.producer, attempt.epoch,
        ):  # fmt: skip
            yield f"lane {attempt.lane}: {attempt.run} began again in epoch {attempt.epoch} after it {last.end or 'lost'}"
        before[attempt.run, attempt.lane] = attempt


def no_token_on_any_output(case: Case) -> Iterator[str]:
    """No compact JWS on any topic but the triggers', nor in a gate's log."""
    yield from case.tokens
    for gate in case.evidence.gates:
        if gate.log_file.exists() and COMPACT_JWS.search(gate.log_file.read_bytes()):
            yield f"the log of {gate.name} holds a token"


def no_lane_stopped(case: Case) -> Iterator[str]:
    """No lane stops for good and nothing is refused for an error of our own."""
    lost = any(strike.kind == CHECKPOINT_LOST for strike in case.evidence.strikes)
    for gate in case.evidence.gates:
        for event in gate.events():
            meant = lost and "holds no checkpoint" in str(event.get("why"))
            if event["event"] in {"lane_stopped", "internal_deny"} and not meant:
                yield f"{gate.name}: {event}"


CHECKS: tuple[Callable[[Case], Iterator[Any]], ...] = (
    emitted, first_admissible_wins, transactions_whole, concurrent_reader_agrees, nothing_hangs,
    stores_as_their_changelogs, epochs_never_go_back, epochs_recycled, no_token_on_any_output, no_lane_stopped,
)  # fmt: skip
