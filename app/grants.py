"""The grants topic, for commands: what a handle stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.gate.reference import grant_key, handle_digest
from app.stream import whole
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.config import Kafka


async def find(kafka: Kafka, handle: str) -> bytes | None:
    """The unverified grant of a handle, a JWS; None where there is none. Reads the whole topic."""
    wanted, found = grant_key(handle_digest(handle)), None
    async with whole.opened(kafka, Topic.GRANTS) as topic:
        async for record in topic.records():
            if record.key == wanted:
                found = record.value
    return found
