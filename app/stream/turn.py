"""A turn: the records of one transaction, judged in order, and everything they become. No await stands here.

The table is seen through an overlay of the turn's own entries; the local store gets them after the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import lt
from typing import Final

import msgspec

from app.gate import decide, outputs
from app.gate.decide import Accepted, Admitted, Duplicate, Presented, Refused, World
from app.gate.original import Seal, original, original_of_verified
from app.gate.outputs import Out, Place, Stamp
from app.gate.reasons import Rejected
from app.gate.records import AuditRecord, Checkpoint, Handoff, Presentation
from app.gate.trigger import Record
from app.stream.log import Partition
from app.stream.store import Store, StoreUnusable
from app.stream.topics import Topic

TURN_BYTES: Final = 2 << 20  # a turn closes when what it writes reaches this; every output topic takes four times it
RECORD_OVERHEAD_BYTES: Final = 300  # key and headers, about


class LaneBroken(Exception):  # noqa: N818
    """An assertion of the lane failed. It stops, loudly: going on could start a job twice."""


class Foreign(msgspec.Struct, frozen=True):
    """A record of the handoffs topic that this gate cannot read: nobody's trigger, or one of a later version."""

    why: str


class Behind(msgspec.Struct, frozen=True):
    """A handoff whose lane had read further in the registry or the revocations than this process has."""


class Judged(msgspec.Struct, frozen=True, gc=False):
    """A work item with what stages 1 to 3 said of it."""

    record: Record
    result: Admitted | Refused | Foreign
    handed: Handoff | None = None  # what the record says, where it is one of handoffs


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
        self.jobs: list[Out] = []
        self.receipts: list[Out] = []
        self.dead_letters: list[Out] = []
        self.entries: list[Out] = []
        self._away: dict[int, list[Out]] = {}
        self.presentations: list[Presentation] = []
        self.triggers_in = self.handoffs_in = self.handoffs_out = self.foreign = 0
        self._accepted = self._bytes = 0
        self._last_trigger = self._last_handoff = -1
        self.oldest_ms = now_ms  # append time of the oldest trigger decided; now, where none is older

    @property
    def full(self) -> bool:
        return self._bytes >= TURN_BYTES

    @property
    def records_in(self) -> int:
        return self.triggers_in + self.handoffs_in

    @property
    def empty(self) -> bool:
        return not self.triggers_in and not self.handoffs_in

    def settle(self, handoffs: Sequence[Judged], triggers: Sequence[Judged]) -> None:
        """Stage 4 and the outputs of some items, in order. All are taken: judging one again costs a signature."""
        self._last_handoff = _in_order(handoffs, self._last_handoff)
        self._last_trigger = _in_order(triggers, self._last_trigger)
        self.handoffs_in += len(handoffs)
        self.triggers_in += len(triggers)
        items = (*handoffs, *triggers)
        wanted = [
            result.identity.digest
            for item in items
            if type(result := item.result) is Admitted and result.identity and result.home == self.lane
        ]
        stored = dict(zip(wanted, self._store.get_many(wanted), strict=True)) if wanted else {}
        for item in items:
            result = item.result
            if type(result) is Admitted:
                self._admit(item, result, stored)
            elif type(result) is Refused:
                self._refuse(item, result)
            elif isinstance(result, Foreign):
                self.foreign += 1
                self._put_aside(item.record, result)

    def _admit(self, item: Judged, admitted: Admitted, stored: dict[bytes, bytes | None]) -> None:
        identity = admitted.identity
        packed = None
        if identity is not None:
            if admitted.home != self.lane:
                self._hand_off(item, admitted)
                return
            packed = self.overlay.get(identity.digest) or stored[identity.digest]
        try:
            verdict = decide.settle(admitted, packed, self._lane_clock_ms, self.world)
        except ValueError as error:  # an entry that is none: a store that lies about what it holds
            raise StoreUnusable(str(error)) from error
        if type(verdict) is Accepted:
            self._accept(verdict)
        elif type(verdict) is Duplicate:
            self._answer(admitted, "duplicate", admitted.authorized.job.name, verdict.run_id)
        elif type(verdict) is Refused:
            self._refuse(item, verdict)
        else:
            raise LaneBroken(f"trigger {admitted.source.trigger_id} has been committed before")

    def _accept(self, verdict: Accepted) -> None:
        admitted, entry = verdict.admitted, verdict.entry
        self._accepted += 1
        self._write(self.jobs, outputs.job(verdict, self._stamp))
        if entry is not None and admitted.identity is not None:
            digest = admitted.identity.digest
            self.overlay[digest] = entry
            self._write(self.entries, Out(digest, entry))
        self._answer(admitted, "accepted", admitted.authorized.job.name, verdict.run_id)

    def _refuse(self, item: Judged, refused: Refused) -> None:
        request, token = refused.request, refused.request.token
        if item.handed is not None:
            shown, sealed = outputs.read_original(item.handed), item.handed.sealed
        else:
            text = request.trigger.unverified_token if request.trigger is not None else None
            shown, sealed = original(item.record, text, self._seal)
        self._write_whole(self.dead_letters, outputs.dead_letter(refused, shown, sealed, self._stamp))
        # Whoever has not shown a good token learns only what it sent itself.
        job_name = request.trigger.job if request.trigger is not None and token is not None else None
        self._answer(request, "rejected", job_name, refused.first_run_id, refused.rejected)

    def _put_aside(self, record: Record, foreign: Foreign) -> None:
        """It names no trigger, so nobody gets a receipt; but what was on the topic is not lost."""
        source = decide.source_at(record.partition, record.offset, record.appended_at_ms)
        refused = Refused(decide.Request(source), Rejected("handoff_unreadable", foreign.why))
        shown, sealed = original(record, None, self._seal)
        topic = self._topics[Topic.HANDOFFS]
        self._write_whole(self.dead_letters, outputs.dead_letter(refused, shown, sealed, self._stamp, topic))

    def _hand_off(self, item: Judged, admitted: Admitted) -> None:
        if item.handed is not None:
            shown, sealed = outputs.read_original(item.handed), item.handed.sealed
        else:
            fingerprint = admitted.token.fingerprint
            shown, sealed = original_of_verified(item.record, admitted.trigger, fingerprint, self._seal)
        out = outputs.handoff(admitted, shown, sealed, self.world.registry_offset, self.world.revocations_offset)
        self._write(self._away.setdefault(admitted.home, []), out)
        self.handoffs_out += 1

    def _answer(
        self, request: Presented, outcome: str, job_name: str | None, run_id: str | None,
        rejected: Rejected | None = None,
    ) -> None:  # fmt: skip
        """The one receipt and the one audit entry of a trigger, both from the lane that decides it."""
        self._write(self.receipts, outputs.receipt(request, self._stamp, outcome, job_name, run_id, rejected))
        self.presentations.append(outputs.presentation(request, outcome, job_name, run_id, rejected))
        appended_at_ms = request.source.appended_at_ms
        if appended_at_ms < self.oldest_ms:  # noqa: PLR1730 - for every trigger, and min() costs more
            self.oldest_ms = appended_at_ms

    def _write(self, outs: list[Out], out: Out) -> None:
        outs.append(out)
        self._bytes += len(out.value or b"") + RECORD_OVERHEAD_BYTES

    def _write_whole(self, outs: list[Out], out: Out) -> None:
        """With key and headers, which a stranger chose: they may outweigh all values."""
        self._write(outs, out)
        self._bytes += len(out.key or b"") + sum([len(name) + len(content) for name, content in out.headers])

    @property
    def outcomes(self) -> Counter[tuple[str, str | None]]:
        """How many triggers became what: outcome and reason."""
        return Counter([(line.outcome, line.reason) for line in self.presentations])

    @property
    def parts(self) -> dict[Partition, list[Out]]:
        """What goes where: all to this lane's partitions, but handoffs to their homes'. None is empty."""
        here = {
            Topic.JOBS: self.jobs, Topic.RECEIPTS: self.receipts, Topic.DEAD_LETTERS: self.dead_letters,
            Topic.IDEMPOTENCY: self.entries,
        }  # fmt: skip
        mine = {(self._topics[topic], self.lane): outs for topic, outs in here.items() if outs}
        return mine | {(self._topics[Topic.HANDOFFS], home): outs for home, outs in self._away.items()}

    def finish(self, checkpoint: Checkpoint) -> tuple[dict[Partition, list[Out]], Checkpoint]:
        """All records of the transaction with the checkpoint that describes it, after the last assertions."""
        answered = len(self.presentations)
        if self.triggers_in + self.handoffs_in != answered + self.handoffs_out + self.foreign:
            raise LaneBroken(
                f"{self.triggers_in} triggers and {self.handoffs_in} handoffs came in, "
                f"{answered} receipts and {self.handoffs_out} handoffs would go out"
            )
        runs = len({out.key for out in self.jobs})
        if not self._accepted == len(self.jobs) == runs:
            raise LaneBroken(f"{self._accepted} accepted, {len(self.jobs)} jobs, {runs} runs")
        parts = self.parts
        if self.presentations:
            sequence = checkpoint.sequence + 1
            audit = outputs.audit(AuditRecord(self.lane, sequence, checkpoint.audit_head_sha256, self.presentations))
            parts[self._topics[Topic.AUDIT], self.lane] = [audit]
            checkpoint = msgspec.structs.replace(
                checkpoint, sequence=sequence, audit_head_sha256=outputs.digest(audit.value)
            )
        parts[self._topics[Topic.CHECKPOINTS], self.lane] = [outputs.checkpoint(checkpoint)]
        return parts, checkpoint


def _in_order(items: Sequence[Judged], last: int) -> int:
    """Offsets of a topic strictly increase (rule 11). Returns the last one."""
    offsets = [last, *(item.record.offset for item in items)]
    if not all(map(lt, offsets, offsets[1:])):
        raise LaneBroken(f"offsets came out of order: {offsets[:20]}")
    return offsets[-1]
