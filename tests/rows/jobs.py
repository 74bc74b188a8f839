"""The jobs of the world of rows. A name says what is particular about the job; NIGHTLY is the plain one."""

from __future__ import annotations

NIGHTLY, OTHER, THIRD = "rows/nightly", "rows/other", "rows/third"
STRICT, TOKEN_WINS, SENSITIVE = "rows/strict", "rows/token-wins", "rows/sensitive"
ONE_SHOT_ONLY, DISABLED, DEFAULTED, BY_EVENT_ID = (
    "rows/one-shot-only",
    "rows/disabled",
    "rows/defaulted",
    "rows/by-event-id",
)
UNREGISTERED = "rows/unregistered"  # within every trust rule, and not in the registry
FORBIDDEN = "payroll/run"  # registered, and in no trust rule
JOBS = f"""\
[jobs."{NIGHTLY}"]
[jobs."{OTHER}"]
[jobs."{THIRD}"]
[jobs."{FORBIDDEN}"]
[jobs."{DISABLED}"]
enabled = false
[jobs."{TOKEN_WINS}"]
on_param_conflict = "token_wins"
[jobs."{SENSITIVE}"]
sensitive = ["db_password"]
[jobs."{ONE_SHOT_ONLY}"]
accepts = ["one_shot"]
[jobs."{BY_EVENT_ID}"]
idempotency_from_ce_id = true
[jobs."{DEFAULTED}"]
on_param_conflict = "token_wins"
defaults = {{ a = "default", b = "default", c = "default" }}
[jobs."{STRICT}"]
defaults = {{ format = "pdf" }}
[jobs."{STRICT}".params_schema]
type = "object"
required = ["region"]
additionalProperties = false
properties = {{ region = {{ enum = ["eu", "us"] }}, format = {{ enum = ["pdf", "csv"] }}, pages = {{ type = "array", items = {{ type = "integer", maximum = 9 }} }} }}
"""
