"""`tollgate audit issuance`: which identity was given which token, and which was refused one."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli.asked import Asked, matches, parsed, reads

if TYPE_CHECKING:
    from app.cli.reading import Entry

WIDTHS: Final = {"when": 20, "event": 12, "identity": 24, "subject": 24, "actors": 20, "token_class": 11,
                 "jobs": 32, "reason": 24, "token_fingerprint": 32}  # fmt: skip


class EventName(StrEnum):
    """What issuing leaves."""

    ISSUED = "issued"
    DENIED = "issue_denied"


@reads
def issuance(
    *,
    identity: Annotated[str | None, typer.Option(show_default=False, help="only what this one asked for")] = None,
    event: Annotated[EventName | None, typer.Option(show_default=False, help="only issued, or only refused")] = None,
    asked: Asked,
) -> None:
    """Every token issued to an identity, by its fingerprint, and every refusal.

    What a holder of the key files issues without an identity is not here: nobody can be named for it.

    Example: tollgate audit issuance --identity svc:ci --since 1d
    """
    from app.cli.when import utc
    from app.stream.topics import Topic

    def wanted(entry: Entry) -> Iterator[dict[str, Any]]:
        row = parsed(entry) | {"when": utc(entry.timestamp_ms)}
        if matches(row, identity=identity, event=event):
            yield row

    asked.show(Topic.ISSUANCE, wanted, WIDTHS, narrowed=identity is not None or event is not None)
