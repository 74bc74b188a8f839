"""Making tokens of every class, and the grants of handles: what a gate would refuse is refused here first, and what
must not be asked for at all.

A token is handed out only after the gate's own `verify` has taken it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, Protocol

import jwt

from app.authority.platforms import Platform
from app.gate import base64url, limits
from app.gate.claims import GRANT_TYPE, PARENTS_CLAIM, BoundTo, Parent, nested
from app.gate.keyset import (
    DEV_KID,
    HS256,
    KeySet,
    VerificationKey,
    dev_key,
    eddsa_key,
    es256_key,
)
from app.gate.quick import TRIGGER_ACTION
from app.gate.reasons import Rejected
from app.gate.redact import token_shaped
from app.gate.reference import (
    GRANT_TYP,
    HANDLE_BYTES,
    HANDLE_START,
    HASH_CLAIM,
    NO_GRANTS,
    Grants,
    grant_key,
    handle_digest,
)
from app.gate.token import (
    CLASSES,
    HOST_CLASSES,
    USER_CLASSES,
    Claims,
    Classes,
    GrantWanted,
    KeyWanted,
    Uses,
    VerifiedToken,
    verify,
)
from app.issuer.keystore import SigningKey

TYP: Final = "trigger+jwt"
JTI_BYTES: Final = 16  # 128 bits


@dataclass(frozen=True, slots=True)
class TriggerTokenRequest:
    """What is asked for. There is no default lifetime: who asks says how long."""

    issuer: str
    audience: str
    subject: str
    org_id: str
    jobs: tuple[str, ...]
    uses: Uses
    ttl_s: int | None
    params: Mapping[str, Any] = field(default_factory=dict)
    params_sha256: str | None = None
    idempotency_key: str | None = None
    actors: tuple[str, ...] = ()  # who acts for the subject, the last first (RFC 8693 section 4.1)
    bound_to: BoundTo | None = None
    parents: tuple[Parent, ...] = ()  # the tokens it is exchanged for, the last first


ClientClass = Literal["user", "host"]


@dataclass(frozen=True, slots=True)
class ClientTokenRequest:
    """A token that starts no job, but says for a while who calls: a person, or a host of a platform."""

    issuer: str
    audience: str
    subject: str
    org_id: str
    token_class: ClientClass
    ttl_s: int
    platform: Platform | None = None  # of a host


TokenRequest = TriggerTokenRequest | ClientTokenRequest


class Minted(NamedTuple):
    """A token, fit to be handed to who asked, and what it says.

    A handle is fit for that once its `grant`, key and value of a record of the topic `grants`, is committed.
    """

    token: str
    claims: Claims
    fingerprint: str
    grant: tuple[bytes, bytes] | None = None


class Refusal(NamedTuple):
    """Why no token is made: a code (of the gate's reasons, or `secret_in_clear`) and one sentence."""

    code: str
    sentence: str


class Keys(Protocol):
    """Where the key that signs is from: a keystore, or a secret of development."""

    def signing_key(self, now_s: int) -> SigningKey: ...

    def note_expiry(self, kid: str, exp_s: int) -> None: ...


class DevKeys(NamedTuple):
    """A shared secret of development; gates take it only when they are told to."""

    secret: bytes

    def signing_key(self, _now_s: int) -> SigningKey:
        return SigningKey(DEV_KID, HS256, self.secret)

    def note_expiry(self, kid: str, exp_s: int) -> None:
        """Nobody retires it."""


def issue(requests: Iterable[TokenRequest], keys: Keys, now_s: int, *, handles: bool = False) -> list[Minted] | Refusal:
    """Mint all of them with the key that signs now, or none, and note how long that key is needed.

    Raises KeystoreError.
    """
    signing_key, made = keys.signing_key(now_s), list[Minted]()
    for request in requests:
        if isinstance(request, ClientTokenRequest):
            minted = mint_client(request, signing_key, now_s)
        else:
            minted = mint(request, signing_key, now_s, handle=new_handle() if handles else None)
        if isinstance(minted, Refusal):
            return minted
        made.append(minted)
    keys.note_expiry(signing_key.kid, max(each.claims.exp for each in made))
    return made


def new_handle() -> str:
    """A reference token: 256 random bits, which say nothing."""
    return HANDLE_START + base64url.encode(secrets.token_bytes(HANDLE_BYTES))


def mint(
    request: TriggerTokenRequest, signing_key: SigningKey, now_s: int, jti: str | None = None,
    handle: str | None = None,
) -> Minted | Refusal:  # fmt: skip
    """Make a token, or the grant that a handle is to stand for.

    `now_s` and `jti` are arguments for tests; a jti not given is 128 random bits.
    """
    refusal = _refuse(request)
    if refusal is not None or request.ttl_s is None:
        return refusal or Refusal("ttl_missing", "")
    grant: dict[str, Any] = {"type": GRANT_TYPE, "actions": [TRIGGER_ACTION], "jobs": list(request.jobs)}
    if request.params:
        grant["params"] = dict(request.params)
    if request.params_sha256 is not None:
        grant["params_sha256"] = request.params_sha256
    if request.bound_to is not None:
        born = {} if request.bound_to.birth_id is None else {"birth_id": request.bound_to.birth_id}
        grant["bound_to"] = {"object": request.bound_to.object, **born}
    claims = _registered(request, request.ttl_s, now_s, jti)
    claims |= {"uses": request.uses, "authorization_details": [grant]}
    if request.idempotency_key is not None:
        claims["idempotency_key"] = request.idempotency_key
    if request.actors:
        claims["act"] = nested(request.actors)
    if request.parents:
        claims[PARENTS_CLAIM] = [{"jti": each.jti, "kid": each.kid, "iat": each.iat} for each in request.parents]
    grants, record = Grants(), None
    if handle is None:
        token = presented = _sign(claims, signing_key, TYP)
    else:
        digest, presented = handle_digest(handle), handle
        token = _sign(claims | {HASH_CLAIM: digest.hex()}, signing_key, GRANT_TYP)
        record = grant_key(digest), token.encode()
        grants.apply(*record, appended_at_ms=now_s * 1000)
    return _taken(presented, request, signing_key, CLASSES, grants, record)


def mint_client(
    request: ClientTokenRequest, signing_key: SigningKey, now_s: int, jti: str | None = None
) -> Minted | Refusal:
    """Make the token of a user or a host. `now_s` and `jti` are arguments for tests."""
    typ, cap_s, classes = _OF_CLIENTS[request.token_class]
    if not 0 < request.ttl_s <= cap_s:
        return Refusal("ttl_too_long", f"{request.ttl_s} s; a {request.token_class} token lives from 1 s to {cap_s} s")
    claims = _registered(request, request.ttl_s, now_s, jti)
    if request.platform is not None:
        claims |= {"platform": request.platform.name, "level": request.platform.level}
    return _taken(_sign(claims, signing_key, typ), request, signing_key, classes)


_OF_CLIENTS: Final[dict[ClientClass, tuple[str, int, Classes]]] = {
    "user": ("user+jwt", limits.USER_LIFETIME_MAX_S, USER_CLASSES),
    "host": ("host+jwt", limits.HOST_LIFETIME_MAX_S, HOST_CLASSES),
}


def _registered(request: TokenRequest, ttl_s: int, now_s: int, jti: str | None) -> dict[str, Any]:
    """The claims that every class has (RFC 7519 section 4.1)."""
    return {
        "iss": request.issuer, "aud": request.audience, "sub": request.subject, "org_id": request.org_id,
        "iat": now_s, "nbf": now_s, "exp": now_s + ttl_s,
        "jti": jti if jti is not None else secrets.token_hex(JTI_BYTES),
    }  # fmt: skip


def _taken(
    presented: str, request: TokenRequest, signing_key: SigningKey, classes: Classes,
    grants: Grants = NO_GRANTS, record: tuple[bytes, bytes] | None = None,
) -> Minted | Refusal:  # fmt: skip
    """Whatever is still wrong with it (size, an odd number, a claim too long), the gate says in its own words."""
    key = _verification_key(signing_key)
    ring = {request.issuer: KeySet({key.kid: key}, frozenset((key.algorithm,)))}
    match verify(presented, ring, request.audience, grants, classes):
        case VerifiedToken(claims=verified, fingerprint=fingerprint):
            return Minted(presented, verified, fingerprint, record)
        case Rejected(code=code, detail=detail) as rejected:
            return Refusal(code, detail or rejected.reason.meaning)
        case GrantWanted():  # what `apply` would not take
            return Refusal("token_too_large", f"a grant has at most {limits.TOKEN_MAX_BYTES} bytes")
        case KeyWanted(iss=iss):  # our own key and kid: only a kid or issuer the gate could not read
            return Refusal("claim_malformed", f"the gate could not look up the key for {iss!r}")


def _sign(claims: Mapping[str, Any], key: SigningKey, typ: str) -> str:
    return jwt.encode(dict(claims), key.private, algorithm=key.algorithm, headers={"kid": key.kid, "typ": typ})


def _refuse(request: TriggerTokenRequest) -> Refusal | None:
    if request.ttl_s is None:
        return Refusal("ttl_missing", "a token needs a lifetime: --ttl 300, 5m or 24h")
    if request.ttl_s <= 0:
        return Refusal("expiry_malformed", "the lifetime must be at least one second")
    cap_s = limits.LIFETIME_MAX_S[request.uses]
    if request.ttl_s > cap_s:
        return Refusal("ttl_too_long", f"{request.ttl_s} s; a token for use {request.uses} lives at most {cap_s} s")
    if not request.jobs:
        return Refusal("scope_too_broad", "a token without a job would be one for any job: name it")
    if any(_PATTERN.search(job) for job in request.jobs):
        return Refusal("scope_too_broad", "no patterns: a token names each job exactly")
    if request.uses == "once" and len(request.jobs) != 1:
        return Refusal("scope_too_broad", "a one-shot token grants exactly one job")
    # Before they are searched, which takes longer than anything a token could hold.
    if len(repr(request.params)) > limits.TOKEN_MAX_BYTES:
        return Refusal("token_too_large", f"its parameters alone exceed {limits.TOKEN_CLAIMS_MAX_BYTES} bytes")
    for where, text in _texts(dict(request.params), "params"):
        if token_shaped(text) or _PRIVATE_KEY in text:
            return Refusal("secret_in_clear", f"{where} holds a token or a private key, which every bearer could read")
    for where, name in _names(dict(request.params), "params"):
        if is_secret_name(name):
            return Refusal(
                "secret_in_clear", f"{where} looks like a secret by its name: every bearer of the token could read it"
            )
    return None


_PATTERN: Final = re.compile(r"[*?\[\]]")
_PRIVATE_KEY: Final = "PRIVATE KEY-----"
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SECRET_WORDS: Final = frozenset((
    "authorization", "bearer", "credential", "credentials", "jwt", "passphrase", "passwd", "password", "passwords",
    "pw", "pwd", "secret", "secrets", "token",
))  # fmt: skip
_SECRET_PAIRS: Final = frozenset(
    (first, last)
    for first in ("access", "api", "encryption", "private", "secret", "shared", "signing", "ssh")
    for last in ("key", "keys")
)
_SECRET_RUNS: Final = (
    "password", "passwd", "passphrase", "apikey", "privatekey", "secretkey", "accesskey", "credential",
)  # fmt: skip


def is_secret_name(name: str) -> bool:
    """Whether a parameter's name says that its value is a secret. `max_tokens` and `secretary` do not."""
    words = [word.lower() for word in _WORDS.findall(name)]
    joined = "".join(words)
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or not _SECRET_PAIRS.isdisjoint(pairwise(words))
        or any(run in joined for run in _SECRET_RUNS)
    )


def _names(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every member name in `value`, and where it stands."""
    if isinstance(value, dict):
        for name, member in value.items():
            inner = f"{where}.{name}"
            yield inner, str(name)
            yield from _names(member, inner)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _names(item, f"{where}[{place}]")


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text in `value`, names included, and where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield where, str(name)
            yield from _texts(member, f"{where}.{name}" if not token_shaped(str(name)) else where)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _texts(item, f"{where}[{place}]")


def _verification_key(signing_key: SigningKey) -> VerificationKey:
    private: Any = signing_key.private
    match signing_key.algorithm:
        case "ES256":
            return es256_key(signing_key.kid, private.public_key())
        case "EdDSA":
            return eddsa_key(signing_key.kid, private.public_key())
        case "HS256":
            return dev_key(private)
    raise ValueError(f"no key of ours has the algorithm {signing_key.algorithm}")
