"""What a decision may know beside the record, and what a verified token may do in it.

A World is one value, replaced whole when a table changes. What its decisions have in common is remembered in its Memo
and never carried into another World: a key removed, a job edited, a subject revoked start from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from app.gate import idempotency
from app.gate.identities import NONE_DISABLED, DisabledIdentities
from app.gate.keyset import KeyRing
from app.gate.mapping import NO_RULES, MappingRules
from app.gate.policy import Job, Revocations, TrustRule, check_bearer, check_time, granted_job, permit
from app.gate.reasons import Rejected
from app.gate.records import IssuerAndSubject, TokenReference
from app.gate.reference import NO_GRANTS, Grants
from app.gate.token import Claims, VerifiedToken

MEMO_MAX: Final = 20_000  # webhook tokens, about 2 KiB each; and bearers
MEMO_TEXT_CHARS: Final = 16 << 20  # of their texts, whose claims may weigh twenty times as much
PERMITTED_MAX: Final = 1_000  # kinds of grants of one bearer

_encode = msgspec.json.Encoder().encode
_decode_claims = msgspec.json.Decoder(Claims).decode


class Permitted(msgspec.Struct, frozen=True):
    """A job that a bearer may start, and what its keys and its requests are unique within."""

    job: Job
    key_scope: bytes
    request_scope: bytes


class Bearer(msgspec.Struct, frozen=True):
    """What the bearer of a token may in one world: the part of a decision that its tokens have in common."""

    rule: TrustRule
    refused: Rejected | None  # organisation, class or subject
    mapping: MappingRules | None  # those that fit it, if any does
    emitter: str  # a handle that names nobody
    identity: IssuerAndSubject
    jti_scope: bytes
    # by uses, whether it was exchanged, actions, jobs granted, and job asked for
    permitted: dict[tuple[object, ...], Permitted]


class Standing(msgspec.Struct, frozen=True, gc=False):
    """What one token may do with one job in one world: all of a decision that its triggers have in common."""

    token: VerifiedToken
    permitted: Permitted
    emitter: str
    jti_identity: bytes  # 16 bytes
    from_ms: int  # the token's own time, without grace
    until_ms: int
    identity: IssuerAndSubject
    reference: TokenReference
    written: list[msgspec.Raw]  # the claims as a handoff carries them, once they were written

    def claims_json(self) -> msgspec.Raw:
        if not self.written:
            self.written.append(msgspec.Raw(_encode(self.token.claims)))
        return self.written[0]


class Memo:
    """What one world's decisions have in common. Never carried into another world.

    What was presented is known by its whole text, which only its bearer has; a fingerprint, which anyone may read,
    names what other gates have handed here and never opens anything to who shows it.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, VerifiedToken] = {}  # webhook tokens, verified in this world, by their text
        # by issuer, subject, organisation, class, and who acts for the subject
        self.bearers: dict[tuple[str, str, str, str, tuple[str, ...]], Bearer] = {}
        self.presented: dict[str, Standing] = {}  # of webhook tokens, by their text
        self.handed_tokens: dict[str, tuple[bytes, VerifiedToken]] = {}  # by fingerprint: the claims as they came
        self.handed: dict[str, Standing] = {}  # by fingerprint
        self._text_chars = 0

    def keep(self, text: str, token: VerifiedToken) -> None:
        """One-shot tokens come once: keeping them would only push out the others."""
        if token.claims.uses == "many":
            self.room(self.tokens, len(text))
            self.tokens[text] = token

    def keep_standing(self, seen: dict[str, Standing], name: str, standing: Standing) -> None:
        if standing.token.claims.uses == "many":
            self.room(seen, 0)
            seen[name] = standing

    def handed_token(self, claims_json: bytes, fingerprint: str, insecure: bool) -> VerifiedToken:
        """The token of a handoff. Raises one of UNREADABLE for claims no gate has written."""
        known = self.handed_tokens.get(fingerprint)
        if known is not None and known[0] == claims_json and known[1].insecure is insecure:
            return known[1]
        token = VerifiedToken(_decode_claims(claims_json), fingerprint, insecure)
        if token.claims.uses == "many":
            self.room(self.handed_tokens, len(claims_json))
            self.handed_tokens[fingerprint] = (claims_json, token)
        return token

    def room(self, memory: dict[Any, Any], chars: int) -> None:
        """Forget a memory that is full; and all of them, when what their texts add up to is too long."""
        self._text_chars += chars
        if self._text_chars > MEMO_TEXT_CHARS:
            self._text_chars = chars
            for each in (self.tokens, self.bearers, self.presented, self.handed_tokens, self.handed):
                each.clear()
        elif len(memory) >= MEMO_MAX:
            memory.clear()


class World(msgspec.Struct, frozen=True):
    """Everything a decision may know beside the record: one value, replaced whole when a table changes."""

    audience: str
    lanes: int
    grace_s: int
    queue_age_cap_ms: int
    max_window_ms: int  # what the idempotency topic is sure to keep
    run_seed: int  # digest of cluster and topic: run ids of two deployments never meet
    ring: KeyRing
    rules: Mapping[str, TrustRule]
    jobs: Mapping[str, Job]
    revocations: Revocations
    disabled: DisabledIdentities = NONE_DISABLED
    mapping: MappingRules = NO_RULES
    registry_offset: int = 0  # how far the two tables had been read
    revocations_offset: int = 0
    grants: Grants = NO_GRANTS  # what handles stand for
    objects: Mapping[str, str] = {}  # everything in the registry, by its key: its birth id, or empty
    # Of this world alone: what was verified with keys of the one before must not outlive it.
    memo: Memo = msgspec.field(default_factory=Memo)


def bearer_of(claims: Claims, world: World, memo: Memo) -> Bearer | None:
    """None when no trust rule names the issuer."""
    name = (claims.iss, claims.sub, claims.org_id, claims.token_class, claims.actors)
    bearer = memo.bearers.get(name)
    if bearer is None:
        rule = world.rules.get(claims.iss)
        if rule is None:
            return None
        who = IssuerAndSubject(claims.iss, claims.sub)
        scope = idempotency.jti_scope(claims.iss)
        refused = check_bearer(claims, rule)
        if refused is None and any(world.disabled.covers(claims.iss, who) for who in (claims.sub, *claims.actors)):
            refused = Rejected("identity_disabled")
        bearer = Bearer(rule, refused, world.mapping.of_bearer(claims), emitter(claims), who, scope, {})
        memo.room(memo.bearers, sum(map(len, name)))
        memo.bearers[name] = bearer
    return bearer


def check_honoured(claims: Claims, bearer: Bearer, at_ms: int, world: World) -> Rejected | None:
    """The rest of stage 2 for a token in this world: keys, time, bearer, revocation, what it is bound to."""
    if claims.delegation is not None:
        # A key that was removed signs nothing any more, nor does what its tokens were exchanged for.
        keys = world.ring.get(claims.iss)
        if keys is None or any(parent.kid not in keys.keys for parent in claims.parents):
            return Rejected("kid_unknown", "the set no longer holds the key of a token it came of")
    refusal = check_time(claims, bearer.rule, at_ms, world.grace_s) or bearer.refused
    if refusal is not None:
        return refusal
    if world.revocations.covers(claims):
        return Rejected("token_revoked")
    if claims.grant.bound_to is not None and claims.grant.bound_to.is_gone(world.objects):
        return Rejected("bound_object_gone", "the registry holds it no longer")
    return None


def emitter(claims: Claims) -> str:
    """A handle for who emitted, the same for one identity, that names nobody: a digest of issuer and subject."""
    issuer = claims.iss.encode()
    return blake2b(len(issuer).to_bytes(4, "big") + issuer + claims.sub.encode(), digest_size=16).hexdigest()


def stand(
    token: VerifiedToken, bearer: Bearer, job: str | None, appended_at_ms: int, world: World
) -> Standing | Rejected:
    """The rest of stage 2 and the half of stage 3 that looks at no parameter, in the order of the reasons."""
    claims = token.claims
    # 2 verify
    refusal = check_honoured(claims, bearer, appended_at_ms, world)
    if refusal is not None:
        return refusal
    # 3 authorize: what is mapped to the token, then the job
    if bearer.mapping is not None:
        name = granted_job(claims, bearer.rule, job)
        refusal = bearer.mapping.refuse(claims, name) if isinstance(name, str) else name
        if refusal is not None:
            return refusal
    grant = claims.grant
    asked = (claims.uses, bool(claims.parents), grant.actions, grant.jobs, job)
    permitted = bearer.permitted.get(asked)
    if permitted is None:
        definition = permit(claims, bearer.rule, world.jobs, job)
        if isinstance(definition, Rejected):
            return definition
        if len(bearer.permitted) >= PERMITTED_MAX:
            bearer.permitted.clear()
        permitted = bearer.permitted[asked] = Permitted(
            definition, idempotency.scope(claims, definition), idempotency.request_scope(definition)
        )
    return Standing(
        token, permitted, bearer.emitter, idempotency.jti_identity(bearer.jti_scope, claims.jti),
        max(claims.iat, claims.nbf) * 1000, claims.exp * 1000, bearer.identity,
        TokenReference(claims.jti, claims.kid, token.fingerprint), [],
    )  # fmt: skip
