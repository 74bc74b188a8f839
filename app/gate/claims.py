"""The claims of a token: what a signed payload must hold, and the types it becomes.

Called by `token.verify` once the signature holds; what is refused here was signed by someone we trust.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from app.gate import limits
from app.gate.quick import TRIGGER_ACTION, QuickClaims
from app.gate.reasons import Rejected
from app.gate.redact import token_shaped

Uses = Literal["once", "many"]


class BoundTo(msgspec.Struct, frozen=True, gc=False):
    """The object of the registry that a token lives as long as."""

    object: str  # its key in the registry, such as job/reports/nightly
    birth_id: str | None = None  # of the one meant: an object made anew has another. None: whichever is there

    def is_gone(self, objects: Mapping[str, str]) -> bool:
        """Whether it is not there any more. `objects`: registry key → birth id, empty where an object has none."""
        there = objects.get(self.object)
        return there is None or (self.birth_id is not None and self.birth_id != there)


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What a trigger token permits: the one member of its authorization_details (RFC 9396)."""

    actions: tuple[str, ...]
    jobs: tuple[str, ...]  # exact names
    params: dict[str, Any]  # fixed by the issuer; win over the emitter's
    params_sha256: str | None = None  # fixes the digest of the emitter's params (canonical JSON, hex)
    bound_to: BoundTo | None = None


class Parent(msgspec.Struct, frozen=True, gc=False):
    """A token that another was exchanged for: what it is known by to whoever takes it back."""

    jti: str
    kid: str
    iat: int  # seconds


class Delegation(msgspec.Struct, frozen=True, gc=False):
    """Of a token that was exchanged for another (RFC 8693). It is worth no more than any that it came of."""

    actors: tuple[str, ...]  # who acts for the subject, the last first: it has the token, and has it from the next
    parents: tuple[Parent, ...] = ()  # the last first


class Claims(msgspec.Struct, frozen=True, gc=False):
    """The verified claims of a token (of a trigger token, also what a handoff carries in its place).

    Tokens of users and hosts say who calls. They grant nothing: no action, no job, and may be shown many times.
    """

    iss: str
    kid: str
    sub: str
    org_id: str
    jti: str
    iat: int  # seconds
    nbf: int
    exp: int
    uses: Uses
    token_class: str  # "trigger", from typ "trigger+jwt"
    grant: Grant
    idempotency_key: str | None = None
    delegation: Delegation | None = None  # None: the subject acts itself

    @property
    def actors(self) -> tuple[str, ...]:
        return () if self.delegation is None else self.delegation.actors

    @property
    def parents(self) -> tuple[Parent, ...]:
        return () if self.delegation is None else self.delegation.parents


class HostClaims(Claims, frozen=True, gc=False):
    """The verified claims of a host's token."""

    platform: str = ""  # that the host is of
    level: int = 0  # of security, which that platform had when the token was issued


GRANT_TYPE: Final = "job_trigger"
PARENTS_CLAIM: Final = "parents"  # of this profile: RFC 8693 names who acts, not which tokens a token came of
_PARENT_MEMBERS: Final = frozenset(("jti", "kid", "iat"))
_GRANT_MEMBERS: Final = frozenset(("type", "actions", "jobs", "params", "params_sha256", "bound_to"))
_BOUND_TO_MEMBERS: Final = frozenset(("object", "birth_id"))
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NO_PARAMS: Final[dict[str, Any]] = {}
NO_GRANT: Final = Grant((), (), _NO_PARAMS)


class ClaimRefused(Exception):  # noqa: N818 - a refusal on its way out of a leaf; never leaves gate/
    def __init__(self, code: str, detail: str) -> None:
        self.rejected = Rejected(code, detail)


_USUAL_ACTIONS: Final = (TRIGGER_ACTION,)


def claims_of_quick(quick: QuickClaims, iss: str, kid: str, token_class: str) -> Claims:
    """The same from a quick reading whose audience is ours."""
    sub, org_id, jti, iat, nbf, exp, uses, job, key, _ = quick
    grant = Grant(_USUAL_ACTIONS, (job,), _NO_PARAMS)
    return Claims(iss, kid, sub, org_id, jti, iat, nbf, exp, uses, token_class, grant, key)


def read_claims(signed: dict[str, Any], kid: str, token_class: str, audience: str) -> Claims:
    """The claims of a token whose signature holds. Raises ClaimRefused.

    The order of the checks is that of the reasons; unknown claims are ignored (RFC 7519 section 4).
    """
    get = signed.get
    if get("aud") != audience:
        _refuse_audience(signed, audience)
    exp = get("exp")
    if not (type(exp) is int and 0 < exp < limits.NUMERIC_DATE_MAX_S):
        if "exp" not in signed:
            raise ClaimRefused("ttl_missing", "no exp")
        raise ClaimRefused("expiry_malformed", "exp is not a NumericDate in whole seconds")
    if "jti" not in signed:
        raise ClaimRefused("jti_required", "no jti")
    if "org_id" not in signed:
        raise ClaimRefused("org_missing", "no org_id")
    jti, org_id = signed["jti"], signed["org_id"]
    sub: Any = get("sub")
    uses: Any = get("uses")
    _require_name("jti", jti, limits.JTI_MAX_CHARACTERS)
    _require_name("org_id", org_id, limits.SUBJECT_MAX_CHARACTERS)
    _require_name("sub", sub, limits.SUBJECT_MAX_CHARACTERS)
    iat, nbf = get("iat"), get("nbf")
    if not (type(iat) is int and 0 < iat < limits.NUMERIC_DATE_MAX_S):
        raise ClaimRefused("claim_malformed", "iat is missing or not a NumericDate in whole seconds")
    if not (type(nbf) is int and 0 < nbf < limits.NUMERIC_DATE_MAX_S):
        raise ClaimRefused("claim_malformed", "nbf is missing or not a NumericDate in whole seconds")
    if not (nbf < exp and iat < exp):
        raise ClaimRefused("claim_malformed", "exp does not lie after nbf and iat")
    if token_class == "host":  # noqa: S105 - a class
        platform, level = _platform(signed)
        return HostClaims(
            signed["iss"], kid, sub, org_id, jti, iat, nbf, exp, "many", token_class, NO_GRANT,
            platform=platform, level=level,
        )  # fmt: skip
    if token_class == "user":  # noqa: S105 - a class
        return Claims(signed["iss"], kid, sub, org_id, jti, iat, nbf, exp, "many", token_class, NO_GRANT)
    if uses not in ("once", "many"):
        raise ClaimRefused("claim_malformed", 'uses is neither "once" nor "many"')
    idempotency_key = get("idempotency_key")
    if idempotency_key is not None or "idempotency_key" in signed:
        _require_idempotency_key(idempotency_key)
    delegation = _delegation(signed) if "act" in signed or PARENTS_CLAIM in signed else None
    grant = _grant(get("authorization_details"))
    return Claims(
        signed["iss"], kid, sub, org_id, jti, iat, nbf, exp, uses, token_class, grant, idempotency_key, delegation
    )


def _refuse_audience(signed: dict[str, Any], audience: str) -> None:
    """Raise, unless aud is a list of exactly one text, ours (RFC 7519 section 4.1.3; more than one: our profile)."""
    if "aud" not in signed:
        raise ClaimRefused("audience_missing", "no aud")
    aud = signed["aud"]
    if type(aud) is list and len(aud) == 1:
        aud = aud[0]
    if type(aud) is not str:
        raise ClaimRefused("audience_malformed", "aud is not one text")
    if aud != audience:
        raise ClaimRefused("audience_mismatch", "aud names another deployment")


def _require_name(claim: str, value: Any, max_characters: int) -> None:
    """A name that is shown and logged: short, and without control characters."""
    if not (type(value) is str and 0 < len(value) <= max_characters and value.isprintable()):
        raise ClaimRefused("claim_malformed", f"{claim} is missing or not a text of 1 to {max_characters} characters")


def _require_idempotency_key(value: Any) -> None:
    if type(value) is not str or not 0 < len(value.encode()) <= limits.IDEMPOTENCY_KEY_MAX_BYTES:
        raise ClaimRefused(
            "claim_malformed", f"idempotency_key is not a text of 1 to {limits.IDEMPOTENCY_KEY_MAX_BYTES} bytes"
        )


def _delegation(signed: dict[str, Any]) -> Delegation:
    actors = _actors(signed["act"], signed["iss"]) if "act" in signed else ()
    return Delegation(actors, _parents(signed[PARENTS_CLAIM]) if PARENTS_CLAIM in signed else ())


def _parents(value: Any) -> tuple[Parent, ...]:
    """The tokens it came of. A member not known could be a condition: as in a grant, it refuses."""
    parents: list[Parent] = []
    if type(value) is not list or not value:
        raise ClaimRefused("claim_malformed", f"{PARENTS_CLAIM} is not a list of the tokens it came of")
    for each in value:
        if type(each) is not dict or each.keys() != _PARENT_MEMBERS:
            raise ClaimRefused("claim_malformed", f"{PARENTS_CLAIM} holds something else than jti, kid and iat")
        _require_name("parents.jti", each["jti"], limits.JTI_MAX_CHARACTERS)
        _require_name("parents.kid", each["kid"], limits.KID_MAX_CHARACTERS)
        if not (type(each["iat"]) is int and 0 < each["iat"] < limits.NUMERIC_DATE_MAX_S):
            raise ClaimRefused("claim_malformed", "parents.iat is not a NumericDate in whole seconds")
        parents.append(Parent(each["jti"], each["kid"], each["iat"]))
    if len(parents) > limits.ACTORS_MAX:
        raise ClaimRefused("delegation_too_deep", f"it came of more than {limits.ACTORS_MAX} tokens")
    return tuple(parents)


def _actors(act: Any, iss: str) -> tuple[str, ...]:
    """The chain of `act`, outermost first. An actor means something only together with its issuer: the token's own."""
    actors: list[str] = []
    while True:
        if type(act) is not dict or act.get("iss", iss) != iss:
            raise ClaimRefused("claim_malformed", "act is not an object with the sub of an actor of the token's issuer")
        _require_name("act.sub", act.get("sub"), limits.SUBJECT_MAX_CHARACTERS)
        actors.append(act["sub"])
        if len(actors) > limits.ACTORS_MAX:
            raise ClaimRefused("delegation_too_deep", f"more than {limits.ACTORS_MAX} act for one another")
        if "act" not in act:
            return tuple(actors)
        act = act["act"]


def nested(actors: Sequence[str]) -> dict[str, Any] | None:
    """The same as the claim `act` says it; None: nobody acts for the subject."""
    act: dict[str, Any] | None = None
    for actor in reversed(actors):
        act = {"sub": actor} if act is None else {"sub": actor, "act": act}
    return act


def _platform(signed: dict[str, Any]) -> tuple[str, int]:
    platform, level = signed.get("platform"), signed.get("level")
    _require_name("platform", platform, limits.SUBJECT_MAX_CHARACTERS)
    if not (type(level) is int and 0 < level <= limits.LEVEL_MAX):
        raise ClaimRefused("claim_malformed", f"level is no integer from 1 to {limits.LEVEL_MAX}")
    return str(platform), level


def _grant(details: Any) -> Grant:
    """The one grant. Whether it is too broad, or lacks the action, is said when the trigger is authorized."""
    if type(details) is not list or len(details) != 1 or type(details[0]) is not dict:
        raise ClaimRefused("grant_malformed", "authorization_details is not a list of exactly one object")
    grant: dict[str, Any] = details[0]
    if grant.get("type") != GRANT_TYPE:
        raise ClaimRefused("grant_malformed", f"the grant's type is not {GRANT_TYPE}")
    if not grant.keys() <= _GRANT_MEMBERS:
        # A condition this gate does not know would not be enforced (RFC 9396 section 5).
        raise ClaimRefused("grant_malformed", "the grant holds a member this gate does not know")
    params = grant.get("params", _NO_PARAMS)
    if type(params) is not dict:
        raise ClaimRefused("grant_malformed", "params is not an object")
    if params and _holds_token(params):
        raise ClaimRefused("grant_malformed", "a parameter holds something shaped like a token")
    digest = grant.get("params_sha256")
    if (digest is not None or "params_sha256" in grant) and not (type(digest) is str and _SHA256_HEX.fullmatch(digest)):
        raise ClaimRefused("grant_malformed", "params_sha256 is not 64 hexadecimal digits")
    bound_to = _bound_to(grant["bound_to"]) if "bound_to" in grant else None
    return Grant(_texts(grant, "actions"), _texts(grant, "jobs"), params, digest, bound_to)


def _bound_to(value: Any) -> BoundTo:
    if type(value) is not dict or not {"object"} <= value.keys() <= _BOUND_TO_MEMBERS:
        raise ClaimRefused("grant_malformed", "bound_to is not an object of object and, if need be, birth_id")
    limit = {"object": limits.REGISTRY_KEY_MAX_CHARACTERS, "birth_id": limits.BIRTH_ID_MAX_CHARACTERS}
    for name, text in value.items():
        if not (type(text) is str and 0 < len(text) <= limit[name] and text.isprintable()):
            raise ClaimRefused("grant_malformed", f"bound_to.{name} is not a text of 1 to {limit[name]} characters")
    return BoundTo(value["object"], value.get("birth_id"))


def _texts(grant: dict[str, Any], member: str) -> tuple[str, ...]:
    """A list of short texts; absent is empty, which grants nothing."""
    values = grant.get(member, ())
    if values == ():
        return ()
    if type(values) is not list or len(values) > limits.GRANT_JOBS_MAX:
        raise ClaimRefused("grant_malformed", f"{member} is not a list of at most {limits.GRANT_JOBS_MAX} texts")
    for value in values:
        if type(value) is not str or not 0 < len(value.encode()) <= limits.JOB_NAME_MAX_BYTES:
            raise ClaimRefused("grant_malformed", f"{member} holds something else than a short text")
    return tuple(values)


def _holds_token(value: Any) -> bool:
    """Whether any text in it is shaped like a token. Depth is bounded: strict JSON was read before."""
    if type(value) is str:
        return token_shaped(value)
    if type(value) is dict:
        for name, member in value.items():
            if token_shaped(name) or _holds_token(member):
                return True
    elif type(value) is list:
        return any(map(_holds_token, value))
    return False
