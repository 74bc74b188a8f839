"""Every limit of a decision, with its unit. A limit on everything is what keeps a stranger's record cheap."""

from __future__ import annotations

from typing import Final

# ── the record ──
RECORD_MAX_BYTES: Final = 1_048_588  # value and headers; Kafka's own default for a message
HEADERS_MAX: Final = 100
HEADERS_MAX_BYTES: Final = 64 * 1024
JSON_MAX_DEPTH: Final = 8
JSON_MAX_INT: Final = 10**15 - 1  # 15 digits: what a double holds exactly
KEY_SHOWN_MAX_BYTES: Final = 64 * 1024  # of a record's key in a dead letter or handoff
SEALED_MAX_BYTES: Final = 64 * 1024  # of what was taken out of one record
PARAMS_MAX_BYTES: Final = 512 * 1024  # merged and canonical
IDEMPOTENCY_KEY_MAX_BYTES: Final = 256
CORRELATION_ID_MAX_BYTES: Final = 256
JOB_NAME_MAX_BYTES: Final = 200
DETAIL_MAX_CHARACTERS: Final = 300

# ── the token (JWS compact) ──
TOKEN_MAX_BYTES: Final = 8 * 1024
TOKEN_HEADER_MAX_BYTES: Final = 1024  # decoded
TOKEN_CLAIMS_MAX_BYTES: Final = 4 * 1024  # decoded
KID_MAX_CHARACTERS: Final = 128
JTI_MAX_CHARACTERS: Final = 128
SUBJECT_MAX_CHARACTERS: Final = 256
GRANT_JOBS_MAX: Final = 64
REGISTRY_KEY_MAX_CHARACTERS: Final = 300
BIRTH_ID_MAX_CHARACTERS: Final = 64
ACTORS_MAX: Final = 4  # who act for one another (RFC 8693), and tokens that one came of
LEVEL_MAX: Final = 9  # of a platform's security

# ── a JWK Set ──
JWKS_MAX_BYTES: Final = 1 << 20
JWKS_MAX_KEYS: Final = 256

# ── lifetimes ──
ONE_SHOT_LIFETIME_MAX_S: Final = 24 * 3600
WEBHOOK_LIFETIME_MAX_S: Final = 90 * 24 * 3600
GRACE_S: Final = 60
QUEUE_AGE_CAP_S: Final = 4 * 3600
DEDUP_WINDOW_DEFAULT_S: Final = 24 * 3600
JOB_TIMEOUT_DEFAULT_S: Final = 300
USER_LIFETIME_MAX_S: Final = 24 * 3600
HOST_LIFETIME_MAX_S: Final = 90 * 24 * 3600
EXECUTION_LIFETIME_MAX_S: Final = 24 * 3600
LIFETIME_MAX_S: Final = {"once": ONE_SHOT_LIFETIME_MAX_S, "many": WEBHOOK_LIFETIME_MAX_S}  # by a token's uses
NUMERIC_DATE_MAX_S: Final = 10**11  # beyond the year 5000 nothing is a date

# ── symmetric keys, development only ──
HS256_SECRET_MIN_BYTES: Final = 32  # RFC 7518 section 3.2
