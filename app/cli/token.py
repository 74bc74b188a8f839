"""`tollgate token`: issue, look at and verify tokens; `revoke.py` revokes them, `login.py` lists them."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given, handles
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.authority.platforms import Platform
    from app.config import Settings
    from app.gate.claims import BoundTo
    from app.gate.reasons import Rejected
    from app.issuer.keystore import SigningKey

app = common.new_app(help="Tokens: issue, inspect, verify, list, revoke.")

PLACE: Final = "{n}"  # in an idempotency key: the number of the token under --count
_UNLIMITED: Final = ("*",)

TokenFile = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="holds the token; - is stdin; default TOLLGATE_TOKEN in the environment",
        show_default=False,
    ),
]


class UsesName(StrEnum):
    """How often a token may be used."""

    ONCE = "once"  # one-shot
    MANY = "many"  # the webhook pattern


class ClassName(StrEnum):
    """What a token is for. One of a class never works in another's place."""

    TRIGGER = "trigger"  # starts jobs
    USER = "user"  # says who a person is
    HOST = "host"  # says which host it is, of which platform and level


@app.command()
def issue(
    job: Annotated[
        list[str] | None, typer.Option("--job", show_default=False, help="what it may start; repeatable with many uses")
    ] = None,
    *,
    ttl: Annotated[
        str | None, typer.Option(show_default=False, help="required: 300, 5m, 24h; at most 24h (once) or 90d (many)")
    ] = None,
    uses: Annotated[UsesName, typer.Option(help="once, or many for the webhook pattern")] = UsesName.ONCE,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=TEXT|NAME:=JSON", help="a parameter to fix; repeatable; never a secret"),
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help="JSON file with parameters to fix; --param wins over it", show_default=False)
    ] = None,
    params_sha256: Annotated[
        str | None, typer.Option(help="fix the digest of the emitter's parameters", show_default=False)
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="in the token: retries with new tokens start one job; {n} under --count", show_default=False),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="sub (default issuer.subject)", show_default=False)] = None,
    org: Annotated[str | None, typer.Option(help="org_id (default issuer.org_id)", show_default=False)] = None,
    issuer: Annotated[str | None, typer.Option(help="iss (default issuer.issuer)", show_default=False)] = None,
    audience: Annotated[
        str | None, typer.Option(help="aud (default that of this deployment)", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many tokens, one a line")] = 1,
    reference: Annotated[
        bool, typer.Option("--reference", help="print a handle (ref:…), and write what it stands for to Kafka")
    ] = False,
    bound_to: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="it dies with this object of the registry: job/NAME, trust/ISSUER", show_default=False
        ),
    ] = None,
    insecure_dev_hs256: Annotated[
        bool, typer.Option("--insecure-dev-hs256", help="sign with the development secret of gate.insecure_dev_hs256")
    ] = False,
    token_class: Annotated[
        ClassName, typer.Option("--class", help="user and host tokens are for such an identity itself, with --as")
    ] = ClassName.TRIGGER,
    login: Annotated[
        bool, typer.Option("--login", help="ask the `tollgate serve` you are logged in at, as who you are there")
    ] = False,
    identity: Annotated[
        str | None,
        typer.Option("--as", metavar="IDENTITY", show_default=False, help="who asks (default issuer.identity)"),
    ] = None,
    secret_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="holds that identity's secret; - is stdin; default TOLLGATE_CLIENT_SECRET in the environment",
        ),
    ] = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Sign a token and print it, alone, on stdout.

    With --as (or issuer.identity) the roles of that identity in the registry decide, subject and organisation are its
    own, and every token and every refusal (exit 4) leaves a record on the cluster (`tollgate audit issuance`). Without,
    whoever holds the key files issues whatever gates may take, with no record, and only --reference and --bound-to need
    the cluster. A handle says nothing to who sees it and is as good as the token. With --login the same roles decide at
    the `tollgate serve` of `tollgate login`: this machine needs neither keys nor Kafka.

    Example: tollgate token issue --job reports/nightly --ttl 5m > t.jwt

    Example: tollgate token issue --as svc:ci --secret-file ci.secret --job deploy-staging --ttl 5m
    """
    from app.gate.reasons import BY_CODE
    from app.issuer import mint
    from app.issuer.keystore import Keystore

    settings = common.settings_of(
        bootstrap, prefix, gate__audience=audience, issuer__issuer=issuer, issuer__identity=identity
    )
    if login:
        _by_login(
            settings,
            {"jobs": job, "lifetime_s": ttl and given.length_s("--ttl", ttl), "uses": uses.value, "subject": subject,
             "params": given.params(param or [], params_file), "params_sha256": params_sha256},
            _keys(idempotency_key, count),
            {"--as": identity, "--secret-file": secret_file, "--org": org, "--issuer": issuer, "--audience": audience,
             "--reference": reference, "--bound-to": bound_to, "--insecure-dev-hs256": insecure_dev_hs256,
             "--class": token_class is not ClassName.TRIGGER},
        )  # fmt: skip
        return
    asked_as = settings.issuer.identity
    is_trigger = token_class is ClassName.TRIGGER
    if not is_trigger and (asked_as is None or job or reference or bound_to or insecure_dev_hs256):
        common.fail(f"a {token_class} token is for an identity itself: --as NAME --ttl TTL, and no job", common.USAGE)
    if secret_file is not None and asked_as is None:
        common.fail("--secret-file is of an identity: name it by --as", common.USAGE)
    now_s = int(time.time())
    store = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
    fixed = given.params(param or [], params_file)
    ttl_s = given.length_s("--ttl", ttl) if ttl is not None else None
    key = _dev_key(settings) if insecure_dev_hs256 else store.signing_key(now_s)

    def make_client(of_subject: str, of_org: str, platform: Platform | None) -> mint.Minted | mint.Refusal:
        named: mint.ClientClass = "host" if token_class is ClassName.HOST else "user"
        asked = mint.ClientTokenRequest(
            settings.issuer.issuer, settings.audience, of_subject, of_org, named, ttl_s or 0, platform
        )
        return mint.issue(asked, store, now_s)

    def make(
        number: int, of_subject: str, of_org: str, bound: BoundTo | None, platform: Platform | None = None
    ) -> mint.Minted | mint.Refusal:
        if not is_trigger:
            return make_client(of_subject, of_org, platform)
        minted = mint.mint(
            mint.TriggerTokenRequest(
                issuer=settings.issuer.issuer,
                audience=settings.audience,
                subject=of_subject,
                org_id=of_org,
                jobs=tuple(job or ()),
                uses=uses.value,
                ttl_s=ttl_s,
                params=fixed,
                params_sha256=params_sha256,
                idempotency_key=idempotency_key and idempotency_key.replace(PLACE, str(number)),
                bound_to=bound,
            ),
            key,
            now_s,
            handle=mint.new_handle() if reference else None,
        )
        if number == 0 and not insecure_dev_hs256 and isinstance(minted, mint.Minted):
            store.note_expiry(key.kid, minted.claims.exp)
        return minted

    if asked_as is not None and (job or not is_trigger) and ttl_s is not None:
        from app.cli.issuing import Asked, issue_as

        asked = Asked(
            asked_as, given.secret(secret_file), subject, org, tuple(job or ()), uses.value, ttl_s, token_class.value,
            bound_to,
        )  # fmt: skip
        issue_as(settings, asked, count, make)
        return

    bound = None if bound_to is None else common.run(handles.object_of(settings, bound_to))

    def made(number: int) -> mint.Minted:
        minted = make(number, subject or settings.issuer.subject, org or settings.issuer.org_id, bound)
        if isinstance(minted, mint.Refusal):
            remedy = f"; {BY_CODE[minted.code].remedy}" if minted.code in BY_CODE else ""
            # What was not said at all is no matter of what may be said.
            code = common.NOT_ALLOWED if job and ttl_s is not None else common.USAGE
            common.fail(f"{minted.code}: {minted.sentence}{remedy}", code)
        return minted

    if reference:
        common.run(handles.issue(settings, made, count))
        return
    for number in range(count):
        print(made(number).token)


@app.command()
def inspect(
    token_file: TokenFile = None, output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None
) -> None:
    """Show what a token says of itself. NOTHING IS VERIFIED: anyone can write a token that says anything.

    Of a handle (ref:…), what it stands for is read from Kafka.

    Example: tollgate token inspect --token-file t.jwt
    """
    from app.gate.jws import parse_unverified
    from app.gate.reasons import Rejected
    from app.gate.token import fingerprint

    token = given.token(token_file)
    grant = handles.grant_of(token, common.settings_of(bootstrap, prefix))
    read = grant if isinstance(grant, Rejected) else parse_unverified(grant)
    common.say("NOTHING IS VERIFIED: neither who made this token nor whether it was altered (`tollgate token verify`)")
    if isinstance(read, Rejected):
        common.fail(sentence(read))
    common.print_object(
        {
            "verified": False,
            "unverified_header": read.unverified_header,
            "unverified_claims": read.unverified_claims,
            "fingerprint": fingerprint(token),
        },
        output,
    )


@app.command()
def verify(
    token_file: TokenFile = None,
    *,
    jwks: Annotated[
        Path | None, typer.Option(help="JWK Set of the issuer (default issuer.jwks_file)", show_default=False)
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="iss to trust (default issuer.issuer)", show_default=False)] = None,
    audience: Annotated[
        str | None, typer.Option(help="aud to expect (default that of this deployment)", show_default=False)
    ] = None,
    insecure_dev_hs256: Annotated[
        bool, typer.Option("--insecure-dev-hs256", help="also accept the development secret")
    ] = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Verify a token as a gate would now: signature, claims and times; or say which check failed (exit 1).

    Trust rules, revocations and what a token is bound to are on the cluster: `tollgate explain` asks them too. Of a
    handle (ref:…), what it stands for is read from Kafka.

    Example: tollgate token verify --token-file t.jwt
    """
    from app.gate.keyset import JWKSInvalid
    from app.gate.reasons import Rejected

    settings = common.settings_of(bootstrap, prefix, gate__audience=audience, issuer__issuer=issuer)
    token = given.token(token_file)
    try:
        verified = _verify(token, jwks or settings.issuer.jwks_file, settings, insecure=insecure_dev_hs256)
    except JWKSInvalid as error:
        common.fail(f"{jwks or settings.issuer.jwks_file}: {error}")
    if isinstance(verified, Rejected):
        reason = verified.reason
        common.print_object(
            {
                "valid": False, "stage": reason.stage.value, "reason": reason.code, "detail": verified.detail,
                "meaning": reason.meaning, "remedy": reason.remedy,
            },
            output,
        )  # fmt: skip
        common.fail(sentence(verified))
    common.print_object({"valid": True, **verified}, output)


# ── leaves ──


def _keys(idempotency_key: str | None, count: int) -> list[str | None]:
    return [idempotency_key and idempotency_key.replace(PLACE, str(number)) for number in range(count)]


def _by_login(settings: Settings, wanted: dict[str, Any], keys: list[str | None], not_with_it: dict[str, Any]) -> None:
    """Ask the door for what was asked of us. Which of its rules refuse it, the door says."""
    from app.cli.login import issue as issue_by_login

    other = next((option for option, value in not_with_it.items() if value), None)
    if other is not None:
        common.fail(f"{other} is not for --login: the door says who you are and signs with its keys", common.USAGE)
    if not wanted["jobs"] or wanted["lifetime_s"] is None:
        common.fail("a token needs a job and a lifetime: --job NAME --ttl 5m", common.USAGE)
    issue_by_login(settings, {name: value for name, value in wanted.items() if value not in (None, {})}, keys)


def _dev_key(settings: Settings) -> SigningKey:
    from app.issuer.mint import dev_signing_key
    from app.trust import load_dev_secret

    secret = load_dev_secret(settings)
    if secret is None:
        common.fail("there is no development secret: set gate.insecure_dev_hs256 to its file", common.USAGE)
    common.say("INSECURE: signed with a shared development secret; only gates on this machine should take it")
    return dev_signing_key(secret)


def _verify(token: str, jwks: Path, settings: Settings, *, insecure: bool) -> dict[str, Any] | Rejected:
    import msgspec

    from app.gate import policy
    from app.gate.keyset import EDDSA, ES256, KeySet, dev_key
    from app.gate.limits import WEBHOOK_LIFETIME_MAX_S
    from app.gate.reasons import Rejected
    from app.gate.reference import Grants, grant_key, handle_digest
    from app.gate.token import GrantWanted, VerifiedToken, verify
    from app.trust import load_dev_secret

    iss = settings.issuer.issuer
    secret = load_dev_secret(settings) if insecure else None
    if secret is not None and not jwks.exists():
        keys = KeySet({}, frozenset())
    else:
        keys = KeySet.from_jwks(jwks.read_bytes(), (ES256, EDDSA))
    grants, grant = Grants(), handles.grant_of(token, settings)
    if isinstance(grant, Rejected):
        return grant
    grants.apply(grant_key(handle_digest(token)), grant.encode(), appended_at_ms=0)
    ring = {iss: keys if secret is None else keys.with_dev_key(dev_key(secret))}
    verified = verify(token, ring, settings.audience, grants)
    if isinstance(verified, Rejected):
        return verified
    if isinstance(verified, GrantWanted):
        return Rejected("token_unknown")
    if not isinstance(verified, VerifiedToken):
        return Rejected("kid_unknown", f"{jwks} has no key of that kid")
    claims = verified.claims
    # The most a trust rule can allow: whether this deployment's allows it is not known here.
    rule = policy.TrustRule(
        issuer=iss, version=1, jwks=str(jwks), algorithms=(), orgs=(claims.org_id,), classes=(claims.token_class,),
        subjects=_UNLIMITED, jobs=_UNLIMITED, max_lifetime_s=WEBHOOK_LIFETIME_MAX_S,
    )  # fmt: skip
    refused = policy.check_token(claims, rule, policy.Revocations(), int(time.time() * 1000), settings.gate.grace_s)
    if refused is not None:
        return refused
    return {
        "fingerprint": verified.fingerprint,
        "insecure": verified.insecure,
        "claims": msgspec.to_builtins(claims),
    }


def sentence(rejected: Rejected) -> str:
    detail = f" ({rejected.detail})" if rejected.detail else ""
    return f"{rejected.code}: {rejected.reason.meaning}{detail}"
