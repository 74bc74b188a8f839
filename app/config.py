"""Every setting, its default and its unit, once.

Sources, strongest first: arguments of a command, `TOLLGATE_…` in the environment (`TOLLGATE_KAFKA__BOOTSTRAP`,
and `TOLLGATE_BOOTSTRAP` for short), `tollgate.toml` (or the file `TOLLGATE_CONFIG` names). An unknown setting stops
the start: a misspelt limit must not pass as the default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta

from app.gate import limits

CONFIG_FILE: Final = "tollgate.toml"


class ConfigError(Exception):
    """A setting is wrong; the message is one sentence that says which and what to do."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the settings."""


def about(text: str = "", **bounds: Any) -> Meta:
    """What is said of a setting beside its type, and what it may be."""
    return Meta(description=text, **bounds)


File = Path | None
SECRET: Final = {"secret": True}  # of a setting that is never shown
JWT_SECRET: Final = Path("security.jwt_secret")  # as gate.insecure_dev_hs256: that setting, and no file


class Kafka(Section, frozen=True):
    """How to reach the cluster."""

    bootstrap: Annotated[str, about("host:port[,host:port…] of the brokers")] = "localhost:9092"
    prefix: Annotated[str, about("of topics and transactional ids", pattern=r"^[a-zA-Z0-9._-]{1,100}\Z")] = "tollgate."
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        about("of the brokers' listener; SSL and SASL_SSL verify its certificate"),
    ] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: Annotated[str | None, about("the principal, as one role of SECURITY.md")] = None
    sasl_password_file: Annotated[File, about("file that holds the password; never the password")] = None
    ssl_cafile: Annotated[File, about("PEM of the authorities to trust; default the system's")] = None
    ssl_certfile: Annotated[File, about("PEM of our certificate, for mutual TLS")] = None
    ssl_keyfile: Annotated[File, about("PEM of our private key, for mutual TLS")] = None
    client_id: str = "tollgate"
    request_timeout_ms: Annotated[int, about(ge=1_000, le=300_000)] = 15_000


class Gate(Section, frozen=True):
    """How triggers are decided."""

    audience: Annotated[str | None, about("the aud of our tokens; default `tollgate:{prefix}`")] = None
    grace_s: Annotated[int, about(ge=0, le=600)] = limits.GRACE_S
    queue_age_cap_s: Annotated[int, about(ge=60, le=7 * 86_400)] = limits.QUEUE_AGE_CAP_S
    max_staleness_ms: Annotated[int, about(ge=300, le=60_000)] = 1_000
    clock_tolerance_s: Annotated[int, about(ge=1, le=3_600)] = 60
    state_dir: Annotated[Path, about("local stores; may be deleted when the gate is down")] = Path(".tollgate/state")
    workers: Annotated[int, about("processes; 0 is one per core", ge=0, le=256)] = 0
    group: Annotated[str, about("consumer group, after the prefix")] = "gate"
    session_timeout_ms: Annotated[int, about(ge=1_000, le=300_000)] = 10_000
    transaction_timeout_ms: Annotated[int, about(ge=1_000, le=900_000)] = 10_000
    batch_max_records: Annotated[int, about(ge=1, le=100_000)] = 2_000
    expanded_batch_max_bytes: Annotated[int, about(ge=1 << 20, le=256 << 20)] = 8 << 20
    compression: Annotated[Literal["none", "lz4", "zstd"], about("of what the gate writes")] = "lz4"
    sealing_key: Annotated[File, about("ops' public key (JWK, EC P-256) that seals dead tokens")] = None
    jwks_refresh_s: Annotated[float, about("of an HTTPS JWK Set", ge=0.1, le=86_400)] = 300
    jwks_refetch_floor_s: Annotated[
        float, about("between two fetches for unknown kids of one issuer", ge=0.1, le=3_600)
    ] = 30
    jwks_max_stale_s: Annotated[
        float,
        about("how long the last good set is used when its source fails; then the lanes hold", ge=1, le=30 * 86_400),
    ] = 86_400
    jwks_cafile: Annotated[File, about("PEM of the authority of the JWK Sets' servers")] = None
    insecure_dev_hs256: Annotated[
        File,
        about(
            "development only: file with a shared secret (≥ 32 bytes), or `security.jwt_secret`; loopback brokers only"
        ),
    ] = None


class Issuer(Section, frozen=True):
    """How tokens are made."""

    issuer: Annotated[str, about("the iss of tokens we make")] = "https://issuer.localhost"
    keys_dir: Annotated[Path, about("private keys, mode 0700")] = Path(".tollgate/keys")
    jwks_file: Annotated[Path, about("where `tollgate keys` writes the public JWK Set")] = Path(".tollgate/jwks.json")
    org_id: str = "dev"
    subject: str = "service:cli"
    identity: Annotated[
        str | None, about("issue as this identity, by its secret; default: as whoever holds the key files")
    ] = None


class Security(Section, frozen=True):
    """Names that others know these by."""

    jwt_secret: Annotated[
        str | None,
        about(
            'shared secret (≥ 32 bytes), honoured only where gate.insecure_dev_hs256 = "security.jwt_secret"',
            extra=SECRET,
        ),
    ] = None
    execution_token_max_lifetime: Annotated[
        int, about("s; of the tokens of runs, which nothing makes yet", ge=1, le=limits.EXECUTION_LIFETIME_MAX_S)
    ] = 3_600

    def __repr__(self) -> str:
        return "Security(…)"


class Telemetry(Section, frozen=True):
    """What the gate tells about itself."""

    host: str = "127.0.0.1"
    port: Annotated[int, about("of the first worker; the next take the next", ge=0, le=65_535)] = 9464
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Annotated[Literal["auto", "json", "console"], about("auto: console on a terminal, else JSON")] = "auto"


class Serve(Section, frozen=True):
    """The HTTP door."""

    host: Annotated[str, about("of the public listener")] = "127.0.0.1"
    port: Annotated[int, about("of the public listener", ge=0, le=65_535)] = 8080
    tls_certfile: Annotated[File, about("PEM of the public listener's chain; none: plain HTTP, behind a proxy")] = None
    tls_keyfile: Annotated[File, about("PEM of its private key, if that is another file")] = None
    public_url: Annotated[
        str | None,
        about("where clients reach us, without a slash at the end; without it only clients of this machine are told"),
    ] = None
    issues: Annotated[
        bool, about("issue tokens here; takes the issuer's keys, and a principal that is an issuer too")
    ] = True
    reuse_port: Annotated[bool, about("several instances listen on one port of one machine")] = False
    internal_host: Annotated[str, about("of the internal listener: probes, metrics, internal keys")] = "127.0.0.1"
    internal_port: Annotated[int, about("of the internal listener", ge=0, le=65_535)] = 8081
    connections_max: Annotated[
        int, about("open at once at one listener; fewer where the process may not have as many files", ge=1, le=100_000)
    ] = 4_000
    body_max_bytes: Annotated[int, about(ge=1_024, le=1_000_000)] = 1_000_000
    bodies_max_bytes: Annotated[
        int, about("of large bodies being read, or on their way to Kafka; beyond, 503", ge=1_000_000, le=1 << 40)
    ] = 64_000_000
    headers_max_bytes: Annotated[int, about(ge=10_240, le=32_768)] = 16_384
    wait_max_s: Annotated[int, about("the longest `Prefer: wait` that is honoured", ge=0, le=300)] = 30
    publish_timeout_s: Annotated[float, about("until Kafka has the trigger", ge=0.5, le=120)] = 10
    unacknowledged_max: Annotated[int, about("triggers on their way to Kafka", ge=1, le=100_000)] = 5_000
    receipts_kept: Annotated[int, about("newest receipts in memory", ge=1_000, le=10_000_000)] = 100_000
    streams_max: Annotated[
        int, about("streams of receipts at once; half the connections at most", ge=0, le=100_000)
    ] = 500
    client_requests_per_s: Annotated[
        int, about("of one identity at one door, that leave a record; in a burst, five times as many", ge=1, le=100_000)
    ] = 100
    client_tokens_max: Annotated[
        int, about("of one identity, by door or command, that have not expired; then doors say 429", ge=1, le=10**8)
    ] = 100_000
    stop_timeout_s: Annotated[int, about("for requests under way when told to stop", ge=1, le=300)] = 10


class Login(Section, frozen=True):
    """A person's commands over HTTP."""

    url: Annotated[str, about("of the `tollgate serve` to log in at: https, or this machine")] = "http://127.0.0.1:8080"
    file: Annotated[File, about("that keeps the login, mode 0600; default ~/.config/tollgate/login.json")] = None
    cafile: Annotated[File, about("PEM of the authority of its certificate; default the system's")] = None


class Local(Section, frozen=True):
    """The local Kafka of `tollgate up` and `tollgate broker`."""

    data_dir: Path = Path(".tollgate/kafka")
    cache_dir: Annotated[File, about("of Kafka's jars; default the user's cache directory")] = None


class Settings(Section, frozen=True):
    """All settings of a process."""

    kafka: Kafka = Kafka()
    gate: Gate = Gate()
    issuer: Issuer = Issuer()
    security: Security = Security()
    telemetry: Telemetry = Telemetry()
    serve: Serve = Serve()
    login: Login = Login()
    local: Local = Local()

    @property
    def audience(self) -> str:
        """The aud a token must have: configured, else derived from the prefix, so that it names this deployment."""
        return self.gate.audience or f"tollgate:{self.kafka.prefix}"


class Setting(NamedTuple):
    """One setting as documentation shows it."""

    section: str
    name: str
    default: Any
    about: str
    is_secret: bool = False


def every() -> Iterator[Setting]:
    """All settings there are, in order."""
    for section, kind in _SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            said = [part.description for part in get_args(field.type) if isinstance(part, Meta)]
            yield Setting(section, field.name, field.default, said[0] or "" if said else "", _is_secret(field.type))


def _is_secret(kind: Any) -> bool:
    return any(isinstance(part, Meta) and part.extra == SECRET for part in get_args(kind))


class Effective(NamedTuple):
    """One setting as it is in effect, and which source says so."""

    setting: Setting
    value: Any
    source: Literal["default", "file", "environment"]


def effective() -> Iterator[Effective]:
    """All settings as they are in effect in this process. Raises ConfigError."""
    settings, file, environment = load(), _from_file(), _from_environment()
    for setting in every():
        section, name = setting.section, setting.name
        told: Literal["default", "file", "environment"]
        told = "environment" if name in environment[section] else "file" if name in file.get(section, {}) else "default"
        yield Effective(setting, getattr(getattr(settings, section), name), told)


Given = dict[str, dict[str, Any]]  # section → setting → value, as one source says it

_SECTIONS: Final[dict[str, type[Section]]] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
# Short names for what is set on almost every command.
_SHORT_ENV: Final = {"TOLLGATE_BOOTSTRAP": ("kafka", "bootstrap"), "TOLLGATE_PREFIX": ("kafka", "prefix")}
_ALSO_READ: Final = ("TOLLGATE_CONFIG", "TOLLGATE_TOKEN", "TOLLGATE_CLIENT_SECRET", "TOLLGATE_TRACEBACK")
# The supervisor's own, and those of scripts and tests.
_NO_SETTINGS: Final = {
    *_ALSO_READ, "TOLLGATE_WORKER_INDEX", "TOLLGATE_ROOT", "TOLLGATE_PYTHON", "TOLLGATE_ROWS_FULL", "TOLLGATE_FUZZ",
}  # fmt: skip
_OF_TESTS: Final = "TOLLGATE_TEST_"
# Kubernetes tells containers of services: of one named tollgate, TOLLGATE_SERVICE_HOST, TOLLGATE_PORT=tcp://… and more.
_OF_KUBERNETES: Final = re.compile(
    r"TOLLGATE(_[A-Z0-9]+)*?_(SERVICE_(HOST|PORT(_[A-Z0-9]+)*)|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?|(?P<port>PORT))"
)
_SEE: Final = "see `tollgate --help` and the README's table of settings"


def load(**overrides: Any) -> Settings:
    """The settings of this process. `overrides` are `section__name=value`; None means not given.

    Raises ConfigError, whose message names the setting, the value found and what is wrong with it.
    """
    given = _given(overrides)
    return Settings(**{section: _made(section, given[section]) for section in _SECTIONS})


def is_given(section: str, name: str) -> bool:
    """Whether the file or the environment says this setting, be it its default. Raises ConfigError."""
    return name in _given({})[section]


def file_that_says(section: str, name: str) -> Path | None:
    """The settings file, if this setting's value is from there. Raises ConfigError."""
    said = name in _from_file().get(section, {}) and name not in _from_environment()[section]
    return Path(os.environ.get("TOLLGATE_CONFIG") or CONFIG_FILE) if said else None


def _given(overrides: Mapping[str, Any]) -> Given:
    given: Given = {section: {} for section in _SECTIONS}
    for source in (_from_file(), _from_environment(), _from_arguments(overrides)):  # the later is the stronger
        for section, values in source.items():
            given[section] |= values
    return given


def _from_file() -> Given:
    named = os.environ.get("TOLLGATE_CONFIG")
    file = Path(named or CONFIG_FILE)
    if not file.is_file():
        if named:
            raise ConfigError(f"TOLLGATE_CONFIG names {file}, which is not there")
        return {}
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    for section, values in read.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: {section} is no section; settings stand in [kafka], [gate] and so on")
        if section not in _SECTIONS:
            raise ConfigError(f"setting {section} is not a setting; {_SEE}")
    return read


def _from_environment() -> Given:
    """TOLLGATE_KAFKA__BOOTSTRAPP and TOLLGATE_BOOTSTRP must not be passed over in silence."""
    given: Given = {section: {} for section in _SECTIONS}
    for variable, (section, name) in _SHORT_ENV.items():
        if variable in os.environ:
            given[section][name] = os.environ[variable]
    for variable, value in os.environ.items():
        if not variable.startswith("TOLLGATE_") or _is_no_setting(variable, value):
            continue
        section, _, name = variable.removeprefix("TOLLGATE_").lower().partition("__")
        if section not in _SECTIONS or name not in _SECTIONS[section].__struct_fields__:
            raise ConfigError(
                f"{variable} in the environment is not a setting; did you mean {_nearest(variable)}? "
                "See the README's table of settings"
            )
        given[section][name] = value
    return given


def _is_no_setting(variable: str, value: str) -> bool:
    if variable in _SHORT_ENV or variable in _NO_SETTINGS or variable.startswith(_OF_TESTS):
        return True
    of_kubernetes = _OF_KUBERNETES.fullmatch(variable)
    return of_kubernetes is not None and (of_kubernetes["port"] is None or "://" in value)


def _nearest(variable: str) -> str:
    import difflib  # only to fail

    known = [f"TOLLGATE_{setting.section}__{setting.name}".upper() for setting in every()]
    return difflib.get_close_matches(variable, [*_SHORT_ENV, *_ALSO_READ, *known], 1, cutoff=0)[0]


def _from_arguments(overrides: Mapping[str, Any]) -> Given:
    given: Given = {section: {} for section in _SECTIONS}
    for path, value in overrides.items():
        if value is not None:
            section, _, name = path.partition("__")
            given[section][name] = value
    return given


def _made(section: str, given: Mapping[str, Any]) -> Any:
    """One section, each of its values judged. Raises ConfigError."""
    kind = _SECTIONS[section]
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    made = {}
    for name, value in given.items():
        if name not in types:
            raise ConfigError(f"setting {section}.{name} is not a setting; {_SEE}")
        try:
            made[name] = msgspec.convert(value, types[name], strict=False, dec_hook=_path)
        except msgspec.ValidationError:
            needed = _needed(types[name])
            found = "of another type" if _is_secret(types[name]) else repr(value)
            raise ConfigError(f"setting {section}.{name} is {found}, and has to be {needed}; {_SEE}") from None
    return kind(**made)


def _path(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, str | Path):
        raise TypeError
    return Path(value)


_WORDS: Final = {int: "an integer", float: "a number", str: "a text", Path: "a path"}


def _needed(kind: Any) -> str:
    """What a setting of this type may be."""
    metas = [part for part in get_args(kind) if isinstance(part, Meta)]
    if metas:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    word = next(word for known, word in _WORDS.items() if known in (kind, *get_args(kind)))
    for meta in metas:
        if meta.ge is not None:
            word += f" from {meta.ge} to {meta.le}"
        if meta.pattern is not None:
            word += f" that matches {meta.pattern}"
    return word
