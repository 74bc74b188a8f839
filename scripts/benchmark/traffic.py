"""The triggers: tokens, records and a backlog that becomes visible all at once."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import Producer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from app.gate.idempotency import home_lane

ISSUER: Final = "https://issuer.bench"
AUDIENCE: Final = "tollgate:bench"
JOB: Final = "reports/nightly"
KID: Final = "bench-1"
ORG: Final = "acme"
SUBJECT: Final = "service:ci"
WEBHOOK_TOKENS: Final = 1_000
REPEATED: Final = 0.1  # of the keys
REPEAT_WITHIN: Final = 5_000  # triggers back: a retry comes soon after
SEED: Final = 7
_LIFETIME_S: Final = 4 * 3600
_TRANSACTION_TIMEOUT_MS: Final = 600_000


class Request(NamedTuple):
    """One record to publish; `key` is its idempotency key and Kafka key."""

    key: str
    value: bytes


class Issuer:
    """A key pair of this run."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        self._pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def jwks(self) -> bytes:
        point = self._private.public_key().public_numbers()
        x, y = (_b64(number.to_bytes(32, "big")).decode() for number in (point.x, point.y))
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KID, "x": x, "y": y}
        return json.dumps({"keys": [jwk]}).encode()

    def definitions(self, directory: Path) -> tuple[Path, Path]:
        """Files of one trust rule and one job, and the JWK Set the rule names. Returns (trust, jobs)."""
        jwks, trust, jobs = (directory / name for name in ("jwks.json", "trust.toml", "jobs.toml"))
        jwks.write_bytes(self.jwks())
        trust.write_text(
            f'[trust."{ISSUER}"]\njwks = "{jwks}"\norgs = ["{ORG}"]\nsubjects = ["service:*"]\njobs = ["reports/*"]\n'
        )
        jobs.write_text(f'[jobs."{JOB}"]\n')
        return trust, jobs

    def mint(self, uses: str, keys: Sequence[str | None]) -> list[str]:
        """A token for each key (None: the key stands beside it), signed in as many processes as there are CPUs."""
        processes = os.cpu_count() or 1
        size = max(-(-len(keys) // (processes * 4)), 250)
        parts = [(self._pem, uses, start, keys[start : start + size]) for start in range(0, len(keys), size)]
        if len(parts) == 1:
            return _mint(parts[0])
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            return [token for part in pool.imap(_mint, parts) for token in part]

    def mint_with(self, claims: Sequence[Mapping[str, Any]]) -> list[str]:
        """A webhook token for each of these, whose claims stand in place of the usual ones."""
        return _mint((self._pem, "many", 0, [None] * len(claims)), claims)


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _mint(
    part: tuple[bytes, str, int, Sequence[str | None]], changed: Sequence[Mapping[str, Any]] | None = None
) -> list[str]:
    pem, uses, start, keys = part
    private = serialization.load_pem_private_key(pem, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    header = _b64(json.dumps({"alg": "ES256", "kid": KID, "typ": "trigger+jwt"}, separators=(",", ":")).encode())
    now = int(time.time())
    grant = {"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [JOB]}
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "org_id": ORG, "iat": now - 10, "nbf": now - 10,
        "exp": now + _LIFETIME_S, "uses": uses, "authorization_details": [grant],
    }  # fmt: skip
    algorithm = ec.ECDSA(SHA256())
    tokens = []
    for number, key in enumerate(keys, start):
        own = {"jti": f"{number:08x}-{random.getrandbits(64):016x}"} | ({"idempotency_key": key} if key else {})
        if changed is not None:
            own |= changed[number - start]
        message = header + b"." + _b64(json.dumps(claims | own, separators=(",", ":")).encode())
        r, s = decode_dss_signature(private.sign(message, algorithm))
        tokens.append((message + b"." + _b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode())
    return tokens


def keys(count: int, salt: str = "") -> list[str]:
    """Idempotency keys; a tenth are those of a trigger a little before."""
    choice = random.Random(SEED)
    made: list[str] = []
    for number in range(count):
        if made and choice.random() < REPEATED:
            made.append(made[-choice.randint(1, min(len(made), REPEAT_WITHIN))])
        else:
            made.append(f"order-{salt}{number:08d}")
    return made


def webhook(issuer: Issuer, count: int, salt: str = "") -> list[Request]:
    """Tokens that serve many times, in turn; the key stands beside the token."""
    tokens = issuer.mint("many", [None] * min(WEBHOOK_TOKENS, count))
    return [Request(key, value_of(tokens[number % len(tokens)], key)) for number, key in enumerate(keys(count, salt))]


def one_shot(issuer: Issuer, count: int) -> list[Request]:
    """A new token for each trigger; the key stands in the token."""
    wanted = keys(count)
    tokens = issuer.mint("once", wanted)
    return [Request(key, value_of(token, None)) for key, token in zip(wanted, tokens, strict=True)]


def value_of(token: str, key: str | None) -> bytes:
    """A trigger as the plain form has it; a key that is given stands beside the token."""
    # A repeat has the params of the first: another fingerprint would be a refusal.
    members = {"job": JOB, "params": {"region": "eu", "order": key[6:] if key else "any"}}
    beside = {"idempotency_key": key} if key else {}
    return json.dumps(members | beside | {"token": token}, separators=(",", ":")).encode()


def placed(requests: Sequence[Request], lanes: int, away: int = 0) -> Iterator[tuple[int, Request]]:
    """Each request with the partition it is sent to: its home lane, or so many lanes after it."""
    for request in requests:
        yield (home_lane(request.key, lanes) + away) % lanes, request


class Backlog:
    """Triggers in one open transaction: nobody reads them until `release`, and then all are there at once."""

    def __init__(self, bootstrap: str, topic: str, requests: Sequence[Request], lanes: int, away: int = 0) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap, "transactional.id": f"backlog-{topic}", "acks": "all",
                "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS, "queue.buffering.max.messages": 2_000_000,
                "queue.buffering.max.kbytes": 2_000_000, "linger.ms": 20, "batch.size": 1_000_000,
                "log_level": 2,
            }
        )  # fmt: skip
        self._producer.init_transactions(60)
        self._producer.begin_transaction()
        for number, (partition, request) in enumerate(placed(requests, lanes, away)):
            self._producer.produce(topic, request.value, request.key.encode(), partition=partition)
            if number % 10_000 == 0:
                self._producer.poll(0)
        if self._producer.flush(120):
            raise TimeoutError("the backlog could not be written within two minutes")

    def release(self) -> None:
        self._producer.commit_transaction(60)
