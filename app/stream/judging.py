"""Judging: stages 1 to 3 of what waits in a lane, one slice at a time. Nothing here waits or writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from app.gate import decide, outputs
from app.gate.decide import Held, Refused, World
from app.gate.records import UNREADABLE
from app.gate.token import GrantWanted, KeyWanted
from app.gate.trigger import Record
from app.stream.tables import Tables
from app.stream.turn import Behind, Foreign, Judged
from app.telemetry import Event, log

SLICE_S: Final = 0.01  # other lanes' answers are not kept waiting longer than this
RUN_RECORDS: Final = 32  # whose signatures are checked one after another


class Slice(NamedTuple):
    """What was judged of each topic, in the order of offsets, and what the record after that waits for."""

    handoffs: list[Judged]
    triggers: list[Judged]
    handoffs_wait: Held | Behind | None = None
    triggers_wait: Held | None = None


class Judge:
    """Stages 1 to 3 for one lane."""

    def __init__(self, lane: int, tables: Tables) -> None:
        self._lane, self._tables = lane, tables

    def slice(
        self, handoffs: Sequence[Record], triggers: Sequence[Record], world: World, taken_at_s: float,
        looked_for: tuple[object, object] = (None, None),
    ) -> Slice:  # fmt: skip
        """As much as a slice's time allows, handoffs before triggers; at least one run, if anything is there.

        `taken_at_s` is when the triggers were taken (monotonic). `looked_for` is what the first handoff and the first
        trigger have waited for: for a key they do so once.
        """
        end = time.monotonic() + SLICE_S
        judged = Slice([], [])
        behind: Held | Behind | None = None
        for start in range(0, len(handoffs), RUN_RECORDS):
            behind = self._handoffs(handoffs[start : start + RUN_RECORDS], world, looked_for[0], judged.handoffs)
            if behind is not None:
                break
            if time.monotonic() > end:
                return judged
        held: Held | None = None
        for start in range(0, len(triggers), RUN_RECORDS):
            run = triggers[start : start + RUN_RECORDS]
            held = self._triggers(run, world, taken_at_s, looked_for[1], judged.triggers)
            if held is not None or time.monotonic() > end:
                break
        return judged._replace(handoffs_wait=behind, triggers_wait=held)

    def _triggers(
        self, run: Sequence[Record], world: World, taken_at_s: float, looked_for: object, judged: list[Judged]
    ) -> Held | None:
        for record, result in zip(run, decide.admit_all(run, world, world.memo), strict=True):
            admitted = result
            if isinstance(admitted, Held):
                if self._may_wait(admitted.wanted, taken_at_s, looked_for):
                    return admitted
                admitted = decide.admit(record, world, world.memo, wait_for_keys=False)
                if isinstance(admitted, Held):  # no key set at all
                    return admitted
            if type(admitted) is Refused and admitted.rejected.code == "internal_deny":
                detail = admitted.rejected.detail
                log.error(Event.INTERNAL_DENY, lane=self._lane, offset=record.offset, detail=detail)
            judged.append(Judged(record, admitted))
        return None

    def _may_wait(self, wanted: KeyWanted | GrantWanted, taken_at_s: float, looked_for: object) -> bool:
        """Whether a record waits for that. For a grant it does until one look, of all there was, came to its end."""
        if isinstance(wanted, KeyWanted) and wanted == looked_for:
            return False
        return self._tables.may_fetch(wanted, taken_at_s)

    def _handoffs(
        self, run: Sequence[Record], world: World, looked_for: object, judged: list[Judged]
    ) -> Held | Behind | None:
        for record in run:
            item = self._handoff(record, world, looked_for)
            if isinstance(item, Held | Behind):
                return item
            judged.append(item)
        return None

    def _handoff(self, record: Record, world: World, looked_for: object) -> Judged | Held | Behind:
        try:
            handoff, source, trigger = outputs.read_handoff(record.value or b"")
            token = world.memo.handed_token(bytes(handoff.claims), handoff.token_fingerprint, handoff.insecure)
        except (*UNREADABLE, ValueError) as error:
            log.error(Event.HANDOFF_FOREIGN, lane=self._lane, offset=record.offset, error=type(error).__name__)
            return Judged(record, Foreign(type(error).__name__))
        if handoff.registry_offset > world.registry_offset or handoff.revocations_offset > world.revocations_offset:
            return Behind()
        result = decide.readmit(source, trigger, token, world, world.memo)
        if isinstance(result, Held) and not self._may_wait(result.wanted, time.monotonic(), looked_for):
            result = decide.readmit(source, trigger, token, world, world.memo, wait_for_keys=False)
        return result if isinstance(result, Held) else Judged(record, result, handoff)
