"""Quick readings: what most emitters and issuers write, read at half the cost; None wherever it needs a closer look.

Nothing is decided here. A quick reading gives exactly what the full reading would have given, or None, and then the
full reading is done; `tests/gate/test_quick.py` compares the two. JSON is parsed strictly by orjson; that every member
stands once is shown by counting: as many colons as members and texts have, with escapes, which could hide one, ruled
out.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from app.gate import limits
from app.gate.canonical import plain_canonical

_NO_PARAMS: Final[dict[str, Any]] = {}


def quick_trigger(raw: bytes | None) -> tuple[str, dict[str, Any], str, str | None, bytes] | None:
    """Job, params, token, idempotency key and canonical params of the plain form without any other member."""
    if raw is None or len(raw) > limits.RECORD_MAX_BYTES or b"\\" in raw:
        return None
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    if type(value) is not dict:
        return None
    get = value.get
    token, job, key, params = get("token"), get("job"), get("idempotency_key"), get("params", _NO_PARAMS)
    if type(token) is not str or type(job) is not str or type(params) is not dict or not token:
        return None
    if len(value) != 2 + ("params" in value) + (key is not None):
        return None
    params_canonical = plain_canonical(params)
    if params_canonical is None:
        return None
    colons = len(value) + params_canonical.count(b":") + job.count(":")
    if key is not None:
        if type(key) is not str or not _is_name(key, limits.IDEMPOTENCY_KEY_MAX_BYTES):
            return None
        colons += key.count(":")
    # A token holds no colon and two dots; with no other dots, nothing else can be shaped like a token.
    if raw.count(b":") != colons or raw.count(b".") != 2 or token.count(".") != 2:
        return None
    if b"ref:" in raw or not _is_name(job, limits.JOB_NAME_MAX_BYTES):
        return None
    return job, params, token, key, params_canonical


def _is_name(text: str, max_bytes: int) -> bool:
    return 0 < len(text) <= max_bytes and text.isascii() and text.isprintable()


_CLAIMS: Final = frozenset(
    ("iss", "aud", "sub", "org_id", "jti", "iat", "nbf", "exp", "uses", "idempotency_key", "authorization_details")
)
_GRANT: Final = frozenset(("type", "actions", "jobs"))


def quick_object(raw: bytes) -> dict[str, Any] | None:
    """Claims of ours only, flat but for one grant without params."""
    if b"\\" in raw:
        return None
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    if type(value) is not dict or not value.keys() <= _CLAIMS:
        return None
    details = value.get("authorization_details")
    if type(details) is not list or len(details) != 1 or type(details[0]) is not dict:
        return None
    grant = details[0]
    if not grant.keys() <= _GRANT:
        return None
    colons = len(value) + len(grant)
    for name, member in value.items():
        if type(member) is str:
            colons += member.count(":")
        elif type(member) is int:
            if not 0 <= member <= limits.JSON_MAX_INT:
                return None
        elif name != "authorization_details":
            return None
    for member in grant.values():
        if type(member) is str:
            colons += member.count(":")
        elif type(member) is list:
            for text in member:
                if type(text) is not str:
                    return None
                colons += text.count(":")
        else:
            return None
    return value if raw.count(b":") == colons else None


_USUAL_ACTIONS: Final = ["106-Trigger"]


def quick_claims(signed: dict[str, Any], audience: str) -> tuple[Any, ...] | None:
    """sub, org_id, jti, iat, nbf, exp, uses, the one job and the idempotency key, when all is as it should be."""
    get = signed.get
    sub, org_id, jti, uses, key = get("sub"), get("org_id"), get("jti"), get("uses"), get("idempotency_key")
    iat, nbf, exp, details = get("iat"), get("nbf"), get("exp"), get("authorization_details")
    if get("aud") != audience or (uses != "once" and uses != "many"):  # noqa: PLR1714 - uses may be unhashable
        return None
    if not (type(iat) is int and type(nbf) is int and type(exp) is int):
        return None
    if not (0 < iat < exp < limits.NUMERIC_DATE_MAX_S and 0 < nbf < exp):
        return None
    if not (type(sub) is str and type(org_id) is str and type(jti) is str and sub and org_id and jti):
        return None
    names = sub + org_id + jti
    if len(names) > limits.JTI_MAX_CHARACTERS or not names.isprintable():
        return None
    if key is None:
        if "idempotency_key" in signed:
            return None
    elif type(key) is not str or not _is_name(key, limits.IDEMPOTENCY_KEY_MAX_BYTES):
        return None
    if type(details) is not list or len(details) != 1 or type(details[0]) is not dict:
        return None
    grant = details[0]
    jobs = grant.get("jobs")
    if len(grant) != 3 or grant.get("type") != "job_trigger" or grant.get("actions") != _USUAL_ACTIONS:
        return None
    if type(jobs) is not list or len(jobs) != 1 or type(jobs[0]) is not str:
        return None
    if not (0 < len(jobs[0]) <= limits.JOB_NAME_MAX_BYTES and jobs[0].isascii()):
        return None
    return sub, org_id, jti, iat, nbf, exp, uses, jobs[0], key
