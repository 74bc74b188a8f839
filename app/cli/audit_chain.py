"""`tollgate audit verify`: the chain of hashes through each lane's audit records, from the first to the checkpoint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix
from app.gate.records import NO_AUDIT_YET, UNREADABLE

if TYPE_CHECKING:
    from app.cli.reading import Entry
    from app.config import Settings

CHAIN_COLUMNS: Final = ("lane", "verdict", "records", "first_sequence", "last_sequence", "head_sha256", "detail")


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
        except UNREADABLE:
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
