"""Token exchange (RFC 8693): a client gets a token for the subject of one it was handed, and who acts for whom stands
in it. What comes of it is never more than what was handed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from unicodedata import normalize

from app.api.forms import Form, OAuthError, required
from app.api.issuing import Wanted
from app.gate import limits
from app.gate.claims import Claims, Parent
from app.gate.quick import TRIGGER_ACTION

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
TYPES: Final = (JWT, "urn:ietf:params:oauth:token-type:access_token")  # by which ours are asked for and handed over


def subject_token_of(form: Form) -> str:
    """The token handed over, unverified."""
    token = required(form, "subject_token")
    if required(form, "subject_token_type") not in TYPES:
        raise OAuthError("invalid_request", f"subject_token_type is {JWT}")
    if issued_type(form) not in TYPES:
        raise OAuthError("invalid_request", f"requested_token_type is {JWT}")
    if "actor_token" in form or "actor_token_type" in form:
        raise OAuthError("invalid_request", "no actor_token is taken: who acts is the client that asks")
    return token


def issued_type(form: Form) -> str:
    """As what the token is asked for, and told of (RFC 8693 section 2.2.1)."""
    return form.get("requested_token_type", JWT)


def narrowed(given: Claims, asked: Wanted, now_s: int, actor: str) -> Wanted:
    """What is asked for, within what was handed over. Raises OAuthError where it would be more.

    A token that cannot be exchanged at all is `invalid_request` (RFC 8693 section 2.2.2).
    """
    if given.uses != "many":
        # Its one use is its bearer's: exchanged, it would start a second job.
        raise OAuthError("invalid_request", "a one-shot token cannot be exchanged", "token_already_used")
    if TRIGGER_ACTION not in given.grant.actions:
        raise OAuthError("invalid_request", "the token handed over starts nothing itself", "permission_missing")
    jobs = asked.jobs or given.grant.jobs
    if not set(jobs) <= set(given.grant.jobs):
        raise OAuthError("invalid_scope", "the token handed over does not grant that job", "job_not_authorized")
    if asked.subject not in (None, given.sub):
        raise OAuthError("invalid_request", "the subject is that of the token handed over")
    fixed = given.grant.params
    if _contradicts(asked.params, fixed):
        raise OAuthError("invalid_scope", "the token handed over fixes another value", "param_conflict")
    if given.grant.params_sha256 is not None and asked.params_sha256 not in (None, given.grant.params_sha256):
        raise OAuthError("invalid_scope", "the token handed over fixes another digest", "payload_digest_mismatch")
    if given.grant.params_sha256 is not None and not asked.params.keys() <= fixed.keys():
        # The digest is of what an emitter sends: beside it, what a token fixes would be more than what was agreed.
        raise OAuthError("invalid_scope", "the token handed over fixes all there is to send", "payload_digest_mismatch")
    if given.idempotency_key is not None and asked.idempotency_key not in (None, given.idempotency_key):
        raise OAuthError("invalid_scope", "the token handed over has another key", "idempotency_key_conflict")
    actors = (actor, *given.actors)
    if len(actors) > limits.ACTORS_MAX:
        words = f"more than {limits.ACTORS_MAX} would act for one another"
        raise OAuthError("invalid_request", words, "delegation_too_deep")
    return asked._replace(
        jobs=tuple(jobs), subject=given.sub, lifetime_s=min(asked.lifetime_s, given.exp - now_s),
        params={**asked.params, **fixed}, params_sha256=asked.params_sha256 or given.grant.params_sha256,
        idempotency_key=asked.idempotency_key or given.idempotency_key, actors=actors,
        bound_to=given.grant.bound_to, parents=(Parent(given.jti, given.kid, given.iat), *given.parents),
    )  # fmt: skip


def _contradicts(asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    """Another value, or one under a name that only looks like a fixed one, which a gate takes for an attempt on it."""
    looks = {normalize("NFKC", name) for name in fixed}
    return any(asked[name] != fixed[name] if name in fixed else normalize("NFKC", name) in looks for name in asked)
