"""`tollgate receipts`, `jobs tail` and `dead-letters`: what the gate wrote, read as any consumer could read it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.asked import Asked, JobName, Outcome, matches, parsed, reads
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.cli.reading import Entry

receipts_app = common.new_app()
dead_letters_app = common.new_app(help="Refused triggers, as they came less their tokens, with the reason.")

WAIT_S: Final = 30.0  # for a receipt, unless --timeout says otherwise
RECEIPT_WIDTHS: Final = {"trigger_id": 12, "outcome": 9, "run_id": 36, "job": 24, "reason": 28, "detail": 40}
JOB_WIDTHS: Final = {"run_id": 36, "job": 24, "issuer": 28, "subject": 20, "trigger_id": 12, "params": 40}
DEAD_LETTER_WIDTHS: Final = {"trigger_id": 12, "stage": 9, "reason": 28, "when": 20, "detail": 60}


@receipts_app.command()
@reads
def receipts(
    *,
    wait: Annotated[
        list[str] | None,
        typer.Option(metavar="TRIGGER_ID", show_default=False, help="wait for this trigger's receipt; repeatable"),
    ] = None,
    job: JobName = None,
    outcome: Outcome = None,
    asked: Asked,
) -> None:
    """What became of triggers: one receipt each.

    With --wait: exits 0 when accepted or a duplicate, 3 when rejected,
    124 when the receipt did not come within --timeout (30 s).

    Example: tollgate receipts --wait 3-1042
    """
    from app.stream.topics import Topic

    if wait:
        common.run(_wait(wait, asked))
        return

    def rows_of(entry: Entry) -> Iterator[dict[str, Any]]:
        row = parsed(entry)
        if matches(row, job=job, outcome=outcome):
            yield row

    asked.show(Topic.RECEIPTS, rows_of, RECEIPT_WIDTHS, narrowed=job is not None or outcome is not None)


@reads
def jobs_tail(*, job: JobName = None, asked: Asked) -> None:
    """Accepted jobs, as workers get them.

    Example: tollgate jobs tail --follow --since 10m
    """
    from app.stream.topics import Topic

    table = common.form_of(asked.output) is common.OutputForm.TABLE

    def rows_of(entry: Entry) -> Iterator[dict[str, Any]]:
        row = parsed(entry)
        if matches(row, job=job):
            yield row | {**row.get("identity", {}), "trigger_id": row.get("trigger", {}).get("id")} if table else row

    asked.show(Topic.JOBS, rows_of, JOB_WIDTHS, narrowed=job is not None)


@dead_letters_app.command("list")
@reads
def dead_letters_list(
    *,
    reason: Annotated[str | None, typer.Option(show_default=False, help="only of this reason")] = None,
    asked: Asked,
) -> None:
    """Refused triggers and why.

    Example: tollgate dead-letters list --reason token_expired --since 1h
    """
    from app.gate.reasons import BY_CODE
    from app.stream.topics import Topic

    given.one_of("--reason", reason, BY_CODE)

    def rows_of(entry: Entry) -> Iterator[dict[str, Any]]:
        row = _dead_letter(entry)
        if matches(row, reason=reason):
            yield row

    asked.show(Topic.DEAD_LETTERS, rows_of, DEAD_LETTER_WIDTHS, narrowed=reason is not None)


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


# ── leaves ──


async def _wait(ids: list[str], asked: Asked) -> None:
    from app.cli import reading
    from app.stream.topics import Topic

    for trigger_id in ids:
        _require_trigger_id(trigger_id)
    timeout_s = asked.timeout or WAIT_S
    window = reading.Window(reading.since_ms(asked.since), follow=True)
    found: list[dict[str, Any]] = []
    async with reading.reader(asked.settings(), Topic.RECEIPTS, window) as opened:
        missing = await reading.wait_for_receipts(opened, ids, timeout_s, found.append)
    found.sort(key=lambda row: ids.index(row["trigger_id"]))
    common.print_rows(found, list(RECEIPT_WIDTHS), asked.output)
    if missing:
        common.fail(f"no receipt within {timeout_s:g} s for {', '.join(sorted(missing))}: is a gate running?",
                    common.TIMED_OUT)  # fmt: skip
    if any(row["outcome"] == "rejected" for row in found):
        raise typer.Exit(common.SOME_FAILED)


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
    if given.trigger_id(text) is None:
        common.fail(f"{text} is no trigger id: it is PARTITION-OFFSET, such as 3-1042", common.USAGE)


def _text(data: bytes | None) -> str | None:
    """Bytes for a reader: as text where they are UTF-8, else as base64 that says so."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()
