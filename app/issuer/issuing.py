"""Issuing under the rights, for the command line and for HTTP: the roles decide, and the record comes before the token.

Where the records go, and what the registry holds, is handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.authority.decide import Allowed, Denied, IssueRequest, fitting_lifetime_s, may_issue
from app.authority.records import Record, Via, issue_denied, issued
from app.authority.rights import Client, Rights
from app.gate.claims import BoundTo, Parent, Uses
from app.issuer.mint import ClientTokenRequest, Keys, Minted, TokenRequest, TriggerTokenRequest, issue
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.authority.platforms import Platform
    from app.authority.roles import TokenClass
    from app.config import Settings

Append = Callable[[Topic, Sequence[Record]], Awaitable[object]]  # on its return the cluster has them
Current = Callable[[Client], Client | Denied]  # who was authenticated, as it stands now
BirthIdOf = Callable[[str], str | None]  # of what the registry holds under a key, as `definitions.birth_id_in` has it
BOUND_TO: Final = ("job/", "trust/")  # what a token may live as long as, by its key in the registry


class Wanted(NamedTuple):
    """What is asked for."""

    jobs: tuple[str, ...]
    uses: Uses
    lifetime_s: int
    subject: str | None = None  # None: that of who asks
    params: Mapping[str, Any] = {}
    params_sha256: str | None = None
    idempotency_key: str | None = None
    actors: tuple[str, ...] = ()  # who acts for the subject, the last first (RFC 8693 section 4.1)
    bound_to: BoundTo | None = None
    parents: tuple[Parent, ...] = ()  # the tokens it is exchanged for, the last first
    reference: bool = False  # a handle is to stand for it
    bind_to: str | None = None  # the registry's key of an object: looked up once it may be issued
    token_class: TokenClass = "trigger"  # noqa: S105 - a class
    org_id: str | None = None  # None: that of who asks
    shorter_will_do: bool = False  # nobody said how long it must live

    def request(self, subject: str, org_id: str, left_s: int | None = None) -> IssueRequest:
        """The part of it that rights are about, asked for by this subject."""
        return IssueRequest(
            self.subject or subject, self.org_id or org_id, self.lifetime_s, self.jobs, self.token_class, self.uses,
            left_s, exchanged=bool(self.parents),
        )  # fmt: skip

    def bound(self, birth_id_of: BirthIdOf) -> Wanted | Denied:
        """With the object that the registry holds now under the key."""
        if self.bind_to is None:
            return self
        if not self.bind_to.startswith(BOUND_TO):  # whether another is there is nothing to ask by a token
            return Denied(
                "bound_object_gone", f"tokens are bound to {' and '.join(f'{kind}NAME' for kind in BOUND_TO)}"
            )
        birth_id = birth_id_of(self.bind_to)
        if not birth_id:
            what = "nothing" if birth_id is None else "what has no birth id to tell it from one made anew"
            return Denied("bound_object_gone", f"under that key the registry holds {what}")
        return self._replace(bound_to=BoundTo(self.bind_to, birth_id))


def token_request(
    wanted: Wanted, request: IssueRequest, issuer: str, audience: str, platform: Platform | None = None
) -> TokenRequest:
    """What is minted of what is wanted and of what was allowed; `platform` is that of a host."""
    if wanted.token_class != "trigger":  # noqa: S105 - a class
        return ClientTokenRequest(
            issuer, audience, request.subject, request.org_id, wanted.token_class, wanted.lifetime_s, platform
        )
    return TriggerTokenRequest(
        issuer=issuer, audience=audience, subject=request.subject, org_id=request.org_id, jobs=wanted.jobs,
        uses=wanted.uses, ttl_s=wanted.lifetime_s, params=wanted.params, params_sha256=wanted.params_sha256,
        idempotency_key=wanted.idempotency_key, actors=wanted.actors, bound_to=wanted.bound_to, parents=wanted.parents,
    )  # fmt: skip


class Issuer:
    """Keys of one issuer, and where what is issued with them is written."""

    def __init__(self, settings: Settings, keys: Keys, append: Append, via: Via) -> None:
        self._issuer, self._audience = settings.issuer.issuer, settings.audience
        self._keys, self._append, self._via = keys, append, via

    async def issue(
        self, client: Client, rights: Rights, wanted: Wanted, birth_id_of: BirthIdOf,
        idempotency_keys: Sequence[str | None] | None = None, current: Current = lambda client: client,
    ) -> list[Minted] | Denied:  # fmt: skip
        """A token for each key, once its record is written; or the refusal, likewise. Raises KeystoreError, OSError.

        Keys not given are the one of what is wanted. Minting waits for the keys' lock, and writing for the cluster.
        Whoever takes an identity away counts on what is handed out after that being on the record before: so `current`
        and the rights are asked again after each wait, and a token that is refused by then stays here.
        """
        identity = client.identity
        request = self._request(client, wanted)
        if wanted.shorter_will_do:
            lifetime_s = fitting_lifetime_s(identity, rights.roles, request) or wanted.lifetime_s
            wanted = wanted._replace(lifetime_s=lifetime_s)
            request = self._request(client, wanted)
        allowed = _judged(client, rights, request, current)
        if isinstance(allowed, Denied):
            return await self.deny(allowed, request, identity.name)
        made = await self.mint(
            wanted, request, birth_id_of, idempotency_keys, rights.platforms.get(identity.platform or "")
        )
        if isinstance(made, Denied):
            return await self.deny(made, request, identity.name)
        if isinstance(still := _judged(client, rights, request, current), Denied):
            return await self.deny(still, request, identity.name)
        now_ms, proven_by = time.time_ns() // 1_000_000, client.credential_id
        records = [
            issued(each.claims, each.fingerprint, identity, proven_by, allowed.roles, self._via, now_ms)
            for each in made
        ]
        await self._append(Topic.ISSUANCE, records)
        await self.commit_grants(made)
        if isinstance(still := _judged(client, rights, request, current), Denied):
            return await self.deny(still, request, identity.name)
        return made

    def _request(self, client: Client, wanted: Wanted) -> IssueRequest:
        left_s = None if client.until_s is None else client.until_s - int(time.time())
        return wanted.request(client.identity.name, client.identity.org_id, left_s)

    async def mint(
        self, wanted: Wanted, request: IssueRequest, birth_id_of: BirthIdOf,
        idempotency_keys: Sequence[str | None] | None = None, platform: Platform | None = None,
    ) -> list[Minted] | Denied:  # fmt: skip
        """Likewise, and nobody asks whether it is allowed, or writes anything."""
        bound = wanted.bound(birth_id_of)
        if isinstance(bound, Denied):
            return bound
        asked = [
            token_request(bound._replace(idempotency_key=key), request, self._issuer, self._audience, platform)
            for key in (idempotency_keys or (wanted.idempotency_key,))
        ]
        # On a thread: keys are read from files, and another process may hold the lock of their directory.
        made = await asyncio.to_thread(issue, asked, self._keys, int(time.time()), handles=wanted.reference)
        return made if isinstance(made, list) else Denied(made.code, made.sentence)

    async def commit_grants(self, made: Sequence[Minted]) -> None:
        """Before a handle is handed out: whoever has it may use it at once."""
        grants = [each.grant for each in made if each.grant is not None]
        if grants:
            await self._append(Topic.GRANTS, grants)

    async def deny(self, denied: Denied, request: IssueRequest, claimed: str, *, authenticated: bool = True) -> Denied:
        """Write the record of a refusal to who says to be that identity."""
        now_ms = time.time_ns() // 1_000_000
        record = issue_denied(
            denied, request, claimed, self._issuer, self._via, now_ms, authenticated=authenticated
        )  # fmt: skip
        await self._append(Topic.ISSUANCE, [record])
        return denied


def _judged(client: Client, rights: Rights, request: IssueRequest, current: Current) -> Allowed | Denied:
    """Whether the client, as it stands now, may have it."""
    now = current(client)
    return now if isinstance(now, Denied) else may_issue(now.identity, rights.roles, request, rights.platforms)
