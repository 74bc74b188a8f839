"""`tollgate topics`: create the topics and founding records, or say what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.stream.administration import Checked, Finding

app = common.new_app(help="The topics and their settings.")

COLUMNS: Final = ("level", "topic", "setting", "found", "needed", "why", "mend")


@app.command()
def create(
    lanes: Annotated[
        int | None,
        typer.Option(min=1, max=1024, show_default=False, help="partitions of every lane topic (default 12); final"),
    ] = None,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, max=9, show_default=False, help="default 3, or as many as there are brokers")
    ] = None,
    print_: Annotated[
        bool, typer.Option("--print", help="only print the commands, for those who may create topics")
    ] = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Create what is missing of the topics, their settings and the founding records.

    Run again it adds nothing. A topic that exists is never altered: what differs is told.

    Example: tollgate topics create --lanes 12 --replication-factor 3
    """
    from app.stream import administration

    settings = common.settings_of(bootstrap, prefix)
    if print_:
        print("\n".join(administration.print_commands(settings, lanes, replication_factor)))
        return
    created = administration.create_topics(settings, lanes, replication_factor)
    for name in created.topics:
        common.say(f"created {name}")
    if created.records:
        common.say(f"wrote {len(created.records)} founding records")
    if not created.topics and not created.records:
        common.say("nothing was missing")
    _end(created.checked)


@app.command()
def check(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """Compare every topic with what a gate needs, and say how to mend what differs.

    Exits 1 when a gate would refuse to start. Example: tollgate topics check -o json
    """
    from app.stream import administration

    settings = common.settings_of(bootstrap, prefix)
    checked = administration.check(settings)
    as_table = common.form_of(output) is common.OutputForm.TABLE
    if not as_table:
        common.print_rows([row_of(finding) for finding in checked.findings], COLUMNS, output)
    _end(checked, say_findings=as_table)


def row_of(finding: Finding) -> common.Row:
    """A finding as a row of output."""
    return {"level": "bad" if finding.fatal else "warn", **finding._asdict()}


def _end(checked: Checked, *, say_findings: bool = True) -> None:
    for finding in checked.findings if say_findings else ():
        common.say(("" if finding.fatal else "warning: ") + finding.sentence())
    if checked.deployment is None:
        common.fail(f"{len(checked.fatal)} finding(s) keep a gate from starting")
    common.say(f"the topics are right: {checked.deployment.lanes} lanes, deployment {checked.deployment.birth_id}")


@app.command(name="accept-gap")
def accept_gap(
    *,
    lane: Annotated[
        int, typer.Argument(min=0, metavar="LANE", help="the lane that stopped, as the gate's log names it")
    ],
    reason: Annotated[str, typer.Option("--reason", help="why it is right to go on; kept in the audit")],
    by: Annotated[
        str | None, typer.Option("--by", show_default=False, help="who decides; default the user name")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do it; without this, only say what would be given up")] = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Go on without records that were deleted undecided, or without a checkpoint that was lost.

    A lane whose position lies outside its topic, or that has no checkpoint, stops by name instead of guessing. This
    takes the lane's lock, sets its position and writes that to the audit: to the first record there is, or to the end
    where it lies beyond; where the checkpoint is lost, behind the last trigger that the audit or a handoff shows, so
    that none runs twice.

    Example: tollgate topics accept-gap 3 --reason "retention too short" --yes
    """
    import getpass

    from app.stream import gap

    settings = common.settings_of(bootstrap, prefix)
    try:
        accepted = common.run(gap.accept(settings, lane, by or getpass.getuser(), reason, commit=yes))
    except gap.NoGap as error:
        common.fail(str(error), common.NOTHING_MATCHED)
    for one in accepted:
        if one.from_offset < one.to_offset:
            common.say(f"{one.topic}[{lane}]: offsets {one.from_offset} to {one.to_offset - 1} will never be decided")
        else:
            common.say(f"{one.topic}[{lane}]: it goes on at offset {one.to_offset}")
    common.say("accepted, and written to the audit" if yes else "nothing was done: run it again with --yes to go on")
