"""Triggers for the world of rows, as any Kafka client would send them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.rows.jobs import NIGHTLY
from tests.support.jose import ABSENT, changed


class Trigger(NamedTuple):
    """A record for the triggers topic, as any Kafka client would send it. A value that is no bytes is sent as JSON."""

    value: Any
    headers: Sequence[tuple[str, Any]] = ()
    key: bytes | str | None = None
    partition: int | None = None

    def encoded(self) -> bytes | None:
        return self.value if self.value is None or isinstance(self.value, bytes) else json.dumps(self.value).encode()


def plain(token: str, job: str | None = NIGHTLY, params: Any = ABSENT, **members: Any) -> Trigger:
    """Form 1: everything in the value."""
    return Trigger(
        changed({"job": job, "params": params, "token": token}, {"job": ABSENT} | members if job is None else members)
    )


def by_headers(token: str, job: str | None = NIGHTLY, params: Any = None, *more: tuple[str, Any]) -> Trigger:
    """Form 2: token and job in headers, the value is the params."""
    named = [("tollgate-job", job)] if job is not None else []
    return Trigger(params or {}, [("authorization", f"Bearer {token}"), *named, *more])
