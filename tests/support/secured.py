"""A local Kafka with SASL and ACLs on, and its users: each role, and a stranger who may log in and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka.admin import AdminClient

from app.local.kafka import LocalKafka
from app.local.secured import Security, Tls
from app.stream.access import Role

STRANGER = "stranger"
USERS = (*(role.value for role in Role), STRANGER)


class Secured(NamedTuple):
    """A running cluster, and how to reach it as somebody."""

    bootstrap: str
    security: Security

    def client(self, user: str, **more: Any) -> dict[str, Any]:
        """librdkafka's options for a user; `more` with underscores for dots."""
        options = {name.replace("_", "."): value for name, value in more.items()}
        return {"bootstrap.servers": self.bootstrap, "log_level": 0, **self.security.client(user), **options}

    def superuser(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, **self.security.client()})

    def settings_files(self, prefix: str) -> dict[str, Path]:
        """Give the roles what they may do under a prefix; everyone's settings file."""
        self.security.open_to_roles(self.bootstrap, prefix)
        self.security.add_users(self.superuser(), [STRANGER])
        return {user: self.security.settings_file(user, self.bootstrap, prefix) for user in USERS}


@contextmanager
def secured_kafka(directory: Path, tls: Tls | None = None) -> Iterator[Secured]:
    security = Security(directory, tls)
    with LocalKafka(extra=security.server, client=security.client()) as kafka:
        yield Secured(kafka.bootstrap, security)
