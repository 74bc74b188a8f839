"""Every metric, log event and header name, once, and how a process logs. Never a token in any of them."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

# ── metrics ──
# Labels hold our own codes and lane numbers only: a stranger's text never becomes a label.
DECISIONS: Final = Counter("tollgate_decisions_total", "Triggers decided, by outcome and reason", ["outcome", "reason"])
HANDOFFS: Final = Counter("tollgate_handoffs_total", "Triggers handed off to their home lane")
TRANSACTIONS: Final = Counter("tollgate_transactions_total", "Transactions, by result", ["result"])
BATCH_RECORDS: Final = Histogram(
    "tollgate_batch_records", "Records in one transaction", buckets=(1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
)
COMMIT_SECONDS: Final = Histogram(
    "tollgate_commit_seconds",
    "First request of a transaction to its known end",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LANE_STATE: Final = Gauge("tollgate_lane_state", "1 for the state a lane is in", ["lane", "state"])
LANE_LAG: Final = Gauge("tollgate_lane_lag_records", "Records waiting in a lane", ["lane", "topic"])
QUEUE_AGE: Final = Histogram(
    "tollgate_queue_age_seconds",
    "Broker's append time of a trigger to its decision",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3_600, 14_400),
)
RESTORE_SECONDS: Final = Gauge("tollgate_restore_seconds", "Time the last restore of a lane took", ["lane"])
RESTORED_ENTRIES: Final = Counter("tollgate_restored_entries_total", "Changelog entries read back into local stores")
STORE_ENTRIES: Final = Gauge("tollgate_store_entries", "Estimate of the entries in a lane's local store", ["lane"])
HELD: Final = Gauge("tollgate_held", "1 while a lane holds, by cause", ["lane", "cause"])
TABLE_STALENESS: Final = Gauge("tollgate_table_staleness_seconds", "Age of the last confirmed view", ["table"])
JWKS_FETCHES: Final = Counter("tollgate_jwks_fetches_total", "Reads of JWK Sets, by result", ["result"])
JWKS_AGE: Final = Gauge("tollgate_jwks_age_seconds", "Age of an issuer's key set", ["issuer"])

# ── headers ──
H_AUTHORIZATION: Final = "authorization"
H_TRACEPARENT: Final = "traceparent"


class Event:
    """Names of log events. Stable: alerts and tests rely on them."""

    GATE_STARTED: Final = "gate_started"
    GATE_STOPPED: Final = "gate_stopped"
    WORKER_EXITED: Final = "worker_exited"
    LANE_TAKEN: Final = "lane_taken"
    LANE_RELEASED: Final = "lane_released"
    LANE_FENCED: Final = "lane_fenced"
    LANE_HELD: Final = "lane_held"
    LANE_RESUMED: Final = "lane_resumed"
    LANE_RETRY: Final = "lane_retry"
    LANE_STOPPED: Final = "lane_stopped"
    STORE_WIPED: Final = "store_wiped"
    STORE_LOCKED: Final = "store_locked"
    RESTORED: Final = "restored"
    COMMIT_UNKNOWN: Final = "commit_unknown"
    INTERNAL_DENY: Final = "internal_deny"
    TABLE_RECORD_BAD: Final = "table_record_bad"
    TABLE_LOADED: Final = "table_loaded"
    JWKS_LOADED: Final = "jwks_loaded"
    JWKS_FAILED: Final = "jwks_failed"
    INSECURE_HS256: Final = "insecure_hs256"
    BATCH_TOO_LARGE: Final = "batch_too_large"
    HANDOFF_FOREIGN: Final = "handoff_foreign"
    FETCH_FAILED: Final = "fetch_failed"


def configure_logging(level: str = "info", log_format: str = "auto") -> None:
    """Structured logs to stderr: JSON for machines, coloured lines on a terminal."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    number = getattr(logging, level.upper())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    processors.append(structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # The clients log through the standard library; what they say of connections is worth a line, no more.
    logging.basicConfig(stream=sys.stderr, level=max(number, logging.WARNING), format="%(message)s", force=True)
    logging.getLogger("aiokafka").setLevel(logging.ERROR if number > logging.DEBUG else logging.INFO)


log: Any = structlog.get_logger("tollgate")
