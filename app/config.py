"""Every setting, its default and its unit, once.

Sources, strongest first: arguments of a command, `TOLLGATE_…` in the environment (`TOLLGATE_KAFKA__BOOTSTRAP`,
and `TOLLGATE_BOOTSTRAP` for short), `tollgate.toml` (or the file `TOLLGATE_CONFIG` names). An unknown setting stops
the start: a misspelt limit must not pass as the default.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app.gate import limits

CONFIG_FILE: Final = "tollgate.toml"


class ConfigError(Exception):
    """A setting is wrong; the message is one sentence that says which and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kafka(_Section):
    """How to reach the cluster."""

    bootstrap: str = Field("localhost:9092", description="host:port[,host:port…] of the brokers")
    prefix: str = Field("tollgate.", pattern=r"^[a-zA-Z0-9._-]{1,100}$", description="of topics and transactional ids")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password_file: Path | None = Field(None, description="file that holds the password; never the password")
    ssl_cafile: Path | None = Field(None, description="PEM of the authorities to trust; default the system's")
    ssl_certfile: Path | None = Field(None, description="PEM of our certificate, for mutual TLS")
    ssl_keyfile: Path | None = Field(None, description="PEM of our private key, for mutual TLS")
    client_id: str = "tollgate"
    request_timeout_ms: Annotated[int, Field(ge=1_000, le=300_000)] = 15_000


class Gate(_Section):
    """How triggers are decided."""

    audience: str | None = Field(None, description="the aud of our tokens; default `tollgate:{prefix}`")
    grace_s: Annotated[int, Field(ge=0, le=600)] = limits.GRACE_S
    queue_age_cap_s: Annotated[int, Field(ge=60, le=7 * 86_400)] = limits.QUEUE_AGE_CAP_S
    max_staleness_ms: Annotated[int, Field(ge=300, le=60_000)] = 1_000
    clock_tolerance_s: Annotated[int, Field(ge=1, le=3_600)] = 60
    state_dir: Path = Field(Path(".tollgate/state"), description="local stores; may be deleted when the gate is down")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(0, description="processes; 0 is one per core")
    group: str = Field("gate", description="consumer group, after the prefix")
    session_timeout_ms: Annotated[int, Field(ge=1_000, le=300_000)] = 10_000
    transaction_timeout_ms: Annotated[int, Field(ge=1_000, le=900_000)] = 10_000
    batch_max_records: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    expanded_batch_max_bytes: Annotated[int, Field(ge=1 << 20, le=256 << 20)] = 8 << 20
    compression: Literal["none", "lz4", "zstd"] = Field("lz4", description="of what the gate writes")
    sealing_key: Path | None = Field(None, description="ops' public key (JWK, EC P-256) that seals dead tokens")
    jwks_refresh_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(300, description="of an HTTPS JWK Set")
    jwks_refetch_floor_s: Annotated[float, Field(ge=0.1, le=3_600)] = Field(
        30, description="between two fetches for unknown kids of one issuer"
    )
    jwks_max_stale_s: Annotated[float, Field(ge=1, le=30 * 86_400)] = Field(
        86_400, description="how long the last good set is used when its source fails; then the lanes hold"
    )
    jwks_cafile: Path | None = Field(None, description="PEM of the authority of the JWK Sets' servers")
    insecure_dev_hs256: Path | None = Field(
        None, description="development only: file with a shared secret (≥ 32 bytes); loopback brokers only"
    )


class Issuer(_Section):
    """How tokens are made."""

    issuer: str = Field("https://issuer.localhost", description="the iss of tokens we make")
    keys_dir: Path = Field(Path(".tollgate/keys"), description="private keys, mode 0700")
    jwks_file: Path = Field(Path(".tollgate/jwks.json"), description="where `tollgate keys` writes the public JWK Set")
    org_id: str = "dev"
    subject: str = "service:cli"


class Telemetry(_Section):
    """What the gate tells about itself."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        9464, description="of the first worker; the next take the next"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else JSON")


class Local(_Section):
    """The local Kafka of `tollgate up` and `tollgate broker`."""

    data_dir: Path = Path(".tollgate/kafka")
    cache_dir: Path | None = Field(None, description="of Kafka's jars; default the user's cache directory")


class Settings(BaseSettings):
    """All settings of a process."""

    model_config = SettingsConfigDict(
        env_prefix="TOLLGATE_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    kafka: Kafka = Kafka()
    gate: Gate = Gate()
    issuer: Issuer = Issuer()
    telemetry: Telemetry = Telemetry()
    local: Local = Local()

    @property
    def audience(self) -> str:
        """The aud a token must have: configured, else derived from the prefix, so that it names this deployment."""
        return self.gate.audience or f"tollgate:{self.kafka.prefix}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no dot-env file: one file is enough
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("TOLLGATE_CONFIG", CONFIG_FILE))
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path))


# Short names for what is set on almost every command.
_SHORT_ENV: Final = {"TOLLGATE_BOOTSTRAP": ("kafka", "bootstrap"), "TOLLGATE_PREFIX": ("kafka", "prefix")}


def load(**overrides: Any) -> Settings:
    """The settings of this process. `overrides` are `section__name=value`; None means not given.

    Raises ConfigError, whose message names the setting, the value found and what is wrong with it.
    """
    given: dict[str, dict[str, Any]] = {}
    for variable, (section, name) in _SHORT_ENV.items():
        if variable in os.environ and f"TOLLGATE_{section.upper()}__{name.upper()}" not in os.environ:
            given.setdefault(section, {})[name] = os.environ[variable]
    for path, value in overrides.items():
        if value is not None:
            section, _, name = path.partition("__")
            given.setdefault(section, {})[name] = value
    config = os.environ.get("TOLLGATE_CONFIG")
    if config and not Path(config).is_file():
        raise ConfigError(f"TOLLGATE_CONFIG names {config}, which is not there")
    _refuse_unknown_environment()
    _refuse_sections_that_are_none(Path(config or CONFIG_FILE))
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = "is not a setting" if first["type"] == "extra_forbidden" else f"is {first['input']!r}: {first['msg']}"
        raise ConfigError(f"setting {where} {what}; see `tollgate --help` and the README's table of settings") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config or CONFIG_FILE} cannot be read: {error}") from None


def _refuse_sections_that_are_none(file: Path) -> None:
    """`gate = 3` would be passed over in silence where the environment sets something of that section."""
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    for name, section in read.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{file}: {name} is no section; settings stand in [kafka], [gate] and so on")


def _refuse_unknown_environment() -> None:
    """TOLLGATE_KAFKA__BOOTSTRAPP must not be passed over in silence; names outside our sections are not ours."""
    for variable in os.environ:
        if not variable.startswith("TOLLGATE_") or "__" not in variable:
            continue
        section, _, name = variable.removeprefix("TOLLGATE_").lower().partition("__")
        field = Settings.model_fields.get(section)
        if field is None or name not in getattr(field.annotation, "model_fields", {}):
            raise ConfigError(f"{variable} in the environment is not a setting; see the README's table of settings")
