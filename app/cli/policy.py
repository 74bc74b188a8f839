"""`tollgate policy`: what roles may issue, what is mapped to tokens that are out, and the levels of platforms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.cli import common, trust
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.registry import Kind

app = common.new_app(help="What roles may issue, and rules over tokens that are out.")

COLUMNS: Final = (
    "kind", "name", "version", "allow", "deny", "effect", "issuers", "jtis", "identities", "classes", "hosts", "jobs",
    "reason", "level", "error",
)  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = ("roles", "rules", "platforms")


@app.command()
def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML: roles.NAME, rules.NAME, platforms.NAME", show_default=False)
    ],
    dry_run: trust.DryRun = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write the roles, mapping rules and platforms of FILE into the registry; issuers and gates obey within a second.

    A role says what its identities may issue: allow and deny, by jobs, classes, uses, subjects and max_lifetime_s; for
    exchanged_subjects, in allow alone, they must have been handed a token of theirs to exchange. A rule says what
    tokens that are out may start: effect deny or allow, by issuers, jtis, identities, classes, hosts and jobs; who is
    fitted by an allow rule may start only what one of them names. Deny wins, always. A platform has a level of security
    from 1 to 9, which stands in the tokens of its hosts.

    Example: tollgate policy apply policy.toml --dry-run
    """
    trust.apply_file(file, KINDS, dry_run, output, bootstrap, prefix)


@app.command()
def show(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """The roles, mapping rules and platforms in the registry; one that cannot be read is shown with its error.

    Example: tollgate policy show -o json
    """
    trust.list_kinds(KINDS, COLUMNS, output, bootstrap, prefix)


@app.command()
def remove(
    name: Annotated[
        str,
        typer.Argument(metavar="KIND.NAME", help="roles.NAME, rules.NAME or platforms.NAME", show_default=False),
    ],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take a role, a mapping rule or a platform out of the registry. Who has a role that is not there gets no token,
    nor does a host whose platform is not.

    Example: tollgate policy remove rules.freeze
    """
    from app import registry

    table, _, of = name.partition(".")
    kind: Kind | None = next((each for each in KINDS if each == table), None)
    if kind is None or not of:
        common.fail(f"{name}: write {' or '.join(f'{each}.NAME' for each in KINDS)}", common.USAGE)
    if not common.run(registry.remove(common.settings_of(bootstrap, prefix), kind, of)):
        common.fail(f"the registry has no {name}", common.NOTHING_MATCHED)
    common.say(f"{name} is removed")
