"""An issuer that is not ours: ES256 keys and trigger tokens by PyJWT, and the files that make a gate trust it."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://issuer.test"
KID = "k1"
JOB = "reports/nightly"
ORG = "acme"
SUBJECT = "service:ci"


class OtherIssuer:
    """Signs what it is told to, good or bad."""

    issuer = ISSUER

    def __init__(self, prefix: str, kid: str = KID) -> None:
        self.audience = f"tollgate:{prefix}"
        self.kid = kid
        self._private = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        public: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._private.public_key()))
        return {"keys": [{"kid": self.kid, "alg": "ES256", "use": "sig"} | public]}

    def token(self, uses: str = "many", *, job: str = JOB, key: str | None = None, **changed: Any) -> str:
        """A token that opens `job`; `changed` claims replace the good ones, None takes one out."""
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER, "aud": self.audience, "sub": SUBJECT, "org_id": ORG, "jti": secrets.token_urlsafe(16),
            "iat": now_s, "nbf": now_s, "exp": now_s + 3600, "uses": uses,
            "authorization_details": [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [job]}],
        }  # fmt: skip
        if key is not None:
            claims["idempotency_key"] = key
        claims |= changed
        present = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(present, self._private, "ES256", headers={"kid": self.kid, "typ": "trigger+jwt"})

    @staticmethod
    def claims_of(token: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        return claims

    def write_files(self, directory: Path, jobs: tuple[str, ...] = (JOB,)) -> tuple[Path, Path]:
        """jobs.toml and trust.toml, with the JWK Set beside them."""
        jwks = directory / "jwks.json"
        jwks.write_text(json.dumps(self.jwks()))
        jobs_file, trust_file = directory / "jobs.toml", directory / "trust.toml"
        jobs_file.write_text("\n".join(f'[jobs."{name}"]\nenabled = true\n' for name in jobs))
        trust_file.write_text(
            f'[trust."{ISSUER}"]\njwks = "{jwks}"\nalgorithms = ["ES256"]\norgs = ["{ORG}"]\nclasses = ["trigger"]\n'
            f'subjects = ["service:*"]\njobs = ["*"]\nmax_lifetime_s = 86400\n'
        )
        return jobs_file, trust_file
