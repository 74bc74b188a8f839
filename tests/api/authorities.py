"""The authority of a deployment as its clients and ops have it, for the tests of many modules."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.api.conftest import Deployment
from tests.cli.program import tollgate
from tests.support.doors import PLAIN
from tests.support.issuer import JOB

ISSUER = "https://issuer.localhost"
NOTHING_MATCHED = 5
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Authority:
    """A deployment whose doors issue; identities are made by its commands."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.url = deployment, deployment.doors[0].url

    def tollgate(self, *words: str) -> str:
        said = tollgate(self.deployment.env, *words)
        assert said.code == 0, said.err
        return said.out.strip()

    def apply(self, command: str, text: str) -> None:
        file = self.deployment.directory / f"{secrets.token_hex(4)}.toml"
        file.write_text(text)
        self.tollgate(command, "apply", str(file))

    def identity(self, jobs: str = JOB, *, secret: bool = True, **members: Any) -> tuple[str, str]:
        """Name and secret of a new identity that may have one-shot and webhook tokens for a job, up to an hour."""
        named = secrets.token_hex(4)
        self.apply("policy", f'[roles.r{named}]\nallow = [{{ jobs = ["{jobs}"], max_lifetime_s = 3600 }}]\n')
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in members.items())
        self.apply("identities", f'[identities."svc:{named}"]\nroles = ["r{named}"]\n{lines}')
        return f"svc:{named}", self.tollgate("identities", "rotate", f"svc:{named}") if secret else ""

    def issuance(self, identity: str) -> list[dict[str, Any]]:
        said = tollgate(self.deployment.env, "audit", "issuance", "--identity", identity)
        assert said.code in {0, NOTHING_MATCHED}, said.err
        return [json.loads(line) for line in said.out.splitlines()]

    def ask(
        self, client: tuple[str, str] | None, path: str = "/oauth/token", door: int = 0, **form: str
    ) -> httpx.Response:
        form = {"grant_type": "client_credentials"} | form if path == "/oauth/token" else form
        return httpx.post(self.deployment.doors[door].url + path, data=form, auth=client, timeout=40, **PLAIN)

    def token(self, client: tuple[str, str], **form: str) -> str:
        deadline = time.monotonic() + 10
        while (answer := self.ask(client, **{"scope": f"job:{JOB}"} | form)).status_code == 401:  # not there yet
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token


def trusted(deployment: Deployment) -> Authority:
    """The authority of a deployment that trusts what it issues."""
    made = Authority(deployment)
    made.apply(
        "trust",
        f'[trust."{ISSUER}"]\njwks = "{deployment.directory}/published.json"\norgs = ["dev"]\nsubjects = ["svc:*"]\n'
        f'jobs = ["reports/*"]\nmax_lifetime_s = 86400\n',
    )
    return made


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()["error"], answer.json().get("reason")


def signing(authority: Authority, name: str) -> Callable[..., dict[str, str]]:
    """Gives an identity a key, and makes its assertions as parameters of a form; a claim may be changed."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    file = authority.deployment.directory / "client.json"
    file.write_text(json.dumps({"keys": [{"kid": "c1", "alg": "ES256", "use": "sig"} | public]}))
    authority.tollgate("identities", "rotate", name, "--jwks", str(file))

    def assertion(**changed: Any) -> dict[str, str]:
        now_s = int(time.time())
        claims = {"iss": name, "sub": name, "aud": ISSUER, "jti": secrets.token_hex(8), "iat": now_s, "exp": now_s + 60}
        text = jwt.encode(claims | changed, private, "ES256", headers={"kid": "c1"})
        return {"client_assertion": text, "client_assertion_type": ASSERTION_TYPE}

    return assertion
