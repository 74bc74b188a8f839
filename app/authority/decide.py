"""May this identity have this token issued? One function for the command line and for HTTP.

Pure: no I/O, no clock, no randomness. What it says of a request does not depend on who asks how.

  1 the identity   enabled, of the organisation asked for
  2 the request    a class that suits the identity's kind, jobs by name, a lifetime within the class's cap and within
                   that of the user token, if it is asked with one
  3 deny           no role of the identity denies it
  4 allow          for each job there is a role's entry with its class, use, subject and lifetime
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from app.authority.identities import Identity, Kind
from app.authority.roles import CLASS_LIFETIME_MAX_S, Allow, Deny, Role, TokenClass
from app.gate import limits
from app.gate.claims import Uses
from app.gate.definitions import job_name_fault, matches
from app.gate.reasons import BY_CODE, Reason


class Denial(NamedTuple):
    """One reason not to issue: its code, what it means, what to do."""

    code: str
    meaning: str
    remedy: str


# In order of precedence. Codes that the gate has too stand in `gate/reasons.py` and mean the same here.
DENIALS: Final[tuple[Denial, ...]] = (
    Denial(
        "client_unauthenticated",
        "no identity of that name, or not a credential of it that is valid now",
        "give the secret of `tollgate identities rotate`; after an overlap only the newest is valid",
    ),
    Denial("org_not_granted", "the identity belongs to another organisation", "ask for a token of its own"),
    Denial(
        "class_unfit",
        "tokens of that class are not for identities of this kind",
        "user tokens are for users, host tokens for hosts; everyone may ask for trigger tokens",
    ),
    Denial(
        "credential_needed",
        "a token of a login gets trigger tokens only: it begets none of its own kind",
        "ask with the identity's own credential: `tollgate login` again",
    ),
    Denial(
        "outlives_login",
        "the token asked for would outlive the user token that it is asked with",
        "ask for a shorter lifetime, or `tollgate login` again",
    ),
    Denial("platform_unknown", "the host is of no platform that the registry has", "ops: `tollgate policy apply`"),
    Denial("job_name_malformed", "no job can have that name", "name the job as `tollgate jobs list` does"),
    Denial(
        "role_unknown",
        "the identity has a role that the registry does not have, or that cannot be read; it might deny this",
        "ops: `tollgate policy apply`, or take the role from the identity",
    ),
    Denial("denied_by_role", "a role of the identity denies it", "ops: the role's deny; no allow outweighs it"),
    Denial("job_not_granted", "no role of the identity lets it issue for that job", "ops: `tollgate policy apply`"),
    Denial("class_not_granted", "no role lets it issue tokens of that class", "ops: the role's classes"),
    Denial("uses_not_granted", "no role lets it issue tokens for that use", "ops: the role's uses"),
    Denial(
        "subject_not_granted",
        "no role lets it issue tokens for another subject",
        "ops: the role's subjects, or its exchanged_subjects",
    ),
    Denial("lifetime_not_granted", "no role lets it issue tokens that live as long", "ask for a shorter lifetime"),
)
_BY_CODE: Final = {denial.code: denial for denial in DENIALS}

# Classes that are only for one kind of identity. A class never works in another's place.
_KIND_FOR: Final[dict[TokenClass, Kind]] = {"user": "user", "host": "host"}


class IssueRequest(msgspec.Struct, frozen=True):
    """The part of a request for a token that rights are about."""

    subject: str
    org_id: str
    lifetime_s: int | None
    jobs: tuple[str, ...] = ()
    token_class: TokenClass = "trigger"  # noqa: S105 - a class
    uses: Uses = "once"
    left_s: int | None = None  # of the user token that it is asked with; None: with a credential
    exchanged: bool = False  # for a token of the subject that was handed over


class Allowed(msgspec.Struct, frozen=True):
    """It may."""

    identity: str
    roles: tuple[str, ...]  # whose entries allowed it


class Denied(msgspec.Struct, frozen=True):
    """It may not: a code of DENIALS, of the gate's reasons or of minting, and one sentence for whoever asked."""

    code: str
    words: str

    @property
    def meaning(self) -> str:
        return told.meaning if (told := _told(self.code)) is not None else self.words

    @property
    def remedy(self) -> str:
        return told.remedy if (told := _told(self.code)) is not None else ""


def _told(code: str) -> Denial | Reason | None:
    return _BY_CODE.get(code) or BY_CODE.get(code)


def unauthenticated() -> Denied:
    """The same for a name nobody has and for a wrong secret."""
    return Denied("client_unauthenticated", _BY_CODE["client_unauthenticated"].meaning)


def may_issue(
    identity: Identity, roles: Mapping[str, Role], request: IssueRequest, platforms: Collection[str] = ()
) -> Allowed | Denied:
    """Whether an identity, whose credential was verified, may have this token."""
    # 1 the identity
    if identity.disabled:
        return Denied("identity_disabled", f"{identity.name} is disabled")
    if request.org_id != identity.org_id:
        return Denied("org_not_granted", f"{identity.name} belongs to {identity.org_id}")
    # 2 the request
    unfit = _unfit(identity, request, platforms)
    if unfit is not None:
        return unfit
    # 3 deny
    unknown = next((name for name in identity.roles if name not in roles), None)
    if unknown is not None:
        return Denied("role_unknown", f"there is no role {unknown}")
    held = [roles[name] for name in identity.roles]
    for role in held:
        if any(_denies(deny, request) for deny in role.deny):
            return Denied("denied_by_role", f"the role {role.name} denies it")
    # 4 allow
    entries = [(role.name, entry) for role in held for entry in role.allow]
    allowing: list[str] = []
    for job in request.jobs or (None,):
        found = _allowing(identity, entries, request, job)
        if isinstance(found, Denied):
            return found
        allowing.append(found)
    return Allowed(identity.name, tuple(dict.fromkeys(allowing)))


def fitting_lifetime_s(identity: Identity, roles: Mapping[str, Role], request: IssueRequest) -> int | None:
    """The lifetime asked for, or the longest below it with which the same may be issued; None: with none."""
    asked_s = request.lifetime_s or 0
    caps = {entry.max_lifetime_s for name in identity.roles if name in roles for entry in roles[name].allow}
    for lifetime_s in sorted({min(asked_s, cap) for cap in caps}, reverse=True):
        if isinstance(may_issue(identity, roles, msgspec.structs.replace(request, lifetime_s=lifetime_s)), Allowed):
            return lifetime_s
    return None


def _unfit(identity: Identity, request: IssueRequest, platforms: Collection[str]) -> Denied | None:
    """Whether nobody of this kind could have such a token, whatever their roles."""
    kind = _KIND_FOR.get(request.token_class, identity.kind)
    if kind != identity.kind:
        return Denied("class_unfit", f"{request.token_class} tokens are for identities of kind {kind}")
    if request.token_class == "trigger":  # noqa: S105 - a class
        if not request.jobs:
            return Denied("scope_too_broad", "a token without a job would be one for any job: name it")
        if request.uses == "once" and len(request.jobs) > 1:
            return Denied("scope_too_broad", "a one-shot token grants exactly one job")
    else:
        fault = _unfit_client(identity, request, platforms)
        if fault is not None:
            return fault
    if len(request.jobs) > limits.GRANT_JOBS_MAX:
        return Denied("scope_too_broad", f"a token grants at most {limits.GRANT_JOBS_MAX} jobs")
    for job in request.jobs:
        malformed = job_name_fault(job)
        if malformed is not None:
            return Denied("scope_too_broad" if "*" in job else "job_name_malformed", malformed)
    lifetime_s = request.lifetime_s
    if lifetime_s is None:
        return Denied("ttl_missing", "a token needs a lifetime")
    cap_s = CLASS_LIFETIME_MAX_S[request.token_class]
    if request.token_class == "trigger":  # noqa: S105 - a class
        cap_s = limits.LIFETIME_MAX_S[request.uses]
    if lifetime_s > cap_s:
        return Denied("ttl_too_long", f"{lifetime_s} s; at most {cap_s} s")
    if lifetime_s <= 0:
        return Denied("expiry_malformed", "the lifetime must be at least one second")
    if request.left_s is not None and lifetime_s > request.left_s:
        return Denied("outlives_login", f"{lifetime_s} s; the login lasts {request.left_s} s more")
    return None


def _unfit_client(identity: Identity, request: IssueRequest, platforms: Collection[str]) -> Denied | None:
    """The same of a token that says who calls: nobody has one that says somebody else."""
    if request.jobs:
        return Denied("class_unfit", f"{request.token_class} tokens start no jobs, so they name none")
    if request.subject != identity.name:
        return Denied("class_unfit", f"a {request.token_class} token is for {identity.name} itself alone")
    if request.left_s is not None:
        return Denied("credential_needed", f"a login gets no {request.token_class} token")
    if request.token_class == "host" and identity.platform not in platforms:  # noqa: S105 - a class
        return Denied("platform_unknown", f"{identity.name} is of {identity.platform or 'no platform'}")
    return None


def _denies(deny: Deny, request: IssueRequest) -> bool:
    """Every member that is given fits; of several jobs, one that fits is enough."""
    trigger = request.token_class == "trigger"  # noqa: S105 - a class
    return (
        (deny.jobs is None or any(matches(deny.jobs, job) for job in request.jobs))
        and (deny.classes is None or request.token_class in deny.classes)
        and (deny.uses is None or (trigger and request.uses in deny.uses))
        and (deny.subjects is None or matches(deny.subjects, request.subject))
    )


def _allowing(
    identity: Identity, entries: list[tuple[str, Allow]], request: IssueRequest, job: str | None
) -> str | Denied:
    """The role that allows it for one job (None: the class names none), or what the nearest entries lack."""
    left = entries
    for code, words, fits in _needed(identity, request, job):
        left = [(role, entry) for role, entry in left if fits(entry)]
        if not left:
            return Denied(code, words)
    return left[0][0]


def _needed(
    identity: Identity, request: IssueRequest, job: str | None
) -> Iterator[tuple[str, str, Callable[[Allow], bool]]]:
    """What an entry must hold, in the order in which its lack is told: code, words, and whether an entry does."""
    if job is not None:
        yield "job_not_granted", f"{identity.name} may not issue for {job}", lambda entry: matches(entry.jobs, job)
    token_class, uses, subject = request.token_class, request.uses, request.subject
    what = f" for {job}" if job is not None else ""
    yield (
        "class_not_granted",
        f"{identity.name} may not issue tokens of class {token_class}{what}",
        lambda entry: token_class in entry.classes,
    )
    if token_class == "trigger":  # noqa: S105 - a class
        yield (
            "uses_not_granted",
            f"{identity.name} may not issue tokens for use {uses}{what}",
            lambda entry: uses in entry.uses,
        )
    if subject != identity.name:
        yield (
            "subject_not_granted",
            f"{identity.name} may not issue for another subject{what}",
            lambda entry: (
                matches(entry.subjects, subject)
                or (request.exchanged and matches(entry.exchanged_subjects or (), subject))
            ),
        )
    lifetime_s = request.lifetime_s or 0
    yield (
        "lifetime_not_granted",
        f"{identity.name} may not issue tokens of {lifetime_s} s{what}",
        lambda entry: lifetime_s <= entry.max_lifetime_s,
    )
