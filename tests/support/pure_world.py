"""A world for decisions without a broker: two jobs, one trusted issuer, nothing revoked; and records for it."""

from __future__ import annotations

import orjson

from app.gate.decide import World
from app.gate.policy import Revocations, job_from_record, trust_from_record
from app.gate.trigger import Record
from tests.support.tokens import AUD, ISS, RING

JOBS = ("reports/nightly", "reports/weekly")


def job(name: str, **changes: object) -> object:
    return job_from_record(f"job/{name}".encode(), orjson.dumps({"version": 1, "name": name, **changes}))


RULE = trust_from_record(
    f"trust/{ISS}".encode(),
    orjson.dumps(
        {"version": 1, "issuer": ISS, "jwks": "/keys.json", "algorithms": ["ES256"], "orgs": ["acme"],
         "classes": ["trigger"], "subjects": ["service:*"], "jobs": ["reports/*"], "max_lifetime_s": 7_776_000}
    ),
)  # fmt: skip
WORLD = World(
    audience=AUD, lanes=4, grace_s=60, queue_age_cap_ms=14_400_000, max_window_ms=1 << 40, run_seed=7, ring=RING,
    rules={ISS: RULE}, jobs={name: job(name, defaults={"region": "eu"}) for name in JOBS}, revocations=Revocations(),
)  # fmt: skip


def record(offset: int, text: str, appended_at_s: int, **envelope: object) -> Record:
    value = orjson.dumps({"job": JOBS[0], "params": {"n": 1}, "token": text} | envelope)
    return Record(offset % 4, offset, appended_at_s * 1000, True, b"k%d" % offset, value, ())
