"""Policy: what trust rules, job definitions and revocations say of a verified token.

The checks stand in the order of `reasons.py`, so the earliest fault names the reason and whether a job exists is said
only to who may start it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final
from unicodedata import normalize

import msgspec

from app.gate import limits
from app.gate.canonical import canonical, same_json
from app.gate.definitions import Job, TrustRule, job_from_record, job_key, matches, trust_from_record, trust_key
from app.gate.quick import TRIGGER_ACTION
from app.gate.reasons import Rejected
from app.gate.redact import token_shaped
from app.gate.revocation import Revocation, Revocations, Selector, revocation_key, revocation_record
from app.gate.token import Claims, Grant

__all__ = [
    "TRIGGER_ACTION",
    "Authorized",
    "Job",
    "Revocation",
    "Revocations",
    "Selector",
    "TrustRule",
    "check_bearer",
    "check_time",
    "check_token",
    "granted_job",
    "job_from_record",
    "job_key",
    "merge_params",
    "permit",
    "revocation_key",
    "revocation_record",
    "trust_from_record",
    "trust_key",
    "within_grace",
]  # fmt: skip

ACCEPTS_NAME: Final = {"once": "one_shot", "many": "webhook"}  # a token's use, as a job definition names it
_looks_like_pattern: Final = re.compile(r"[*?\[]").search


class Authorized(msgspec.Struct, frozen=True, gc=False):
    """Stage 3 passed: the job, its params (token over payload over defaults) and those before defaults."""

    job: Job
    params: dict[str, Any]  # what the job runs with
    requested: dict[str, Any]  # token's over payload's, before defaults: what the fingerprint is over
    requested_canonical: bytes  # the same, as RFC 8785 writes it


def check_token(
    claims: Claims, rule: TrustRule, revocations: Revocations, appended_at_ms: int, grace_s: int
) -> Rejected | None:
    """The rest of stage 2: lifetime cap, times at append time, organisation, class, subject, revocation."""
    refusal = check_time(claims, rule, appended_at_ms, grace_s) or check_bearer(claims, rule)
    if refusal is None and revocations.covers(claims):
        return Rejected("token_revoked")
    return refusal


def check_time(claims: Claims, rule: TrustRule, appended_at_ms: int, grace_s: int) -> Rejected | None:
    """Lifetime cap, and the token's own time at append time with the grace for clock skew."""
    iat, exp, nbf = claims.iat, claims.exp, claims.nbf
    lifetime_s = exp - iat
    if lifetime_s > limits.LIFETIME_MAX_S[claims.uses] or lifetime_s > rule.max_lifetime_s:
        cap_s = min(limits.LIFETIME_MAX_S[claims.uses], rule.max_lifetime_s)
        return Rejected("ttl_too_long", f"{lifetime_s} s; at most {cap_s} s")
    if (max(iat, nbf)) * 1000 > appended_at_ms + grace_s * 1000:
        return Rejected("token_not_yet_valid")
    if appended_at_ms > (exp + grace_s) * 1000:
        return Rejected("token_expired")
    return None


def check_bearer(claims: Claims, rule: TrustRule) -> Rejected | None:
    """Whether the issuer may speak for this organisation and subject, in this class."""
    if claims.org_id not in rule.orgs:
        return Rejected("org_mismatch")
    if claims.token_class not in rule.classes:
        return Rejected("class_not_allowed")
    if not matches(rule.subjects, claims.sub):
        return Rejected("subject_not_allowed")
    return None


def within_grace(claims: Claims, appended_at_ms: int, grace_s: int) -> bool:
    """Whether the token was in its time only thanks to the grace for clock skew."""
    if claims.iat * 1000 <= appended_at_ms <= claims.exp * 1000 and claims.nbf * 1000 <= appended_at_ms:
        return False
    early = max(claims.nbf, claims.iat) * 1000 - appended_at_ms
    late = appended_at_ms - claims.exp * 1000
    return 0 < early <= grace_s * 1000 or 0 < late <= grace_s * 1000


def permit(claims: Claims, rule: TrustRule, jobs: Mapping[str, Job], job: str | None) -> Job | Rejected:
    """The job: granted by name, within the issuer's rule, then known. The same for every trigger of a token."""
    name = granted_job(claims, rule, job)
    if isinstance(name, Rejected):
        return name
    definition = jobs.get(name)
    if definition is None:
        return Rejected("job_unknown", _shown(name))
    if not definition.allows(claims.iss, claims.sub):
        return Rejected("not_on_allowlist", _shown(name))
    if not definition.enabled:
        return Rejected("job_disabled", _shown(name))
    # A webhook token that is exchanged for a one-shot one starts nothing that it could not start itself.
    if not {ACCEPTS_NAME[claims.uses], *(("webhook",) if claims.parents else ())} <= definition.accepts:
        return Rejected("token_class_too_weak", f"{_shown(name)} accepts {', '.join(sorted(definition.accepts))}")
    return definition


def granted_job(claims: Claims, rule: TrustRule, job: str | None) -> str | Rejected:
    """The name of the job asked for, if the token grants it and its issuer may; not whether it exists."""
    granted = claims.grant.jobs
    if TRIGGER_ACTION not in claims.grant.actions:
        return Rejected("permission_missing")
    if not granted:
        return Rejected("scope_too_broad", "the grant names no job")
    for name in granted:
        if _looks_like_pattern(name):
            return Rejected("scope_too_broad", "the grant names a pattern")
    if len(granted) > 1 and claims.uses == "once":
        return Rejected("scope_too_broad", "a one-shot token grants exactly one job")
    if job is None:
        if len(granted) > 1:
            return Rejected("job_missing")
        job = granted[0]
    elif job not in granted:
        return Rejected("job_not_authorized", f"the token does not grant {_shown(job)}")
    if not matches(rule.jobs, job):
        return Rejected("job_not_authorized", f"the issuer may not grant {_shown(job)}")
    return job


def merge_params(
    grant: Grant, definition: Job, payload: dict[str, Any], params_sha256: str | None,
    payload_canonical: bytes | None = None,
) -> Authorized | Rejected:  # fmt: skip
    """The parameters: token's over payload's over defaults, member by member at the top level."""
    requested = payload
    if grant.params:
        merged = _fix_params(grant.params, payload, definition)
        if isinstance(merged, Rejected):
            return merged
        requested = merged
    if requested is payload and payload_canonical is not None:
        requested_canonical = payload_canonical
    else:
        requested_canonical = canonical(requested)
    if params_sha256 is not None or grant.params_sha256 is not None:
        sent = requested_canonical if requested is payload else canonical(payload)
        refusal = _check_digest(grant, params_sha256, sent)
        if refusal is not None:
            return refusal
    params = {**definition.defaults, **requested} if definition.defaults else requested
    if definition.validator is not None:
        complaint = definition.validate(params)
        if complaint is not None:
            return Rejected("payload_invalid", complaint)
    # Defaults are ops' own: measured only where they could matter.
    size = len(requested_canonical)
    if params is not requested and size + definition.defaults_bytes > limits.PARAMS_MAX_BYTES:
        size = len(canonical(params))
    if size > limits.PARAMS_MAX_BYTES:
        return Rejected("payload_too_large", f"{size} bytes; at most {limits.PARAMS_MAX_BYTES}")
    return Authorized(definition, params, requested, requested_canonical)


def _fix_params(fixed: dict[str, Any], payload: dict[str, Any], definition: Job) -> dict[str, Any] | Rejected:
    """The payload with what the token fixes in its place.

    Names are compared as they are, and the job gets them as they are. But another spelling of a fixed name that looks
    the same (Unicode compatibility forms) is an attempt on it: it counts as a conflict, or is left out.
    """
    secret = next((name for name in fixed if name in definition.sensitive), None)
    if secret is not None:
        return Rejected("secret_in_token", _shown(secret))
    all_ascii = "".join(payload).isascii() and "".join(fixed).isascii()
    looks = _NO_LOOKS if all_ascii else {normalize("NFKC", name) for name in fixed}
    merged = {}
    for name, value in payload.items():
        if name in fixed:
            conflict = not same_json(value, fixed[name])
        else:
            conflict = bool(looks) and normalize("NFKC", name) in looks
            if not conflict:
                merged[name] = value
        if conflict and definition.on_param_conflict == "refuse":
            return Rejected("param_conflict", _shown(name))
    merged.update(fixed)
    return merged


_NO_LOOKS: Final[set[str]] = set()


def _check_digest(grant: Grant, params_sha256: str | None, payload_canonical: bytes) -> Rejected | None:
    """Over the params as the emitter sent them: neither what the token fixes nor defaults are in it."""
    digest = sha256(payload_canonical).hexdigest()
    if params_sha256 is not None and params_sha256 != digest:
        return Rejected("payload_digest_mismatch", "the trigger gives another digest")
    if grant.params_sha256 is not None and grant.params_sha256 != digest:
        return Rejected("payload_digest_mismatch", "the token fixes another digest")
    return None


def _shown(name: str) -> str:
    """A name for a detail: short, printable, and never a token."""
    return name if len(name) <= limits.JOB_NAME_MAX_BYTES and name.isprintable() and not token_shaped(name) else "it"
