"""`tollgate login`, `logout`, `whoami`, and what a login is for: tokens asked of a `tollgate serve` over HTTP."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from app.cli import common, given
from app.cli.common import AsIdentity, Output, SecretFile

COLUMNS: Final = ("token_fingerprint", "token_class", "uses", "jobs", "subject", "identity", "issued_at", "expires_at",
                  "revoked")  # fmt: skip

Url = Annotated[
    str | None,
    typer.Option(metavar="URL", show_default=False, help="of the `tollgate serve` (default login.url)"),
]


def login(
    *,
    ttl: Annotated[str, typer.Option(help="how long it lasts: 30m, 8h; at most 24h, and as the roles say")] = "8h",
    identity: AsIdentity = None,
    secret_file: SecretFile = None,
    url: Url = None,
) -> None:
    """Get a token that says for a while who you are, and keep it in a file of yours (mode 0600). It is never shown.

    `token issue --login`, `token list` and `whoami` act under it; when it has expired they say so and exit 6. It begets
    trigger tokens only, none of which outlives it. The file is login.file, default ~/.config/tollgate/login.json.

    Example: tollgate login --as u:ann --ttl 8h --url https://tollgate.example
    """
    from app.cli import door
    from app.cli.when import utc

    settings = common.settings_of(issuer__identity=identity, login__url=url)
    name = settings.issuer.identity
    if name is None:
        common.fail("who are you? --as u:NAME, or issuer.identity", common.USAGE)
    lifetime_s = given.length_s("--ttl", ttl)
    where = door.address(settings.login.url)
    wanted = {"token_class": "user", "lifetime_s": lifetime_s}
    told = door.ask(settings, "POST", where, "/v1/tokens", (name, given.secret(name, secret_file)), json=wanted)
    try:
        made = door.Login(where, told["subject"], told["jti"], told["expires_at_s"], told["token"])
    except (TypeError, KeyError):
        common.fail(f"{where} answered no user token: is it a `tollgate serve` of this version?")
    file = door.keep(settings, made)
    common.say(f"logged in as {made.identity} at {where} until {utc(made.expires_at_s * 1000)}; kept in {file}")


def logout() -> None:
    """End the login: its token is revoked, and its file removed. Trigger tokens that were got by it live on.

    Example: tollgate logout
    """
    import time

    from app.cli import door

    settings = common.settings_of()
    file = door.file_of(settings)
    try:
        there = door.kept(settings)
    except typer.Exit:
        file.unlink(missing_ok=True)
        common.fail(f"{file} is removed; the token it held was not revoked, for it could not be read safely")
    if there is None:
        common.fail("nobody is logged in here", common.NOTHING_MATCHED)
    file.unlink(missing_ok=True)
    if time.time() < there.expires_at_s:
        body = {"selector": "jti", "value": there.jti, "reason": "logout"}
        try:
            door.ask(settings, "POST", there.url, "/v1/revocations", there.token, json=body)
        except typer.Exit as end:
            if end.exit_code != common.LOGIN_NEEDED:  # it is no longer honoured, as it should be
                common.say(f"{file} is removed, but the token was not revoked: it lives until it expires")
                raise
    common.say(f"{there.identity} is logged out of {there.url}")


def whoami(output: Output = None) -> None:
    """Who is logged in, as the registry has it now, where, and until when.

    Example: tollgate whoami -o json
    """
    from app.cli import door
    from app.cli.when import utc

    settings = common.settings_of()
    there = door.current(settings)
    told = door.ask(settings, "GET", there.url, "/v1/me", there.token)
    more = {"url": there.url, "expires_at": utc(there.expires_at_s * 1000), "file": str(door.file_of(settings))}
    common.print_object(told | more, output)


def list_tokens(
    *,
    job: Annotated[str | None, typer.Option(show_default=False, help="only of this job")] = None,
    token_class: Annotated[
        str | None, typer.Option("--class", show_default=False, help="only trigger, user or host tokens")
    ] = None,
    output: Output = None,
) -> None:
    """Your tokens that may still be out, by fingerprint: those you asked for, and those that speak for you.

    Asked of the `tollgate serve` you are logged in at.

    Example: tollgate token list --job reports/nightly
    """
    from app.cli import door
    from app.cli.when import utc

    given.one_of("--class", token_class, ("trigger", "user", "host"))
    settings = common.settings_of()
    there = door.current(settings)
    query = {name: value for name, value in (("job", job), ("class", token_class)) if value is not None}
    told = door.ask(settings, "GET", there.url, "/v1/tokens", there.token, params=query)
    rows = [
        row | {"issued_at": utc(row["issued_at_ms"]), "expires_at": utc(row["expires_at_s"] * 1000)}
        for row in told["tokens"]
    ]
    if common.print_rows(rows, COLUMNS, output) == 0 and query:
        common.fail("nothing matched", common.NOTHING_MATCHED)
    if told["more"]:
        common.say("there are more: narrow it by --job or --class")
