"""`tollgate token`: look at and verify tokens; `issuing.py` issues, `revoke.py` revokes, `login.py` lists them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given, handles
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings
    from app.gate.reasons import Rejected

app = common.new_app(help="Tokens: issue, inspect, verify, list, revoke.")

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


@app.command()
def inspect(
    token_file: TokenFile = None,
    *,
    uses: Annotated[
        bool, typer.Option("--uses/--no-uses", help="count its uses in the audit, which is on Kafka")
    ] = True,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Show what a token says of itself, and its uses. NOTHING IS VERIFIED: anyone can write a token that says anything.

    use_count is how many jobs it has started and last_used when it did last, as far back as the audit goes; both are
    null where the audit was not asked (--no-uses) or cannot be read. Of a handle (ref:…), what it stands for is read
    from Kafka.

    Example: tollgate token inspect --token-file t.jwt

    Example: tollgate token inspect --token-file t.jwt --no-uses
    """
    from app.cli.uses import UNKNOWN, uses_of
    from app.gate.jws import parse_unverified
    from app.gate.reasons import Rejected
    from app.gate.token import fingerprint

    token, settings = given.token(token_file), common.settings_of(bootstrap, prefix)
    grant = handles.grant_of(token, settings)
    read = grant if isinstance(grant, Rejected) else parse_unverified(grant)
    common.say("NOTHING IS VERIFIED: neither who made this token nor whether it was altered (`tollgate token verify`)")
    if isinstance(read, Rejected):
        common.fail(sentence(read))
    shown = fingerprint(token)
    common.print_object(
        {
            "verified": False,
            "unverified_header": read.unverified_header,
            "unverified_claims": read.unverified_claims,
            "fingerprint": shown,
            **(uses_of(settings, shown, read.unverified_claims) if uses else UNKNOWN),
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
