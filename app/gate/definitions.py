"""Job definitions and trust rules: records of the registry become compiled types once, or a complaint.

A record with a member this version does not know is refused whole: the member may be a restriction, and a gate that
passed over it would start jobs its operators meant to forbid.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import jsonschema_rs
import msgspec
from msgspec import Meta

from app.gate import limits
from app.gate.canonical import canonical
from app.gate.keyset import JWKSInvalid, KeySet
from app.gate.records import UNREADABLE
from app.gate.redact import token_shaped
from app.gate.strict_json import JSONRefused, loads_object

JOB_PREFIX: Final = "job/"
TRUST_PREFIX: Final = "trust/"
DEDUP_WINDOW_MAX_S: Final = 366 * 86_400
JOB_TIMEOUT_MAX_S: Final = 30 * 86_400
SCHEMA_MAX_BYTES: Final = 256 * 1024
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

Accepts = Literal["one_shot", "webhook"]
OnConflict = Literal["refuse", "token_wins"]
Algorithm = Literal["ES256", "EdDSA", "HS256"]

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_JOB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@/+-]*")
PATTERN: Final = re.compile(r"[^*]*\*?")  # a trailing * is the only one
_JWKS: Final = re.compile(r"https://[^\s/]+(/\S*)?|/.+")

Name = Annotated[str, Meta(min_length=1, max_length=limits.SUBJECT_MAX_CHARACTERS)]
Version = Annotated[int, Meta(ge=1)]
# Of an object of the registry from its making to its removal; one made anew has another. Tokens may be bound to it.
BirthId = Annotated[str, Meta(min_length=1, max_length=limits.BIRTH_ID_MAX_CHARACTERS)]


Decoded = TypeVar("Decoded", bound=msgspec.Struct)


class TrustRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an issuer may do. Empty means refuse."""

    issuer: Name
    version: Version
    jwks: str | dict[str, Any]  # HTTPS URL, file, or the JWK Set itself
    algorithms: tuple[Algorithm, ...]
    orgs: tuple[Name, ...]
    classes: tuple[Name, ...]
    subjects: tuple[Name, ...]  # patterns: a trailing * matches any rest
    jobs: tuple[Name, ...]  # patterns likewise
    max_lifetime_s: Annotated[int, Meta(ge=1, le=limits.WEBHOOK_LIFETIME_MAX_S)]
    birth_id: BirthId | None = None


class AllowedIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom a job lets start it. A subject means something only together with its issuer."""

    issuer: Name
    subject: Name  # a pattern: a trailing * matches any rest


class JobRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job definition as the registry holds it."""

    name: str
    version: Version
    enabled: bool = True
    params_schema: dict[str, Any] | bool | None = None
    defaults: dict[str, Any] = {}
    sensitive: tuple[Name, ...] = ()
    on_param_conflict: OnConflict = "refuse"
    accepts: Annotated[tuple[Accepts, ...], Meta(min_length=1)] = ("one_shot", "webhook")
    dedup_window_s: Annotated[int, Meta(ge=1, le=DEDUP_WINDOW_MAX_S)] = limits.DEDUP_WINDOW_DEFAULT_S
    timeout_s: Annotated[int, Meta(ge=1, le=JOB_TIMEOUT_MAX_S)] = limits.JOB_TIMEOUT_DEFAULT_S
    idempotency_from_ce_id: bool = (
        False  # where none is given; a one-shot token must then name it, as any key beside one
    )
    allowlist: tuple[AllowedIdentity, ...] | None = None  # None: whoever has a token for it
    birth_id: BirthId | None = None


class Job(msgspec.Struct, frozen=True):
    """A job definition, compiled: `validate` gives the first complaint about params (with JSON pointer) or None."""

    name: str
    version: int
    enabled: bool
    params_schema: dict[str, Any] | bool | None
    validator: Any  # jsonschema_rs validator, or None
    defaults: dict[str, Any]
    sensitive: frozenset[str]
    on_param_conflict: OnConflict
    accepts: frozenset[str]  # of "one_shot", "webhook"
    dedup_window_s: int
    timeout_s: int
    idempotency_from_ce_id: bool
    defaults_bytes: int = 0  # as canonical JSON
    allowlist: tuple[AllowedIdentity, ...] | None = None

    def allows(self, issuer: str, subject: str) -> bool:
        """Whether the job's owner lets this identity start it, whatever its token says."""
        if self.allowlist is None:
            return True
        return any(each.issuer == issuer and matches((each.subject,), subject) for each in self.allowlist)

    def validate(self, params: dict[str, Any]) -> str | None:
        validator = self.validator
        if validator is None or validator.is_valid(params):
            return None
        try:
            validator.validate(params)
        except jsonschema_rs.ValidationError as error:
            return _complaint_of(error)
        return None


def job_key(name: str) -> bytes:
    """The registry's key of a job definition."""
    return (JOB_PREFIX + name).encode()


def trust_key(issuer: str) -> bytes:
    """The registry's key of a trust rule."""
    return (TRUST_PREFIX + issuer).encode()


def birth_id_in(value: bytes | None) -> str | None:
    """The birth id of an object of the registry, of any kind; empty where it has none; None where nothing is."""
    if value is None:
        return None
    try:
        members = msgspec.json.decode(value)
    except UNREADABLE:
        return None
    if type(members) is not dict:
        return None
    birth_id = members.get("birth_id")
    return birth_id if type(birth_id) is str else ""


def job_from_record(key: bytes, value: bytes) -> Job | str:
    """A record under `job/{name}`, compiled, or one clause that says what is wrong and where.

    Whoever keeps the table drops what it had under that key: after compaction nobody would find the older one.
    """
    record = read_record(key, value, JobRecord, JOB_PREFIX)
    if isinstance(record, str):
        return record
    fault = job_name_fault(record.name)
    if fault is not None:
        return f"name: {fault}"
    secret = next((name for name in record.sensitive if name in record.defaults), None)
    if secret is not None:
        return f"defaults.{secret}: a sensitive parameter has no default; every reader of the registry would see it"
    if any(not PATTERN.fullmatch(each.subject) for each in record.allowlist or ()):
        return "allowlist: a subject may end in *, and holds no other *"
    try:
        loads_object(msgspec.json.encode(record.defaults))
    except JSONRefused as refused:
        return f"defaults: {refused.detail}"
    validator = None
    if record.params_schema is not None:
        validator = compile_schema(record.params_schema)
        if isinstance(validator, str):
            return f"params_schema: {validator}"
    return Job(
        record.name, record.version, record.enabled, record.params_schema, validator, record.defaults,
        frozenset(record.sensitive), record.on_param_conflict, frozenset(record.accepts), record.dedup_window_s,
        record.timeout_s, record.idempotency_from_ce_id, len(canonical(record.defaults)), record.allowlist,
    )  # fmt: skip


def trust_from_record(key: bytes, value: bytes) -> TrustRule | str:
    """A record under `trust/{issuer}`, or one clause that says what is wrong and where. See `job_from_record`."""
    rule = read_record(key, value, TrustRule, TRUST_PREFIX)
    if isinstance(rule, str):
        return rule
    if not rule.issuer.isprintable():
        return "issuer: holds a control character"
    if isinstance(rule.jwks, dict):
        try:
            KeySet.from_jwks(msgspec.json.encode(rule.jwks), rule.algorithms)
        except JWKSInvalid as error:
            return f"jwks: {error}"
    elif not _JWKS.fullmatch(rule.jwks):
        return "jwks: neither an https:// address, nor the absolute path of a file, nor a JWK Set"
    for member in ("subjects", "jobs"):
        if any(not PATTERN.fullmatch(pattern) for pattern in getattr(rule, member)):
            return f"{member}: a pattern may end in *, and holds no other *"
    return rule


def job_name_fault(name: str) -> str | None:
    """What is wrong with the name of a job; no pattern character is in a good one, and no token fits it."""
    if len(name.encode("utf-8", "surrogatepass")) > limits.JOB_NAME_MAX_BYTES:
        return f"longer than {limits.JOB_NAME_MAX_BYTES} bytes"
    if not _JOB_NAME.fullmatch(name) or token_shaped(name):
        return "a job is named by letters, digits and . _ ~ : @ / + -, and begins with a letter or digit"
    return None


def matches(patterns: tuple[str, ...], text: str) -> bool:
    """Whether one of the patterns is the text, or its beginning before a trailing *."""
    for pattern in patterns:  # noqa: SIM110 - asked of every trigger; a generator costs twice as much
        if pattern == text or (pattern[-1:] == "*" and text.startswith(pattern[:-1])):
            return True
    return False


def compile_schema(schema: dict[str, Any] | bool) -> Any:
    """A validator of JSON Schema 2020-12, or a clause that says what is wrong with the schema."""
    if isinstance(schema, dict) and str(schema.get("$schema", DRAFT)).rstrip("#") != DRAFT:
        return f"$schema is not {DRAFT}"
    if len(msgspec.json.encode(schema)) > SCHEMA_MAX_BYTES:
        return f"larger than {SCHEMA_MAX_BYTES} bytes"
    try:
        return jsonschema_rs.Draft202012Validator(
            schema,
            validate_formats=True,
            ignore_unknown_formats=True,
            retriever=_refuse_remote,
            pattern_options=jsonschema_rs.RegexOptions(),  # linear time: a stranger's text meets these patterns
        )
    except Exception as error:  # of several types, all about the schema
        said = str(error).partition("\n")[0][:200]
        if "is not present in a registry" in said:
            said = "a $ref leads out of the document; put what it needs under $defs"
        return said.replace('is not a "regex"', "is not a pattern in linear time (no look-around, no back-references)")


def _refuse_remote(uri: str) -> Any:
    raise ValueError(uri)


def read_record(key: bytes, value: bytes, kind: type[Decoded], prefix: str, word_for: str = "") -> Decoded | str:
    """A record of the registry, which its first member names and which stands under its own key; or what is wrong.

    `word_for`: what is named by a plain word, as roles, rules and platforms are.
    """
    record = _decoded(value, kind)
    if isinstance(record, str):
        return record
    member = kind.__struct_fields__[0]
    name: str = getattr(record, member)
    if key != (prefix + name).encode():
        return f"{member}: the record is not stored under its own key {prefix}{name!r}"
    if word_for and not _WORD.fullmatch(name):
        return f"{member}: a {word_for} is named by letters, digits and . _ -"
    return record


def _decoded(value: bytes, kind: type[Decoded]) -> Decoded | str:
    try:
        return msgspec.json.decode(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `$")
        said = said.replace("Object contains unknown field", "unknown member").replace("`", "")
        member = where.strip("`.")
        return f"{member}: {said[:1].lower()}{said[1:]}" if member else said
    except UNREADABLE as error:
        return f"not JSON: {error}"


def _complaint_of(error: Any) -> str:
    """Pointer and demand, never the value: the detail is read by more people than the parameters are."""
    steps = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in error.instance_path)
    pointer = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in steps[:160])
    kind = error.kind
    match kind.name:
        case "type":
            demand = f"is not of type {', '.join(kind.types)}"
        case "required":
            demand = f"lacks the member {kind.property}"
        case "additionalProperties" | "unevaluatedProperties":
            demand = "has a member the schema does not know"
        case "enum" | "const":
            demand = "is not one of the values allowed"
        case "format":
            demand = f"is not in the format {kind.format}"
        case _:
            limit = getattr(kind, "limit", None)
            demand = f"does not satisfy {kind.name}" + ("" if limit is None else f" {limit}")
    return f"{pointer or '(params)'} {demand}"[: limits.DETAIL_MAX_CHARACTERS]
