"""Why a trigger was refused: one ordered table from which everything that shows a reason derives.

The order is precedence: when several things are wrong, the earliest check names the reason. Codes are
never reused. A transient reason may be gone when the same trigger is presented again later.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Stage(StrEnum):
    """Where in the decision a trigger was refused."""

    PARSE = "parse"
    VERIFY = "verify"
    AUTHORIZE = "authorize"
    DEDUPE = "dedupe"


# A refusal over HTTP (RFC 9110 section 15), where the reason itself does not say another.
HTTP_STATUS: Final = {Stage.PARSE: 400, Stage.VERIFY: 401, Stage.AUTHORIZE: 403, Stage.DEDUPE: 409}


class Reason(NamedTuple):
    """One reason: its code, the stage that gives it, what it means, what to do, and whether it may pass."""

    code: str
    stage: Stage
    meaning: str
    remedy: str
    transient: bool = False
    status: int | None = None  # over HTTP, if not its stage's

    @property
    def http_status(self) -> int:
        return self.status or HTTP_STATUS[self.stage]


_P, _V, _A, _D = Stage.PARSE, Stage.VERIFY, Stage.AUTHORIZE, Stage.DEDUPE

REASONS: Final[tuple[Reason, ...]] = (
    # ── 1 parse: the record is a trigger ──
    Reason(
        "handoff_unreadable",
        _P,
        "a record on the handoffs topic is none this gate can read",
        "ops: run one version of the gate, and look at who may write to handoffs",
        status=500,
    ),
    Reason(
        "batch_too_large",
        _P,
        "the compressed batch expands beyond the limit; its records were not read",
        "send smaller batches, or without compression",
        status=413,
    ),
    Reason(
        "batch_unreadable",
        _P,
        "the batch holds what no reader agrees on: offsets of its own, bytes out of form; its records were not read",
        "send with a well-kept client; see the producer that wrote to these coordinates",
        status=400,
    ),
    Reason(
        "record_too_large",
        _P,
        "the record's value or headers exceed the limit",
        "send a reference to the data instead of the data",
        status=413,
    ),
    Reason(
        "timestamp_type_invalid",
        _P,
        "the record's timestamp is the producer's, not the broker's append time",
        "ops: run `tollgate topics check`; the topic needs message.timestamp.type=LogAppendTime",
        status=500,
    ),
    Reason(
        "headers_malformed",
        _P,
        "too many headers, or one of ours that is not UTF-8",
        "send at most 100 headers, those named tollgate-*, ce_* and authorization as UTF-8",
    ),
    Reason("header_repeated", _P, "a header that decides something is given twice", "give each header once"),
    Reason(
        "value_missing",
        _P,
        "the record has neither a value nor a job header (a tombstone is not a trigger)",
        "send the trigger as the record's value",
    ),
    Reason(
        "json_malformed",
        _P,
        "the value is not strict JSON (RFC 8259, UTF-8, no NaN, no lone surrogates)",
        "send one JSON object in UTF-8",
    ),
    Reason("json_duplicate_member", _P, "a JSON object names a member twice", "name each member once"),
    Reason("json_too_deep", _P, "JSON nested deeper than 8 levels", "flatten the parameters"),
    Reason(
        "json_number_unsafe",
        _P,
        "a number beyond 15 digits or the range of a double: readers would not agree on it",
        "send it as a string",
    ),
    Reason(
        "envelope_malformed",
        _P,
        "a member of the trigger is unknown or of the wrong type",
        "send job, params, idempotency_key, correlation_id, params_sha256 and token only",
    ),
    Reason(
        "cloudevent_malformed",
        _P,
        "the CloudEvent lacks a required attribute or is of an unknown version",
        "send CloudEvents 1.0 with id, source, type and specversion",
    ),
    Reason("job_conflict", _P, "two places of the record name different jobs", "name the job once"),
    Reason(
        "idempotency_key_malformed",
        _P,
        "the idempotency key is empty, not printable text, or longer than 256 bytes",
        "use a short text, a UUID for example",
    ),
    Reason(
        "token_missing",
        _P,
        "the record carries no token",
        "put the token into the header authorization: Bearer …, or into the member token",
        status=401,
    ),
    Reason("token_ambiguous", _P, "the record carries tokens in two places", "present exactly one token"),
    Reason(
        "authorization_malformed",
        _P,
        "the authorization header is not `Bearer` and one token",
        "send authorization: Bearer TOKEN",
        status=401,
    ),
    Reason(
        "token_in_params",
        _P,
        "a parameter holds something shaped like a token",
        "never pass tokens as parameters; they would reach every reader of the jobs topic",
    ),
    # ── 2 verify: the token is well-formed, from a trusted issuer, and in its time ──
    Reason(
        "token_too_large",
        _V,
        "the token exceeds 8 KiB, its header 1 KiB or its claims 4 KiB",
        "grant less in one token",
    ),
    Reason(
        "token_malformed",
        _V,
        "neither a JWS in compact form (three parts of strict base64url) nor a handle (ref: and 43 characters)",
        "present the token exactly as it was issued",
    ),
    Reason(
        "token_unknown",
        _V,
        "no grant is known under this handle",
        "present the handle exactly as it was issued, to the deployment it was issued for",
        transient=True,
    ),
    Reason(
        "token_json_malformed",
        _V,
        "header or claims are not one strict JSON object",
        "the issuer must write strict JSON: UTF-8, no duplicate members, no NaN",
    ),
    Reason(
        "token_header_not_allowed",
        _V,
        "the header holds something other than alg, kid and typ",
        "the issuer must send exactly alg, kid and typ",
    ),
    Reason(
        "algorithm_not_allowed",
        _V,
        "the algorithm is not one this issuer's keys are used with",
        "sign with ES256 (or EdDSA, where the trust rule lists it)",
    ),
    Reason(
        "token_type_invalid",
        _V,
        "typ does not name a class of token that starts jobs",
        "present a token of typ trigger+jwt",
    ),
    Reason(
        "wrong_client_class",
        _V,
        "the token is of a class that has its place elsewhere: trigger, user, host, execution or task",
        "present a token of the class that belongs here; a person's gets one that starts jobs by `token issue --login`",
        status=403,
    ),
    Reason("kid_missing", _V, "the header has no kid", "the issuer must name its key by kid"),
    Reason("kid_malformed", _V, "kid is not a short text", "use a kid of 1 to 128 printable ASCII characters"),
    Reason("issuer_missing", _V, "the claims have no iss", "the issuer must name itself by iss"),
    Reason("issuer_malformed", _V, "iss is not text", "the issuer must name itself by iss, a text"),
    Reason(
        "issuer_untrusted",
        _V,
        "no trust rule names this issuer",
        "ops: `tollgate trust apply`; emitters: get a token from a trusted issuer",
    ),
    Reason(
        "kid_unknown",
        _V,
        "the issuer's key set has no such key",
        "the issuer must publish a key before its first use; a removed key is not honoured",
        transient=True,
    ),
    Reason(
        "signature_invalid",
        _V,
        "the signature does not verify with the issuer's key",
        "present the token exactly as it was issued",
    ),
    Reason("audience_missing", _V, "the claims have no aud", "issue the token for this deployment's audience"),
    Reason("audience_malformed", _V, "aud is not one text", "issue the token for exactly one audience"),
    Reason(
        "audience_mismatch",
        _V,
        "the token was issued for another deployment",
        "get a token for this deployment's audience",
    ),
    Reason("ttl_missing", _V, "the token has no exp: it would live for ever", "issue with a lifetime"),
    Reason("expiry_malformed", _V, "exp is not a whole number of seconds", "exp is a NumericDate, whole seconds"),
    Reason(
        "jti_required",
        _V,
        "the token has no jti, so its use could not be told from a replay",
        "issue with a unique jti of at least 128 bits",
    ),
    Reason("org_missing", _V, "the claims have no org_id", "issue the token for an organisation"),
    Reason(
        "claim_malformed",
        _V,
        "a required claim is missing or malformed; the detail names it",
        "issue with the claims that schemas/trigger-token.v1.schema.json lists",
    ),
    Reason(
        "delegation_too_deep",
        _V,
        "the token was exchanged too often: more act for one another than may",
        "let fewer stand between the subject and who presents the token",
    ),
    Reason(
        "grant_malformed",
        _V,
        "authorization_details does not hold one well-formed grant, or one with an unknown condition",
        "issue with one grant of type job_trigger with actions, jobs, params, params_sha256 and bound_to only",
    ),
    Reason(
        "ttl_too_long",
        _V,
        "the token's lifetime exceeds the cap of its use or of its trust rule",
        "issue with a shorter lifetime: one-shot up to 24 h, webhook up to 90 days",
    ),
    Reason(
        "token_not_yet_valid",
        _V,
        "nbf or iat lies after the broker's append time, beyond the grace",
        "mend the issuer's clock, or wait",
    ),
    Reason(
        "token_expired",
        _V,
        "the token had expired when the broker appended the trigger, beyond the grace",
        "get a new token",
    ),
    Reason(
        "org_mismatch",
        _V,
        "the trust rule does not let this issuer speak for that organisation",
        "use a token of an organisation this deployment serves",
    ),
    Reason(
        "class_not_allowed",
        _V,
        "the trust rule does not let this issuer make tokens of that class",
        "ops: the trust rule's classes",
    ),
    Reason(
        "subject_not_allowed",
        _V,
        "the trust rule does not let this issuer speak for that subject",
        "ops: the trust rule's subjects",
    ),
    Reason(
        "identity_disabled",
        _V,
        "the token's subject, or who acts for it, is an identity that is disabled, or whose record cannot be read",
        "ops: `tollgate identities enable`, if it should act again",
        transient=True,
    ),
    Reason(
        "token_revoked",
        _V,
        "revoked: the token, its subject or a prefix of it, a job it grants, its class, its key or its issuer",
        "get a new token, if you may",
    ),
    Reason(
        "bound_object_gone",
        _V,
        "what the token is bound to is no longer in the registry, or was made anew since",
        "get a token for what is there now",
    ),
    # ── 3 authorize: the token may start this job with these parameters ──
    Reason("permission_missing", _A, "the grant lacks the action 106-Trigger", "issue with the action 106-Trigger"),
    Reason(
        "scope_too_broad",
        _A,
        "the grant names no job, or a pattern instead of jobs",
        "name each job exactly; a one-shot token names one",
    ),
    Reason("job_missing", _A, "the trigger names no job and the token grants several", "name the job", status=400),
    Reason(
        "job_not_authorized",
        _A,
        "the token does not grant this job, or its issuer may not",
        "get a token that names this job",
    ),
    Reason(
        "denied_by_rule",
        _A,
        "a mapping rule denies this to the token, its subject, who acts for it, its class or host",
        "ops: `tollgate policy show` names the rule",
    ),
    Reason(
        "not_allowed_by_rule",
        _A,
        "mapping rules say what the token, its subject, class or host may start, and this is not in them",
        "ops: `tollgate policy show` names the rules",
    ),
    Reason("job_unknown", _A, "no such job is registered", "ops: `tollgate jobs apply`", status=404),
    Reason(
        "not_on_allowlist",
        _A,
        "the job's own allowlist does not name this issuer and subject",
        "ask the job's owner to let you in; ops: `tollgate allowlist suggest`, then `tollgate jobs apply`",
    ),
    Reason("job_disabled", _A, "the job is registered and switched off", "wait until it is enabled", transient=True),
    Reason(
        "token_class_too_weak",
        _A,
        "the job does not accept tokens of this use",
        "get a one-shot token; this job asks for one",
    ),
    Reason(
        "secret_in_token",
        _A,
        "the token carries in clear a parameter the job declares sensitive",
        "never put a secret into a token; its bearer can read it",
    ),
    Reason(
        "param_conflict",
        _A,
        "the payload gives another value for a parameter the token fixes",
        "leave out what the token fixes",
        status=422,
    ),
    Reason(
        "payload_digest_mismatch",
        _A,
        "params_sha256 does not match the parameters sent",
        "send the parameters exactly as digested (canonical JSON, RFC 8785)",
        status=422,
    ),
    Reason(
        "payload_invalid",
        _A,
        "the parameters do not fit the job's schema; the detail points at the place",
        "send parameters that fit the schema",
        status=422,
    ),
    Reason(
        "payload_too_large", _A, "the merged parameters exceed the limit", "send a reference to the data", status=413
    ),
    Reason(
        "window_too_long",
        _A,
        "the job's dedup window exceeds what the idempotency topic keeps",
        "ops: shorten dedup_window_s, or raise the topic's retention.ms",
        status=500,
    ),
    # ── 4 dedupe: the same request starts one job ──
    Reason(
        "idempotency_key_conflict",
        _D,
        "two places, or a place and the token, give idempotency keys that differ",
        "give the key in one place, or the same key in each",
        status=400,
    ),
    Reason(
        "idempotency_key_not_in_token",
        _D,
        "a one-shot token came with a key that is not in the token",
        "ask the issuer to put the key into the token",
        status=400,
    ),
    Reason(
        "queue_age_exceeded",
        _D,
        "the trigger waited longer than the cap on queue age",
        "send the trigger again",
        transient=True,
        status=503,
    ),
    Reason(
        "token_already_used",
        _D,
        "a one-shot token was presented again with another request: the mark of a replay",
        "get a new token for a new request; look at who holds the old one",
    ),
    Reason(
        "idempotency_key_reused",
        _D,
        "the same key came with another request",
        "use a new key for a new request",
        status=422,
    ),
    # ── our own error: fail closed ──
    Reason(
        "internal_deny",
        _D,
        "the gate failed on this record and refused it; the log has the error",
        "tell the operators of the gate",
        transient=True,
        status=500,
    ),
)

BY_CODE: Final[dict[str, Reason]] = {reason.code: reason for reason in REASONS}
PRECEDENCE: Final[dict[str, int]] = {reason.code: place for place, reason in enumerate(REASONS)}


class Rejected(NamedTuple):
    """A refusal, as a value: a code of the table and, for those who may know, one sentence of detail."""

    code: str
    detail: str | None = None

    @property
    def reason(self) -> Reason:
        return BY_CODE[self.code]
