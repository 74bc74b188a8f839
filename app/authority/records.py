"""What issuing leaves on the issuance topic: a record for each token and each refusal. Never a token or a secret."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from app.authority.decide import Denied, IssueRequest
from app.authority.identities import Identity, kind_of
from app.authority.roles import TokenClass
from app.gate import limits
from app.gate.claims import BoundTo, Claims, Parent, Uses
from app.gate.definitions import job_name_fault

Via = Literal["cli", "http"]
Record = tuple[bytes, bytes]  # key and value
UNSHOWN: Final = "?"  # in place of a text that is no name: a stranger may have written it, or put a token there


class Issued(msgspec.Struct, frozen=True):
    """A token was issued."""

    issued_at_ms: int
    identity: str  # who asked, by a verified credential
    credential: str  # its id
    roles: tuple[str, ...]  # that allowed it
    via: Via
    issuer: str
    subject: str
    org_id: str
    token_class: str
    uses: Uses | None  # of trigger tokens
    jti: str
    kid: str
    token_fingerprint: str
    jobs: tuple[str, ...]
    expires_at_s: int
    event: Literal["issued"] = "issued"
    actors: tuple[str, ...] = ()  # who acts for the subject, the last first
    parents: tuple[Parent, ...] = ()  # the tokens it was exchanged for, the last first
    bound_to: BoundTo | None = None  # the object of the registry it lives as long as


class IssueDenied(msgspec.Struct, frozen=True):
    """A token was refused to whoever asked."""

    denied_at_ms: int
    identity: str  # as claimed, where it could be one's name
    authenticated: bool
    via: Via
    issuer: str
    reason: str
    detail: str
    subject: str
    org_id: str
    token_class: TokenClass
    uses: Uses
    jobs: tuple[str, ...]
    lifetime_s: int | None
    event: Literal["issue_denied"] = "issue_denied"


def issued(
    claims: Claims,
    fingerprint: str,
    identity: Identity,
    credential_id: str,
    roles: tuple[str, ...],
    via: Via,
    now_ms: int,
) -> Record:
    """Key and value of the record of a token that was issued."""
    record = Issued(
        now_ms, identity.name, credential_id, roles, via, claims.iss, claims.sub, claims.org_id, claims.token_class,
        claims.uses if claims.token_class == "trigger" else None,  # noqa: S105 - a class
        claims.jti, claims.kid, fingerprint, claims.grant.jobs, claims.exp, actors=claims.actors,
        parents=claims.parents, bound_to=claims.grant.bound_to,
    )  # fmt: skip
    return record.jti.encode(), msgspec.json.encode(record)


def issue_denied(
    denied: Denied, request: IssueRequest, claimed: str, issuer: str, via: Via, now_ms: int, *, authenticated: bool
) -> Record:
    """Key and value of the record of a refusal. `claimed` is the name that was given, verified or not."""
    record = IssueDenied(
        now_ms, _identity(claimed), authenticated, via, issuer, denied.code,
        denied.words[: limits.DETAIL_MAX_CHARACTERS], _identity(request.subject), _shown(request.org_id),
        request.token_class, request.uses,
        tuple(UNSHOWN if job_name_fault(job) else job for job in request.jobs[: limits.GRANT_JOBS_MAX]),
        request.lifetime_s,
    )  # fmt: skip
    return record.identity.encode(), msgspec.json.encode(record)


def _identity(name: str) -> str:
    return name if kind_of(name) is not None else UNSHOWN


def _shown(text: str) -> str:
    return text if job_name_fault(text) is None else UNSHOWN
