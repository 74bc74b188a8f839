"""`tollgate jobs`: job definitions into the registry, and what is there (`jobs tail` stands in `read.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from app.cli import common, trust
from app.cli.common import Bootstrap, Output, Prefix

app = common.new_app(help="Job definitions (apply, list) and accepted jobs (tail).")

COLUMNS: Final = ("name", "version", "enabled", "accepts", "on_param_conflict", "dedup_window_s", "timeout_s", "error")


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML with tables named jobs.NAME", show_default=False)],
    dry_run: trust.DryRun = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Write the job definitions of FILE into the registry; gates follow within a second.

    A definition that is already there is left alone; a changed one gets the next version. To stop a job, say
    `enabled = false`: leaving its table out changes nothing.

    Example: tollgate jobs apply jobs.toml --dry-run
    """
    trust.apply_file(file, ("jobs",), dry_run, output, bootstrap, prefix)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `jobs list` names it", show_default=False)],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take a job's definition away: gates refuse its triggers (`job_unknown`) within a second.

    What runs goes on. Tokens bound to the job (`token issue --bound-to`) are dead for good, also when it is applied
    again; other tokens that grant it start it again then. To stop it for a while, say `enabled = false`.

    Example: tollgate jobs remove reports/nightly
    """
    from app import registry

    if not common.run(registry.remove(common.settings_of(bootstrap, prefix), "jobs", name)):
        common.fail(f"the registry has no job {name}", common.NOTHING_MATCHED)
    common.say(f"{name} is a job no longer")


@app.command("list")
def list_(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """The job definitions in the registry; one no gate can read is shown with its error.

    Example: tollgate jobs list -o json
    """
    trust.list_kinds(("jobs",), COLUMNS, output, bootstrap, prefix)
