"""A valid world for rules, definitions and revocations: one rule, one job, one verified token."""

import json

import msgspec

from app.gate.policy import (
    Job,
    TrustRule,
    job_from_record,
    merge_params,
    permit,
)
from app.gate.reasons import Rejected
from app.gate.token import Claims, Grant

ISS = "https://issuer.example"
NOW_S = 1_700_000_000
NOW_MS = NOW_S * 1000
GRACE_S = 60
RULE = TrustRule(
    ISS, 1, "/jwks.json", ("ES256",), ("acme",), ("trigger",), ("service:*",), ("reports/*", "exact"), 90 * 86_400
)
GRANT = Grant(("106-Trigger",), ("reports/nightly",), {})
CLAIMS = Claims(ISS, "k1", "service:ci", "acme", "jti-1", NOW_S - 10, NOW_S - 10, NOW_S + 600, "once", "trigger", GRANT)


def job(**members) -> Job:
    name = members.setdefault("name", "reports/nightly")
    made = job_from_record(f"job/{name}".encode(), json.dumps({"version": 1} | members).encode())
    assert isinstance(made, Job), made
    return made


def claims(**changes):
    grant = {name: changes.pop(name) for name in ("actions", "jobs", "params", "params_sha256") if name in changes}
    return msgspec.structs.replace(CLAIMS, grant=msgspec.structs.replace(GRANT, **grant), **changes)


def authorize(claims, rule, jobs, name, payload, params_sha256):
    """Stage 3 whole, as a decision takes it in two steps."""
    definition = permit(claims, rule, jobs, name)
    if isinstance(definition, Rejected):
        return definition
    return merge_params(claims.grant, definition, payload, params_sha256)


def judge(token=CLAIMS, name="reports/nightly", payload=None, definition=None, params_sha256=None, rule=RULE):
    definition = definition or job()
    return authorize(token, rule, {definition.name: definition}, name, payload or {}, params_sha256)


def code(outcome):
    return outcome.code if isinstance(outcome, Rejected) else outcome
