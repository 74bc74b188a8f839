"""Identities: who may ask for tokens, and the credentials each is known by.

Pure: no I/O, no clock, no randomness. Neither a client's secret nor a private key ever stands in a record: a secret is
kept as a salted hash, a key as its public half.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from app.gate import limits
from app.gate.base64url import encode
from app.gate.definitions import BirthId, Name, Version, read_record
from app.gate.keyset import EDDSA, ES256, JWKSInvalid, KeySet, VerificationKey
from app.gate.records import UNREADABLE
from app.gate.redact import token_shaped

IDENTITY_PREFIX: Final = "identity/"
CREDENTIALS_MAX: Final = 16
ROLES_MAX: Final = 64
CLIENT_ALGORITHMS: Final = (ES256, EDDSA)  # of private_key_jwt (RFC 7523): asymmetric ones only

Kind = Literal["service", "task", "user", "host"]
# What stands before the colon of a name says what kind of identity it is: no record, and no token, can blur that.
KIND_OF: Final[dict[str, Kind]] = {
    "svc": "service", "service": "service", "task": "task", "u": "user", "user": "user", "host": "host",
}  # fmt: skip
_NAME: Final = re.compile(r"([a-z]+):[A-Za-z0-9][A-Za-z0-9._~:@/+-]*")

# ── credentials ──

# A secret of ours is 256 random bits, which nobody guesses at any cost: a slow hash would keep nothing from a guesser,
# and would be what strangers make a server compute. So it is SHA-256, of the salt and then the text.
SALT_BYTES: Final = 16
DIGEST_BYTES: Final = 32
SECRET_BYTES: Final = 32
CREDENTIAL_ID_BYTES: Final = 8  # of a secret; a key's id is its kid
SECRET_PREFIX: Final = "tgs"  # what scanners for leaked secrets can look for  # noqa: S105 - not a secret
_SECRET: Final = re.compile(rf"{SECRET_PREFIX}_([0-9a-f]{{{2 * CREDENTIAL_ID_BYTES}}})_[A-Za-z0-9_-]{{43}}")

At = Annotated[int, Meta(ge=0, lt=limits.NUMERIC_DATE_MAX_S)]  # seconds since 1970
CredentialId = Annotated[str, Meta(min_length=1, max_length=limits.KID_MAX_CHARACTERS)]


class ClientSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="secret"):
    """A secret, as its salted SHA-256; valid from not_before_s until not_after_s."""

    id: CredentialId
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    digest: Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    not_before_s: At = 0
    not_after_s: At | None = None  # None: until it is rotated


class ClientKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="key", dict=True):
    """A public key, for private_key_jwt (RFC 7523 section 2.2); its id is its kid."""

    id: CredentialId
    jwk: dict[str, Any]
    not_before_s: At = 0
    not_after_s: At | None = None

    @cached_property
    def key(self) -> VerificationKey:
        """Read once, when the record is: an assertion costs the same whether or not its client exists.

        Raises JWKSInvalid.
        """
        return KeySet.from_jwks(msgspec.json.encode({"keys": [self.jwk]}), CLIENT_ALGORITHMS).keys[self.id]


Credential = ClientSecret | ClientKey


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom tokens are issued to: a record of the registry under `identity/{name}`."""

    name: Name  # what is its tokens' sub
    version: Version
    kind: Kind
    issuer: Name  # whose tokens speak of it: a subject means something only together with its issuer
    org_id: Name
    roles: Annotated[tuple[Name, ...], Meta(max_length=ROLES_MAX)] = ()
    disabled: bool = False
    credentials: Annotated[tuple[Credential, ...], Meta(max_length=CREDENTIALS_MAX)] = ()
    birth_id: BirthId | None = None
    platform: Name | None = None  # that a host is of

    def credentials_at(self, now_s: int) -> tuple[Credential, ...]:
        """Those that are valid now: during the overlap of a rotation, the old and the new."""
        return tuple(each for each in self.credentials if is_valid(each, now_s))


def is_valid(credential: Credential, now_s: int) -> bool:
    return credential.not_before_s <= now_s and (credential.not_after_s is None or now_s < credential.not_after_s)


def secret_text(credential_id: str, random: bytes) -> str:
    """A client's secret as its owner gets it, once: it names its credential, so that one hash tells whether it holds.

    `credential_id` is 8 bytes in hex, `random` 32 bytes.
    """
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} random bytes")
    text = f"{SECRET_PREFIX}_{credential_id}_{encode(random)}"
    if _SECRET.fullmatch(text) is None:
        raise ValueError(f"a secret's id is {CREDENTIAL_ID_BYTES} bytes in hex")
    return text


def keep_secret(text: str, salt: bytes, not_before_s: int, not_after_s: int | None = None) -> ClientSecret:
    """What a record may hold of a secret. `salt` is 16 random bytes. Raises ValueError for a text that is no secret."""
    named = _SECRET.fullmatch(text)
    if named is None:
        raise ValueError("not a secret of ours")
    return ClientSecret(named[1], salt, _digest(text, salt), not_before_s=not_before_s, not_after_s=not_after_s)


def check_secret(identity: Identity | None, unverified_secret: str, now_s: int) -> ClientSecret | None:
    """The credential that this secret proves, or None.

    One hash, whoever asks: nobody learns from the time taken whether a client exists, has a secret or once had one.
    """
    wanted = secret_id(unverified_secret)
    candidate = _NOBODYS
    for each in identity.credentials_at(now_s) if identity is not None else ():
        if isinstance(each, ClientSecret) and each.id == wanted:
            candidate = each
    digest = _digest(unverified_secret[:_SECRET_MAX_CHARACTERS], candidate.salt)
    holds = hmac.compare_digest(digest, candidate.digest)
    return candidate if holds and candidate is not _NOBODYS else None


def key_at(identity: Identity, kid: str, now_s: int) -> VerificationKey | None:
    """The public key of that name, if an assertion of this client may be signed with it now."""
    found = (each.key for each in identity.credentials_at(now_s) if isinstance(each, ClientKey) and each.id == kid)
    return next(found, None)


def secret_id(unverified_secret: str) -> str:
    """The id of the credential that a secret says it is; empty for a text that is no secret of ours."""
    named = _SECRET.fullmatch(unverified_secret)
    return named[1] if named is not None else ""


def _digest(text: str, salt: bytes) -> bytes:
    return hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()


_SECRET_MAX_CHARACTERS: Final = 256
_NOBODYS: Final = ClientSecret("nobody's", bytes(SALT_BYTES), bytes(DIGEST_BYTES))


# ── rotation ──


def rotated(identity: Identity, fresh: tuple[Credential, ...], now_s: int, overlap_s: int) -> Identity | str:
    """The identity with fresh credentials; those of before are valid `overlap_s` longer, those that ended are gone.

    One clause says why not.
    """
    ends_s = now_s + overlap_s
    kept = tuple(
        _ending(each, ends_s)
        for each in identity.credentials
        if (each.not_after_s is None or each.not_after_s > now_s) and overlap_s > 0
    )
    taken = {each.id for each in kept}
    again = next((each.id for each in fresh if each.id in taken), None)
    if again is not None:
        return f"it has a credential {again} already: a new key has a new kid"
    if len(kept) + len(fresh) > CREDENTIALS_MAX:
        return f"it would have more than {CREDENTIALS_MAX} credentials: wait for the end of an overlap"
    return msgspec.structs.replace(identity, credentials=kept + fresh)


def _ending(credential: Credential, ends_s: int) -> Credential:
    """Never longer than it was: rotating again does not prolong what an earlier rotation ends."""
    old_s = credential.not_after_s
    return msgspec.structs.replace(credential, not_after_s=ends_s if old_s is None else min(old_s, ends_s))


# ── records ──


def identity_key(name: str) -> bytes:
    """The registry's key of an identity."""
    return (IDENTITY_PREFIX + name).encode()


def identity_from_record(key: bytes, value: bytes) -> Identity | str:
    """A record under `identity/{name}`, or one clause that says what is wrong and where."""
    identity = read_record(key, _without_former(value), Identity, IDENTITY_PREFIX)
    if isinstance(identity, str):
        return identity
    kind = kind_of(identity.name)
    if kind is None:
        return f"name: {NAME_FAULT}"
    if identity.kind != kind:
        return f"kind: {identity.name} is a {kind}, as its name says"
    if not (identity.issuer.isprintable() and identity.org_id.isprintable()):
        return "issuer and org_id hold no control characters"
    if identity.platform is not None and kind != "host":
        return f"platform: only hosts are of one, and {identity.name} is a {kind}"
    ids = [each.id for each in identity.credentials]
    if len(set(ids)) != len(ids):
        return "credentials: an id stands twice"
    for each in identity.credentials:
        fault = _credential_fault(each)
        if fault is not None:
            return f"credentials: {fault}"
    return identity


def _without_former(value: bytes) -> bytes:
    """A record less the secrets kept as scrypt hashes, as they were before: nobody proves anything by them.

    So whoever has such a record can be rotated, disabled and removed like anyone, and has other credentials as ever.
    """
    if b'"n":' not in value:
        return value
    try:
        members = msgspec.json.decode(value)
        members["credentials"] = [each for each in members["credentials"] if not is_former(each)]
    except (*UNREADABLE, TypeError, KeyError, AttributeError):
        return value  # what is wrong with it, its own reading says
    return msgspec.json.encode(members)


def is_former(credential: Mapping[str, Any]) -> bool:
    """Whether this credential, as a record has it, is a secret kept by a hash that is taken no more."""
    return credential.get("kind") == "secret" and credential.keys() >= _SCRYPT


_SCRYPT: Final = frozenset(("n", "r", "p"))  # its parameters (RFC 7914)

NAME_FAULT: Final = (
    f"an identity is named KIND:NAME, KIND one of {', '.join(KIND_OF)}, NAME letters, digits and . _ ~ : @ / + -"
)


def kind_of(name: str) -> Kind | None:
    """What kind of identity bears this name; None: none does."""
    named = _NAME.fullmatch(name)
    if named is None or len(name) > limits.SUBJECT_MAX_CHARACTERS or token_shaped(name):
        return None
    return KIND_OF.get(named[1])


def _credential_fault(credential: Credential) -> str | None:
    if credential.not_after_s is not None and credential.not_after_s <= credential.not_before_s:
        return f"{credential.id} ends before it begins"
    if isinstance(credential, ClientSecret):
        return None
    if credential.jwk.get("kid") != credential.id:
        return f"{credential.id} is not the kid of its key"
    try:
        credential.key  # noqa: B018 - read here
    except JWKSInvalid as error:
        return str(error)
    return None
