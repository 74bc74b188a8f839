"""What `tollgate up` starts with: three jobs and a trust rule for our own issuer, as files one can edit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

JOBS: Final = """\
# Sample jobs of `tollgate up`. Edit, then: tollgate jobs apply {file}

[jobs."reports/nightly"]
defaults = {{ format = "pdf" }}
dedup_window_s = 86400
timeout_s = 300

[jobs."reports/nightly".params_schema]
type = "object"
required = ["region"]
additionalProperties = false

[jobs."reports/nightly".params_schema.properties]
region = {{ enum = ["eu", "us", "asia"] }}
format = {{ enum = ["pdf", "csv"] }}

[jobs."images/resize"]            # for webhooks: tokens of many uses, a key for each request
accepts = ["one_shot", "webhook"]
on_param_conflict = "token_wins"
timeout_s = 60

[jobs."database/backup"]          # sensitive: one-shot tokens only
accepts = ["one_shot"]
sensitive = ["db_password"]
timeout_s = 3600
"""

TRUST: Final = """\
# What our own issuer may do. Edit, then: tollgate trust apply {file}

[trust."{issuer}"]
jwks = "{jwks}"
algorithms = ["ES256"]
orgs = ["{org}"]
classes = ["trigger", "user", "host"]
subjects = ["service:*", "svc:*", "task:*", "u:*", "host:*"]
jobs = ["reports/*", "images/*", "database/backup"]
max_lifetime_s = 7776000          # webhook tokens: up to 90 days
"""


def write_once(file: Path, text: str) -> None:
    """A sample is written where there is none; what somebody edited stays."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
