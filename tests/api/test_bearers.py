"""Bearers of logins: who asks for tokens by one is a user of our own issuer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api.bearers import client_of
from app.api.problems import Problem
from app.authority.identities import Identity, Kind
from app.authority.rights import Client, Rights
from app.config import Issuer, Settings
from tests.api.test_caller import live, tables
from tests.support.pure_world import WORLD
from tests.support.tokens import ISS, token

RULE = msgspec.structs.replace(WORLD.rules[ISS], classes=("user",), subjects=("*",))


async def client(name: str, kind: Kind, *, ours: str = ISS) -> Client:
    """Who asks by a login of this name at the trusted issuer, of a door whose own issuer is `ours`."""
    rights = Rights()
    rights.identities[name] = Identity(name, 1, kind, ISS, "acme")
    service: Any = SimpleNamespace(
        tables=tables(rule=RULE), rights=rights, settings=Settings(issuer=Issuer(issuer=ours))
    )
    headers = {"authorization": f"Bearer {token({'typ': 'user+jwt'}, live(sub=name))}"}
    return await client_of(service, None, headers)  # type: ignore[arg-type]


async def test_a_login_at_our_own_issuer_is_its_user() -> None:
    assert (await client("u:ann", "user")).identity.name == "u:ann"


@pytest.mark.parametrize(
    ("name", "kind", "ours", "reason"),
    [
        # It would get tokens of ours, and taking away what it is by its own issuer would reach none of them.
        ("u:ann", "user", "https://ours.example", "issuer_untrusted"),
        ("svc:ci", "service", ISS, "wrong_client_class"),
        ("task:nightly", "task", ISS, "wrong_client_class"),
    ],
)
async def test_a_login_of_another_issuer_or_of_who_is_no_user_gets_nothing(
    name: str, kind: Kind, ours: str, reason: str
) -> None:
    with pytest.raises(Problem) as refused:
        await client(name, kind, ours=ours)
    assert refused.value.code == reason
