"""Identities, as far as a gate asks: which subjects are disabled, built by replaying the registry.

A subject that is not registered is no concern of this table: its issuer's trust rule says whether it may speak.
Nothing unreadable may enable: a record that cannot be read has displaced the one before it, so whoever it names is
refused, at once and after every restart alike.
"""

from __future__ import annotations

from typing import Final

import msgspec

from app.gate.records import UNREADABLE


class _Record(msgspec.Struct, frozen=True):
    """What a gate reads of an identity; credentials and roles are for those who issue."""

    name: str
    issuer: str
    disabled: bool = False


_decode = msgspec.json.Decoder(_Record).decode


class DisabledIdentities(msgspec.Struct, frozen=True):
    """Subjects whose tokens are refused."""

    named: frozenset[tuple[str, str]] = frozenset()  # issuer, subject
    of_any_issuer: frozenset[str] = frozenset()  # whose records cannot be read

    def covers(self, issuer: str, subject: str) -> bool:
        return (issuer, subject) in self.named or subject in self.of_any_issuer


NONE_DISABLED: Final = DisabledIdentities()


class Identities:
    """The table: `apply` alone changes it; `disabled` is what a world takes of it."""

    __slots__ = ("_disabled", "_unreadable")

    def __init__(self) -> None:
        self._disabled: dict[str, str] = {}  # subject → issuer
        self._unreadable: set[str] = set()

    def apply(self, name: str, value: bytes | None) -> str | None:
        """Take in the record under `identity/{name}`; a tombstone removes. Returns a complaint about a bad one."""
        self._disabled.pop(name, None)
        self._unreadable.discard(name)
        if value is None:
            return None
        try:
            record = _decode(value)
        except UNREADABLE:
            self._unreadable.add(name)
            return "the value is not an identity: its subject is refused"
        if record.name != name:
            self._unreadable.add(name)
            return "key and value name different identities: the one the key names is refused"
        if record.disabled:
            self._disabled[name] = record.issuer
        return None

    def disabled(self) -> DisabledIdentities:
        return DisabledIdentities(
            frozenset((issuer, name) for name, issuer in self._disabled.items()), frozenset(self._unreadable)
        )
