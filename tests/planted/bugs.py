"""Bugs the judges must find: each is planted into the program's modules from outside, in a process that then runs them.

`plant()` changes the running process for good, so it is called in a process of its own (or undone by `planted`). Most
are bugs that other systems have had. Where this design leaves no room for one as it was, the nearest form is planted
and `what` says so. The names in `caught_by` are those of checks; finding it by any of them counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from aiokafka.errors import ConcurrentTransactions, KafkaError
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.transaction import EndTxnRequest

from app.gate import decide, idempotency, outputs
from app.gate.decide import Accepted, Admitted, Refused
from app.gate.outputs import Out
from app.stream import batch, cluster, doubt, restore, sweeping, tail, tenure, transaction, turn
from app.stream.log import Fenced, Partition, Placed, Watermarks
from app.stream.topics import Topic

_READ_COMMITTED: Final = 1
_LATEST: Final = -1
_LOG_APPEND_TIME: Final = 0x08
_ATTRIBUTES_LOW_BYTE_AT: Final = 22  # in a record batch
_TRIES_OF_AN_END: Final = 5  # within one deadline


class Bug(NamedTuple):
    """One planted bug."""

    name: str
    what: str
    caught_by: tuple[str, ...]
    plant: Callable[[], None]


_planted: list[tuple[Any, str, Any]] = []  # what to put back: owner, attribute, original


def _replace(owner: Any, attribute: str, value: Any) -> None:
    _planted.append((owner, attribute, owner.__dict__[attribute]))
    setattr(owner, attribute, value)


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The bug while inside; None plants nothing."""
    before = len(_planted)
    try:
        if name is not None:
            BUGS[name].plant()
        yield
    finally:
        while len(_planted) > before:
            owner, attribute, original = _planted.pop()
            setattr(owner, attribute, original)


# ── transactions ──


def _alone(topic: Topic, *, first: bool) -> None:
    """Records of one topic go out in a transaction of their own, before or after all others."""
    commit = transaction.KafkaWriter.commit

    async def commit_in_two(self: Any, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        apart = {partition: outs for partition, outs in parts.items() if partition[0].endswith(topic.value)}
        rest = {partition: outs for partition, outs in parts.items() if partition not in apart}
        placed: dict[Partition, Placed] = {}
        for part in (apart, rest) if first else (rest, apart):
            if part:
                placed |= await commit(self, part)
        return placed

    _replace(transaction.KafkaWriter, "commit", commit_in_two)


def _offsets_outside() -> None:
    _alone(Topic.CHECKPOINTS, first=False)


def _dead_letters_outside() -> None:
    _alone(Topic.DEAD_LETTERS, first=True)


def _no_recycling() -> None:
    async def end_again_and_again(self: Any) -> None:
        request = EndTxnRequest(self._id, self._producer_id, self._epoch, True)
        while True:
            try:
                async with asyncio.timeout(self._deadline_s / _TRIES_OF_AN_END):
                    response = await self._client.send(self._coordinator, request, group=self._group)
                transaction._raise_for(response.error_code)
            except (TimeoutError, ConcurrentTransactions):
                await asyncio.sleep(transaction.COORDINATOR_WAIT_S)
            except KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(transaction.COORDINATOR_WAIT_S)
                self._coordinator = await self._client.transaction_coordinator(self._id)
            else:
                return

    _replace(transaction.KafkaWriter, "_end", end_again_and_again)


def _fences_ignored() -> None:
    commit = transaction.KafkaWriter.commit

    async def commit_all_the_same(self: Any, parts: Mapping[Partition, Sequence[Out]]) -> Mapping[Partition, Placed]:
        try:
            return await commit(self, parts)
        except Fenced:
            self._dead = None
            return {partition: Placed(0, time.time_ns() // 1_000_000) for partition in parts}

    _replace(transaction.KafkaWriter, "commit", commit_all_the_same)


def _store_before_commit() -> None:
    commit = tenure.Tenure.commit

    async def write_then_commit(self: Any, done: turn.Turn | None) -> None:
        if done is not None and done.overlay:
            self._store.apply(done.overlay.items(), self._store.changelog_offset)
        await commit(self, done)

    _replace(tenure.Tenure, "commit", write_then_commit)


def _torn_left() -> None:
    async def ask_nobody(*_: Any) -> None:
        """As if whatever the checkpoint says were true of all."""

    _replace(doubt.Doubt, "settle", ask_nobody)


# ── restoring ──


def _restore_to_stable() -> None:
    fence, watermarks = cluster.Cluster.fence, cluster.Cluster.watermarks
    ends: dict[tuple[int, Partition], int] = {}

    async def look_then_fence(self: Any, transactional_id: str, owner: str) -> Any:
        prefix, _, number = transactional_id.rpartition("lane-")
        partition = (Topic.IDEMPOTENCY.named(prefix), int(number))
        request = OffsetRequest(-1, _READ_COMMITTED, [(partition[0], [(partition[1], _LATEST)])])
        response = await self._client.send(await self._client.leader(partition), request, group="offsets")
        row = response.topics[0][1][0]
        if not row[1]:
            ends[id(self), partition] = int(row[3])
        return await fence(self, transactional_id, owner)

    async def stable(self: Any, partition: Partition) -> Watermarks:
        marks = await watermarks(self, partition)
        end = ends.pop((id(self), partition), marks.high)
        return Watermarks(marks.start, max(min(end, marks.high), marks.start))

    _replace(cluster.Cluster, "fence", look_then_fence)
    _replace(cluster.Cluster, "watermarks", stable)


def _restore_uncommitted() -> None:
    fetch_one = cluster.Cluster._fetch_one

    async def with_aborted(self: Any, *args: Any) -> tuple[bytes, None]:
        raw, _ = await fetch_one(self, *args)
        return raw, None

    _replace(cluster.Cluster, "_fetch_one", with_aborted)


def _no_replay() -> None:
    replay = restore.replay

    async def trust_the_store(source: Any, changelog: Partition, store: Any, *args: Any) -> Any:
        return store if store.changelog_offset else await replay(source, changelog, store, *args)

    _replace(restore, "replay", trust_the_store)


def _position_after_poll() -> None:
    _replace(tail.KafkaTail, "position", property(lambda self: self.fetched))


def _swept_early() -> None:
    def sweep(self: Any) -> None:
        self._store.sweep(sweeping.RECORDS, lambda _: True)

    _replace(tenure.Tenure, "_sweep", sweep)


# ── deciding ──


def _emitted_before_dedup() -> None:
    admit = turn.Turn._admit

    def emit_and_admit(self: Any, item: Any, admitted: Admitted, stored: dict[bytes, bytes | None]) -> None:
        jobs, handed = len(self.jobs), self.handoffs_out
        admit(self, item, admitted, stored)
        if len(self.jobs) == jobs and self.handoffs_out == handed:
            run_id = decide.run_id_text(_run_id(self, admitted.source))
            self._write(self.jobs, outputs.job(Accepted(admitted, run_id, None), self._stamp))

    _replace(turn.Turn, "_admit", emit_and_admit)


def _run_id(doing: Any, source: Any) -> bytes:
    return decide.make_run_id(doing.world.run_seed, source.partition, source.offset, source.appended_at_ms)


def _unscoped() -> None:
    _replace(idempotency, "scope", lambda *_: b"")


class _NoLength:
    @staticmethod
    def pack(_: int) -> bytes:
        return b""


def _no_lengths() -> None:
    _replace(idempotency, "_LENGTH", _NoLength)


def _entry_for_refused() -> None:
    refuse = turn.Turn._refuse

    def refuse_and_remember(self: Any, item: Any, refused: Refused) -> None:
        refuse(self, item, refused)
        trigger, token = refused.request.trigger, refused.request.token
        if trigger is None or token is None or not token.claims.grant.jobs:
            return
        job: Any = SimpleNamespace(name=trigger.job or token.claims.grant.jobs[0], idempotency_from_ce_id=False)
        claims = token.claims
        identity = idempotency.identify(claims, trigger, job, idempotency.scope(claims, job), bytes(16))
        if not isinstance(identity, idempotency.Identity) or identity.digest in self.overlay:
            return
        source = refused.request.source
        run_id = _run_id(self, source)
        packed = idempotency.pack(
            run_id, bytes(16), bytes(8), source.partition, source.offset, source.appended_at_ms,
            source.appended_at_ms + 3_600_000,
        )  # fmt: skip
        self.overlay[identity.digest] = packed
        self._write(self.entries, Out(identity.digest, packed))

    _replace(turn.Turn, "_refuse", refuse_and_remember)


def _create_time() -> None:
    begin = batch.Records.__init__

    def begin_with_producers_times(self: Any, part: batch.Batch, max_bytes: int) -> None:
        raw = bytearray(part.raw)
        raw[_ATTRIBUTES_LOW_BYTE_AT] &= ~_LOG_APPEND_TIME & 0xFF
        begin(self, part._replace(raw=bytes(raw)), max_bytes)

    _replace(batch.Records, "__init__", begin_with_producers_times)


def _receipts_reversed() -> None:
    parts = turn.Turn.__dict__["parts"].fget

    def reversed_parts(self: Any) -> dict[Partition, list[Out]]:
        return {
            partition: outs[::-1] if partition[0].endswith(Topic.RECEIPTS.value) else outs
            for partition, outs in parts(self).items()
        }

    _replace(turn.Turn, "parts", property(reversed_parts))


_DOUBLED: Final = (
    "one_receipt_per_trigger", "one_job_per_identity", "no_lane_stopped", "drained", "audit_is_whole",
)  # fmt: skip
_FORGOTTEN: Final = ("one_job_per_identity", "entries_and_jobs", "receipts_name_the_run", "stores_as_their_changelogs")

_ALL: Final = (
    Bug(
        "offsets_outside_the_transaction",
        "offsets committed outside the transaction: the checkpoint goes out in one of its own, after the outputs",
        (*_DOUBLED, "checkpoints_at_the_ends"), _offsets_outside,
    ),
    Bug(
        "store_before_commit",
        "the local store is written before the commit, and nothing takes it back when the commit fails",
        (*_DOUBLED, "stores_as_their_changelogs", "stores_hold_only_what_was_committed"), _store_before_commit,
    ),
    Bug(
        "restore_to_stable_offset",
        "restore ends at the last stable offset. Once the fence has returned it is the high watermark, so it is the "
        "one from before the fence: a predecessor's transaction that then turns out committed is missed",
        _FORGOTTEN, _restore_to_stable,
    ),
    Bug(
        "restore_read_uncommitted", "restore takes in entries of aborted transactions",
        (*_DOUBLED, "stores_as_their_changelogs", "stores_hold_only_what_was_committed"), _restore_uncommitted,
    ),
    Bug(
        "emitted_before_dedup", "the job is written before the table is asked",
        ("one_job_per_identity", "receipts_name_the_run"), _emitted_before_dedup,
    ),
    Bug(
        "key_not_scoped", "an idempotency key is unique over all subjects and jobs: one may take another's",
        ("one_job_per_identity", "verdicts_as_intended", "receipts_name_the_run"), _unscoped,
    ),
    Bug(
        "key_without_lengths", "the parts of an identity are joined without their lengths",
        ("one_job_per_identity", "verdicts_as_intended", "receipts_name_the_run", "entries_and_jobs"), _no_lengths,
    ),
    Bug(
        "entry_for_refused", "a refused trigger leaves an entry, and with it takes the key",
        ("entries_and_jobs", "one_job_per_identity", "verdicts_as_intended"), _entry_for_refused,
    ),
    Bug(
        "no_recycling_after_unknown_end",
        "an EndTxn without an answer is sent again on the same epoch, as clients do; the first may end the next one's",
        ("epochs_recycled", "one_receipt_per_trigger", "audit_is_whole", "one_job_per_identity", "entries_and_jobs",
         "no_lane_stopped", "drained"),
        _no_recycling,
    ),
    Bug(
        "fences_ignored", "a fenced writer goes on as if it had committed",
        ("one_receipt_per_trigger", "stores_as_their_changelogs", "stores_hold_only_what_was_committed", "drained",
         "emitted", "checkpoints_at_the_ends"),
        _fences_ignored,
    ),
    Bug(
        "producers_time_believed", "validity is judged at the producer's timestamp instead of the broker's",
        ("verdicts_as_intended",), _create_time,
    ),
    Bug(
        "entries_dropped_early",
        "entries go before their window ends. The changelog has no tombstones, so it is the sweep of the local store",
        _FORGOTTEN, _swept_early,
    ),
    Bug(
        "store_trusted_unread",
        "a clean marker that is not cleared: there is none, so a store that was opened before is taken as complete",
        _FORGOTTEN, _no_replay,
    ),
    Bug(
        "dead_letters_outside_the_transaction", "dead letters go out in a transaction of their own, before the rest",
        ("one_dead_letter_per_refusal",), _dead_letters_outside,
    ),
    Bug(
        "position_after_poll", "the checkpoint holds how far was fetched instead of how far was decided",
        ("one_receipt_per_trigger", "one_job_per_identity", "drained"), _position_after_poll,
    ),
    Bug(
        "torn_left_as_they_are", "what Kafka has ended by halves is taken for whole: nobody asks the other partitions",
        (*_DOUBLED, "transactions_whole", "handoffs_out_and_in", "entries_and_jobs", "one_dead_letter_per_refusal"),
        _torn_left,
    ),
    Bug("receipts_unordered", "receipts of a batch are written last first", ("outputs_in_input_order",),
        _receipts_reversed),
)  # fmt: skip

BUGS: Final[dict[str, Bug]] = {bug.name: bug for bug in _ALL}
