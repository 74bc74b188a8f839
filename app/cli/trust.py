"""`tollgate trust`: which issuers may do what; and the ways of applying and listing that `tollgate jobs` shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings
    from app.registry import Definition, Kind

app = common.new_app(help="Which issuers may do what.")

COLUMNS: Final = ("issuer", "version", "jwks", "algorithms", "orgs", "subjects", "jobs", "max_lifetime_s", "error")
CHANGE_COLUMNS: Final = ("kind", "name", "action", "version")
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would change")]


@app.command()
def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML with tables named trust.ISSUER", show_default=False)
    ],
    dry_run: DryRun = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write the trust rules of FILE into the registry; gates follow within a second.

    A rule that is already there is left alone; a changed one gets the next version. To stop an issuer at once, use
    `tollgate token revoke`.

    Example: tollgate trust apply trust.toml
    """
    apply_file(file, ("trust",), dry_run, output, bootstrap, prefix)


@app.command()
def register(
    issuer: Annotated[str, typer.Argument(metavar="ISSUER", help="iss of its tokens", show_default=False)],
    *,
    jwks: Annotated[
        Path,
        typer.Option(
            help="its public keys, a JWK Set; the rule keeps them, no gate reads the file", show_default=False
        ),
    ],
    job: Annotated[
        list[str],
        typer.Option(help="what it may start, once for each; a trailing * matches any rest", show_default=False),
    ],
    subject: Annotated[
        str | None, typer.Option(help="as whom it may speak (default ISSUER)", show_default=False)
    ] = None,
    org: Annotated[
        str | None, typer.Option(help="its organisation (default issuer.org_id)", show_default=False)
    ] = None,
    max_lifetime: Annotated[str, typer.Option(help="the longest life of a token, such as 10m or 90d")] = "24h",
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Let an emitter sign its own tokens: for these jobs, as this subject and nobody else.

    The emitter makes its keys with `tollgate keys generate`, gives you the file that `tollgate keys jwks` names, and
    issues with TOLLGATE_ISSUER__ISSUER=ISSUER. Registering again replaces its keys; `trust remove` ends it.

    Example: tollgate trust register emitter:ci --jwks ci-jwks.json --job deploy/staging
    """
    import json

    from app import registry
    from app.cli import given

    settings = common.settings_of(bootstrap, prefix)
    try:
        keys = json.loads(jwks.read_bytes())
    except OSError as error:
        common.fail(f"{jwks}: {error.strerror}", common.USAGE)
    except (ValueError, RecursionError) as error:
        common.fail(f"{jwks} is not JSON: {error}", common.USAGE)
    if not isinstance(keys, dict):
        common.fail(f"{jwks} is no JWK Set: an object with the member keys", common.USAGE)
    table = {
        "jwks": keys, "algorithms": ["ES256", "EdDSA"], "orgs": [org or settings.issuer.org_id],
        "subjects": [subject or issuer], "jobs": job, "max_lifetime_s": given.length_s("--max-lifetime", max_lifetime),
    }  # fmt: skip
    _apply(settings, [registry.define("trust", issuer, table)], issuer, output, dry_run=False)


@app.command()
def remove(
    issuer: Annotated[str, typer.Argument(metavar="ISSUER", help="as `trust list` names it", show_default=False)],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take an issuer's rule away: gates refuse its tokens (`issuer_untrusted`) within a second.

    What it started goes on. Tokens bound to the rule (`token issue --bound-to`) are dead for good. Applying or
    registering the rule again lets the others in again, so a key that leaked is revoked besides: `tollgate token
    revoke --kid`.

    Example: tollgate trust remove emitter:ci
    """
    from app import registry

    if not common.run(registry.remove(common.settings_of(bootstrap, prefix), "trust", issuer)):
        common.fail(f"the registry has no trust rule for {issuer}", common.NOTHING_MATCHED)
    common.say(f"{issuer} is trusted no longer")


@app.command("list")
def list_(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """The trust rules in the registry; one no gate can read is shown with its error.

    Example: tollgate trust list -o json
    """
    list_kinds(("trust",), COLUMNS, output, bootstrap, prefix)


def apply_file(
    file: Path,
    kinds: Sequence[Kind],
    dry_run: bool,
    output: common.OutputForm | None,
    bootstrap: str | None,
    prefix: str | None,
) -> None:
    """Read, judge and write the definitions of a file, and print what changed."""
    from app import registry

    settings = common.settings_of(bootstrap, prefix)
    issuer = settings.issuer
    ours = {"issuer": issuer.issuer, "org_id": issuer.org_id} if "identities" in kinds else None
    definitions = registry.read_definitions(file, *kinds, defaults=ours)
    _apply(settings, definitions, str(file), output, dry_run=dry_run)


def _apply(
    settings: Settings, definitions: list[Definition], where: str, output: common.OutputForm | None, *, dry_run: bool
) -> None:
    from app import registry

    for definition in definitions:
        for warning in definition.warnings:
            common.say(f'WARNING: {where}: [{definition.kind}."{definition.name}"] {warning}')
    changes = common.run(registry.apply(settings, definitions, dry_run=dry_run))
    rows = [
        {"kind": change.kind, "name": change.name, "action": change.action, "version": change.version}
        for change in changes
    ]
    common.print_rows(rows, CHANGE_COLUMNS, output)
    for change in changes:
        for absent in change.absent:
            what = "host token" if absent.startswith("platform ") else "token"
            common.say(
                f"WARNING: {change.name} gets no {what}: the registry has no {absent}; `tollgate policy apply FILE` "
                "writes one"
            )
    if dry_run:
        common.say("nothing was written (--dry-run)")


def list_kinds(
    kinds: Sequence[Kind],
    columns: Sequence[str],
    output: common.OutputForm | None,
    bootstrap: str | None,
    prefix: str | None,
    *,
    shown: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Print the registry's records of some kinds, each as `shown` makes it."""
    from app import registry

    settings = common.settings_of(bootstrap, prefix)
    present = common.run(registry.read_registry(settings))
    rows = [
        row if len(kinds) == 1 else {"kind": kind} | row
        for kind in kinds
        for row in registry.definitions_in(present, kind)
    ]
    if shown is not None:
        rows = [shown(row) for row in rows]
    columns = [name for name in columns if name != "error" or any("error" in row for row in rows)]
    common.print_rows(rows, columns, output)
    if not rows:
        group = "policy" if len(kinds) > 1 else kinds[0]
        common.say(f"the registry holds none: `tollgate {group} apply FILE` writes them")
