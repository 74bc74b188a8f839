"""`tollgate identities`: who may ask for tokens, and their credentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from app.cli import common, given, trust
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.authority.identities import Credential, Identity
    from app.config import Settings

app = common.new_app(help="Who may ask for tokens: services, tasks, users and hosts.")

COLUMNS: Final = ("name", "kind", "org_id", "roles", "platform", "disabled", "credentials", "version", "error")
OVERLAP_DEFAULT: Final = "1d"
OVERLAP_MAX_S: Final = 90 * 86_400
REVOKED_BECAUSE: Final = "its identity was changed"

IdentityName = Annotated[str, typer.Argument(metavar="NAME", help="as `identities list` names it", show_default=False)]
RevokeTokens = Annotated[
    bool,
    typer.Option(
        "--revoke-tokens",
        help="also revoke every token that speaks for it or was issued to it, until gate.grace_s from now, as clocks "
        "differ; gates obey at once",
    ),
]


@app.command()
def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML with tables named identities.NAME", show_default=False)
    ],
    dry_run: trust.DryRun = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write the identities of FILE into the registry: roles, org_id and issuer (default ours), of a host its platform.
    svc:, task:, u: and host: before a name say its kind.

    Credentials are not in files: `identities rotate` makes the first and the next. What a file leaves out stays.

    Example: tollgate identities apply identities.toml
    """
    trust.apply_file(file, ("identities",), dry_run, output, bootstrap, prefix)


@app.command("list")
def list_(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """The identities in the registry and their credentials, less the hashes; one that cannot be read has its error.

    Example: tollgate identities list -o json
    """
    trust.list_kinds(("identities",), COLUMNS, output, bootstrap, prefix, shown=_without_hashes)


@app.command()
def rotate(
    name: IdentityName,
    *,
    overlap: Annotated[
        str | None,
        typer.Option(help="how long the old ones stay valid (default 1d; 0 with --revoke-tokens)", show_default=False),
    ] = None,
    jwks: Annotated[
        Path | None, typer.Option(help="its new public keys, a JWK Set, in place of a secret", show_default=False)
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="write the secret here, mode 0600, not to stdout", show_default=False)
    ] = None,
    revoke_tokens: RevokeTokens = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Give an identity a fresh credential. Old and new are both valid for the overlap, then only the new.

    The secret is shown here and never again: the registry keeps its hash.

    Example: tollgate identities rotate svc:ci --overlap 1d --secret-file ci.secret
    """
    import secrets

    from app.authority import identities
    from app.issuer.files import write_atomically

    settings = common.settings_of(bootstrap, prefix)
    overlap_s = given.length_s("--overlap", overlap or ("0" if revoke_tokens else OVERLAP_DEFAULT))
    if overlap_s > OVERLAP_MAX_S:
        common.fail(f"--overlap {overlap}: at most {OVERLAP_MAX_S // 86_400}d", common.USAGE)
    if jwks is not None and secret_file is not None:
        common.fail("--secret-file goes with a secret, not with --jwks", common.USAGE)
    now_s = int(time.time())
    text = None
    if jwks is not None:
        fresh = _keys_of(jwks, now_s)
    else:
        text = identities.secret_text(
            secrets.token_hex(identities.CREDENTIAL_ID_BYTES), secrets.token_bytes(identities.SECRET_BYTES)
        )
        # Before this moment nobody had it, so a server whose clock is behind may take it at once.
        from_s = now_s - settings.gate.grace_s
        fresh = (identities.keep_secret(text, secrets.token_bytes(identities.SALT_BYTES), from_s),)
    changed = _change(settings, name, lambda there: identities.rotated(there, fresh, now_s, overlap_s))
    old = len(changed.credentials) - len(fresh)
    common.say(f"{name}: {', '.join(each.id for each in fresh)} from now on" + _told_overlap(old, now_s + overlap_s))
    if text is not None and secret_file is None:
        print(text, flush=True)
    lost = None
    if text is not None and secret_file is not None:
        try:
            write_atomically(secret_file, text.encode(), 0o600)  # no newline: programs read such files as they are
        except OSError as error:
            lost = f"{secret_file}: {error.strerror}; the new secret is lost: rotate again"
    if revoke_tokens:
        _revoke_tokens(settings, changed)
    if lost is not None:
        common.fail(lost, common.FAILED)


@app.command()
def disable(
    name: IdentityName, revoke_tokens: RevokeTokens = False, bootstrap: Bootstrap = None, prefix: Prefix = None
) -> None:
    """Refuse an identity new tokens, and those it has (`identity_disabled`), until it is enabled again.

    Example: tollgate identities disable svc:ci --revoke-tokens
    """
    settings = common.settings_of(bootstrap, prefix)
    disabled = _set_disabled(settings, name, True)
    common.say(f"{name} is disabled")
    if revoke_tokens:
        _revoke_tokens(settings, disabled)


@app.command()
def enable(name: IdentityName, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """Let a disabled identity act again. Tokens it had are good again, but for those that were revoked.

    Example: tollgate identities enable svc:ci
    """
    _set_disabled(common.settings_of(bootstrap, prefix), name, False)
    common.say(f"{name} is enabled")


@app.command()
def remove(name: IdentityName, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """Disable an identity, revoke every token that speaks for it or was issued to it, and take it out of the registry.

    Example: tollgate identities remove svc:old
    """
    from app import registry

    settings = common.settings_of(bootstrap, prefix)
    # Taken out last: a subject that is not registered is no longer refused as disabled.
    _revoke_tokens(settings, _set_disabled(settings, name, True))
    if not common.run(registry.remove(settings, "identities", name)):
        _not_there(name)
    common.say(f"{name} is removed, and its tokens are revoked")


# ── leaves ──


def _set_disabled(settings: Settings, name: str, disabled: bool) -> Identity:
    import msgspec

    return _change(settings, name, lambda there: msgspec.structs.replace(there, disabled=disabled))


def _change(settings: Settings, name: str, change: Callable[[Identity], Identity | str]) -> Identity:
    """Under the registry's lock."""
    from app.issuer.rights import change_identity

    changed = common.run(change_identity(settings, name, change))
    return changed if changed is not None else _not_there(name)


def _not_there(name: str) -> NoReturn:
    common.fail(f"the registry has no identity {name}: `tollgate identities apply FILE`", common.NOTHING_MATCHED)


def _revoke_tokens(settings: Settings, changed: Identity) -> None:
    """Once the identity is changed: before, whoever has its credential had a new token issued right after."""
    told = False
    try:
        others = common.run(_revoke(settings, changed))
        told = True
    finally:
        if not told:
            common.say(f"{changed.name} is changed, but its tokens are NOT all revoked: run the command again")
    more = f"; and {others} issued to it for other subjects" if others else ""
    common.say(
        f"every token that speaks for {changed.name} is revoked, and any it gets in the next "
        f"{settings.gate.grace_s} s{more}"
    )


async def _revoke(settings: Settings, changed: Identity) -> int:
    """First what speaks for it. Then, one by one, what it was given to speak for others; returns how many those are."""
    import asyncio

    from app.cli.revoke import entry_of, write_revocations

    entry = entry_of(settings, changed.issuer, "subject", changed.name, REVOKED_BECAUSE)
    await write_revocations(settings, [entry])
    # Up to then a server may not have read that the identity is changed; one that is further behind issues nothing.
    await asyncio.sleep(settings.gate.max_staleness_ms / 1000)
    jtis = await _issued_for_others(settings, changed)
    await write_revocations(settings, [entry_of(settings, changed.issuer, "jti", jti, REVOKED_BECAUSE) for jti in jtis])
    return len(jtis)


async def _issued_for_others(settings: Settings, identity: Identity) -> list[str]:
    """The jti of each token that may still be out and does not speak for the identity it was issued to."""
    from app.cli.asked import parsed
    from app.cli.reading import Window, entries
    from app.gate import limits
    from app.stream.topics import Topic

    alive_s = int(time.time()) - settings.gate.grace_s
    window = Window((alive_s - limits.WEBHOOK_LIFETIME_MAX_S) * 1000)
    wanted = {"event": "issued", "identity": identity.name, "issuer": identity.issuer}
    async with entries(settings, Topic.ISSUANCE, window, doing="searching what was issued") as batches:
        return [
            row["jti"]
            async for batch in batches
            for row in map(parsed, batch)
            if wanted.items() <= row.items() and row["subject"] != identity.name and row["expires_at_s"] > alive_s
        ]


def _keys_of(jwks: Path, now_s: int) -> tuple[Credential, ...]:
    """The public keys of a JWK Set as credentials. Whether they are good ones, the record's own reading says."""
    import json

    from app.authority.identities import ClientKey
    from app.gate.keyset import is_kid

    try:
        keys = json.loads(jwks.read_bytes())["keys"]
        fresh = tuple(ClientKey(key["kid"], key, not_before_s=now_s) for key in keys if is_kid(key["kid"]))
    except OSError as error:
        common.fail(f"{jwks}: {error.strerror}", common.USAGE)
    except (ValueError, RecursionError, KeyError, TypeError):
        common.fail(f"{jwks} is no JWK Set: an object with the member keys, each with a kid", common.USAGE)
    if not fresh:
        common.fail(f"{jwks} holds no key with a kid", common.USAGE)
    return fresh


def _told_overlap(old: int, ends_s: int) -> str:
    from app.cli.when import utc

    return f"; {old} older until {utc(ends_s * 1_000)} at the latest" if old else ""


def _without_hashes(row: dict[str, Any]) -> dict[str, Any]:
    from app.authority.identities import is_former

    if "error" in row or "credentials" not in row:
        return row
    shown = [
        {member: each[member] for member in ("id", "kind", "not_before_s", "not_after_s")}
        | ({"former": "kept by a hash that is taken no more: `tollgate identities rotate`"} if is_former(each) else {})
        for each in row["credentials"]
    ]
    return row | {"credentials": shown}
