"""`tollgate audit`: who presented what and what came of it, and everything known of one run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common
from app.cli.asked import Asked, JobName, Outcome, matches, parsed, reads

if TYPE_CHECKING:
    from app.cli.reading import Entry
    from app.config import Settings

app = common.new_app(invoke_without_command=True)
app.info.no_args_is_help = False

SLACK_MS: Final = 10 * 60_000  # between the broker's clock and a gate's, generously
UUID_TIME_SHIFT: Final = 80  # a run id opens with 48 bits of append time
WIDTHS: Final = {"when": 20, "trigger_id": 12, "outcome": 9, "reason": 28, "job": 24, "issuer": 28, "subject": 20,
                 "actors": 20, "token_fingerprint": 32, "run_id": 36}  # fmt: skip


@app.callback()
@reads
def audit(
    context: typer.Context,
    *,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN_ID", show_default=False, help="everything known of this run")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(show_default=False, help="only of this subject or issuer, or by who acted for it")
    ] = None,
    issuer: Annotated[
        str | None,
        typer.Option(show_default=False, help="only of this issuer's: another's subject of one name is another"),
    ] = None,
    job: JobName = None,
    outcome: Outcome = None,
    asked: Asked,
) -> None:
    """Every presentation of a token; with --run, the whole story of one run.

    `actors` are who acted for the subject with an exchanged token: the last first, who has it from the next.

    Example: tollgate audit --run 01981c7e-5a00-7a6b-8e21-3f0c5b7d9e10

    Example: tollgate audit --identity service:ci --since 1d

    Example: tollgate audit verify
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return
    if run is not None:
        common.run(_tell_run(asked.settings(), run, asked.output))
        return
    from app.stream.topics import Topic

    def wanted(entry: Entry) -> Iterator[dict[str, Any]]:
        for row in rows_of(entry):
            if identity in {None, row.get("subject"), row.get("issuer"), *row.get("actors", ())} and matches(
                row, issuer=issuer, job=job, outcome=outcome
            ):
                yield row

    narrowed = any(each is not None for each in (identity, issuer, job, outcome))
    asked.show(Topic.AUDIT, wanted, WIDTHS, narrowed=narrowed)


def _refuse_options_before(context: typer.Context, subcommand: str) -> None:
    """`audit --prefix x. verify` would verify another deployment: what stands here is not handed on."""
    sources = [context.get_parameter_source(name) for name in context.params]
    if any(source is not None and source.name == "COMMANDLINE" for source in sources):
        common.fail(f"options of `audit {subcommand}` come after it: tollgate audit {subcommand} --prefix …",
                    common.USAGE)  # fmt: skip


def rows_of(entry: Entry) -> list[dict[str, Any]]:
    """The presentations of one audit record, each with where it stands."""
    from app.cli.when import utc

    record = parsed(entry)
    place = {"lane": record.get("lane"), "sequence": record.get("sequence"), "when": utc(entry.timestamp_ms)}
    if "presentations" not in record:
        return [record | place]
    return [presentation | place for presentation in record["presentations"]]


# ── one run ──


async def _tell_run(settings: Settings, text: str, output: common.OutputForm | None) -> None:
    from app.cli.story import print_story

    try:
        run_id = str(uuid.UUID(text))
    except ValueError:
        common.fail(f"{text} is no run id: it is a UUID, as receipts and jobs name it", common.USAGE)
    story = await story_of(settings, run_id)
    if story is None:
        common.fail(f"the audit knows no run {run_id}: another --prefix, or deleted by the topic's retention",
                    common.NOTHING_MATCHED)  # fmt: skip
    if common.form_of(output) is common.OutputForm.TABLE:
        print_story(story)
    else:
        common.print_object(story, output)


async def story_of(settings: Settings, run_id: str) -> dict[str, Any] | None:
    """Everything the topics know of a run, or None. Reads only what was written since its trigger was appended."""
    from app.cli.reading import Window, entries
    from app.stream.topics import Topic

    since_ms = max(0, (uuid.UUID(run_id).int >> UUID_TIME_SHIFT) - SLACK_MS)
    window = Window(since_ms)
    needle = run_id.encode()
    presentations: list[dict[str, Any]] = []
    async with entries(settings, Topic.AUDIT, window, doing="searching the audit") as batches:
        async for batch in batches:
            for entry in batch:
                if entry.value is not None and needle in entry.value:
                    presentations += [row for row in rows_of(entry) if row.get("run_id") == run_id]
    accepted = next((row for row in presentations if row["outcome"] == "accepted"), None)
    # A lane writes only its own partition, so the audit's lane says where the job is.
    lanes = frozenset({int(accepted["lane"])}) if accepted is not None else None
    job: dict[str, Any] | None = None
    async with entries(settings, Topic.JOBS, Window(since_ms, partitions=lanes), doing="searching the jobs") as batches:
        async for batch in batches:
            job = next((parsed(entry) for entry in batch if entry.key == needle), job)
    if not presentations and job is None:
        return None
    # Those that reused its token or key for something else: named in the audit, and by their dead letters.
    refused = {row["trigger_id"]: row for row in presentations if row["outcome"] == "rejected"}
    async with entries(settings, Topic.DEAD_LETTERS, window, doing="searching the dead letters") as batches:
        async for batch in batches:
            for entry in batch:
                if ("tollgate-first-run-id", needle) in entry.headers:
                    told = _refusal(entry)
                    refused.setdefault(told["trigger_id"], told)
    return {
        "run_id": run_id,
        "emitter": _emitter(accepted, job),
        "token": _token(accepted, job),
        "trigger": (job or {}).get("trigger") or {"id": (accepted or {}).get("trigger_id")},
        "decision": accepted,
        "job": job,
        "duplicates": [row for row in presentations if row["outcome"] == "duplicate"],
        "refused_reuses": list(refused.values()),
    }


def _emitter(accepted: dict[str, Any] | None, job: dict[str, Any] | None) -> dict[str, Any]:
    if accepted is not None:
        told = {"issuer": accepted.get("issuer"), "subject": accepted.get("subject")}
        return told | ({"actors": accepted["actors"]} if accepted.get("actors") else {})
    return dict((job or {}).get("identity", {}))


def _token(accepted: dict[str, Any] | None, job: dict[str, Any] | None) -> dict[str, Any]:
    told = dict((job or {}).get("token", {}))
    if accepted is not None:
        told |= {"fingerprint": accepted.get("token_fingerprint"), "jti": accepted.get("jti")}
    return told


def _refusal(entry: Entry) -> dict[str, Any]:
    told = {name: value.decode("utf-8", "replace") for name, value in entry.headers}
    return {
        "trigger_id": f"{told.get('tollgate-partition')}-{told.get('tollgate-offset')}",
        "reason": told.get("tollgate-reason"),
        "token_fingerprint": told.get("tollgate-token-fingerprint"),
    }
