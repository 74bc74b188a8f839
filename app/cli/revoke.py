"""`tollgate token revoke`: what is no longer honoured, from now on, by every gate."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings
    from app.gate.revocation import Revocation, Selector


def revoke(
    *,
    jti: Annotated[str | None, typer.Option(help="one token", show_default=False)] = None,
    subject: Annotated[
        str | None, typer.Option(help="all tokens of a subject issued up to --since", show_default=False)
    ] = None,
    subject_prefix: Annotated[
        str | None, typer.Option(help="all tokens of subjects that begin so, up to --since", show_default=False)
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="all tokens that grant a job, up to --since", show_default=False)
    ] = None,
    token_class: Annotated[
        str | None, typer.Option("--class", help="all tokens of a class, as trigger, up to --since", show_default=False)
    ] = None,
    issued: Annotated[bool, typer.Option("--issued", help="all tokens of the issuer issued up to --since")] = False,
    kid: Annotated[str | None, typer.Option(help="all tokens signed with a key", show_default=False)] = None,
    issuer_all: Annotated[bool, typer.Option("--issuer-all", help="all tokens of the issuer")] = False,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="the token itself, or its handle, by its iss and jti; - is stdin; default TOLLGATE_TOKEN",
            show_default=False,
        ),
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="whose (default issuer.issuer)", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="tokens issued up to then (10m ago: 10m, or a time); default now and gate.grace_s, as clocks differ. "
            "Not with --jti, --kid, --issuer-all",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="why, for whoever reads it later")] = "revoked by an operator",
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write a revocation; every gate honours it within a second. Give exactly one of what to revoke.

    What a token was exchanged for goes with it, and a subject takes along what it has for others to act with.

    A key or an issuer is revoked whole: whoever has the key chooses iat. --issued is for an issuer that is sound again:
    what it issued before is dead, and so is what it issues within the grace for clock skew, gate.grace_s, unless
    --since says up to when; what it issues later is not.

    The record's key is the issuer, the selector and the value in plain text, as ops must be able to read and lift it;
    it holds no token.

    Example: tollgate token revoke --subject service:ci --reason "laptop stolen"

    Example: tollgate token revoke --subject-prefix service:ci- --since 2h
    """
    from app.authority.revoking import reason_fault, shown
    from app.gate.token import EVERY_CLASS

    settings = common.settings_of(bootstrap, prefix, issuer__issuer=issuer)
    named: dict[Selector, str | None] = {
        "jti": jti, "subject": subject, "subject_prefix": subject_prefix, "job": job, "class": token_class, "kid": kid,
    }  # fmt: skip
    chosen: list[tuple[Selector, str]] = [(name, text) for name, text in named.items() if text is not None]
    of_many = len(chosen) + issuer_all + issued
    by_token = token_file is not None or (not of_many and bool(os.environ.get("TOLLGATE_TOKEN")))
    if of_many + by_token != 1:
        common.fail(
            "give exactly one of --jti, --subject, --subject-prefix, --job, --class, --issued, --kid, --issuer-all "
            "and --token-file",
            common.USAGE,
        )
    if any(not text for _, text in chosen):
        common.fail("what is to be revoked is empty", common.USAGE)
    if token_class is not None and token_class not in EVERY_CLASS.values():
        common.fail(f"--class is one of {', '.join(sorted(EVERY_CLASS.values()))}", common.USAGE)
    if since is not None and (jti is not None or kid is not None or issuer_all or by_token):
        common.fail("--since has no meaning here: a token, a key or an issuer is revoked whole", common.USAGE)
    fault = reason_fault(reason)
    if fault is not None:
        common.fail(f"--reason: {fault}", common.USAGE)
    iss = settings.issuer.issuer
    selector, value = chosen[0] if chosen else ("issuer", iss)
    if issued:
        selector, value = "subject_prefix", ""  # of every subject
    elif by_token:
        selector = "jti"
        unverified_iss, value = _named_by(given.token(token_file), settings)
        if issuer is not None and issuer != unverified_iss:
            common.fail("the token names another issuer than --issuer", common.USAGE)
        iss = unverified_iss
    since_s = given.moment_s("--since", since) if since is not None else None
    entry = entry_of(settings, iss, selector, value, reason, since_s=since_s)
    offset = common.run(write_revocations(settings, [entry]))[0]
    common.print_object(shown(entry) | {"offset": offset}, output)


def _named_by(token: str, settings: Settings) -> tuple[str, str]:
    """The issuer and jti a token names. That nothing is verified does no harm: the operator has it in hand."""
    from app.cli.handles import grant_of
    from app.cli.token import sentence
    from app.gate.jws import parse_unverified
    from app.gate.reasons import Rejected

    grant = grant_of(token, settings)
    read = grant if isinstance(grant, Rejected) else parse_unverified(grant)
    if isinstance(read, Rejected):
        common.fail(f"the token cannot be read, so it cannot be used either: {sentence(read)}")
    iss, jti = read.unverified_claims.get("iss"), read.unverified_claims.get("jti")
    if not isinstance(iss, str) or not isinstance(jti, str) or not iss or not jti:
        common.fail("the token has no iss and jti to revoke it by: revoke its --subject or --kid")
    return iss, jti


def entry_of(
    settings: Settings, iss: str, selector: Selector, value: str, reason: str, *, since_s: int | None = None
) -> Revocation:
    """What is to be written, by whoever runs this command."""
    import getpass
    import socket

    from app.authority.revoking import revocation

    gate = settings.gate
    return revocation(
        iss, selector, value, now_s=int(time.time()), grace_s=gate.grace_s, queue_age_cap_s=gate.queue_age_cap_s,
        reason=reason, by=f"{getpass.getuser()}@{socket.gethostname()}", since_s=since_s,
    )  # fmt: skip


async def write_revocations(settings: Settings, revoked: Sequence[Revocation]) -> Sequence[int]:
    """Write them, and return their offsets: the cluster has them on return."""
    from app.authority.revoking import record_of
    from app.cli.reading import partitions_of
    from app.stream.appending import appending
    from app.stream.topics import Topic

    await partitions_of(settings, Topic.REVOCATIONS)  # says at once when the topic is not there
    async with appending(settings.kafka) as append:
        return await append(Topic.REVOCATIONS, [record_of(entry) for entry in revoked])
