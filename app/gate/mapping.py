"""Mapping rules: what tokens that are already out may start, as ops map it to them afterwards. Nothing is re-issued.

A deny rule refuses whatever fits it. An allow rule says what those it fits may start: who is fitted by any may start
only what one of them names. Deny wins. A token never gets more by a rule than it says itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from app.gate.claims import Claims
from app.gate.definitions import PATTERN, BirthId, Name, Version, matches, read_record
from app.gate.reasons import Rejected

RULE_PREFIX: Final = "rule/"
SELECTORS: Final = ("issuers", "jtis", "identities", "classes", "hosts")  # of a token; `jobs` is what it asks for
HOST_PREFIX: Final = "host:"  # of a host's subject
RULE_REASON_MAX_CHARACTERS: Final = 160

Effect = Literal["allow", "deny"]


class MappingRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the registry under `rule/{name}`. It fits a token that fits every selector that is given."""

    name: Name
    version: Version
    effect: Effect
    issuers: tuple[Name, ...] | None = None
    jtis: tuple[Name, ...] | None = None
    identities: tuple[Name, ...] | None = None  # patterns of subjects: a trailing * matches any rest
    classes: tuple[Name, ...] | None = None
    hosts: tuple[Name, ...] | None = None  # patterns of hosts' names: of subjects `host:{name}`
    jobs: tuple[Name, ...] | None = None  # patterns; None: any
    reason: Annotated[str, Meta(max_length=RULE_REASON_MAX_CHARACTERS)] = ""  # why, for whoever is refused
    birth_id: BirthId | None = None

    def fits_bearer(self, claims: Claims) -> bool:
        """Every selector that is the same for all tokens of a bearer.

        Whom a deny rule names, it also denies to act for others; an allow rule is about the subject, whoever acts.
        """
        who = (claims.sub, *claims.actors) if self.effect == "deny" else (claims.sub,)
        return (
            (self.issuers is None or claims.iss in self.issuers)
            and (self.classes is None or claims.token_class in self.classes)
            and (self.identities is None or any(matches(self.identities, each) for each in who))
            and (self.hosts is None or any(self._fits_host(each) for each in who))
        )

    def _fits_host(self, name: str) -> bool:
        return name.startswith(HOST_PREFIX) and matches(self.hosts or (), name.removeprefix(HOST_PREFIX))

    def says(self) -> str:
        """What its refusal says."""
        return f"the rule {self.name}: {self.reason}" if self.reason else f"the rule {self.name}"


class MappingRules(msgspec.Struct, frozen=True):
    """Rules that are judged together: all of a world, or those that fit a bearer."""

    deny: tuple[MappingRule, ...] = ()
    allow: tuple[MappingRule, ...] = ()
    unreadable: tuple[str, ...] = ()  # names of rules of a later version, or broken: what they deny is not known

    def of_bearer(self, claims: Claims) -> MappingRules | None:
        """Those that fit the bearer of these claims, whatever the token's jti; None: nothing is mapped to it."""
        if not (self.deny or self.allow or self.unreadable):
            return None
        deny = tuple(rule for rule in self.deny if rule.fits_bearer(claims))
        allow = tuple(rule for rule in self.allow if rule.fits_bearer(claims))
        return MappingRules(deny, allow, self.unreadable) if deny or allow or self.unreadable else None

    def refuse(self, claims: Claims, job: str | None) -> Rejected | None:
        """Of a bearer's rules: whether they let its token, and each that it came of, start this job.

        None: it starts none, and says who calls. Then a deny rule that names no jobs refuses it, and no other.
        """
        for jti in (claims.jti, *(parent.jti for parent in claims.parents)):
            refused = self._refuse(jti, job)
            if refused is not None:
                return refused
        return None

    def _refuse(self, jti: str, job: str | None) -> Rejected | None:
        if self.unreadable:
            return Rejected("denied_by_rule", f"the rule {self.unreadable[0]} cannot be read")
        for rule in self.deny:
            if (rule.jtis is None or jti in rule.jtis) and _names(rule, job):
                return Rejected("denied_by_rule", rule.says())
        allow = [rule for rule in self.allow if rule.jtis is None or jti in rule.jtis]
        if job is not None and allow and not any(_names(rule, job) for rule in allow):
            return Rejected("not_allowed_by_rule", allow[0].says())
        return None


def _names(rule: MappingRule, job: str | None) -> bool:
    return rule.jobs is None or (job is not None and matches(rule.jobs, job))


NO_RULES: Final = MappingRules()


def in_effect(rules: Mapping[str, MappingRule | None]) -> MappingRules:
    """The rules of a registry, by name; None is one that cannot be read."""
    return MappingRules(
        _of(rules.values(), "deny"), _of(rules.values(), "allow"),
        tuple(sorted(name for name, rule in rules.items() if rule is None)),
    )  # fmt: skip


def _of(rules: Iterable[MappingRule | None], effect: Effect) -> tuple[MappingRule, ...]:
    """In the order of their names: of several, the first names the reason, whatever the order they came in."""
    return tuple(sorted((rule for rule in rules if rule is not None and rule.effect == effect), key=lambda r: r.name))


def mapping_key(name: str) -> bytes:
    """The registry's key of a mapping rule."""
    return (RULE_PREFIX + name).encode()


def mapping_from_record(key: bytes, value: bytes) -> MappingRule | str:
    """A record under `rule/{name}`, or one clause that says what is wrong and where."""
    rule = read_record(key, value, MappingRule, RULE_PREFIX, "rule")
    if isinstance(rule, str):
        return rule
    if not rule.reason.isprintable():
        return "reason: holds a control character"
    given = {member: getattr(rule, member) for member in (*SELECTORS, "jobs") if getattr(rule, member) is not None}
    empty = next((member for member, values in given.items() if not values), None)
    if empty is not None:
        return f"{empty}: is empty, which fits nothing"
    if not given or (rule.effect == "allow" and not given.keys() - {"jobs"}):
        return 'identities: whom is it for? identities = ["*"] is everyone'
    for member in ("identities", "hosts", "jobs"):
        if any(not PATTERN.fullmatch(pattern) for pattern in given.get(member, ())):
            return f"{member}: a pattern may end in *, and holds no other *"
    for pattern in given.get("hosts", ()):
        if pattern.startswith(HOST_PREFIX):
            return f"hosts: {pattern} is named without {HOST_PREFIX}"
    return rule
