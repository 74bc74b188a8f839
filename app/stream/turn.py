"""A turn: the records of one transaction, judged in order, and everything they become. No await stands here.

The table is seen through an overlay of the turn's own entries; the local store gets them after the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from app.gate import decide, outputs
from app.gate.decide import Accepted, Admitted, AlreadyCommitted, Duplicate, Held, Refused, Request, Source, World
from app.gate.outputs import AuditRecord, Checkpoint, Out, Place, Presentation, Redacted, Seal, Stamp
from app.gate.reasons import Rejected
from app.gate.token import VerifiedToken
from app.gate.trigger import Record, Trigger
from app.stream.log import Partition
from app.stream.store import Store, StoreUnusable
from app.stream.topics import Topic

TURN_BYTES: Final = 2 << 20  # a turn closes when what it writes reaches this; every output topic takes four times it
RECORD_OVERHEAD_BYTES: Final = 300  # key and headers, about


class LaneBroken(Exception):  # noqa: N818
    """An assertion of the lane failed. It stops, loudly: going on could start a job twice."""


class Handed(msgspec.Struct, frozen=True):
    """A handoff as it was read: what the record says, ready to be judged again."""

    handoff: outputs.Handoff
    source: Source
    trigger: Trigger
    token: VerifiedToken


class Foreign(msgspec.Struct, frozen=True):
    """A record of the handoffs topic that no gate has written."""


class Behind(msgspec.Struct, frozen=True):
    """A handoff whose lane had read further in the registry or the revocations than this process has."""


class Judged(msgspec.Struct, frozen=True):
    """A work item with what stages 1 to 3 said of it."""

    record: Record
    result: Admitted | Refused | Held | Behind | Foreign
    handed: Handed | None = None


class Turn:
    """What one transaction will hold."""

    def __init__(
        self, lane: int, topics: dict[Topic, str], place: Place, seal: Seal, world: World, store: Store,
        now_ms: int, lane_clock_ms: int,
    ) -> None:  # fmt: skip
        self.lane, self.world = lane, world
        self._topics, self._seal, self._store = topics, seal, store
        self._stamp, self._lane_clock_ms = Stamp(place, now_ms), lane_clock_ms
        self.now_ms = now_ms
        self.overlay: dict[bytes, bytes] = {}
        self._here: dict[Topic, list[Out]] = {topic: [] for topic in Topic}
        self._away: dict[int, list[Out]] = {}
        self.presentations: list[Presentation] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.triggers_in = self.handoffs_in = self.handoffs_out = self.foreign = 0
        self._jobs = self._accepted = 0
        self._new_runs: set[str] = set()
        self._bytes = 0
        self.last_offsets: dict[Topic, int] = {}
        self.appended_at_ms: list[int] = []

    @property
    def full(self) -> bool:
        return self._bytes >= TURN_BYTES

    @property
    def records_in(self) -> int:
        return self.triggers_in + self.handoffs_in

    @property
    def empty(self) -> bool:
        return not self.triggers_in and not self.handoffs_in

    def settle(self, items: Sequence[Judged]) -> None:
        """Stage 4 and the outputs of some items, in order. All are taken: judging one again costs a signature."""
        wanted = [
            item.result.identity.digest
            for item in items
            if isinstance(item.result, Admitted) and item.result.identity and item.result.home == self.lane
        ]
        stored = dict(zip(wanted, self._store.get_many(wanted), strict=True)) if wanted else {}
        for item in items:
            match item.result:
                case Refused():
                    self._count_in(item)
                    self._refuse(item, item.result)
                case Admitted():
                    self._count_in(item)
                    self._admit(item, item.result, stored)
                case Foreign():
                    self.pass_over(item.record)
                case Held() | Behind():
                    raise LaneBroken("a held trigger reached stage 4")

    def pass_over(self, record: Record) -> None:
        """A record of the handoffs topic that no gate has written: counted, and nothing else."""
        self._advance(Topic.HANDOFFS, record.offset)
        self.handoffs_in += 1
        self.foreign += 1

    def _advance(self, topic: Topic, offset: int) -> None:
        """Offsets strictly increase, per topic (rule 11)."""
        if offset <= self.last_offsets.get(topic, -1):
            raise LaneBroken(f"offset {offset} of {topic} came after {self.last_offsets[topic]}")
        self.last_offsets[topic] = offset

    def _count_in(self, item: Judged) -> None:
        self._advance(Topic.TRIGGERS if item.handed is None else Topic.HANDOFFS, item.record.offset)
        if item.handed is None:
            self.triggers_in += 1
        else:
            self.handoffs_in += 1

    def _admit(self, item: Judged, admitted: Admitted, stored: dict[bytes, bytes | None]) -> None:
        identity = admitted.identity
        if identity is not None and admitted.home != self.lane:
            self._hand_off(item, admitted)
            return
        packed = None
        if identity is not None:
            packed = self.overlay.get(identity.digest) or stored[identity.digest]
        try:
            verdict = decide.settle(admitted, packed, self._lane_clock_ms, self.world)
        except ValueError as error:  # an entry that is none: a store that lies about what it holds
            raise StoreUnusable(str(error)) from error
        match verdict:
            case Accepted():
                self._accept(verdict)
            case Duplicate():
                name = admitted.authorized.job.name
                self._answer(admitted.request, outcome="duplicate", job_name=name, run_id=verdict.run_id)
            case Refused():
                self._refuse(item, verdict)
            case AlreadyCommitted():
                raise LaneBroken(f"trigger {admitted.request.source.trigger_id} has been committed before")

    def _accept(self, verdict: Accepted) -> None:
        admitted = verdict.admitted
        self._accepted += 1
        self._new_runs.add(verdict.run_id)
        self._write(Topic.JOBS, outputs.job(verdict, self._stamp))
        self._jobs += 1
        if verdict.entry is not None and admitted.identity is not None:
            self.overlay[admitted.identity.digest] = verdict.entry
            self._write(Topic.IDEMPOTENCY, Out(admitted.identity.digest, verdict.entry))
        self._answer(admitted.request, outcome="accepted", job_name=admitted.authorized.job.name, run_id=verdict.run_id)

    def _refuse(self, item: Judged, refused: Refused) -> None:
        request = refused.request
        original, sealed = self._original(item)
        self._write(Topic.DEAD_LETTERS, outputs.dead_letter(refused, original, sealed, self._stamp))
        # Whoever has not shown a good token learns only what it sent itself.
        known = request.trigger is not None and request.token is not None
        self._answer(
            request, outcome="rejected", job_name=request.trigger.job if known and request.trigger else None,
            run_id=refused.first_run_id, rejected=refused.rejected,
        )  # fmt: skip

    def _hand_off(self, item: Judged, admitted: Admitted) -> None:
        original, sealed = self._original(item)
        out = outputs.handoff(admitted, original, sealed, self.world.registry_offset, self.world.revocations_offset)
        self._away.setdefault(admitted.home, []).append(out)
        self._bytes += len(out.value or b"") + RECORD_OVERHEAD_BYTES
        self.handoffs_out += 1

    def _answer(
        self, request: Request, *, outcome: str, job_name: str | None, run_id: str | None = None,
        rejected: Rejected | None = None,
    ) -> None:  # fmt: skip
        """The one receipt and the one audit entry of a trigger, both from the lane that decides it."""
        receipt = outputs.receipt(
            request, self._stamp, outcome=outcome, job_name=job_name, run_id=run_id, rejected=rejected
        )
        self._write(Topic.RECEIPTS, receipt)
        self.presentations.append(
            outputs.presentation(request, outcome=outcome, job_name=job_name, run_id=run_id, rejected=rejected)
        )
        self.outcomes[(outcome, rejected.code if rejected is not None else "")] += 1
        self.appended_at_ms.append(request.source.appended_at_ms)

    def _original(self, item: Judged) -> tuple[Redacted, str | None]:
        if item.handed is not None:
            return item.handed.handoff.redacted, item.handed.handoff.sealed
        trigger = item.result.request.trigger if isinstance(item.result, Admitted | Refused) else None
        return outputs.original(item.record, trigger.unverified_token if trigger else None, self._seal)

    def _write(self, topic: Topic, out: Out) -> None:
        self._here[topic].append(out)
        self._bytes += len(out.value or b"") + RECORD_OVERHEAD_BYTES

    @property
    def parts(self) -> dict[Partition, list[Out]]:
        """What goes where: all to this lane's partitions, but handoffs to their homes'."""
        here = {(self._topics[topic], self.lane): outs for topic, outs in self._here.items() if outs}
        return here | {(self._topics[Topic.HANDOFFS], home): outs for home, outs in self._away.items()}

    def finish(self, checkpoint: Checkpoint) -> tuple[dict[Partition, list[Out]], Checkpoint]:
        """All records of the transaction with the checkpoint that describes it, after the last assertions."""
        answered = len(self.presentations)
        if self.triggers_in + self.handoffs_in != answered + self.handoffs_out + self.foreign:
            raise LaneBroken(
                f"{self.triggers_in} triggers and {self.handoffs_in} handoffs came in, "
                f"{answered} receipts and {self.handoffs_out} handoffs would go out"
            )
        if not self._accepted == self._jobs == len(self._new_runs):
            raise LaneBroken(f"{self._accepted} accepted, {self._jobs} jobs, {len(self._new_runs)} runs")
        if self.presentations:
            sequence = checkpoint.sequence + 1
            audit = outputs.audit(AuditRecord(self.lane, sequence, checkpoint.audit_head_sha256, self.presentations))
            self._write(Topic.AUDIT, audit)
            checkpoint = msgspec.structs.replace(
                checkpoint, sequence=sequence, audit_head_sha256=outputs.digest(audit.value)
            )
        self._write(Topic.CHECKPOINTS, outputs.checkpoint(checkpoint))
        return self.parts, checkpoint
