"""`tollgate receipts`, `jobs tail` and `dead-letters`: what the gate wrote, read as any consumer could read it."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.cli.reading import Entry, Window
    from app.config import Settings
    from app.stream.topics import Topic

receipts_app = common.new_app()
dead_letters_app = common.new_app(help="Refused triggers, as they came less their tokens, with the reason.")

TRIGGER_ID: Final = re.compile(r"\d{1,9}-\d{1,19}")
RECEIPT_WIDTHS: Final = {"trigger_id": 12, "outcome": 9, "run_id": 36, "job": 24, "reason": 28, "detail": 40}
JOB_WIDTHS: Final = {"run_id": 36, "job": 24, "issuer": 28, "subject": 20, "trigger_id": 12, "params": 40}
DEAD_LETTER_WIDTHS: Final = {"trigger_id": 12, "stage": 9, "reason": 28, "when": 20, "detail": 60}

Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on with what comes, until Ctrl-C")]
Since = Annotated[
    str | None, typer.Option(metavar="AGO", show_default=False, help="only the last 30s, 10m, 2h, 7d; default all")
]
Limit = Annotated[int | None, typer.Option(min=1, show_default=False, help="stop after so many")]
Timeout = Annotated[float | None, typer.Option(min=0.1, show_default=False, help="stop after so many seconds")]
JobName = Annotated[str | None, typer.Option("--job", show_default=False, help="only of this job")]


@receipts_app.command()
def receipts(
    *,
    wait: Annotated[
        list[str] | None,
        typer.Option(metavar="TRIGGER_ID", show_default=False, help="wait for this trigger's receipt; repeatable"),
    ] = None,
    follow: Follow = False,
    job: JobName = None,
    outcome: Annotated[
        str | None, typer.Option(show_default=False, help="only accepted, duplicate or rejected")
    ] = None,
    since: Since = None,
    limit: Limit = None,
    timeout: Timeout = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """What became of triggers: one receipt each.

    With --wait: exits 0 when accepted or a duplicate, 3 when rejected,
    124 when the receipt did not come within --timeout (30 s).

    Example: tollgate receipts --wait 3-1042
    """
    from app.cli import reading
    from app.stream.topics import Topic

    settings = common.settings_of(bootstrap, prefix)
    start_ms = reading.since_ms(since)
    if wait:
        common.run(_wait(settings, wait, timeout or 30.0, start_ms, output))
        return
    window = reading.Window(start_ms, follow, reading.deadline_of(timeout))

    def row_of(entry: Entry) -> dict[str, Any] | None:
        row = parsed(entry)
        wanted = {"job": job, "outcome": outcome}
        return row if all(value is None or row.get(name) == value for name, value in wanted.items()) else None

    narrowed = job is not None or outcome is not None
    common.run(
        show(
            settings,
            Topic.RECEIPTS,
            window,
            row_of,
            widths=RECEIPT_WIDTHS,
            limit=limit,
            output=output,
            narrowed=narrowed,
        )
    )


def jobs_tail(
    *,
    follow: Follow = False,
    job: JobName = None,
    since: Since = None,
    limit: Limit = None,
    timeout: Timeout = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Accepted jobs, as workers get them.

    Example: tollgate jobs tail --follow --since 10m
    """
    from app.cli import reading
    from app.stream.topics import Topic

    settings = common.settings_of(bootstrap, prefix)
    window = reading.Window(reading.since_ms(since), follow, reading.deadline_of(timeout))
    table = common.form_of(output) is common.OutputForm.TABLE

    def row_of(entry: Entry) -> dict[str, Any] | None:
        row = parsed(entry)
        if job is not None and row.get("job") != job:
            return None
        return row | {**row.get("identity", {}), "trigger_id": row.get("trigger", {}).get("id")} if table else row

    common.run(
        show(
            settings,
            Topic.JOBS,
            window,
            row_of,
            widths=JOB_WIDTHS,
            limit=limit,
            output=output,
            narrowed=job is not None,
        )
    )


@dead_letters_app.command("list")
def dead_letters_list(
    *,
    reason: Annotated[str | None, typer.Option(show_default=False, help="only of this reason")] = None,
    follow: Follow = False,
    since: Since = None,
    limit: Limit = None,
    timeout: Timeout = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Refused triggers and why.

    Example: tollgate dead-letters list --reason token_expired --since 1h
    """
    from app.cli import reading
    from app.stream.topics import Topic

    settings = common.settings_of(bootstrap, prefix)
    window = reading.Window(reading.since_ms(since), follow, reading.deadline_of(timeout))

    def row_of(entry: Entry) -> dict[str, Any] | None:
        row = _dead_letter(entry)
        return row if reason is None or row["reason"] == reason else None

    narrowed = reason is not None
    common.run(
        show(
            settings,
            Topic.DEAD_LETTERS,
            window,
            row_of,
            widths=DEAD_LETTER_WIDTHS,
            limit=limit,
            output=output,
            narrowed=narrowed,
        )
    )


@dead_letters_app.command("show")
def dead_letters_show(
    trigger_id: Annotated[str, typer.Argument(help="as a receipt names it, such as 3-1042")],
    *,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """One refused trigger whole: reason, headers, key and value, with its token taken out.

    Example: tollgate dead-letters show 3-1042
    """
    from app.cli import reading
    from app.gate.reasons import BY_CODE
    from app.stream.topics import Topic

    _require_trigger_id(trigger_id)
    settings = common.settings_of(bootstrap, prefix)
    partition, _, offset = trigger_id.partition("-")
    wanted = {("tollgate-partition", partition.encode()), ("tollgate-offset", offset.encode())}

    async def find() -> Entry | None:
        async with reading.entries(settings, Topic.DEAD_LETTERS, doing="searching the dead letters") as batches:
            async for batch in batches:
                for entry in batch:
                    if wanted <= set(entry.headers):
                        return entry
        return None

    entry = common.run(find())
    if entry is None:
        common.fail(f"no dead letter of trigger {trigger_id}; `tollgate receipts --wait` tells what became of it",
                    common.NOTHING_MATCHED)  # fmt: skip
    row = _dead_letter(entry)
    row["headers"] = [[name, _text(value)] for name, value in entry.headers]
    row |= {"key": _text(entry.key), "value": _text(entry.value)}
    known = BY_CODE.get(row["reason"])
    row["remedy"] = known.remedy if known is not None else None
    common.print_object(row, output)


# ── reading and showing ──


async def show(
    settings: Settings,
    topic: Topic,
    window: Window,
    row_of: Callable[[Entry], dict[str, Any] | None],
    *,
    widths: Mapping[str, int],
    limit: int | None,
    output: common.OutputForm | None,
    narrowed: bool,
) -> None:
    """Print the rows of a topic as they are read; with filters that matched nothing, exit 5."""
    from app.cli.reading import entries

    async with entries(settings, topic, window, doing="searching" if narrowed else None) as batches:
        rows = _rows(batches, row_of, limit)
        if common.form_of(output) is common.OutputForm.JSON:
            count = common.print_rows([row async for row in rows], list(widths), output)
        else:
            put, count = common.line_printer(widths, output), 0
            async for row in rows:
                put(row)
                count += 1
    if limit is not None and window.follow and count < limit:
        common.fail(f"{count} of {limit} came in time", common.TIMED_OUT)
    if count == 0 and narrowed:
        common.fail("nothing matched", common.NOTHING_MATCHED)


async def _rows(
    batches: AsyncIterator[list[Entry]], row_of: Callable[[Entry], dict[str, Any] | None], limit: int | None
) -> AsyncIterator[dict[str, Any]]:
    count = 0
    async for batch in batches:
        for entry in batch:
            row = row_of(entry)
            if row is None:
                continue
            yield row
            count += 1
            if count == limit:
                return


async def _wait(
    settings: Settings, ids: list[str], timeout_s: float, start_ms: int | None, output: common.OutputForm | None
) -> None:
    from app.cli import reading
    from app.stream.topics import Topic

    for trigger_id in ids:
        _require_trigger_id(trigger_id)
    found: list[dict[str, Any]] = []
    async with reading.reader(settings, Topic.RECEIPTS, reading.Window(start_ms, follow=True)) as opened:
        missing = await reading.wait_for_receipts(opened, ids, timeout_s, found.append)
    found.sort(key=lambda row: ids.index(row["trigger_id"]))
    common.print_rows(found, list(RECEIPT_WIDTHS), output)
    if missing:
        common.fail(f"no receipt within {timeout_s:g} s for {', '.join(sorted(missing))}: is a gate running?",
                    common.TIMED_OUT)  # fmt: skip
    if any(row["outcome"] == "rejected" for row in found):
        raise typer.Exit(common.SOME_FAILED)


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


def _dead_letter(entry: Entry) -> dict[str, Any]:
    from app.cli.when import utc

    ours = {name: value.decode("utf-8", "replace") for name, value in entry.headers if name.startswith("tollgate-")}
    appended = ours.get("tollgate-timestamp", "")
    return {
        "trigger_id": f"{ours.get('tollgate-partition')}-{ours.get('tollgate-offset')}",
        "stage": ours.get("tollgate-stage"),
        "reason": ours.get("tollgate-reason"),
        "detail": ours.get("tollgate-detail"),
        "when": utc(int(appended)) if appended.isdigit() else None,
        "token_fingerprint": ours.get("tollgate-token-fingerprint"),
        "replay_count": ours.get("tollgate-replay-count"),
        "bytes": len(entry.value or b""),
    }


def _require_trigger_id(text: str) -> None:
    if not TRIGGER_ID.fullmatch(text):
        common.fail(f"{text} is no trigger id: it is PARTITION-OFFSET, such as 3-1042", common.USAGE)


def _text(data: bytes | None) -> str | None:
    """Bytes for a reader: as text where they are UTF-8, else as base64 that says so."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()
