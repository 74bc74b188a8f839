"""What ops define: registry, revocations, and the keys of issuers that are trusted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from app.cli.checks.row import BAD, OK, WARN, Row
from app.cli.when import span

if TYPE_CHECKING:
    from app.config import Settings
    from app.registry import Kind

_UNREADABLE: Final[dict[Kind, str]] = {
    "identities": "gates refuse its tokens, and it gets none: mend it, or `tollgate identities remove`",
    "roles": "whoever has it gets no token: mend it and `tollgate policy apply`",
    "platforms": "its hosts get no host token: mend it and `tollgate policy apply`",
    "rules": "it may deny something, so every lane holds: mend it and `tollgate policy apply`, or remove it",
}


async def registry_and_keys(settings: Settings) -> Iterator[Row]:
    """What no gate or door can read, what is not there at all, and issuers whose keys do not load."""
    from app import registry
    from app.gate.definitions import TrustRule, trust_from_record, trust_key

    present = await registry.read_registry(settings)
    rows: list[Row] = []
    jobs = registry.definitions_in(present, "jobs")
    rows += [
        Row(BAD, f"job {row['name']}", f"no gate can read it: {row['error']}", "mend it and `tollgate jobs apply`")
        for row in jobs
        if "error" in row
    ]
    rows.append(
        Row(OK, "jobs", f"{len(jobs)} defined") if jobs
        else Row(WARN, "jobs", "none is defined: every trigger is refused", "`tollgate jobs apply FILE`")
    )  # fmt: skip
    for kind, consequence in _UNREADABLE.items():
        rows += [
            Row(BAD, f"{kind} {row['name']}", f"it cannot be read: {row['error']}", consequence)
            for row in registry.definitions_in(present, kind)
            if "error" in row
        ]
    rules: dict[str, TrustRule] = {}
    for registry_key, record in present.items():
        if not registry_key.startswith(trust_key("")):
            continue
        rule = trust_from_record(registry_key, record)
        if isinstance(rule, str):
            name = registry_key.decode(errors="replace")
            rows.append(Row(BAD, name, f"no gate can read it: {rule}", "mend it and `tollgate trust apply`"))
        else:
            rules[rule.issuer] = rule
    if not rules:
        rows.append(Row(WARN, "trust", "no issuer is trusted: every trigger is refused", "`tollgate trust apply FILE`"))
    rows += await _key_sets(settings, rules)
    return iter(rows)


async def revoked(settings: Settings) -> Iterator[Row]:
    """Revocations in effect; one of a later version, which holds every lane."""
    from app import revocations

    present = await revocations.read(settings.kafka)
    holding = present.table.unknown()
    rows = [Row(OK, "revocations", f"{len(present.table)} in effect")] if not present.complaints else []
    for key, complaint in present.complaints.items():
        if key in present.written:
            told = key.decode(errors="replace")
            verdict = BAD if key in holding else WARN
            rows.append(
                Row(verdict, "revocations", f"{told}: {complaint}", f"`tollgate revocations lift --key '{told}'`")
            )
    return iter(rows)


async def _key_sets(settings: Settings, rules: Mapping[str, Any]) -> list[Row]:
    """Load each issuer's set here and now, as a gate on this machine would."""
    from app.logs import log
    from app.trust import JwksFollower

    told: list[dict[str, Any]] = []
    with log.into(told):
        follower = JwksFollower(settings)
        follower.follow(rules)
        started = time.monotonic()
        await follower.start()
        took_s = time.monotonic() - started
        await follower.stop()
    failures = {entry["issuer"]: entry["why"] for entry in told if "issuer" in entry and "why" in entry}
    rows = []
    for issuer, rule in rules.items():
        keys = follower.ring.get(issuer)
        if keys is None:
            why = failures.get(issuer, "it did not load in time")
            rows.append(Row(BAD, f"keys of {issuer}", f"{rule.jwks}: {why}",
                            "until it loads, a trigger that names this issuer holds its whole lane, for everyone: mend "
                            "its file or server, or the trust rule's jwks"))  # fmt: skip
        else:
            kids = ", ".join(sorted(keys.keys)) or "none"
            rows.append(
                Row(OK, f"keys of {issuer}", f"{len(keys.keys)} key(s) ({kids}), read just now in {span(took_s)}")
            )
    return rows
