"""`tollgate token issue --as`: an identity proves itself, its roles decide, and each answer leaves its record first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from app.cli import common, handles

if TYPE_CHECKING:
    from app.authority.decide import Denied, IssueRequest
    from app.authority.identities import Identity
    from app.authority.platforms import Platform
    from app.authority.records import Record
    from app.authority.roles import TokenClass
    from app.config import Settings
    from app.gate.claims import BoundTo, Uses
    from app.issuer.mint import Minted, Refusal

CHUNK: Final = 1_000  # tokens whose records are written together, before any of them is shown


class Asked(NamedTuple):
    """What was asked for, by whom. Subject and organisation not given are the identity's own."""

    claimed: str  # the identity's name, nothing proved yet
    unverified_secret: str
    subject: str | None
    org_id: str | None
    jobs: tuple[str, ...]
    uses: Uses
    lifetime_s: int
    token_class: TokenClass
    bound_to: str | None  # the registry's key of an object; nobody is told whether it is there before they may issue


Make = Callable[[int, str, str, "BoundTo | None", "Platform | None"], "Minted | Refusal"]


def issue_as(settings: Settings, asked: Asked, count: int, make: Make) -> None:
    """Print `count` tokens that `make` mints from a number, the subject, the organisation, the binding and the
    identity's platform; or fail, with exit 4.

    A token is shown once the cluster has its record; a refusal is told once the cluster has its.
    """
    denied = common.run(_issue(settings, asked, count, make))
    if denied is not None:
        common.fail("; ".join(filter(None, (f"{denied.code}: {denied.words}", denied.remedy))), common.NOT_ALLOWED)


async def _issue(settings: Settings, asked: Asked, count: int, make: Make) -> Denied | None:
    from app.authority.decide import Denied, may_issue
    from app.issuer.mint import Minted
    from app.issuer.rights import read_rights, write_issuance

    issuer = settings.issuer.issuer
    rights = await read_rights(settings)
    proven = rights.authenticate(asked.claimed, issuer, asked.unverified_secret, int(time.time()))
    if isinstance(proven, Denied):
        request = _request(asked, asked.claimed, settings.issuer.org_id)
        await write_issuance(settings, [_denial(proven, request, asked, issuer, authenticated=False)])
        return proven
    identity, credential = proven
    request = _request(asked, identity.name, identity.org_id)
    allowed = may_issue(identity, rights.roles, request, rights.platforms)
    if isinstance(allowed, Denied):
        await write_issuance(settings, [_denial(allowed, request, asked, issuer, authenticated=True)])
        return allowed
    bound = None if asked.bound_to is None else await handles.object_of(settings, asked.bound_to)
    platform = rights.platforms.get(identity.platform or "")
    async with handles.handing_out(settings) as hand_out:
        for start in range(0, count, CHUNK):
            minted: list[Minted] = []
            for number in range(start, min(start + CHUNK, count)):
                made = make(number, request.subject, request.org_id, bound, platform)
                if not isinstance(made, Minted):
                    refused = Denied(made.code, made.sentence)
                    await write_issuance(settings, [_denial(refused, request, asked, issuer, authenticated=True)])
                    return refused
                minted.append(made)
            await write_issuance(settings, _issued(minted, identity, credential.id, allowed.roles))
            await hand_out(minted)
    return None


def _request(asked: Asked, name: str, org_id: str) -> IssueRequest:
    from app.authority.decide import IssueRequest

    return IssueRequest(
        asked.subject or name, asked.org_id or org_id, asked.lifetime_s, asked.jobs, asked.token_class, asked.uses
    )


def _denial(denied: Denied, request: IssueRequest, asked: Asked, issuer: str, *, authenticated: bool) -> Record:
    from app.authority.records import issue_denied

    return issue_denied(
        denied, request, asked.claimed, issuer, "cli", time.time_ns() // 1_000_000, authenticated=authenticated
    )


def _issued(minted: Sequence[Minted], identity: Identity, credential_id: str, roles: tuple[str, ...]) -> list[Record]:
    from app.authority.records import issued

    now_ms = time.time_ns() // 1_000_000
    return [issued(made.claims, made.fingerprint, identity, credential_id, roles, "cli", now_ms) for made in minted]
