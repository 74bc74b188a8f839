"""`tollgate token`: issue, look at, verify and revoke tokens."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings
    from app.gate.reasons import Rejected
    from app.gate.revocation import Selector
    from app.issuer.keystore import SigningKey

app = common.new_app(help="Tokens: issue, inspect, verify, revoke.")

PLACE: Final = "{n}"  # in an idempotency key: the number of the token under --count
SEND_TIMEOUT_S: Final = 30.0
_UNLIMITED: Final = ("*",)

TokenFile = Annotated[
    str, typer.Option("--token-file", metavar="FILE", help="holds the token; - is stdin", show_default=False)
]


class UsesName(StrEnum):
    """How often a token may be used."""

    ONCE = "once"  # one-shot
    MANY = "many"  # the webhook pattern


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
    insecure_dev_hs256: Annotated[
        bool, typer.Option("--insecure-dev-hs256", help="sign with the development secret of gate.insecure_dev_hs256")
    ] = False,
    prefix: Prefix = None,
) -> None:
    """Sign a token and print it, alone, on stdout.

    Example: tollgate token issue --job reports/nightly --ttl 5m --param region=eu > t.jwt
    """
    from app.gate.reasons import BY_CODE
    from app.issuer import mint
    from app.issuer.keystore import Keystore, KeystoreError

    settings = common.settings_of(
        None, prefix, gate__audience=audience, issuer__issuer=issuer, issuer__org_id=org, issuer__subject=subject
    )
    now_s = int(time.time())
    store = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
    fixed = given.params(param or [], params_file)
    ttl_s = given.length_s("--ttl", ttl) if ttl is not None else None
    try:
        key = _dev_key(settings) if insecure_dev_hs256 else store.signing_key(now_s)
        for number in range(count):
            minted = mint.mint(
                mint.TriggerTokenRequest(
                    issuer=settings.issuer.issuer,
                    audience=settings.audience,
                    subject=settings.issuer.subject,
                    org_id=settings.issuer.org_id,
                    jobs=tuple(job or ()),
                    uses=uses.value,
                    ttl_s=ttl_s,
                    params=fixed,
                    params_sha256=params_sha256,
                    idempotency_key=idempotency_key and idempotency_key.replace(PLACE, str(number)),
                ),
                key,
                now_s,
            )
            if isinstance(minted, mint.Refusal):
                remedy = f"; {BY_CODE[minted.code].remedy}" if minted.code in BY_CODE else ""
                common.fail(f"{minted.code}: {minted.sentence}{remedy}", common.NOT_ALLOWED)
            if number == 0 and not insecure_dev_hs256:
                store.note_expiry(key.kid, minted.claims.exp)
            print(minted.token)
    except KeystoreError as error:
        common.fail(str(error))


@app.command()
def inspect(token_file: TokenFile, output: Output = None) -> None:
    """Show what a token says of itself. NOTHING IS VERIFIED: anyone can write a token that says anything.

    Example: tollgate token inspect --token-file t.jwt
    """
    from app.gate.reasons import Rejected
    from app.gate.token import parse_unverified

    read = parse_unverified(given.token(token_file))
    common.say("NOTHING IS VERIFIED: neither who made this token nor whether it was altered (`tollgate token verify`)")
    if isinstance(read, Rejected):
        common.fail(_sentence(read))
    common.print_object(
        {
            "verified": False,
            "unverified_header": read.unverified_header,
            "unverified_claims": read.unverified_claims,
            "fingerprint": read.fingerprint,
        },
        output,
    )


@app.command()
def verify(
    token_file: TokenFile,
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
    prefix: Prefix = None,
) -> None:
    """Verify a token as a gate would now: signature, claims and times; or say which check failed (exit 1).

    Trust rules and revocations are on the cluster: `tollgate explain` asks them too.

    Example: tollgate token verify --token-file t.jwt
    """
    from app.gate.keyset import JWKSInvalid
    from app.gate.reasons import Rejected

    settings = common.settings_of(None, prefix, gate__audience=audience, issuer__issuer=issuer)
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
        common.fail(_sentence(verified))
    common.print_object({"valid": True, **verified}, output)


@app.command()
def revoke(
    *,
    jti: Annotated[str | None, typer.Option(help="one token", show_default=False)] = None,
    subject: Annotated[
        str | None, typer.Option(help="all tokens of a subject issued up to --since", show_default=False)
    ] = None,
    kid: Annotated[str | None, typer.Option(help="all tokens signed with a key", show_default=False)] = None,
    issuer_all: Annotated[bool, typer.Option("--issuer-all", help="all tokens of the issuer")] = False,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="the token itself, by its iss and jti; - is stdin", show_default=False),
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="whose (default issuer.issuer)", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="with --subject: tokens issued up to then (10m ago, or a time); default now", show_default=False
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="why, for whoever reads it later")] = "revoked by an operator",
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write a revocation; every gate honours it within a second. Give exactly one of what to revoke.

    A key or an issuer is revoked whole: whoever has the key chooses iat. The record's key is the issuer, the selector
    and the value in plain text, as ops must be able to read and lift it; it holds no token.

    Example: tollgate token revoke --subject service:ci --since 10m --reason "laptop stolen"
    """
    settings = common.settings_of(bootstrap, prefix, issuer__issuer=issuer)
    chosen = [each for each in (jti, subject, kid, token_file) if each is not None]
    if len(chosen) + issuer_all != 1:
        common.fail("give exactly one of --jti, --subject, --kid, --issuer-all and --token-file", common.USAGE)
    if since is not None and subject is None:
        common.fail("--since goes with --subject only: a jti, key or issuer is revoked whole", common.USAGE)
    iss, value = settings.issuer.issuer, (chosen or [settings.issuer.issuer])[0]
    if token_file is not None:
        unverified_iss, value = _named_by(given.token(token_file))
        if issuer is not None and issuer != unverified_iss:
            common.fail("the token names another issuer than --issuer", common.USAGE)
        iss = unverified_iss
    selector: Selector = "issuer" if issuer_all else "subject" if subject else "kid" if kid else "jti"
    now_s = int(time.time())
    since_s = given.moment_s("--since", since, now_s) if since is not None else now_s
    row = common.run(_write(settings, iss, selector, value, since_s, now_s, reason))
    common.print_object(row, output)


# ── leaves ──


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
    from app.gate.token import VerifiedToken, verify
    from app.trust import load_dev_secret

    iss = settings.issuer.issuer
    secret = load_dev_secret(settings) if insecure else None
    if secret is not None and not jwks.exists():
        keys = KeySet({}, frozenset())
    else:
        keys = KeySet.from_jwks(jwks.read_bytes(), (ES256, EDDSA))
    verified = verify(token, {iss: keys if secret is None else keys.with_dev_key(dev_key(secret))}, settings.audience)
    if isinstance(verified, Rejected):
        return verified
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


def _sentence(rejected: Rejected) -> str:
    detail = f" ({rejected.detail})" if rejected.detail else ""
    return f"{rejected.code}: {rejected.reason.meaning}{detail}"


def _named_by(token: str) -> tuple[str, str]:
    """The issuer and jti a token names. That nothing is verified does no harm: the operator has it in hand."""
    from app.gate.reasons import Rejected
    from app.gate.token import parse_unverified

    read = parse_unverified(token)
    if isinstance(read, Rejected):
        common.fail(f"the token cannot be read, so it cannot be used either: {_sentence(read)}")
    iss, jti = read.unverified_claims.get("iss"), read.unverified_claims.get("jti")
    if not isinstance(iss, str) or not isinstance(jti, str) or not iss or not jti:
        common.fail("the token has no iss and jti to revoke it by: revoke its --subject or --kid")
    return iss, jti


async def _write(
    settings: Settings, iss: str, selector: Selector, value: str, since_s: int, now_s: int, reason: str
) -> dict[str, Any]:
    import asyncio
    import getpass
    import socket

    from aiokafka import AIOKafkaProducer

    from app.cli.reading import partitions_of
    from app.gate import limits
    from app.gate.revocation import KEEP_FOR_EVER, revocation_record
    from app.stream.connect import client_options
    from app.stream.topics import Topic

    if selector == "jti":
        since_s = limits.NUMERIC_DATE_MAX_S  # one token, whatever its iat
    # A token issued up to now is dead by then, however long it waits to be judged.
    keep_until_s = (
        KEEP_FOR_EVER
        if selector in {"kid", "issuer"}
        else now_s + limits.WEBHOOK_LIFETIME_MAX_S + 2 * settings.gate.grace_s + settings.gate.queue_age_cap_s
    )
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    key, record = revocation_record(
        iss, selector, value, since_s=since_s, reason=reason, by=by, keep_until_s=keep_until_s
    )
    await partitions_of(settings, Topic.REVOCATIONS)  # says at once when the topic is not there
    producer = AIOKafkaProducer(**client_options(settings.kafka), acks="all", enable_idempotence=True)
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await producer.start()
        try:
            sent = await producer.send_and_wait(
                Topic.REVOCATIONS.named(settings.kafka.prefix), record, key=key, partition=0
            )
        finally:
            await producer.stop()
    return {
        "issuer": iss, "selector": selector, "value": value, "since_s": since_s, "reason": reason, "by": by,
        "keep_until_s": keep_until_s, "offset": sent.offset,
    }  # fmt: skip
