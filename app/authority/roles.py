"""Roles: what those who have one may issue. Pure: no I/O, no clock, no randomness. Empty means refuse; deny wins."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from app.gate import limits
from app.gate.claims import Uses
from app.gate.definitions import PATTERN, BirthId, Name, Version, read_record

ROLE_PREFIX: Final = "role/"
ENTRIES_MAX: Final = 256

TokenClass = Literal["trigger", "user", "host"]
# The longest life of a token, by class; of trigger tokens by their use, as the gate has it.
CLASS_LIFETIME_MAX_S: Final[dict[TokenClass, int]] = {
    "trigger": limits.WEBHOOK_LIFETIME_MAX_S, "user": limits.USER_LIFETIME_MAX_S,
    "host": limits.HOST_LIFETIME_MAX_S,
}  # fmt: skip


class Allow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be issued. Patterns may end in *."""

    jobs: tuple[Name, ...] = ()  # patterns; of no account for classes that name no job
    classes: tuple[TokenClass, ...] = ("trigger",)
    uses: tuple[Uses, ...] = ("once", "many")  # of trigger tokens
    subjects: tuple[Name, ...] = ()  # patterns: for whom, beside itself
    # Patterns: for whom besides, where it was handed a token of theirs. Left out of the record where there are none:
    # versions that do not know the member refuse all of a role that has it.
    exchanged_subjects: tuple[Name, ...] | msgspec.UnsetType = msgspec.UNSET
    max_lifetime_s: Annotated[int, Meta(ge=1, le=limits.WEBHOOK_LIFETIME_MAX_S)] = limits.ONE_SHOT_LIFETIME_MAX_S


class Deny(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must not be issued, whatever is allowed elsewhere: a request that fits every member that is given."""

    jobs: tuple[Name, ...] | None = None
    classes: tuple[TokenClass, ...] | None = None
    uses: tuple[Uses, ...] | None = None
    subjects: tuple[Name, ...] | None = None


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the registry under `role/{name}`."""

    name: Name
    version: Version
    allow: Annotated[tuple[Allow, ...], Meta(max_length=ENTRIES_MAX)] = ()
    deny: Annotated[tuple[Deny, ...], Meta(max_length=ENTRIES_MAX)] = ()
    birth_id: BirthId | None = None


def role_key(name: str) -> bytes:
    """The registry's key of a role."""
    return (ROLE_PREFIX + name).encode()


def role_from_record(key: bytes, value: bytes) -> Role | str:
    """A record under `role/{name}`, or one clause that says what is wrong and where."""
    role = read_record(key, value, Role, ROLE_PREFIX, "role")
    if isinstance(role, str):
        return role
    for place, allow in enumerate(role.allow):
        if "trigger" in allow.classes and not allow.jobs:
            return f"allow[{place}].jobs: is empty, which allows no trigger token"
        if not allow.classes or not allow.uses:
            return f"allow[{place}]: allows no class, or no use"
    for place, deny in enumerate(role.deny):
        given = [members for members in (deny.jobs, deny.classes, deny.uses, deny.subjects) if members is not None]
        if not given:
            return f'deny[{place}]: says nothing; subjects = ["*"] denies all'
        if not all(given):
            return f"deny[{place}]: an empty list denies nothing"
    entries: tuple[Allow | Deny, ...] = (*role.allow, *role.deny)
    patterns = [pattern for entry in entries for pattern in (*(entry.jobs or ()), *(entry.subjects or ()))]
    patterns += [pattern for allow in role.allow for pattern in allow.exchanged_subjects or ()]
    if not all(map(PATTERN.fullmatch, patterns)):
        return "jobs and subjects: a pattern may end in *, and holds no other *"
    return role
