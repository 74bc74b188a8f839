"""Rights as the cluster has them: identities and roles read from the registry, an identity changed under its lock, and
the records that issuing leaves. `app/authority/` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from app.authority.identities import Identity, identity_from_record, identity_key
from app.authority.rights import Rights
from app.registry import RegistryError, only_writer, read_registry
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.config import Settings

SEND_TIMEOUT_S: Final = 30.0


async def read_rights(settings: Settings) -> Rights:
    """Identities and roles as they are now."""
    return Rights.of(await read_registry(settings))


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


async def write_issuance(settings: Settings, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Append records of issuing; on return the cluster has them. Raises Kafka's errors, and TimeoutError."""
    import asyncio

    from aiokafka import AIOKafkaProducer

    from app.stream.connect import client_options

    topic = Topic.ISSUANCE.named(settings.kafka.prefix)
    producer = AIOKafkaProducer(**client_options(settings.kafka), acks="all", enable_idempotence=True)
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await producer.start()
        try:
            # Each is awaited: a batch that fails fails only its own futures.
            await asyncio.gather(*[await producer.send(topic, value, key=key, partition=0) for key, value in records])
        finally:
            await producer.stop()
