"""The points of a gate at which the campaign kills or stops it, by name."""

from __future__ import annotations

from enum import StrEnum


class Point(StrEnum):
    AFTER_POLL = "after poll"
    AFTER_VERIFY = "after verify"
    AFTER_STORE_READ = "after store read"
    AFTER_BEGIN = "after begin"
    AFTER_PRODUCE = "after a produce"
    BEFORE_CHECKPOINT = "before the checkpoint record"
    BEFORE_END = "before commit"
    DURING_END = "during commit"
    AFTER_COMMIT = "after commit, before the local apply"
    IN_APPLY = "within the local apply"
    IN_RESTORE = "within a restore"
    IN_HANDOFF_DRAIN = "while draining handoffs"
    IN_JWKS_REFRESH = "within a refresh of a JWK Set"
    IN_STOP = "within a graceful stop"
