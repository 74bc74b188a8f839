"""`tollgate explain`: every check of one trigger, and the one that decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, OutputForm, Prefix

app = common.new_app()

MARKS: Final = {"pass": "✓", "fail": "✗", "not reached": "·"}


@app.command()
def explain(
    *,
    trigger: Annotated[
        str, typer.Argument(metavar="TRIGGER_ID|FILE|-", help="coordinates such as 3-1042, or a file with the value")
    ],
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME: VALUE", help="of a trigger from a file")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="also the checks that were not reached")] = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    output: Output = None,
) -> None:
    """Judge one trigger as a gate would judge it now, and show each check. Nothing is written.

    A token in a header belongs into a file: -H "authorization: Bearer @token.txt".

    Example: tollgate explain 3-1042
    """
    from app.logs import configure_logging
    from app.stream.inquiry import NoSuchRecord, inquire

    settings = common.settings_of(bootstrap, prefix)
    configure_logging("error")
    what = _what(trigger, header or [])

    async def ask() -> Any:
        from app.stream import administration

        checked = administration.check(settings)
        if checked.deployment is None:
            common.fail(checked.complaint)
        lanes = checked.deployment.lanes
        if isinstance(what, tuple) and what[0] >= lanes:
            common.fail(f"there are {lanes} lanes, 0 to {lanes - 1}: no trigger has the id {trigger}",
                        common.NOTHING_MATCHED)  # fmt: skip
        return await inquire(settings, checked.deployment, what)

    try:
        explanation = common.run(ask())
    except NoSuchRecord as error:
        common.fail(str(error), common.NOTHING_MATCHED)
    _show(explanation, every, output)
    if explanation.outcome not in ("accepted", "duplicate"):
        raise typer.Exit(common.SOME_FAILED)


def _what(trigger: str, headers: list[str]) -> Any:
    coordinates = given.trigger_id(trigger)
    if coordinates is None:
        return _record(trigger, headers)
    if headers:
        common.fail("--header goes with a trigger from a file, not with coordinates", common.USAGE)
    return coordinates


def _record(source: str, headers: list[str]) -> Any:
    """A record as if it had been appended just now to lane 0, from a file or standard input."""
    import sys
    import time

    from app.gate.trigger import Record

    try:
        value = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        common.fail(
            f"{source} is neither coordinates (3-1042) nor a file that can be read: {error.strerror}", common.USAGE
        )
    read: list[tuple[str, bytes | None]] = []
    for line in headers:
        name, colon, content = line.partition(":")
        if not colon:
            common.fail(f"--header {name!r} is not NAME: VALUE", common.USAGE)
        content = content.strip()
        start, at, file = content.rpartition("@")
        if at and (not start or start.endswith(" ")):
            try:
                content = start + Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                common.fail(f"{file} cannot be read: {error.strerror}", common.USAGE)
            except UnicodeDecodeError:
                common.fail(f"{file} is not text: a header from a file is UTF-8", common.USAGE)
        read.append((name.strip(), content.encode()))
    now_ms = time.time_ns() // 1_000_000
    return Record(0, 1 << 50, now_ms, True, None, value, tuple(read))


def _show(explanation: Any, every: bool, output: OutputForm | None) -> None:
    import msgspec

    if common.form_of(output) is not OutputForm.TABLE:
        common.print_object(msgspec.to_builtins(explanation), output)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    colour = {"accepted": "green", "duplicate": "yellow", "held": "yellow"}.get(explanation.outcome, "red")
    console.print(f"[bold {colour}]{explanation.outcome}[/] {escape(explanation.reason or '')}")
    if explanation.run_id:
        console.print(f"run {explanation.run_id}")
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in explanation.facts.items():
        if value is not None:
            facts.add_row(name, escape(common.cell_of(value)))
    console.print(facts)
    for stage in dict.fromkeys(check.stage for check in explanation.checks):
        of_stage = [check for check in explanation.checks if check.stage == stage]
        passed = [check.check for check in of_stage if check.result == "pass"]
        if passed:
            console.print(f"[green]{MARKS['pass']} {stage}[/]  [dim]{', '.join(passed)}[/]")
        for check in of_stage:
            if check.result == "fail":
                console.print(f"[bold red]{MARKS['fail']} {stage}  {check.check}[/]: {escape(check.meaning)}")
                if check.detail:
                    console.print(f"    {escape(common.cell_of(check.detail))}")
                console.print(f"    → {escape(check.remedy or '')}")
            elif check.result == "not reached" and every:
                console.print(f"[dim]{MARKS['not reached']} {stage}  {check.check}[/]")
    if explanation.outcome == "held":
        console.print("A gate holds this trigger until it can be decided; it is not refused.")
