"""The topics: names, settings and partitions, as one table. Pure data; `stream/administration.py` talks to Kafka."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Topic(StrEnum):
    """A topic, by its name after the prefix."""

    TRIGGERS = "triggers"
    HANDOFFS = "handoffs"
    JOBS = "jobs"
    RECEIPTS = "receipts"
    DEAD_LETTERS = "dead-letters"
    AUDIT = "audit"
    IDEMPOTENCY = "idempotency"
    CHECKPOINTS = "checkpoints"
    REGISTRY = "registry"
    REVOCATIONS = "revocations"
    ISSUANCE = "issuance"
    GRANTS = "grants"

    def named(self, prefix: str) -> str:
        return prefix + self.value


HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
TRIGGERS_MAX_BYTES: Final = 1_048_588
OUTPUT_MAX_BYTES: Final = 8 << 20  # well above the triggers': what a trigger becomes must always fit
LOG_APPEND: Final = {"message.timestamp.type": "LogAppendTime"}


class Layout(NamedTuple):
    """What a topic must look like: one partition or one per lane, and its settings as Kafka names them.

    `enforced` settings break a guarantee when they differ: a gate refuses to start. The others are only written
    at creation.
    """

    per_lane: bool
    enforced: dict[str, str]
    suggested: dict[str, str]


_AUTHORITY: Final = {"max.message.bytes": str(1 << 20)}  # whatever the broker's default: its records are far smaller
_OUTPUT: Final = {"max.message.bytes": str(OUTPUT_MAX_BYTES)}

LAYOUT: Final[dict[Topic, Layout]] = {
    # Short retention: it holds live tokens.
    Topic.TRIGGERS: Layout(
        True,
        {"cleanup.policy": "delete", **LOG_APPEND},
        {"retention.ms": str(DAY_MS), "max.message.bytes": str(TRIGGERS_MAX_BYTES)},
    ),
    Topic.HANDOFFS: Layout(
        True, {"cleanup.policy": "delete", **LOG_APPEND}, {"retention.ms": str(30 * DAY_MS), **_OUTPUT}
    ),
    Topic.JOBS: Layout(True, {"cleanup.policy": "delete"}, {"retention.ms": str(7 * DAY_MS), **_OUTPUT}),
    Topic.RECEIPTS: Layout(True, {"cleanup.policy": "delete"}, {"retention.ms": str(7 * DAY_MS), **_OUTPUT}),
    Topic.DEAD_LETTERS: Layout(True, {"cleanup.policy": "delete"}, {"retention.ms": str(14 * DAY_MS), **_OUTPUT}),
    Topic.AUDIT: Layout(True, {"cleanup.policy": "delete"}, {"retention.ms": str(90 * DAY_MS), **_OUTPUT}),
    # retention.ms ≥ longest window + queue-age cap + segment.ms; `stream/topic_check.py` checks the sum.
    Topic.IDEMPOTENCY: Layout(
        True,
        {"cleanup.policy": "compact,delete", **LOG_APPEND},
        {"retention.ms": str(8 * DAY_MS), "segment.ms": str(DAY_MS), **_OUTPUT},
    ),
    Topic.CHECKPOINTS: Layout(
        True,
        {"cleanup.policy": "compact", **LOG_APPEND},
        {"segment.bytes": str(1 << 20), "min.cleanable.dirty.ratio": "0.1"},
    ),
    Topic.REGISTRY: Layout(False, {"cleanup.policy": "compact"}, {}),
    Topic.REVOCATIONS: Layout(False, {"cleanup.policy": "compact"}, _AUTHORITY),
    # As long as the longest token lives, and its audit: which tokens may still be out is told from here.
    Topic.ISSUANCE: Layout(
        False, {"cleanup.policy": "delete", **LOG_APPEND}, {"retention.ms": str(180 * DAY_MS), **_AUTHORITY}
    ),
    # Kept for longer than any token lives: what is deleted has expired, and a handle that went early is refused.
    Topic.GRANTS: Layout(False, {"cleanup.policy": "compact,delete", **LOG_APPEND}, {"retention.ms": str(92 * DAY_MS)}),
}

LANES_DEFAULT: Final = 12
