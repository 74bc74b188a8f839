"""Platforms: what hosts are of, each with the level of its security. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from app.gate import limits
from app.gate.definitions import BirthId, Name, Version, read_record

PLATFORM_PREFIX: Final = "platform/"


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the registry under `platform/{name}`."""

    name: Name
    version: Version
    level: Annotated[int, Meta(ge=1, le=limits.LEVEL_MAX)]  # the higher, the more it may be trusted with
    birth_id: BirthId | None = None


def platform_key(name: str) -> bytes:
    """The registry's key of a platform."""
    return (PLATFORM_PREFIX + name).encode()


def platform_from_record(key: bytes, value: bytes) -> Platform | str:
    """A record under `platform/{name}`, or one clause that says what is wrong and where."""
    return read_record(key, value, Platform, PLATFORM_PREFIX, "platform")
