"""Who signs tokens for the world of rows, and what they may be for: good in every respect, or with one difference."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.jobs import NIGHTLY
from tests.support.jose import changed, signed

OURS, PARTNER, RULE = "https://issuer.rows.test", "https://partner.rows.test", "rows/*"
ORG, PARTNER_ORG = "acme", "globex"
SUBJECT = "service:ci"
PARTNER_CAP_S = 3600


@dataclass(frozen=True)
class Issuer:
    """Who signs what it is told to, good or bad, fast."""

    iss: str
    kid: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    audience: str
    org: str

    @property
    def header(self) -> dict[str, Any]:
        return {"alg": "ES256", "kid": self.kid, "typ": "trigger+jwt"}

    def claims(
        self, job: str | Sequence[str] = NIGHTLY, uses: str = "once", now_s: int | None = None
    ) -> dict[str, Any]:
        """Claims that are good in every respect, with a jti of their own."""
        now_s = int(time.time()) if now_s is None else now_s
        jobs = [job] if isinstance(job, str) else list(job)
        return {
            "iss": self.iss, "aud": self.audience, "sub": SUBJECT, "org_id": self.org, "iat": now_s, "nbf": now_s,
            "exp": now_s + 600, "jti": secrets.token_hex(16), "uses": uses,
            "authorization_details": [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": jobs}],
        }  # fmt: skip

    def token(
        self, job: str | Sequence[str] = NIGHTLY, uses: str = "once", *, header: Mapping[str, Any] | None = None,
        grant: Mapping[str, Any] | None = None, private: ec.EllipticCurvePrivateKey | None = None, **claims: Any,
    ) -> str:  # fmt: skip
        """A good token with one difference in its header, its claims or its grant, correctly signed."""
        good = self.claims(job, uses)
        good["authorization_details"] = [changed(good["authorization_details"][0], grant)]
        return signed(
            json.dumps(changed(self.header, header)).encode(),
            json.dumps(changed(good, claims)).encode(),
            private or self.private,
        )
