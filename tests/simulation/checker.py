"""Judges a simulated world: the invariants of `tests.support.invariants`, and those only an omniscient reader can see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from app.stream.topics import Topic
from tests.support.invariants import Ledger, Read, Seen, Sent
from tests.support.invariants import violations as on_topics

if TYPE_CHECKING:
    from tests.simulation.world import World

IDENTITY_BYTES = 16
EXPLAINED = ("StoreUnusable",)  # failures of a kind the faults bring about
REVOKED_WITHIN_S = 4.0  # the longest stop, and staleness
_RIVALS_REASONS = ("token_already_used", "idempotency_key_reused")


def violations(world: World) -> list[str]:
    """Everything that does not hold; each begins with the name of its check."""
    seen = read(world)
    ledger = resolved(world, seen)
    found = [*world.findings, *world.network.findings[:3], *on_topics(ledger, seen)]
    for check in (revoked_is_refused, rivals_have_one_job, no_lane_stopped, stores, at_rest, epochs_grow):
        found += list(check(world, seen))[:5]
    return found


def read(world: World) -> Seen:
    """All topics, as a read_committed reader that never missed anything saw them."""
    topics = {}
    for name in Seen.topics():
        topic = world.names[Topic(name.replace("_", "-"))]
        topics[name] = [
            Read(lane, record.offset, record.key, record.value, record.headers, record.timestamp_ms)
            for lane in range(world.plan.lanes)
            for record in world.broker.logs[topic, lane].committed()
        ]
    triggers = world.names[Topic.TRIGGERS]
    ends = {lane: world.broker.logs[triggers, lane].stable for lane in range(world.plan.lanes)}
    return Seen(**topics, triggers_end=ends)


def resolved(world: World, seen: Seen) -> Ledger:
    """What was meant by each trigger. Where it depends on when it was decided, either verdict is taken as meant; all
    that follows from it must then agree.
    """
    receipts = {row["trigger_id"]: row for _, row in seen.receipt_rows}
    ledger = Ledger()
    for trigger_id, trigger in world.sent.items():
        sent = trigger.sent
        reason = receipts.get(trigger_id, {}).get("reason")
        if (
            (trigger.revocable and reason == "token_revoked")
            or (trigger.flapping and reason == "job_disabled")
            or (trigger.rival and reason in _RIVALS_REASONS)
        ):
            sent = Sent(sent.identity, "rejected")
        ledger.sent[trigger_id] = sent
    return ledger


def revoked_is_refused(world: World, seen: Seen) -> Iterator[str]:
    """I14: what was sent a while after a revocation is refused; what was decided before it is not."""
    revoked_ms = world.revoked_at_ms
    for _, row in seen.receipt_rows:
        trigger = world.sent.get(row["trigger_id"])
        if trigger is None or not trigger.revocable:
            continue
        late = revoked_ms is not None and world.appended_ms[row["trigger_id"]] > revoked_ms + REVOKED_WITHIN_S * 1000
        if late and row["outcome"] == "accepted":
            yield f"revoked_is_refused: {row['trigger_id']} was accepted long after its subject was revoked"
        if row["reason"] == "token_revoked" and revoked_ms is None:
            yield f"revoked_is_refused: {row['trigger_id']} was refused, and nothing was revoked"


def rivals_have_one_job(world: World, seen: Seen) -> Iterator[str]:
    """Of requests that fight for one identity one wins."""
    won = {
        world.sent[row["trigger"]["id"]].sent.identity for _, row in seen.job_rows if row["trigger"]["id"] in world.sent
    }
    for identity in {trigger.sent.identity for trigger in world.sent.values() if trigger.rival} - won:
        yield f"rivals_have_one_job: no request for {identity} became a job"


def no_lane_stopped(world: World, seen: Seen) -> Iterator[str]:
    """No lane stops for good, none fails for a reason unknown, and nothing is denied for an error of our own."""
    for logged in world.logged:
        event = logged.event
        name = event["event"]
        if (
            name in ("internal_deny", "handoff_foreign", "table_record_bad")
            or (name == "lane_stopped" and not event["why"].endswith(EXPLAINED))
            or (name == "lane_retry" and event["level"] == "error" and event["error"] not in EXPLAINED)
            or (name == "worker_ended" and "Kafka" not in event["why"] and "NodeNotReady" not in event["why"]
                and "TimedOut" not in event["why"] and "Timeout" not in event["why"])
        ):  # fmt: skip
            yield f"no_lane_stopped: at {logged.at_s:.3f} s {logged.process} logged {event}"
    for context in world.loop.unhandled:
        error = context.get("exception")
        if error is not None and type(error).__name__ not in ("KafkaConnectionError", "CancelledError"):
            yield f"no_lane_stopped: unhandled {context['message']}: {error!r}"


def stores(world: World, seen: Seen) -> Iterator[str]:
    """I9: a local store holds nothing that was not committed; where its lane was last, it is the changelog."""
    committed: dict[int, set[tuple[bytes | None, bytes | None]]] = {}
    table: dict[int, dict[bytes | None, bytes | None]] = {}
    for record in seen.idempotency:
        committed.setdefault(record.partition, set()).add((record.key, record.value))
        table.setdefault(record.partition, {})[record.key] = record.value
    for path, rows in world.disk.tables.items():
        lane = int(Path(path).name.removeprefix("lane-").partition(".")[0])
        entries = {key: value for key, value in rows.items() if len(key) == IDENTITY_BYTES}
        strange = [key.hex() for key, value in entries.items() if (key, value) not in committed.get(lane, set())]
        if strange:
            yield f"stores_hold_only_what_was_committed: {path} holds {strange[:3]}, which was not"
        meta = rows.get(b"meta")
        log = world.broker.logs[world.names[Topic.IDEMPOTENCY], lane]
        if meta is None:
            continue
        reached = json.loads(meta)["changelog_offset"]
        if reached > log.end:
            yield f"stores_as_their_changelogs: {path} says it is at {reached}, the changelog ends at {log.end}"
        fold = {
            record.key: record.value
            for record in seen.idempotency
            if record.partition == lane and record.offset < reached
        }
        missing = [key.hex() for key, value in fold.items() if key is not None and entries.get(key) != value]
        if missing:
            yield f"stores_as_their_changelogs: {path} is at {reached} and lacks {missing[:3]}"


def at_rest(world: World, seen: Seen) -> Iterator[str]:
    """I8: no transaction hangs."""
    for name, log in world.broker.logs.items():
        if log.stable != log.end:
            yield f"at_rest: {name} is stable to {log.stable}, its end is {log.end}"


def epochs_grow(world: World, seen: Seen) -> Iterator[str]:
    """I11: after a lane's new owner has committed, the former never does."""
    for lane in range(world.plan.lanes):
        last = -1
        for batch in world.broker.logs[world.names[Topic.CHECKPOINTS], lane].batches:
            if batch.outcome and not batch.control and batch.producer_id >= 0:
                if batch.epoch < last:
                    yield f"epochs_grow: lane {lane} has epoch {batch.epoch} committed after {last}"
                last = batch.epoch
