"""Differential fuzzing of what reads a stranger's bytes: our strict readers against readers that are not ours.

- JSON: what we take, orjson and json take with the same value, and no member stands twice; the quick reading gives
  what the full one gives.
- Tokens: what we verify, joserfc verifies with the same claims; whatever we say is said twice alike.
- Records: any record gives a decision of the table, twice the same, never `internal_deny`; and of the token that was
  presented nothing is left in the dead letter.

A case is its seed and number, and nothing else: it can be made again on any machine.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey

from app.gate import decide
from app.gate.decide import Admitted, Held, Memo, Refused, World
from app.gate.original import original
from app.gate.policy import Revocations, job_from_record, trust_from_record
from app.gate.quick import quick_claims
from app.gate.reasons import BY_CODE, Rejected
from app.gate.strict_json import JSONRefused, loads_object
from app.gate.token import KeyWanted, VerifiedToken, verify
from app.gate.trigger import Record
from tests.support.jose import b64
from tests.support.tokens import (
    AUD,
    CLAIMS,
    ED_PRIVATE,
    GRANT,
    HEADER,
    ISS,
    NOW_S,
    OTHER,
    PRIVATE,
    RING,
    es256,
    public_jwk,
)

JOB = "reports/nightly"
ALGORITHMS = ["ES256", "Ed25519", "EdDSA"]


class Wrong(Exception):  # noqa: N818
    """A property does not hold; the message says which."""


class Case(NamedTuple):
    """What is to be read: bytes of JSON, the text of a token, or a record; and what it was made to be."""

    kind: str
    content: Any


# ── odd documents ──

NUMBERS = (
    "0", "-0", "1", "-1", "0.0", "-0.0", "1.0", "1e0", "1E+2", "1e-7", "0.1", "1.5", "123456789012345", "1234567890123456",
    "999999999999999", "-999999999999999", "1000000000000000", "9007199254740993", "18446744073709551616", "1e15", "1e308",
    "1e309", "-1e400", "1e-400", "4.9e-324", "01", "1.", ".5", "+1", "0x1", "1_0", "NaN", "Infinity", "-Infinity",
    "1700000000", "1700000600", "1.7e9", "123456789012345.5", "1e22", "1e23",
)  # fmt: skip
WORDS = ("true", "false", "null", "True", "nul", "undefined", "", "//x", "/**/")
TEXTS = (
    "", "a", "reports/nightly", "a:b", "é", "e\u0301", "\U0001f600", "\u2028", "\x7f", "once", "many", "acme", "x" * 300,
    "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "ref:abcdefghijklmnopqrstuvwxyz", "106-Trigger", "\u202e", "__proto__", "\\", '"', "\0",
)  # fmt: skip
NAMES = (
    *CLAIMS,
    *GRANT,
    "alg",
    "kid",
    "typ",
    "crit",
    "params",
    "token",
    "job",
    "idempotency_key",
    "",
    "x",
    "specversion",
)
PIECES = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\u003a", b"\xef\xbb\xbf", b"\xff", b"\xc0\xaf",
    b"\xed\xa0\x80", b"\0", b" ", b"\n", b"1", b"e", b"-", b".", b"=", b'"a":1,', b'"job":"x",', b'"exp":1,', b"NaN", b"[" * 12,
)  # fmt: skip
BLANKS = (*("",) * 40, " ", " ", "\n\t ", "\x0b")


def text_of(dice: random.Random, text: str) -> str:
    """A text as JSON; now and then with a character spelled in another way there is, or in one there is not."""
    written = json.dumps(text, ensure_ascii=False)
    chance = dice.random()
    if chance < 0.85 or not text:
        return written
    at = dice.randrange(len(text))
    if chance < 0.985:
        units = text[at].encode("utf-16-be")
        odd = "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
    else:
        odd = dice.choice(("\\ud83d", "\\x41", "\\", "\t", "\\uDC00\\uD800"))
    return f"{json.dumps(text[:at], ensure_ascii=False)[:-1]}{odd}{json.dumps(text[at + 1 :], ensure_ascii=False)[1:]}"


def value_of(dice: random.Random, levels: int) -> str:
    """Any JSON value; or what looks like one."""
    chance = dice.random()
    if levels and chance < 0.2:
        return object_of(dice, [(dice.choice(NAMES), value_of(dice, levels - 1)) for _ in range(dice.randrange(4))])
    if levels and chance < 0.32:
        return "[" + ",".join(value_of(dice, levels - 1) for _ in range(dice.randrange(4))) + "]"
    if chance < 0.36:
        depth = dice.choice((3, 7, 8, 9, 20, 200))
        return "[" * depth + "]" * depth
    if chance < 0.6:
        return dice.choice(NUMBERS)
    if chance < 0.7:
        return dice.choice(WORDS)
    return text_of(dice, dice.choice(TEXTS))


def object_of(dice: random.Random, members: Iterable[tuple[str, str]]) -> str:
    blank = dice.choice(BLANKS)
    odd = dice.random() < 0.3
    listed = [f"{text_of(dice, name) if odd else json.dumps(name)}:{blank}{written}" for name, written in members]
    if listed and dice.random() < 0.04:
        listed.append(dice.choice(listed))
    return "{" + f"{blank},".join(listed) + "}"


def document_of(dice: random.Random, base: dict[str, Any], odd: int) -> bytes:
    """`base` with some members left out, replaced or added, written oddly."""
    ascii_only = dice.random() < 0.5
    members = [(name, json.dumps(value, ensure_ascii=ascii_only)) for name, value in base.items()]
    for _ in range(odd):
        at = dice.randrange(len(members)) if members else 0
        match dice.randrange(5):
            case 0 if members:
                del members[at]
            case 1:
                members.append((dice.choice(NAMES), value_of(dice, 3)))
            case 2 if members:
                members[at] = (members[at][0], dice.choice((members[at][1], json.dumps(dice.choice(TEXTS)))))
            case _ if members:
                members[at] = (members[at][0], value_of(dice, 3))
    raw = object_of(dice, members).encode("utf-8", "surrogatepass")
    return bent(dice, raw) if dice.random() < 0.1 else raw


def bent(dice: random.Random, raw: bytes) -> bytes:
    """Some bytes changed, lost, doubled or put in."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(5):
            case 0:
                raw = raw[:at] + dice.randbytes(1) + raw[at + 1 :]
            case 1:
                raw = raw[:at] + raw[at + dice.randrange(1, 9) :]
            case 2:
                raw = raw[:at] + dice.choice(PIECES) + raw[at:]
            case 3:
                raw = raw[:at] + raw[max(0, at - dice.randrange(1, 40)) :]
            case 4:
                raw = raw[:at] + dice.choice(PIECES) + raw[at + dice.randrange(3) :]
    return raw


@lru_cache(maxsize=64)
def signed_token(seed: str) -> str:
    """A token that is good, or nearly so; most are signed rightly over whatever they say."""
    dice = random.Random(seed)
    details = [GRANT] if dice.random() < 0.7 else [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [JOB]}]
    base = CLAIMS | {"jti": f"{dice.getrandbits(64):x}", "authorization_details": details}
    if dice.random() < 0.3:
        base["idempotency_key"] = dice.choice(TEXTS)
    claims = document_of(dice, base, dice.choice((0, 0, 1, 1, 2)))
    if dice.random() < 0.15:
        header = document_of(dice, HEADER, dice.choice((0, 1, 2)))
    else:
        header = json.dumps(HEADER if dice.random() < 0.9 else HEADER | {"alg": "EdDSA", "kid": "ed1"}).encode()
    message = f"{b64(header)}.{b64(claims)}"
    chance = dice.random()
    if b"EdDSA" in header and chance < 0.9:
        signature = ED_PRIVATE.sign(message.encode())
    else:
        signature = es256(message.encode(), PRIVATE if chance < 0.95 else OTHER)
    return f"{message}.{b64(signature)}"


def record_of(dice: random.Random, token: str) -> Record:
    """A record in any of the forms, good or not."""
    token = token if dice.random() < 0.8 else dice.choice(TEXTS)
    params = dict.fromkeys(
        dice.sample(("a", "b", "region", "deep"), dice.randrange(3)), dice.choice((1, "x", None, [token]))
    )
    headers: list[tuple[str, bytes | None]] = []
    value: bytes | None
    match dice.randrange(4):
        case 0 | 1:
            base: dict[str, Any] = {"job": JOB, "params": params, "token": token}
            value = document_of(dice, base, dice.choice((0, 0, 1, 2)))
        case 2:
            headers += [
                ("authorization", b"Bearer " + token.encode("utf-8", "replace")),
                ("tollgate-job", JOB.encode()),
            ]
            value = document_of(dice, params, dice.choice((0, 0, 1)))
        case _:
            event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": JOB, "data": params}
            headers.append(("authorization", b"Bearer " + token.encode("utf-8", "replace")))
            value = document_of(dice, event, dice.choice((0, 0, 1, 2)))
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        named = dice.choice(
            ("authorization", "Idempotency-Key", "tollgate-job", "ce_id", "content-type", "traceparent", "x", "")
        )
        put = dice.choice(
            (None, b"", b"\xff", token.encode("utf-8", "replace"), b"application/json", dice.randbytes(6))
        )
        headers.append((named, put))
    key = dice.choice((None, None, b"k", token.encode("utf-8", "replace"), dice.randbytes(4)))
    if dice.random() < 0.02:
        value = dice.choice((None, b"", dice.randbytes(dice.randrange(200))))
    return Record(0, dice.randrange(1 << 40), NOW_S * 1000 + 1, dice.random() < 0.98, key, value, tuple(headers))


def case_of(seed: int, number: int) -> Case:
    """The case of that number. Ten in a row share a token: signing is what costs."""
    dice = random.Random(f"{seed}/{number}")
    token = signed_token(f"{seed}/{number // 10}/token")
    match number % 10:
        case 0:
            return Case("token", token)
        case 1 | 2 | 3 | 4:
            return Case(
                "json", document_of(dice, CLAIMS if dice.random() < 0.5 else HEADER, dice.choice((0, 1, 1, 2, 3)))
            )
        case 5 | 6:
            return Case("token", bent(dice, token.encode()).decode("latin-1"))
    return Case("record", record_of(dice, token))


# ── what must hold ──

_KEYS = {
    "k1": ECKey.import_key(public_jwk()),
    "ed1": OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": b64(ED_PRIVATE.public_key().public_bytes_raw())}),
}
_COMPACT = re.compile(rb"eyJ[\w-]+\.[\w-]+\.([\w-]{86})(?![\w-])")
_RULE = {
    "issuer": ISS, "version": 1, "jwks": "/x", "algorithms": ["ES256", "EdDSA"], "orgs": ["acme"], "classes": ["trigger"],
    "subjects": ["service:*"], "jobs": ["reports/*"], "max_lifetime_s": 86_400,
}  # fmt: skip


def world() -> World:
    """One issuer and one job, which takes everything."""
    rule = trust_from_record(b"trust/" + ISS.encode(), json.dumps(_RULE).encode())
    job = job_from_record(b"job/" + JOB.encode(), json.dumps({"name": JOB, "version": 1}).encode())
    assert not isinstance(rule, str), rule
    assert not isinstance(job, str), job
    return World(
        audience=AUD, lanes=4, grace_s=60, queue_age_cap_ms=14_400_000, max_window_ms=1 << 40, run_seed=7, ring=RING,
        rules={ISS: rule}, jobs={JOB: job}, revocations=Revocations(),
    )  # fmt: skip


_WORLD = world()


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three values, 0.0 and -0.0 two."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return list(one) == list(other) and all(same(value, other[name]) for name, value in one.items())
    if type(one) is list:
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def check_json(raw: bytes) -> str:
    """Returns what became of it. Raises Wrong."""
    read = quick_claims(raw)
    quick = None if read is None else read[0]
    try:
        value = loads_object(raw)
    except JSONRefused as refused:
        if quick is not None:
            raise Wrong("the quick reading takes what the full one refuses") from None
        return refused.fault.value
    if quick is not None and not same(quick, value):
        raise Wrong("the quick reading differs from the full one")
    if not same(orjson.loads(raw), value):
        raise Wrong("orjson reads another value")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise Wrong("a member stands twice in what was taken")
        return members

    if not same(json.loads(raw.decode("utf-8"), object_pairs_hook=once), value):
        raise Wrong("Python's json reads another value")
    return "quick" if quick is not None else "taken"


def check_token(text: str) -> str:
    verdict = verify(text, RING, AUD)
    if verify(text, RING, AUD) != verdict:
        raise Wrong("the same token gets two verdicts")
    if isinstance(verdict, KeyWanted):
        return "key wanted"
    if isinstance(verdict, Rejected):
        if verdict.code not in BY_CODE or verdict.code == "internal_deny":
            raise Wrong(f"{verdict.code} is no verdict on a token")
        return verdict.code
    if not isinstance(verdict, VerifiedToken):
        raise Wrong(f"{type(verdict).__name__} is no verdict")
    claims = verdict.claims
    try:
        read = jwt.decode(text, _KEYS[claims.kid], algorithms=ALGORITHMS)
    except Exception as error:
        raise Wrong(f"joserfc refuses what we verify: {type(error).__name__}: {error}") from error
    grant = read.claims["authorization_details"][0]
    audience = read.claims["aud"]
    theirs = (
        read.header["kid"], read.claims["iss"], read.claims["sub"], read.claims["org_id"], read.claims["jti"],
        read.claims["iat"], read.claims["nbf"], read.claims["exp"], read.claims["uses"],
        read.claims.get("idempotency_key"), list(grant["jobs"]), list(grant["actions"]),
        audience if isinstance(audience, str) else audience[0],
    )  # fmt: skip
    ours = (
        claims.kid, claims.iss, claims.sub, claims.org_id, claims.jti, claims.iat, claims.nbf, claims.exp, claims.uses,
        claims.idempotency_key, list(claims.grant.jobs), list(claims.grant.actions), AUD,
    )  # fmt: skip
    if not all(map(same, ours, theirs)):
        raise Wrong(f"joserfc reads other claims: {theirs} instead of {ours}")
    return "verified"


def check_record(record: Record) -> str:
    first = decide.admit(record, _WORLD, Memo())
    if decide.admit(record, _WORLD, Memo()) != first:
        raise Wrong("the same record gets two verdicts")
    if isinstance(first, Held):
        return "held"
    if isinstance(first, Admitted):
        trigger = first.trigger
        if first.authorized.job.name != JOB:
            raise Wrong("a record was admitted for a job that nobody granted")
        told = "admitted"
    elif isinstance(first, Refused):
        trigger, told = first.request.trigger, first.rejected.code
        if told not in BY_CODE or told == "internal_deny":
            raise Wrong(f"{told}: {first.rejected.detail}")
        if not (first.rejected.detail or "").isprintable():
            raise Wrong(f"the detail of {told} is not printable")
    else:
        raise Wrong(f"{type(first).__name__} is no decision")
    kept, _ = original(record, trigger.unverified_token if trigger is not None else None, lambda *_: "")
    parts = [kept.key, kept.value, *(content for _, content in kept.headers)]
    left = b"\0".join(part for part in parts if part is not None)
    whole = b"\0".join([record.key or b"", record.value or b"", *(content or b"" for _, content in record.headers)])
    for found in _COMPACT.finditer(whole):
        # After a dot it is the end of a token, however broken; alone it may stand only where nobody could tell.
        if b"." + found[1] in left or (trigger is not None and found[1] in left):
            raise Wrong("a token's signature is left in what a dead letter would hold")
    return told


CHECKS: dict[str, Callable[[Any], str]] = {"json": check_json, "token": check_token, "record": check_record}


def run(seed: int, numbers: Iterable[int]) -> Counter[str]:
    """Check these cases; how many of each kind became what. Raises Wrong, naming the case."""
    became: Counter[str] = Counter()
    for number in numbers:
        case = case_of(seed, number)
        try:
            became[f"{case.kind}: {CHECKS[case.kind](case.content)}"] += 1
        except Exception as error:
            raise Wrong(f"case {number} of seed {seed}, {case.kind}: {type(error).__name__}: {error}") from error
    return became
