"""Quick readings: what most emitters and issuers write, read at half the cost; None wherever it needs a closer look.

Nothing is decided here. A quick reading gives exactly what the full reading would have given, or None, and then the
full reading is done; `tests/gate/test_quick.py` compares the two. JSON is parsed strictly by orjson; that every member
stands once is shown by writing the value again: no spelling is shorter than orjson's, so where lengths are equal
nothing was dropped. Text with spaces between its parts is longer; there the colons are counted, as many as members and
texts have, with escapes, which could hide one, ruled out.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from app.gate import limits
from app.gate.canonical import plain_canonical
from app.gate.redact import token_shaped

_NO_PARAMS: Final[dict[str, Any]] = {}
_loads, _dumps = orjson.loads, orjson.dumps


def quick_trigger(raw: bytes | None) -> tuple[str, dict[str, Any], str, str | None, bytes] | None:
    """Job, params, token, idempotency key and canonical params of the plain form without any other member."""
    if raw is None or len(raw) > limits.RECORD_MAX_BYTES:
        return None
    try:
        value = _loads(raw)
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
    if params_canonical is None or not _is_name(job, limits.JOB_NAME_MAX_BYTES) or token_shaped(job):
        return None
    # A token holds nothing that JSON escapes or ends a text with: it stands in them as in the texts it is in.
    suspicious = b"." in params_canonical or b"ref:" in params_canonical or b"tgs_" in params_canonical
    if suspicious and token_shaped(str(params_canonical, "utf-8")):
        return None
    if key is not None and (type(key) is not str or not _is_name(key, limits.IDEMPOTENCY_KEY_MAX_BYTES)):
        return None
    if len(_dumps(value)) != len(raw):
        colons = len(value) + params_canonical.count(b":") + job.count(":") + token.count(":")
        if b"\\" in raw or raw.count(b":") != colons + (key.count(":") if key is not None else 0):
            return None
    return job, params, token, key, params_canonical


def _is_name(text: str, max_bytes: int) -> bool:
    return 0 < len(text) <= max_bytes and text.isascii() and text.isprintable()


# sub, org_id, jti, iat, nbf, exp, uses, the one job, the idempotency key; and the audience
QuickClaims = tuple[str, str, str, int, int, int, Any, str, str | None, str]
TRIGGER_ACTION: Final = "106-Trigger"  # the permission a grant must name
_USUAL_ACTIONS: Final = [TRIGGER_ACTION]


def quick_claims(raw: bytes) -> tuple[dict[str, Any], QuickClaims] | None:
    """Claims of ours and no others, with one grant of one job without params, all as it should be.

    Nothing in them is verified: what they are worth, the signature says.
    """
    try:
        value = _loads(raw)
    except ValueError:
        return None
    if type(value) is not dict:
        return None
    get = value.get
    sub, org_id, jti, uses, key = get("sub"), get("org_id"), get("jti"), get("uses"), get("idempotency_key")
    iat, nbf, exp, details = get("iat"), get("nbf"), get("exp"), get("authorization_details")
    iss, aud = get("iss"), get("aud")
    if len(value) != 10 + (key is not None) or (uses != "once" and uses != "many"):  # noqa: PLR1714 - may be unhashable
        return None
    if not (type(iat) is int and type(nbf) is int and type(exp) is int and type(iss) is str and type(aud) is str):
        return None
    if not (0 < iat < exp < limits.NUMERIC_DATE_MAX_S and 0 < nbf < exp):
        return None
    if not (type(sub) is str and type(org_id) is str and type(jti) is str and sub and org_id and jti):
        return None
    names = sub + org_id + jti
    if len(names) > limits.JTI_MAX_CHARACTERS or not names.isprintable():
        return None
    if key is not None and (type(key) is not str or not _is_name(key, limits.IDEMPOTENCY_KEY_MAX_BYTES)):
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
    if len(_dumps(value)) != len(raw):
        return None
    return value, (sub, org_id, jti, iat, nbf, exp, uses, jobs[0], key, aud)
