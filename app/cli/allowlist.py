"""`tollgate allowlist`: who starts a job today, as the lines that let only those go on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings

app = common.new_app(help="Who may start a job, as its owner says.")

COLUMNS: Final = ("issuer", "subject", "started", "duplicates")
Identity = tuple[str, str]  # issuer and subject


@app.callback()
def _group() -> None:
    """Who may start a job, as its owner says: `allowlist` in the job's definition, over what any token says."""


@app.command()
def suggest(
    job: Annotated[str, typer.Argument(metavar="JOB", help="its name", show_default=False)],
    since: Annotated[
        str | None, typer.Option(metavar="AGO", show_default=False, help="only the last 10m, 2h, 30d; default all")
    ] = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """An allowlist of those who started JOB, from the audit. Read it before you apply it: it knows the past only.

    It prints what belongs into the job's table in jobs.toml; -o json or jsonl gives the identities, with how often each
    started the job.

    Example: tollgate allowlist suggest reports/nightly --since 30d
    """
    settings = common.settings_of(bootstrap, prefix)
    found = common.run(_who_started(settings, job, since))
    if not found:
        common.fail(f"the audit knows nobody who started {job}", common.NOTHING_MATCHED)
    if output in {common.OutputForm.JSON, common.OutputForm.JSONL}:
        rows = [{"issuer": issuer, "subject": subject, **counts} for (issuer, subject), counts in sorted(found.items())]
        common.print_rows(rows, COLUMNS, output)
        return
    print("allowlist = [")
    for (issuer, subject), counts in sorted(found.items()):
        # A name that ends in * would be a pattern here, and let in more than this one.
        out = "# a pattern, not this subject: " if "*" in subject else ""
        names = f"{{ issuer = {_toml(issuer)}, subject = {_toml(subject)} }},"
        print(f"  {out}{names}  # started it {counts['started']} times")
    print("]")


async def _who_started(settings: Settings, job: str, since: str | None) -> dict[Identity, Counter[str]]:
    from app.cli.audit import rows_of
    from app.cli.reading import Window, entries, since_ms
    from app.stream.topics import Topic

    found: dict[Identity, Counter[str]] = {}
    async with entries(settings, Topic.AUDIT, Window(since_ms(since)), doing="searching the audit") as batches:
        async for batch in batches:
            for entry in batch:
                for row in rows_of(entry):
                    if row.get("job") == job and row.get("outcome") in {"accepted", "duplicate"}:
                        counts = found.setdefault((row["issuer"], row["subject"]), Counter(started=0, duplicates=0))
                        counts["started" if row["outcome"] == "accepted" else "duplicates"] += 1
    return found


def _toml(text: str) -> str:
    """A TOML basic string: JSON writes one, but for what no terminal may see."""
    import json

    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in quoted)
