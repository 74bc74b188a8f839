"""The registry: TOML files become jobs, trust rules, identities and policy, and those records of the registry topic.

A definition is judged by the very function every gate reads the record with, so what was applied is what gates take.
"""

from __future__ import annotations

import math
import secrets
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import orjson

from app.authority.identities import Identity, identity_from_record, identity_key, kind_of
from app.authority.platforms import Platform, platform_from_record, platform_key
from app.authority.roles import Role, role_from_record, role_key
from app.gate import limits
from app.gate.definitions import (
    Job,
    JobRecord,
    TrustRule,
    birth_id_in,
    job_from_record,
    job_key,
    trust_from_record,
    trust_key,
)
from app.gate.mapping import MappingRule, mapping_from_record, mapping_key
from app.stream import whole
from app.stream.topics import Topic

if TYPE_CHECKING:
    from app.config import Settings

Kind = Literal["jobs", "trust", "identities", "roles", "rules", "platforms"]

FIRST_VERSION: Final = 1
BIRTH_ID_BYTES: Final = 16
TRANSACTION_TIMEOUT_MS: Final = 10_000

_RECORD: Final[dict[Kind, Any]] = {
    "jobs": JobRecord, "trust": TrustRule, "identities": Identity, "roles": Role, "rules": MappingRule,
    "platforms": Platform,
}  # fmt: skip
_NAMED: Final[dict[Kind, str]] = dict.fromkeys(_RECORD, "name") | {"trust": "issuer"}
_KEY: Final[dict[Kind, Callable[[str], bytes]]] = {
    "jobs": job_key, "trust": trust_key, "identities": identity_key, "roles": role_key, "rules": mapping_key,
    "platforms": platform_key,
}  # fmt: skip
_JUDGE: Final[dict[Kind, Callable[[bytes, bytes], Any]]] = {
    "jobs": job_from_record, "trust": trust_from_record, "identities": identity_from_record, "roles": role_from_record,
    "rules": mapping_from_record, "platforms": platform_from_record,
}  # fmt: skip
# What no file says: its name does, writing does, or commands do, whose changes a file must not undo.
_OF_COMMANDS: Final = ("disabled", "credentials")
_WRITTEN: Final = ("version", "birth_id")
_NOT_IN_FILES: Final[dict[Kind, frozenset[str]]] = {
    kind: frozenset((named, *_WRITTEN, *(("kind", *_OF_COMMANDS) if kind == "identities" else ())))
    for kind, named in _NAMED.items()
}
# What a rule says when it says nothing; organisations, subjects and jobs are never guessed.
_TRUST_DEFAULTS: Final = {
    "algorithms": ["ES256"], "classes": ["trigger"], "max_lifetime_s": limits.ONE_SHOT_LIFETIME_MAX_S,
}  # fmt: skip
_NEVER_EMPTY: Final = ("algorithms", "classes", "orgs", "subjects", "jobs", "accepts", "allowlist", "roles")


class RegistryError(Exception):
    """A definition is wrong; one sentence that names file, table and member."""


class Definition(NamedTuple):
    """One table of a file, complete but for version and birth id; `warnings` are to be said loudly."""

    kind: Kind
    name: str
    members: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def registry_key(self) -> bytes:
        return _KEY[self.kind](self.name)

    def over(self, old: bytes) -> Definition:
        """With what the record that is there holds and no file says. Raises RegistryError when that cannot be read."""
        if self.kind != "identities":
            return self
        there = identity_from_record(self.registry_key, old)
        if isinstance(there, str):
            raise RegistryError(
                f"the registry's record of {self.name} cannot be read ({there}), so its credentials would be lost: "
                "use the version of the program that wrote it, or remove the identity first"
            )
        members = msgspec.to_builtins(there)
        return self._replace(members=self.members | {member: members[member] for member in _OF_COMMANDS})

    def record(self, version: int, birth_id: str | None = None) -> bytes:
        """The value of its record. All members are said, so that a later default changes no job that exists."""
        born = {} if birth_id is None else {"birth_id": birth_id}
        return orjson.dumps({_NAMED[self.kind]: self.name, "version": version, **self.members, **born})


class Change(NamedTuple):
    """What applying a definition does."""

    kind: Kind
    name: str
    action: Literal["created", "changed", "unchanged"]
    version: int
    record: bytes
    absent: tuple[str, ...] = ()  # roles and a platform that it names and the registry has not


# ── files ──


def read_definitions(path: Path, *kinds: Kind, defaults: Mapping[str, Any] | None = None) -> list[Definition]:
    """The definitions of a TOML file; `defaults` are members that a table may leave out. Raises RegistryError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} is not TOML: {error}") from None
    known = " and ".join(f'[{kind}."NAME"]' for kind in kinds)
    unknown = next((name for name in document if name not in kinds), None)
    if unknown is not None:
        raise RegistryError(f"{path}: [{unknown}] is unknown; the file holds {known} tables only")
    definitions = []
    for kind in kinds:
        tables = document.get(kind, {})
        for name, table in tables.items() if isinstance(tables, dict) else ():
            where = f'{path}: [{kind}."{name}"]'
            if not isinstance(table, dict):
                raise RegistryError(f"{where} is not a table")
            try:
                definitions.append(_definition(kind, name, {**(defaults or {}), **table}, path.parent))
            except ValueError as error:
                raise RegistryError(f"{where} {error}") from None
    if not definitions:
        raise RegistryError(f"{path} defines nothing: it needs a table {known}")
    return definitions


def define(kind: Kind, name: str, table: dict[str, Any]) -> Definition:
    """A definition that stands in no file. Raises RegistryError."""
    try:
        return _definition(kind, name, table, Path())
    except ValueError as error:
        raise RegistryError(f"{name}: {error}") from None


def _definition(kind: Kind, name: str, table: dict[str, Any], base: Path) -> Definition:
    """Raises ValueError with a clause that begins with the member it is about."""
    _refuse_other_than_json(table, "")
    known = {field.name for field in msgspec.structs.fields(_RECORD[kind])} - _NOT_IN_FILES[kind]
    unknown = next((member for member in table if member not in known), None)
    if unknown is not None:
        raise ValueError(f"{unknown}: unknown member; there are {', '.join(sorted(known))}")
    empty = next((member for member in _NEVER_EMPTY if table.get(member) == []), None)
    if empty is not None:
        raise ValueError(f"{empty}: is empty, which would refuse everything; leave out the table instead")
    definition = Definition(kind, name, _members(kind, name, table, base))
    judged = _JUDGE[kind](definition.registry_key, definition.record(FIRST_VERSION))
    match judged:
        case str():
            raise ValueError(judged)
        case Job():
            return definition
        case TrustRule():
            return definition._replace(warnings=tuple(_warnings(judged)))
    members = msgspec.to_builtins(judged)
    return definition._replace(members={n: of for n, of in members.items() if n not in {_NAMED[kind], *_WRITTEN}})


def _members(kind: Kind, name: str, table: dict[str, Any], base: Path) -> dict[str, Any]:
    match kind:
        case "jobs":
            return _job_members(table, base)
        case "trust":
            return _trust_members(table, base)
        case "identities":
            return {**table, "kind": kind_of(name) or "service"}  # a name that is none is refused as such
        case "roles" | "rules" | "platforms":
            return table


def _job_members(table: dict[str, Any], base: Path) -> dict[str, Any]:
    members: dict[str, Any] = {
        field.name: field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(JobRecord)
        if field.name not in _NOT_IN_FILES["jobs"]
    } | table
    if isinstance(members["params_schema"], str):
        members["params_schema"] = _schema_file(base / members["params_schema"])
    return members


def _schema_file(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"params_schema: {path}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ValueError(f"params_schema: {path} is not JSON: {error}") from None


def _trust_members(table: dict[str, Any], base: Path) -> dict[str, Any]:
    members = _TRUST_DEFAULTS | table
    missing = next((member for member in ("jwks", "orgs", "subjects", "jobs") if member not in members), None)
    if missing is not None:
        raise ValueError(f"{missing}: is missing")
    jwks = members["jwks"]
    if isinstance(jwks, str) and "://" not in jwks:
        members["jwks"] = str((base / jwks).absolute())
    return members


def _warnings(rule: TrustRule) -> Iterable[str]:
    if "*" in rule.jobs:
        yield 'jobs = ["*"]: this issuer may start ANY job; name what it is for'
    if "*" in rule.subjects:
        yield 'subjects = ["*"]: this issuer may speak for ANY subject; name whom it serves'
    if "HS256" in rule.algorithms:
        yield "algorithms holds HS256: for development only; a gate honours it with insecure_dev_hs256 alone"
    if isinstance(rule.jwks, str) and not rule.jwks.startswith("https://") and not Path(rule.jwks).is_file():
        yield f"jwks: {rule.jwks} is not there yet; until it is, a trigger that names this issuer holds its whole lane"


def _refuse_other_than_json(value: Any, where: str) -> None:
    """TOML knows dates, times, infinities, nan and long integers; JSON does not, or its readers round them."""
    if isinstance(value, dict):
        for name, member in value.items():
            _refuse_other_than_json(member, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_other_than_json(item, f"{where}[{place}]")
    elif not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where}: {value} has no place in JSON; write it as a text")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{where}: {value} is no integer of 64 bits")


# ── the topic ──


def plan(definitions: Iterable[Definition], present: Mapping[bytes, bytes]) -> list[Change]:
    """What is to be written over what is there. Versions only grow; what is equal is left alone."""
    changes = []
    for definition in definitions:
        absent = _absent(definition, present)
        old = present.get(definition.registry_key)
        if old is None:
            changes.append(_change(definition, "created", FIRST_VERSION, _new_birth_id(), absent))
            continue
        version, birth_id = _version_of(old), birth_id_in(old)
        definition = definition.over(old)  # noqa: PLW2901 - the same, complete
        if birth_id and _same(old, definition.record(version, birth_id)):
            changes.append(_change(definition, "unchanged", version, birth_id, absent))
        else:
            changes.append(_change(definition, "changed", version + 1, birth_id or _new_birth_id(), absent))
    return changes


def _change(
    definition: Definition,
    action: Literal["created", "changed", "unchanged"],
    version: int,
    birth_id: str,
    absent: tuple[str, ...],
) -> Change:
    return Change(definition.kind, definition.name, action, version, definition.record(version, birth_id), absent)


def _absent(definition: Definition, present: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """What an identity gets no token without, or no host token: it may be written later, and is asked for then."""
    if definition.kind != "identities":
        return ()
    platform = definition.members.get("platform")
    named = [("role", role_key(name)) for name in definition.members["roles"]]
    named += [("platform", platform_key(platform))] if platform else []
    return tuple(f"{what} {key.decode().partition('/')[2]}" for what, key in named if key not in present)


def _new_birth_id() -> str:
    """Of an object that is made: what is bound to one that went is not bound to its successor of the same name."""
    return secrets.token_hex(BIRTH_ID_BYTES)


def _version_of(record: bytes) -> int:
    """Of any record that has one, readable by this version or not."""
    try:
        version = orjson.loads(record)["version"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0
    return version if isinstance(version, int) else 0


def _same(one: bytes, other: bytes) -> bool:
    try:
        return bool(orjson.loads(one) == orjson.loads(other))
    except orjson.JSONDecodeError:
        return False


def definitions_in(present: Mapping[bytes, bytes], kind: Kind) -> list[dict[str, Any]]:
    """The registry's records of one kind as rows; one no gate can read has an `error`."""
    prefix = _KEY[kind]("")
    rows = []
    for registry_key, record in sorted(present.items()):
        if registry_key.startswith(prefix):
            name = registry_key[len(prefix) :].decode(errors="replace")
            judged = _JUDGE[kind](registry_key, record)
            row: dict[str, Any] = {_NAMED[kind]: name, "version": _version_of(record)}
            rows.append(row | ({"error": judged} if isinstance(judged, str) else orjson.loads(record)))
    return rows


async def read_registry(settings: Settings) -> dict[bytes, bytes]:
    """The registry as it stands: committed records only, by key, tombstones left out."""
    present: dict[bytes, bytes] = {}
    async with whole.opened(settings.kafka, Topic.REGISTRY) as topic:
        async for record in topic.records():
            if record.value is None:
                present.pop(record.key or b"", None)
            else:
                present[record.key or b""] = record.value
    return present


async def apply(settings: Settings, definitions: list[Definition], *, dry_run: bool) -> list[Change]:
    """Write what differs, all of it or nothing. Raises RegistryError when another writer got in between.

    The transactional id is a lock: whoever applies at the same time is fenced, and versions cannot collide. The
    producer starts before the registry is read, for its start ends a transaction somebody else left open.
    """
    if dry_run:
        return plan(definitions, await read_registry(settings))
    async with only_writer(settings) as (present, write):
        changes = plan(definitions, present)
        await write({_KEY[each.kind](each.name): each.record for each in changes if each.action != "unchanged"})
    return changes


async def add_missing(settings: Settings, definitions: list[Definition]) -> list[Change]:
    """Write those whose name the registry does not have, and nothing else; `changed` ones differ and stay as they are.

    Raises RegistryError as `apply` does.
    """
    async with only_writer(settings) as (present, write):
        changes = plan(definitions, present)
        await write({_KEY[each.kind](each.name): each.record for each in changes if each.action == "created"})
    return changes


async def remove(settings: Settings, kind: Kind, name: str) -> bool:
    """Take a definition away, and with it what is bound to it, within a second. False when there is none."""
    registry_key = _KEY[kind](name)
    async with only_writer(settings) as (present, write):
        there = registry_key in present
        if there:
            await write({registry_key: None})
    return there


Write = Callable[[Mapping[bytes, bytes | None]], Awaitable[None]]


@asynccontextmanager
async def only_writer(settings: Settings) -> AsyncIterator[tuple[dict[bytes, bytes], Write]]:
    """The registry as it stands, and what writes records by key, all or none; None deletes."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import ProducerFenced

    from app.stream.connect import client_options

    topic = Topic.REGISTRY.named(settings.kafka.prefix)
    producer = AIOKafkaProducer(
        **client_options(settings.kafka), transactional_id=f"{settings.kafka.prefix}registry",
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS, acks="all", enable_idempotence=True,
    )  # fmt: skip

    async def write(records: Mapping[bytes, bytes | None]) -> None:
        if records:
            async with producer.transaction():
                for key, record in records.items():
                    await producer.send_and_wait(topic, record, key=key, partition=0)

    await producer.start()
    try:
        yield await read_registry(settings), write
    except ProducerFenced:
        raise RegistryError("someone else applied definitions at the same moment; run it again") from None
    finally:
        await producer.stop()
