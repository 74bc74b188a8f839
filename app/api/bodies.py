"""The bodies and the query of requests about tokens, and the bodies of their answers, as types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from app.authority.records import Issued
from app.authority.revoking import REASON_MAX_CHARACTERS
from app.authority.roles import TokenClass
from app.gate.claims import Uses


class TokenWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for. There is no default lifetime: who asks says how long."""

    lifetime_s: int
    jobs: list[str] = []  # of a trigger token
    token_class: TokenClass = "trigger"  # noqa: S105 - a class
    uses: Uses = "once"
    subject: str | None = None
    params: dict[str, Any] = {}
    params_sha256: str | None = None
    idempotency_key: str | None = None
    reference: bool = False  # a handle (ref:…), which says nothing to who sees it
    bound_to: str | None = None  # it dies with this object of the registry: job/NAME, trust/ISSUER


class TokensAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a listing: only what fits each member that is given."""

    identity: str | None = None  # to which it was issued
    subject: str | None = None
    token_class: str | None = msgspec.field(name="class", default=None)
    job: str | None = None
    revoked: Literal["true", "false"] = "false"  # also those that are

    def fits(self, each: Issued) -> bool:
        return (
            self.identity in (None, each.identity) and self.subject in (None, each.subject)
            and self.token_class in (None, each.token_class) and (self.job is None or self.job in each.jobs)
        )  # fmt: skip


class RevocationWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token, or all that speak for the client itself."""

    selector: Literal["jti", "subject"]
    value: str
    reason: Annotated[str, msgspec.Meta(max_length=REASON_MAX_CHARACTERS)] = ""  # printable, and no token


class ListedToken(msgspec.Struct, frozen=True):
    """A token that may still be out; never the token."""

    token_fingerprint: str
    jti: str
    identity: str
    subject: str
    org_id: str
    token_class: str
    uses: str | None
    jobs: tuple[str, ...]
    issued_at_ms: int
    expires_at_s: int
    revoked: bool
