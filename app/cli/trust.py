"""`tollgate trust`: which issuers may do what; and the ways of applying and listing that `tollgate jobs` shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.registry import Kind

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
    apply_file(file, "trust", dry_run, output, bootstrap, prefix)


@app.command("list")
def list_(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """The trust rules in the registry; one no gate can read is shown with its error.

    Example: tollgate trust list -o json
    """
    list_kind("trust", COLUMNS, output, bootstrap, prefix)


def apply_file(
    file: Path,
    kind: Kind,
    dry_run: bool,
    output: common.OutputForm | None,
    bootstrap: str | None,
    prefix: str | None,
) -> None:
    """Read, judge and write the definitions of a file, and print what changed."""
    from app import registry

    settings = common.settings_of(bootstrap, prefix)
    definitions = registry.read_definitions(file, kind)
    for definition in definitions:
        for warning in definition.warnings:
            common.say(f'WARNING: {file}: [{kind}."{definition.name}"] {warning}')
    changes = common.run(registry.apply(settings, definitions, dry_run=dry_run))
    rows = [
        {"kind": change.kind, "name": change.name, "action": change.action, "version": change.version}
        for change in changes
    ]
    common.print_rows(rows, CHANGE_COLUMNS, output)
    if dry_run:
        common.say("nothing was written (--dry-run)")


def list_kind(
    kind: Kind,
    columns: Sequence[str],
    output: common.OutputForm | None,
    bootstrap: str | None,
    prefix: str | None,
) -> None:
    """Print the registry's records of one kind."""
    from app import registry

    settings = common.settings_of(bootstrap, prefix)
    rows = registry.definitions_in(common.run(registry.read_registry(settings)), kind)
    if not any("error" in row for row in rows):
        columns = [name for name in columns if name != "error"]
    common.print_rows(rows, columns, output)
    if not rows:
        common.say(f"the registry holds none: `tollgate {kind} apply FILE` writes them")
