"""`tollgate audit`: who presented what and what came of it, everything known of one run, and the chain of hashes."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix
from app.cli.read import Follow, JobName, Limit, Since, Timeout

if TYPE_CHECKING:
    from app.cli.reading import Entry, Window
    from app.config import Settings

app = common.new_app(invoke_without_command=True)
app.info.no_args_is_help = False

SLACK_MS: Final = 10 * 60_000  # between the broker's clock and a gate's, generously
UUID_TIME_SHIFT: Final = 80  # a run id opens with 48 bits of append time
NO_AUDIT_YET: Final = "0" * 64
WIDTHS: Final = {"when": 20, "trigger_id": 12, "outcome": 9, "reason": 28, "job": 24, "issuer": 28, "subject": 20,
                 "token_fingerprint": 32, "run_id": 36}  # fmt: skip
CHAIN_COLUMNS: Final = ("lane", "verdict", "records", "first_sequence", "last_sequence", "head_sha256", "detail")


@app.callback()
def audit(
    context: typer.Context,
    *,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN_ID", show_default=False, help="everything known of this run")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(show_default=False, help="only of this subject, or of this issuer")
    ] = None,
    job: JobName = None,
    outcome: Annotated[
        str | None, typer.Option(show_default=False, help="only accepted, duplicate or rejected")
    ] = None,
    follow: Follow = False,
    since: Since = None,
    limit: Limit = None,
    timeout: Timeout = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Every presentation of a token; with --run, the whole story of one run.

    Example: tollgate audit --run 01981c7e-5a00-7a6b-8e21-3f0c5b7d9e10

    Example: tollgate audit --identity service:ci --since 1d

    Example: tollgate audit verify
    """
    if context.invoked_subcommand is not None:
        return
    from app.cli import reading

    settings = common.settings_of(bootstrap, prefix)
    if run is not None:
        common.run(_tell_run(settings, run, output))
        return
    window = reading.Window(reading.since_ms(since), follow, reading.deadline_of(timeout))
    wanted = {name: value for name, value in (("job", job), ("outcome", outcome)) if value is not None}

    def matches(row: dict[str, Any]) -> bool:
        if identity is not None and identity not in {row.get("subject"), row.get("issuer")}:
            return False
        return all(row.get(name) == value for name, value in wanted.items())

    common.run(_list(settings, window, matches, limit, output, narrowed=bool(wanted) or identity is not None))


async def _list(
    settings: Settings, window: Window, matches: Any, limit: int | None, output: common.OutputForm | None, *,
    narrowed: bool,
) -> None:  # fmt: skip
    from app.cli.reading import entries
    from app.stream.topics import Topic

    as_array = common.form_of(output) is common.OutputForm.JSON
    kept: list[dict[str, Any]] = []
    put = kept.append if as_array else common.line_printer(WIDTHS, output)
    count = 0
    async with entries(settings, Topic.AUDIT, window, doing="searching the audit" if narrowed else None) as batches:
        async for batch in batches:
            for row in (row for entry in batch for row in rows_of(entry) if matches(row)):
                if limit is None or count < limit:
                    put(row)
                    count += 1
            if count == limit:
                break
    if as_array:
        common.print_rows(kept, list(WIDTHS), output)
    if limit is not None and window.follow and count < limit:
        common.fail(f"{count} of {limit} came in time", common.TIMED_OUT)
    if count == 0 and narrowed:
        common.fail("nothing matched", common.NOTHING_MATCHED)


def rows_of(entry: Entry) -> list[dict[str, Any]]:
    """The presentations of one audit record, each with where it stands."""
    from app.cli.read import parsed
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
    from app.cli.read import parsed
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
        return {"issuer": accepted.get("issuer"), "subject": accepted.get("subject")}
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


# ── the chain ──


class _Link(msgspec.Struct):
    lane: int
    sequence: int
    previous_sha256: str


class Chain:
    """One lane's audit records, as far as read: each must name the hash of the one before."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.records = 0
        self.first: int | None = None
        self.last: int | None = None
        self.head = NO_AUDIT_YET
        self.broken: str | None = None
        self.checkpointed: tuple[int, str] | None = None  # sequence and head by the lane's checkpoint
        self._seen_checkpointed = False
        self._decode = msgspec.json.Decoder(_Link).decode

    def add(self, entry: Entry) -> None:
        """Take the next record of the partition."""
        if self.broken is not None:
            return
        self.records += 1
        try:
            link = self._decode(entry.value or b"")
        except msgspec.DecodeError:
            self.broken = f"the record at offset {entry.offset} is not an audit record"
            return
        if link.lane != self.lane:
            self.broken = f"the record at offset {entry.offset} is of lane {link.lane}"
        elif self.last is None and link.sequence == 1 and link.previous_sha256 != NO_AUDIT_YET:
            self.broken = "the first record of all names one before it"
        elif self.last is not None and link.sequence != self.last + 1:
            self.broken = f"after record {self.last} comes {link.sequence} (offset {entry.offset})"
        elif self.last is not None and link.previous_sha256 != self.head:
            self.broken = f"record {link.sequence} (offset {entry.offset}) does not follow from the one before: altered"
        self.first = link.sequence if self.first is None else self.first
        self.last = link.sequence
        self.head = hashlib.sha256(entry.value or b"").hexdigest()
        if self.checkpointed is not None and link.sequence == self.checkpointed[0]:
            self._seen_checkpointed = True
            if self.head != self.checkpointed[1] and self.broken is None:
                self.broken = f"record {link.sequence} is not the one the lane's checkpoint names: altered"

    def row(self) -> dict[str, Any]:
        """The verdict on this lane."""
        verdict, detail = "good", None
        if self.checkpointed is not None and self.checkpointed[0] and not self._seen_checkpointed:
            if self.last is None:
                verdict, detail = (
                    "empty",
                    f"all {self.checkpointed[0]} records were deleted, by retention or by someone",
                )
            else:
                self.broken = (
                    self.broken or f"ends at {self.last}, and the lane's checkpoint names {self.checkpointed[0]}"
                )
        if self.broken is not None:
            verdict, detail = "broken", self.broken
        elif self.first is not None and self.first > 1:
            detail = f"records 1 to {self.first - 1} have been deleted by the topic's retention"
        return {"lane": self.lane, "verdict": verdict, "records": self.records, "first_sequence": self.first,
                "last_sequence": self.last, "head_sha256": self.head, "detail": detail}  # fmt: skip


@app.command()
def verify(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """Check that no audit record was altered, taken out or put in, lane by lane.

    Each record names the SHA-256 of the one before, and each lane's
    checkpoint the newest. Exits 1 where a chain is broken.

    Example: tollgate audit verify
    """
    settings = common.settings_of(bootstrap, prefix)
    rows = common.run(_verify(settings))
    common.print_rows(rows, CHAIN_COLUMNS, output)
    broken = [row for row in rows if row["verdict"] == "broken"]
    if broken:
        common.fail(
            f"{len(broken)} of {len(rows)} chains are broken: keep the topic as it is and find out who wrote to it"
        )


async def _verify(settings: Settings) -> list[dict[str, Any]]:
    from app.cli.reading import entries, partitions_of
    from app.stream.inspection import read_checkpoints
    from app.stream.topics import Topic

    chains = {lane: Chain(lane) for lane in await partitions_of(settings, Topic.AUDIT)}
    # Before the audit is read: what a checkpoint names must then be there.
    for lane, found in read_checkpoints(settings, list(chains)).items():
        chains[lane].checkpointed = (found.checkpoint.sequence, found.checkpoint.audit_head_sha256)
    async with entries(settings, Topic.AUDIT, doing="verifying the audit") as batches:
        async for batch in batches:
            for entry in batch:
                chains[entry.partition].add(entry)
    return [chains[lane].row() for lane in sorted(chains)]
