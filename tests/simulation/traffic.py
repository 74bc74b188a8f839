"""What emitters of a simulated world send, and what they mean by it.

Tokens are signed once for all worlds, each of which begins at the same moment; with a shared development secret, since
what is simulated is not cryptography.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
from typing import Any, Final, NamedTuple

import jwt

from tests.simulation.partition import Message
from tests.simulation.scheduler import BEGAN_MS
from tests.support.invariants import Sent

ISSUER: Final = "https://issuer.simulated"
PREFIX: Final = "sim."
SECRET: Final = b"a secret of thirty-two bytes and more, for simulation"
JOB: Final = "reports/nightly"
SHORT_JOB: Final = "reports/night"  # with a key that begins with "ly" it reads like the other
FLAPPING_JOB: Final = "reports/flapping"  # ops disable and enable it
FORBIDDEN_JOB: Final = "payroll/run"
SUBJECT: Final = "service:ci"
OTHER_SUBJECT: Final = "service:cd"
REVOKED_SUBJECT: Final = "service:leaving"  # revoked at some time of a run
ONE_SHOTS: Final = 200
REPEATS: Final = 0.3
BEGAN_S: Final = BEGAN_MS // 1000


class Trigger(NamedTuple):
    """A trigger to send, and what is meant by it. `rival`: another request for the same identity was or will be sent."""

    message: Message
    sent: Sent
    rival: bool = False
    revocable: bool = False
    flapping: bool = False
    grant: tuple[bytes, bytes] | None = None  # what its handle stands for: committed before it is first sent


def _sign(jti: str, uses: str, subject: str, jobs: list[str], typ: str = "trigger+jwt", **changed: Any) -> str:
    claims = {
        "iss": ISSUER, "aud": f"tollgate:{PREFIX}", "sub": subject, "org_id": "acme", "jti": jti, "iat": BEGAN_S - 30,
        "nbf": BEGAN_S - 30, "exp": BEGAN_S + 3_600, "uses": uses,
        "authorization_details": [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": jobs}],
    } | changed  # fmt: skip
    return jwt.encode(claims, SECRET, "HS256", headers={"kid": "dev", "typ": typ})


def _handle(name: str) -> str:
    return "ref:" + base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).rstrip(b"=").decode()


def _grant(handle: str, uses: str) -> tuple[bytes, bytes]:
    """Key and value of a record of the grants."""
    digest = hashlib.sha256(handle.encode()).hexdigest()
    signed = _sign(f"by-{digest[:16]}", uses, SUBJECT, [JOB], "grant+jwt", handle_sha256=digest)
    return digest.encode(), signed.encode()


class Tokens:
    """Every token of every world."""

    def __init__(self) -> None:
        self.many = {
            (subject, job): _sign(f"many-{subject}-{job}", "many", subject, [job])
            for subject in (SUBJECT, OTHER_SUBJECT, REVOKED_SUBJECT)
            for job in (JOB, SHORT_JOB, FLAPPING_JOB)
        }
        self.expired = _sign("expired", "many", SUBJECT, [JOB], iat=BEGAN_S - 900, nbf=BEGAN_S - 900, exp=BEGAN_S - 300)
        self.once = [_sign(f"once-{number}", "once", SUBJECT, [JOB]) for number in range(ONE_SHOTS)]
        self.once_keyed = [
            _sign(f"keyed-{number}", "once", SUBJECT, [JOB], idempotency_key=f"shot-{number}")
            for number in range(ONE_SHOTS)
        ]
        self.handles = [
            (handle, _grant(handle, "once" if number % 2 else "many"))
            for number, handle in enumerate(_handle(f"handle {number}") for number in range(ONE_SHOTS))
        ]


@functools.cache
def tokens() -> Tokens:
    return Tokens()


class Emitter:
    """Makes up triggers, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"traffic {seed}")
        self._tokens = tokens()
        self._past: list[Trigger] = []
        self._number = 0

    def next(self) -> list[Trigger]:
        """One trigger, or some that are about each other."""
        dice = self._random
        if self._past and dice.random() < REPEATS:
            return [dice.choice(self._past)]
        self._number += 1
        made = dice.choices(_KINDS, _WEIGHTS)[0](self)
        self._past += [trigger for trigger in made if trigger.sent.identity is not None or dice.random() < 0.2]
        return made

    def sentinel(self) -> Trigger:
        """The last one of a partition: decided where it lies."""
        self._number += 1
        return self._webhook(None)[0]

    def _trigger(
        self, token: str, identity: str | None, intended: Any = "good", job: str | None = JOB, key: str | None = None,
        params: dict[str, Any] | None = None, **marks: Any,
    ) -> Trigger:  # fmt: skip
        value: dict[str, Any] = {"params": params or {"n": self._number}, "token": token}
        if job is not None:
            value["job"] = job
        if key is not None:
            value["idempotency_key"] = key
        # A producer's own clock says anything; only the broker's counts.
        at_ms = BEGAN_MS + self._random.choice((0, 0, 0, -86_400_000, 86_400_000))
        return Trigger(Message(None, json.dumps(value).encode(), (), at_ms), Sent(identity, intended), **marks)

    def _keyed(self) -> list[Trigger]:
        key = f"request-{self._number}"
        return [self._trigger(self._tokens.many[SUBJECT, JOB], key, key=key)]

    def _webhook(self, key: str | None = None) -> list[Trigger]:
        return [self._trigger(self._tokens.many[SUBJECT, JOB], None, key=key)]

    def _without_key(self) -> list[Trigger]:
        return self._webhook()

    def _one_shot(self) -> list[Trigger]:
        number = self._number
        if number >= ONE_SHOTS:
            return self._keyed()
        pool, name = self._random.choice(((self._tokens.once, "once"), (self._tokens.once_keyed, "keyed")))
        return [self._trigger(pool[number], f"{name}-{number}")]

    def _one_shot_twice(self) -> list[Trigger]:
        """The same one-shot token with other params: a replay attack, or the request it was stolen from."""
        number = self._number
        if number >= ONE_SHOTS:
            return self._keyed()
        token, name = self._tokens.once[number], f"once-{number}"
        return [self._trigger(token, name, params={"n": number, "changed": change}, rival=True) for change in range(2)]

    def _scopes(self) -> list[Trigger]:
        """The same key of two subjects and for two jobs: three requests."""
        key = f"shared-{self._number}"
        return [
            self._trigger(self._tokens.many[subject, job], f"{subject} {job} {key}", job=job, key=key)
            for subject, job in ((SUBJECT, JOB), (OTHER_SUBJECT, JOB), (SUBJECT, SHORT_JOB))
        ]

    def _seams(self) -> list[Trigger]:
        """Parts that read the same when they are joined."""
        key = str(self._number)
        return [
            self._trigger(self._tokens.many[SUBJECT, JOB], f"seam {key}", key=key),
            self._trigger(self._tokens.many[SUBJECT, SHORT_JOB], f"seam ly{key}", job=SHORT_JOB, key=f"ly{key}"),
        ]

    def _by_handle(self) -> list[Trigger]:
        """Its grant is committed a moment before: no gate may call it unknown."""
        number = self._number
        if number >= ONE_SHOTS:
            return self._keyed()
        handle, grant = self._tokens.handles[number]
        key = None if number % 2 else f"handle-{number}"
        return [self._trigger(handle, f"handle {number}", key=key, grant=grant)]

    def _bad(self) -> list[Trigger]:
        key = f"bad-{self._number}"
        good = self._tokens.many[SUBJECT, JOB]
        match self._random.randrange(5):
            case 0:
                return [Trigger(Message(None, b"{ not json"), Sent(None, "rejected"))]
            case 1:
                return [self._trigger(good[:-4] + "AAAA", None, "rejected", key=key)]
            case 2:
                return [self._trigger(good, None, "rejected", job=FORBIDDEN_JOB, key=key)]
            case 3:
                return [self._trigger(_handle(f"nobody's {key}"), None, "rejected", key=key)]
            case _:
                refused = self._trigger(self._tokens.expired, None, "rejected", key=key)
                # By the producer's clock the token was still good.
                backdated = refused.message._replace(timestamp_ms=BEGAN_MS - 600_000)
                return [refused._replace(message=backdated), self._trigger(good, key, key=key)]

    def _revoked(self) -> list[Trigger]:
        key = f"leaving-{self._number}"
        return [self._trigger(self._tokens.many[REVOKED_SUBJECT, JOB], key, key=key, revocable=True)]

    def _flapping(self) -> list[Trigger]:
        key = f"flapping-{self._number}"
        token = self._tokens.many[SUBJECT, FLAPPING_JOB]
        return [self._trigger(token, key, job=FLAPPING_JOB, key=key, flapping=True)]


_KINDS, _WEIGHTS = zip(
    (Emitter._keyed, 30), (Emitter._without_key, 12), (Emitter._one_shot, 15), (Emitter._one_shot_twice, 4),
    (Emitter._scopes, 4), (Emitter._seams, 4), (Emitter._bad, 10), (Emitter._revoked, 8), (Emitter._flapping, 5),
    (Emitter._by_handle, 10),
    strict=True,
)  # fmt: skip


def registry(*, flapping_enabled: bool = True, version: int = 1) -> dict[str, dict[str, Any]]:
    """Records of the registry by key."""
    jobs = {
        f"job/{name}": {"name": name, "version": version, "enabled": flapping_enabled or name != FLAPPING_JOB}
        for name in (JOB, SHORT_JOB, FLAPPING_JOB)
    }
    rule = {
        "issuer": ISSUER, "version": 1, "jwks": "/nowhere/jwks.json", "algorithms": ["HS256"], "orgs": ["acme"],
        "classes": ["trigger"], "subjects": ["service:*"], "jobs": ["*"], "max_lifetime_s": 86_400,
    }  # fmt: skip
    return jobs | {f"trust/{ISSUER}": rule}
