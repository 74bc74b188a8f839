"""What the commands that read a topic share: their options, and how rows are shown as they are read."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, get_type_hints

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.cli.reading import Entry
    from app.config import Settings
    from app.stream.topics import Topic

JobName = Annotated[str | None, typer.Option("--job", show_default=False, help="only of this job")]


class OutcomeName(StrEnum):
    """What can become of a trigger."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


Outcome = Annotated[OutcomeName | None, typer.Option(show_default=False, help="only of this outcome")]


class Asked(NamedTuple):
    """The options that all of them take; `reads` gives them to a command."""

    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what comes, until Ctrl-C")] = False
    since: Annotated[
        str | None,
        typer.Option(metavar="AGO", show_default=False, help="only since 30s, 2h, 7d ago, or a time; default all"),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, show_default=False, help="stop after so many")] = None
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, callback=given.finite, show_default=False, help="stop after so many seconds"),
    ] = None
    output: Output = None
    bootstrap: Bootstrap = None
    prefix: Prefix = None

    def settings(self) -> Settings:
        return common.settings_of(self.bootstrap, self.prefix)

    def show(
        self, topic: Topic, rows_of: Callable[[Entry], Iterable[dict[str, Any]]], widths: Mapping[str, int], *,
        narrowed: bool,
    ) -> None:  # fmt: skip
        """Print the rows of a topic's records as they are read; with filters that matched nothing, exit 5."""
        common.run(_show(self, topic, rows_of, widths, narrowed=narrowed))


_SHARED: Final = [
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=Asked._field_defaults[name], annotation=hint
    )
    for name, hint in get_type_hints(Asked, include_extras=True).items()
]  # fmt: skip


def reads(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose last parameter is `asked: Asked`, with the options of Asked in that one's place."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "asked"]

    def called(**options: Any) -> None:
        shared = {parameter.name: options.pop(parameter.name) for parameter in _SHARED}
        command(**options, asked=Asked(**shared))

    # Typer reads both.
    called.__signature__ = signature.replace(parameters=[*own, *_SHARED])  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *_SHARED)}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


async def _show(
    asked: Asked, topic: Topic, rows_of: Callable[[Entry], Iterable[dict[str, Any]]], widths: Mapping[str, int], *,
    narrowed: bool,
) -> None:  # fmt: skip
    from app.cli.reading import Window, deadline_of, entries, since_ms

    window = Window(since_ms(asked.since), asked.follow, deadline_of(asked.timeout))
    async with entries(asked.settings(), topic, window, doing="searching" if narrowed else None) as batches:
        rows = _rows(batches, rows_of, asked.limit)
        if common.form_of(asked.output) is common.OutputForm.JSON:
            count = common.print_rows([row async for row in rows], list(widths), asked.output)
        else:
            put, count = common.line_printer(widths, asked.output), 0
            async for row in rows:
                put(row)
                count += 1
    if asked.limit is not None and window.follow and count < asked.limit:
        common.fail(f"{count} of {asked.limit} came in time", common.TIMED_OUT)
    if count == 0 and narrowed:
        common.fail("nothing matched", common.NOTHING_MATCHED)


async def _rows(
    batches: AsyncIterator[list[Entry]], rows_of: Callable[[Entry], Iterable[dict[str, Any]]], limit: int | None
) -> AsyncIterator[dict[str, Any]]:
    count = 0
    async for batch in batches:
        for entry in batch:
            for row in rows_of(entry):
                yield row
                count += 1
                if count == limit:
                    return


def matches(row: Mapping[str, Any], **wanted: str | None) -> bool:
    """Whether a row has what was asked for; what was not is None."""
    return all(value is None or row.get(name) == value for name, value in wanted.items())


def parsed(entry: Entry) -> dict[str, Any]:
    """The record's JSON object; what is none (only a gate should write here) is shown as such, not passed over."""
    import orjson

    try:
        row = orjson.loads(entry.value or b"")
    except orjson.JSONDecodeError:
        row = None
    if isinstance(row, dict):
        return row
    return {"unreadable": f"partition {entry.partition}, offset {entry.offset}"}
