"""SASL/SCRAM and ACLs for the local Kafka: a user for each role of `stream/access.py`, each with what its role may.

Passwords are made here, once, and kept in files beside the cluster's data; none is ever an argument of a process.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.issuer.files import write_atomically
from app.local.errors import LocalKafkaError
from app.stream.access import Grant, Operation, Resource, Role, grants

if TYPE_CHECKING:
    from confluent_kafka.admin import AclBinding, AdminClient

SUPERUSER: Final = "cluster"  # brokers and controllers among themselves, and whoever makes users and ACLs
MECHANISM: Final = "SCRAM-SHA-512"
ITERATIONS: Final = 4096  # Kafka's least
PASSWORD_BYTES: Final = 24
ADMIN_TIMEOUT_S: Final = 30
_PLAIN: Final = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"


class Tls(NamedTuple):
    """PEM files. The broker shows `server` (key and chain), and asks clients for a certificate of `authority`."""

    authority: Path
    server: Path
    client_certificate: Path
    client_key: Path


class Security:
    """What a local Kafka is told to be secured, and what its clients are told."""

    def __init__(self, directory: Path, tls: Tls | None = None) -> None:
        self._directory, self._tls = directory, tls
        self._protocol = "SASL_SSL" if tls else "SASL_PLAINTEXT"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def password_file(self, user: str) -> Path:
        """Made at first use, readable by its owner only."""
        file = self._directory / f"{user}.password"
        if not file.exists():
            write_atomically(file, secrets.token_urlsafe(PASSWORD_BYTES).encode(), 0o600)
        return file

    @property
    def server(self) -> dict[str, str]:
        """Properties of every node; the names of its listeners stay as they are.

        The nodes themselves log in by PLAIN: users of SCRAM stand in the metadata, which is not there yet when a
        controller starts. The controllers' listener is never TLS: it is of this machine alone.
        """
        own = self._password(SUPERUSER)
        login = f'{_PLAIN} required username="{SUPERUSER}" password="{own}" user_{SUPERUSER}="{own}";'
        told = {
            "listener.security.protocol.map": f"BROKER:{self._protocol},CONTROLLER:SASL_PLAINTEXT",
            "listener.name.broker.sasl.enabled.mechanisms": f"{MECHANISM},PLAIN",
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.broker.plain.sasl.jaas.config": login,
            "listener.name.controller.plain.sasl.jaas.config": login,
            f"listener.name.broker.{MECHANISM.lower()}.sasl.jaas.config": f"{_SCRAM} required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": f"User:{SUPERUSER}",
        }
        if self._tls is not None:
            told |= {
                "listener.name.broker.ssl.keystore.type": "PEM",
                "listener.name.broker.ssl.keystore.location": str(self._tls.server),
                "listener.name.broker.ssl.truststore.type": "PEM",
                "listener.name.broker.ssl.truststore.location": str(self._tls.authority),
                "listener.name.broker.ssl.client.auth": "required",
            }
        return told

    def client(self, user: str = SUPERUSER) -> dict[str, str]:
        """Options of librdkafka for a user."""
        options = {
            "security.protocol": self._protocol,
            "sasl.mechanism": "PLAIN" if user == SUPERUSER else MECHANISM,
            "sasl.username": user,
            "sasl.password": self._password(user),
        }
        if self._tls is not None:
            options |= {
                "ssl.ca.location": str(self._tls.authority),
                "ssl.certificate.location": str(self._tls.client_certificate),
                "ssl.key.location": str(self._tls.client_key),
            }
        return options

    def settings_file(self, user: str, bootstrap: str, prefix: str) -> Path:
        """A `tollgate.toml` that connects as a user."""
        members = {
            "bootstrap": bootstrap,
            "prefix": prefix,
            "security_protocol": self._protocol,
            "sasl_mechanism": "PLAIN" if user == SUPERUSER else MECHANISM,
            "sasl_username": user,
            "sasl_password_file": str(self.password_file(user)),
        }
        if self._tls is not None:
            members |= {
                "ssl_cafile": str(self._tls.authority),
                "ssl_certfile": str(self._tls.client_certificate),
                "ssl_keyfile": str(self._tls.client_key),
            }
        file = self._directory / f"{user}.toml"
        # A string of JSON is one of TOML as well.
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in members.items()]
        write_atomically(file, "\n".join(["[kafka]", *lines, ""]).encode(), 0o600)
        return file

    def open_to_roles(self, bootstrap: str, prefix: str) -> dict[Role, Path]:
        """Make each role's user and ACLs, on a cluster that runs; returns the settings file of each."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": bootstrap, **self.client()})
        try:
            self.add_users(admin, [role.value for role in Role])
            add_acls(admin, grants(prefix))
        except KafkaException as error:
            raise LocalKafkaError(f"The users and ACLs of the local Kafka could not be made: {error}") from error
        return {role: self.settings_file(role.value, bootstrap, prefix) for role in Role}

    def add_users(self, admin: AdminClient, users: Iterable[str]) -> None:
        """A user may log in from then on; it may do nothing without ACLs."""
        from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
        wanted = [UserScramCredentialUpsertion(user, info, self._password(user).encode()) for user in users]
        for future in admin.alter_user_scram_credentials(wanted).values():
            future.result(ADMIN_TIMEOUT_S)

    def _password(self, user: str) -> str:
        return self.password_file(user).read_text(encoding="utf-8")


def add_acls(admin: AdminClient, granted: Iterable[Grant]) -> None:
    """Each role is the user of that name."""
    bindings = [binding for grant in granted for binding in bindings_of(grant)]
    for future in admin.create_acls(bindings).values():
        future.result(ADMIN_TIMEOUT_S)


def bindings_of(grant: Grant) -> list[AclBinding]:
    """A grant as confluent-kafka says it."""
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    kinds: dict[Resource, Any] = {
        Resource.TOPIC: ResourceType.TOPIC,
        Resource.GROUP: ResourceType.GROUP,
        Resource.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
    }
    operations: dict[Operation, Any] = {
        Operation.READ: AclOperation.READ,
        Operation.WRITE: AclOperation.WRITE,
        Operation.DESCRIBE: AclOperation.DESCRIBE,
        Operation.CREATE: AclOperation.CREATE,
        Operation.ALTER_CONFIGS: AclOperation.ALTER_CONFIGS,
        Operation.DESCRIBE_CONFIGS: AclOperation.DESCRIBE_CONFIGS,
    }
    pattern = ResourcePatternType.PREFIXED if grant.prefixed else ResourcePatternType.LITERAL
    return [
        AclBinding(
            kinds[grant.resource], grant.name, pattern, f"User:{grant.role.value}", "*", operations[operation],
            AclPermissionType.ALLOW,
        )
        for operation in grant.operations
    ]  # fmt: skip
