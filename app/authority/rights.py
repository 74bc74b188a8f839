"""Identities, roles and platforms as the registry has them, for whoever issues tokens.

Pure: records go in, one table stands.

What cannot be read grants nothing: an unreadable identity is unknown, an unreadable role or platform is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from app.authority.decide import Denied, unauthenticated
from app.authority.identities import Identity, check_secret, identity_from_record
from app.authority.platforms import Platform, platform_from_record
from app.authority.roles import Role, role_from_record
from app.gate.claims import Claims


class Client(NamedTuple):
    """An identity and the credential that proved it."""

    identity: Identity
    credential_id: str  # or the jti of a user token
    login: Claims | None = None  # of that user token; None: a credential of the identity's own

    @property
    def until_s(self) -> int | None:
        """The user token's exp."""
        return None if self.login is None else self.login.exp


class Rights:
    """The table: `apply` alone changes it."""

    def __init__(self) -> None:
        self.identities: dict[str, Identity] = {}
        self.roles: dict[str, Role] = {}
        self.platforms: dict[str, Platform] = {}
        self._tables: dict[str, tuple[dict[str, Any], Callable[[bytes, bytes], Any]]] = {
            "identity": (self.identities, identity_from_record), "role": (self.roles, role_from_record),
            "platform": (self.platforms, platform_from_record),
        }  # fmt: skip

    @classmethod
    def of(cls, registry: Mapping[bytes, bytes]) -> Rights:
        """Of the registry as it stands: its records by key."""
        rights = cls()
        for key, value in registry.items():
            rights.apply(key, value)
        return rights

    def apply(self, key: bytes, value: bytes | None) -> str | None:
        """Take in one record of the registry; a tombstone removes. Returns a complaint about one that is bad."""
        kind, _, name = key.decode("utf-8", "replace").partition("/")
        if kind not in self._tables:
            return None
        table, read = self._tables[kind]
        table.pop(name, None)
        if value is None:
            return None
        record = read(key, value)
        if isinstance(record, str):
            return record
        table[name] = record
        return None

    def known(self, name: str, issuer: str) -> Identity | None:
        """The identity of that name, if it is one whose tokens this issuer makes."""
        identity = self.identities.get(name)
        return identity if identity is not None and identity.issuer == issuer else None

    def authenticate(self, name: str, issuer: str, unverified_secret: str, now_s: int) -> Client | Denied:
        """The identity that a name and its secret prove; one refusal for all that is wrong, at the same cost."""
        identity = self.known(name, issuer)
        credential = check_secret(identity, unverified_secret, now_s)
        if identity is None or credential is None:
            return unauthenticated()
        return Client(identity, credential.id)

    def current(self, client: Client, issuer: str, now_s: int) -> Client | Denied:
        """A client that was authenticated, as it stands now; nobody, once it or what proved it is there no more.

        Whether a login still holds is for whoever verifies tokens.
        """
        identity = self.known(client.identity.name, issuer)
        if identity is None:
            return unauthenticated()
        valid = {each.id for each in identity.credentials_at(now_s)}
        if client.login is None and client.credential_id not in valid:
            return unauthenticated()
        return client._replace(identity=identity)
