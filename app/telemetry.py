"""Every metric, log event (`logs.py`) and header name, once. Never a token in any of them."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from app.logs import Event, log

__all__ = ["Event", "log"]

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
LOG_LOST: Final = Gauge("tollgate_log_entries_lost", "Log entries that could not be written, as on a full disk")
LOG_LOST.set_function(lambda: log.lost)

# ── of the HTTP door ──
HTTP_SECONDS: Final = Histogram(
    "tollgate_http_seconds",
    "Requests answered, by route and status; a wait for a receipt is part of it",
    ["method", "route", "status"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STREAMS: Final = Gauge("tollgate_receipt_streams", "Streams of receipts that are open")
CONNECTIONS_REFUSED: Final = Counter("tollgate_connections_refused_total", "Connections for which there was no place")
