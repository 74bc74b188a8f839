"""Revocations: who or what is no longer honoured, built by replaying the revocations topic.

Nothing unreadable may un-revoke. The topic is compacted, so a record that cannot be read has already displaced the
one before it: whoever restores later never sees the older one. Such a record therefore refuses all that its key
names, at once and after every restart alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Final, Literal, get_args

import msgspec
import orjson

from app.gate.records import UNREADABLE
from app.gate.token import Claims

# One token; all of a subject; of subjects that begin so (of every subject: ""); that grant a job; of a class; signed
# with a key; of the issuer.
Selector = Literal["jti", "subject", "subject_prefix", "job", "class", "kid", "issuer"]
SELECTORS: Final[tuple[Selector, ...]] = get_args(Selector)
_KNOWN: Final[dict[str, Selector]] = {selector: selector for selector in SELECTORS}

KEEP_FOR_EVER: Final = 0  # of keep_until_s
_ALWAYS: Final = 1 << 62  # later than any iat


class Revocation(msgspec.Struct, frozen=True):
    """One record of the revocations topic. Members of later versions are passed over: they could only narrow it."""

    issuer: str
    selector: Selector
    value: str
    since_s: int  # tokens with iat ≤ since_s; of no account for kid and issuer
    reason: str
    by: str
    keep_until_s: int = KEEP_FOR_EVER  # from then on the record may go: every token it refuses has expired

    def is_outlived(self, now_s: int) -> bool:
        """Whether every token it refuses has expired."""
        return self.keep_until_s != KEEP_FOR_EVER and self.keep_until_s < now_s


def revocation_key(issuer: str, selector: Selector, value: str) -> bytes:
    """The record's key: a JSON array, so that no separator inside an issuer can make two revocations one."""
    return orjson.dumps([issuer, selector, value])


def revocation_record(
    issuer: str, selector: Selector, value: str | None, *, since_s: int, reason: str, by: str, keep_until_s: int
) -> tuple[bytes, bytes]:
    """Key and value of a record that revokes. `value` is left out for selector `issuer`, which names itself."""
    named = issuer if selector == "issuer" or value is None else value
    entry = Revocation(issuer, selector, named, since_s, reason, by, keep_until_s)
    return revocation_key(issuer, selector, named), msgspec.json.encode(entry)


def _as_each(claims: Claims) -> Iterator[Claims]:
    """The claims as they would be looked up: as themselves, as each token they came of, as each who acts.

    Subject, class and jobs came from the first token, so what is revoked up to a moment counts from that one's iat.
    """
    parents = claims.parents
    yield msgspec.structs.replace(claims, iat=min((claims.iat, *(parent.iat for parent in parents))))
    for parent in parents:
        yield msgspec.structs.replace(claims, jti=parent.jti, kid=parent.kid, iat=parent.iat)
    had_since = chain((claims.iat,), (parent.iat for parent in parents), repeat(claims.iat))
    for actor, iat in zip(claims.actors, had_since, strict=False):
        yield msgspec.structs.replace(claims, sub=actor, iat=iat)


_decode_key = msgspec.json.Decoder(tuple[str, str, str]).decode
_decode_value = msgspec.json.Decoder(Revocation).decode


class Revocations:
    """The table: `apply` alone changes it, `covers` is asked once per decision."""

    __slots__ = ("_classes", "_entries", "_issuers", "_jobs", "_jtis", "_kids", "_prefixes", "_subjects", "_unknown")

    def __init__(self) -> None:
        self._entries: dict[bytes, Revocation] = {}
        self._issuers: set[str] = set()
        self._kids: set[tuple[str, str]] = set()
        # (issuer, value) → iat up to which tokens are refused
        self._jtis: dict[tuple[str, str], int] = {}
        self._subjects: dict[tuple[str, str], int] = {}
        self._prefixes: dict[tuple[str, str], int] = {}
        self._jobs: dict[tuple[str, str], int] = {}
        self._classes: dict[tuple[str, str], int] = {}
        self._unknown: dict[bytes, str] = {}  # keys of records that name what we cannot tell → their selectors

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, key: bytes | None, value: bytes | None) -> str | None:
        """Take in one record; a tombstone removes. Returns a complaint about a record that is not one."""
        try:
            issuer, given, named = _decode_key(key or b"")
        except UNREADABLE:
            return "the key is not [issuer, selector, value]: the record names nothing and revokes nothing"
        selector = _KNOWN.get(given)
        if selector is None:
            return self._apply_unknown(key or b"", given, value)
        if selector == "issuer" and named != issuer:
            return "an issuer's revocation names itself as the value: the record revokes nothing"
        known = revocation_key(issuer, selector, named)
        complaint = None if known == key else "the key is not in its one spelling: by it, nothing can be removed"
        if value is None:
            if complaint:  # compaction would not take it for a tombstone of the record in the right spelling
                return complaint
            self._entries.pop(known, None)
            self._index(issuer, selector, named, None)
            return None
        unreadable = None
        try:
            entry = _decode_value(value)
            if (entry.issuer, entry.selector, entry.value) != (issuer, selector, named):
                unreadable = "key and value name different things: everything the key names is refused"
        except UNREADABLE:
            unreadable = "the value is not a revocation: everything the key names is refused"
        if unreadable:
            entry = Revocation(issuer, selector, named, _ALWAYS, "unreadable record", "unknown")
        self._entries[known] = entry
        self._index(issuer, selector, named, entry.since_s)
        return unreadable or complaint

    def _apply_unknown(self, key: bytes, selector: str, value: bytes | None) -> str | None:
        if value is None:
            self._unknown.pop(key, None)
            return None
        self._unknown[key] = selector
        return f"{selector[:40]!r} is no selector of this version: nothing is decided until it is lifted, or known"

    def unknown(self) -> dict[bytes, str]:
        """Selectors in effect that this version does not know, by the keys of their records."""
        return dict(self._unknown)

    def covers(self, claims: Claims) -> bool:
        """Whether these claims are no longer honoured. Kid and issuer know no "since": a thief chooses iat.

        What was exchanged for a token goes with it, and with whoever acts in it: who has the one has no better right.
        """
        if not self._entries:
            return False
        if claims.delegation is None:
            return self._covers(claims)
        return any(map(self._covers, _as_each(claims)))

    def _covers(self, claims: Claims) -> bool:
        iss = claims.iss
        if iss in self._issuers or (self._kids and (iss, claims.kid) in self._kids):
            return True
        iat = claims.iat
        if self._jtis and iat <= self._jtis.get((iss, claims.jti), -1):
            return True
        if self._subjects and iat <= self._subjects.get((iss, claims.sub), -1):
            return True
        if self._jobs and any(iat <= self._jobs.get((iss, job), -1) for job in claims.grant.jobs):
            return True
        if self._classes and iat <= self._classes.get((iss, claims.token_class), -1):
            return True
        return any(
            issuer == iss and iat <= since_s and claims.sub.startswith(prefix)
            for (issuer, prefix), since_s in self._prefixes.items()
        )

    def of(self, issuer: str, selector: Selector, value: str) -> Revocation | None:
        """The one in force of just this."""
        return self._entries.get(revocation_key(issuer, selector, value))

    def outlived(self, now_s: int) -> list[bytes]:
        """Keys of records that may be cleaned away: every token they refuse has expired."""
        return [known for known, entry in self._entries.items() if entry.is_outlived(now_s)]

    def by_key(self) -> dict[bytes, Revocation]:
        """What is revoked, by the keys of the records."""
        return dict(self._entries)

    def entries(self) -> list[Revocation]:
        """What is revoked, for listing."""
        return list(self._entries.values())

    def _index(self, issuer: str, selector: Selector, named: str, since_s: int | None) -> None:
        match selector:
            case "issuer":
                self._issuers.discard(named) if since_s is None else self._issuers.add(named)
            case "kid":
                self._kids.discard((issuer, named)) if since_s is None else self._kids.add((issuer, named))
            case _:
                table = {
                    "jti": self._jtis, "subject": self._subjects, "subject_prefix": self._prefixes,
                    "job": self._jobs, "class": self._classes,
                }[selector]  # fmt: skip
                if since_s is None:
                    table.pop((issuer, named), None)
                else:
                    table[issuer, named] = since_s
