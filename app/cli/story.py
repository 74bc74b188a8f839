"""One run as a person wants to read it: who asked, with what, when, what was decided, what runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from app.cli import common
from app.cli.when import utc


def lines_of(story: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each line; values a stranger chose are made printable."""
    job, trigger, decision = story["job"] or {}, story["trigger"] or {}, story["decision"] or {}
    token = story["token"]
    yield "run", story["run_id"]
    yield "job", f"{_text(job.get('job') or decision.get('job'))}  (definition {_text(job.get('definition_version'))})"
    emitter = story["emitter"]
    actors = [f"{_text(actor)}, acting for " for actor in emitter.get("actors", ())]
    yield "started by", f"{''.join(actors)}{_text(emitter.get('subject'))}  of {_text(emitter.get('issuer'))}"
    yield "organisation", _text(job.get("org_id"))
    yield "token", f"fingerprint {_text(token.get('fingerprint'))}"
    yield "", f"jti {_text(token.get('jti'))}, signed by key {_text(token.get('kid'))}"
    yield "trigger", f"{_text(trigger.get('id'))}  on {_text(trigger.get('topic'))}"
    if isinstance(trigger.get("appended_at_ms"), int):
        yield "appended", f"{utc(trigger['appended_at_ms'])}  by the broker's clock"
    if decision:
        yield (
            "decided",
            f"{_text(decision['when'])}  {_text(decision['outcome'])}"
            + ("  within the grace of an expired token" if decision.get("within_grace") else ""),
        )
        yield "audited", f"lane {_text(decision['lane'])}, record {_text(decision['sequence'])}"
    yield "correlation id", _text(job.get("correlation_id"))
    yield "parameters", _text(job.get("params"))
    if job:
        yield "limits", f"timeout {_text(job.get('timeout_s'))} s, attempt {_text(job.get('attempt'))}"
    for row in story["duplicates"]:
        yield "duplicate", f"{_text(row.get('trigger_id'))}  {_text(row.get('when'))}  by {_text(row.get('subject'))}"
    for row in story["refused_reuses"]:
        yield "refused reuse", f"{_text(row.get('trigger_id'))}  {_text(row.get('reason'))}"


def print_story(story: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, text in lines_of(story):
        table.add_row(Text(name, style="dim"), Text(text))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _text(value: Any) -> str:
    return common.cell_of(value)
