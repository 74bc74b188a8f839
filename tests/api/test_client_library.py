"""A standard client library (Authlib's) at the door: what it gets it introspects, uses and takes back, by each credential."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from joserfc.jwk import ECKey

from tests.api.authorities import Authority, trusted
from tests.api.conftest import Deployment
from tests.support.doors import PLAIN, WAIT
from tests.support.issuer import JOB

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import OAuth2Client

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def authority(deployment: Deployment) -> Authority:
    return trusted(deployment)


@pytest.fixture(scope="module")
def metadata(authority: Authority) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{authority.url}/.well-known/oauth-authorization-server", **PLAIN).json()
    return told


Made = tuple["OAuth2Client", Callable[[], Any]]  # and what proves it at its next request; None: the library knows


def by_secret(method: str) -> Callable[[Authority, dict[str, Any]], Made]:
    def made(authority: Authority, _: dict[str, Any]) -> Made:
        from authlib.integrations.httpx_client import OAuth2Client

        name, secret = authority.identity()
        authority.token((name, secret))
        ways = {"token_endpoint_auth_method": method, "revocation_endpoint_auth_method": method}
        return OAuth2Client(name, secret, scope=f"job:{JOB}", **ways, **PLAIN), lambda: None

    return made


def by_key(authority: Authority, metadata: dict[str, Any]) -> Made:
    from authlib.common.errors import AuthlibBaseError
    from authlib.integrations.httpx_client import OAuth2Client
    from authlib.oauth2.rfc7523 import PrivateKeyJWT

    name, _ = authority.identity(secret=False)
    kid = secrets.token_hex(4)
    private = ECKey.generate_key("P-256", {"kid": kid, "alg": "ES256", "use": "sig"}, private=True)
    file = authority.deployment.directory / f"{kid}.json"
    file.write_text(json.dumps({"keys": [private.as_dict(private=False)]}))
    authority.tollgate("identities", "rotate", name, "--jwks", str(file))
    client = OAuth2Client(name, private, scope=f"job:{JOB}", **PLAIN)

    def proof() -> Any:
        """As the library makes it: for the endpoint that it is shown to, and an hour."""
        return client.client_auth(PrivateKeyJWT(headers={"kid": kid}, alg="ES256"))

    deadline = time.monotonic() + 20
    while True:
        with suppress(AuthlibBaseError):  # the door has not read its key yet
            client.fetch_token(metadata["token_endpoint"], grant_type="client_credentials", auth=proof())
            return client, proof
        assert time.monotonic() < deadline
        time.sleep(0.2)


WAYS = {
    "client_secret_basic": by_secret("client_secret_basic"), "client_secret_post": by_secret("client_secret_post"),
    "private_key_jwt": by_key,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_client_gets_a_token_asks_about_it_starts_a_job_and_takes_it_back(
    authority: Authority, metadata: dict[str, Any], way: str
) -> None:
    assert way in metadata["token_endpoint_auth_methods_supported"]
    client, proof = WAYS[way](authority, metadata)
    with closing(client):
        token = client.fetch_token(
            metadata["token_endpoint"], grant_type="client_credentials", uses="many", auth=proof()
        )
        assert token["token_type"] == "Bearer"
        text = token["access_token"]

        def told() -> dict[str, Any]:
            answer = client.introspect_token(
                metadata["introspection_endpoint"], token=text, token_type_hint="access_token", auth=proof()
            )
            assert answer.status_code == 200, answer.text
            seen: dict[str, Any] = answer.json()
            return seen

        seen = told()
        assert (seen["active"], seen["sub"], seen["scope"]) == (True, client.client_id, f"job:{JOB}")
        assert abs(seen["exp"] - token["expires_at"]) <= 2
        started = client.post(f"{authority.url}/v1/triggers/{JOB}", json={"n": 1}, headers=WAIT, timeout=40)
        assert (started.status_code, started.json()["outcome"]) == (200, "accepted")

        revoked = client.revoke_token(
            metadata["revocation_endpoint"], token=text, token_type_hint="access_token", auth=proof()
        )
        assert (revoked.status_code, revoked.content) == (200, b"")
        refused = client.post(f"{authority.url}/v1/triggers/{JOB}", json={"n": 2}, headers=WAIT, timeout=40)
        assert (refused.status_code, refused.json()["reason"]) == (401, "token_revoked")
        deadline = time.monotonic() + 10
        while told() != {"active": False}:
            assert time.monotonic() < deadline
