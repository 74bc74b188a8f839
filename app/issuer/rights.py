"""Identities as the cluster has them: one read from the registry, and changed under its lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from app.authority.identities import Identity, identity_from_record, identity_key
from app.registry import RegistryError, only_writer, read_registry

if TYPE_CHECKING:
    from app.config import Settings


async def read_identity(settings: Settings, name: str) -> Identity | None:
    """The identity of that name; None: there is none. Raises RegistryError for one that cannot be read."""
    return _identity_in(await read_registry(settings), name)


async def change_identity(
    settings: Settings, name: str, change: Callable[[Identity], Identity | str]
) -> Identity | None:
    """Write what `change` makes of an identity, as its next version; None: there is none.

    Raises RegistryError when it cannot be read, when `change` says why not, or when another writer got in between.
    """
    async with only_writer(settings) as (present, write):
        there = _identity_in(present, name)
        if there is None:
            return None
        changed = change(there)
        if isinstance(changed, str):
            raise RegistryError(f"{name}: {changed}")
        changed = msgspec.structs.replace(changed, version=there.version + 1)
        record = msgspec.json.encode(changed)
        judged = identity_from_record(identity_key(name), record)
        if isinstance(judged, str):
            raise RegistryError(f"{name}: {judged}")
        await write({identity_key(name): record})
    return changed


def _identity_in(present: dict[bytes, bytes], name: str) -> Identity | None:
    record = present.get(identity_key(name))
    if record is None:
        return None
    identity = identity_from_record(identity_key(name), record)
    if isinstance(identity, str):
        raise RegistryError(f"the registry's record of {name} cannot be read: {identity}")
    return identity
