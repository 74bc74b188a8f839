"""The tables every gate reads whole and follows: registry, revocations and grants, with the trusted issuers' keys.

A lane decides only while this view was confirmed up to date within `max_staleness`; otherwise it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import msgspec

from app.gate import policy
from app.gate.decide import Memo, World
from app.gate.definitions import birth_id_in
from app.gate.identities import Identities
from app.gate.mapping import MappingRule, in_effect, mapping_from_record
from app.gate.policy import Job, Revocations, TrustRule
from app.gate.reference import Grants
from app.gate.token import GrantWanted, KeyWanted
from app.stream.log import Log, Partition, ReadRecord, Tail, require_read
from app.stream.topics import Topic
from app.telemetry import TABLE_STALENESS, Event, log
from app.trust import JwksFollower

TAKE_RECORDS: Final = 10_000
TAKE_BYTES: Final = 64 << 20
WAIT_S: Final = 0.2
FIRST_LOOK_S: Final = 0.01
CATCH_UP_S: Final = 1.0
CATCH_UP_LOOK_S: Final = 0.002


class Tables:
    """One process's view of what all lanes share."""

    def __init__(
        self, source: Log, registry: Partition, revocations: Partition, grants: Partition, keys: JwksFollower,
        world: World, max_staleness_s: float,
    ) -> None:  # fmt: skip
        self._log, self._keys, self._max_staleness_s = source, keys, max_staleness_s
        self._partitions = {Topic.REGISTRY: registry, Topic.REVOCATIONS: revocations, Topic.GRANTS: grants}
        self._positions = dict.fromkeys(self._partitions, 0)
        self._tails: dict[Topic, Tail] = {}
        self._wake = asyncio.Event()
        self._jobs: dict[str, Job] = {}
        self._rules: dict[str, TrustRule] = {}
        self._mapping: dict[str, MappingRule | None] = {}  # None: one that cannot be read
        self._identities = Identities()
        self._objects: dict[str, str] = {}
        self._revocations = Revocations()
        self._grants = Grants(world.grace_s + world.queue_age_cap_ms // 1000)
        self._grants_as_of_s = float("-inf")  # monotonic: what was committed by then is in the table
        self._catching_up: asyncio.Task[None] | None = None
        self._world = world
        self._ring_version = -1
        self._task: asyncio.Task[None] | None = None
        self.watchers: list[Callable[[bytes, bytes | None], object]] = []  # told of each record of the registry

    @property
    def world(self) -> World:
        """What decisions may know, as of now. Cheap: rebuilt only when something changed."""
        if self._ring_version != self._keys.version:
            self._rebuild()
        return self._world

    def complaint(self) -> str | None:
        """Why decisions must wait, or None."""
        return self.stale() or self.unread()

    def stale(self) -> str | None:
        """Why what is here may be old: a table not confirmed up to date within the limit; or None."""
        if self._task is None:
            return "the tables have not been read yet"
        if self._task.done():
            return "the follower of the tables has ended"
        now = time.monotonic()
        for topic, tail in self._tails.items():
            if now - tail.confirmed_at_s > self._max_staleness_s:
                return f"{topic} was last confirmed {min(now - tail.confirmed_at_s, 1e6):.1f} s ago"
        return None

    def unread(self) -> str | None:
        """What is in effect and cannot be told whom it denies: nobody is refused wrongly, nor let through. Or None."""
        for name, rule in self._mapping.items():
            if rule is None:
                return f"the mapping rule {name} cannot be read: it may be of a later version of the gate"
        for selector in self._revocations.unknown().values():
            return f"a revocation by {selector[:40]!r} is in effect, which this version does not know"
        return None

    async def ended(self) -> None:
        """Wait for the follower, which never ends but by an error, and raise that."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def start(self) -> None:
        """Read the tables whole, load the issuers' keys, and follow from there."""
        for topic, partition in self._partitions.items():
            marks = await self._log.watermarks(partition)
            position = marks.start
            if position < marks.high:
                async for chunk, position in self._log.read(partition, position, marks.high):  # noqa: B007, B020
                    for record in chunk:
                        self._apply(topic, record)
            self._positions[topic] = position
            log.info(Event.TABLE_LOADED, topic=topic.value, offset=position)
        self._keys.follow(self._rules)
        await self._keys.start()
        self._rebuild()
        for topic, partition in self._partitions.items():
            # Whoever could leave a transaction open on the revocations could hide all that come after it.
            self._tails[topic] = self._log.follow(
                partition, self._positions[topic], self._wake, past_open_transactions=topic is not Topic.REVOCATIONS
            )
        self._task = asyncio.create_task(self._follow(), name="tables")
        # The first poll confirms what was read; lanes that began before it would only hold, with a false alarm.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_staleness_s):
                while self.complaint() is not None:  # noqa: ASYNC110 - once, for the time of one poll
                    await asyncio.sleep(FIRST_LOOK_S)

    async def stop(self) -> None:
        for task in (self._task, self._catching_up):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):  # `ended` tells how it ended
                    await task
        await self._keys.stop()

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            changed = moved = more = False
            taken_away = self._grants.taken_away
            for topic, tail in self._tails.items():
                taken = tail.take(TAKE_RECORDS, TAKE_BYTES)
                for record in taken:
                    require_read(record, topic.value)  # it might be a revocation that never took effect
                    self._apply(topic, ReadRecord(record.offset, record.key, record.value, record.appended_at_ms))
                # A grant more changes nothing that was decided: what is remembered of others stays.
                changed |= bool(taken) and topic is not Topic.GRANTS
                more |= len(taken) == TAKE_RECORDS
                moved |= self._positions[topic] != tail.position
                self._positions[topic] = tail.position
                TABLE_STALENESS.labels(topic.value).set(min(time.monotonic() - tail.confirmed_at_s, 1e6))
            if changed or self._grants.taken_away != taken_away:
                self._keys.follow(self._rules)
                self._rebuild()
            elif moved:
                # Past an aborted transaction. Who starts now has read as far, and says so in its handoffs.
                self._world = msgspec.structs.replace(self._world, **self._offsets())
            if more:
                await asyncio.sleep(0)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):  # not wait_for, which may swallow a cancellation (Python 3.11)
                    await self._wake.wait()

    def _apply(self, topic: Topic, record: ReadRecord) -> None:
        match topic:
            case Topic.REGISTRY:
                for watch in self.watchers:
                    watch(record.key or b"", record.value)
                complaint = self._apply_registry(record)
            case Topic.REVOCATIONS:
                complaint = self._revocations.apply(record.key or b"", record.value)
            case _:
                complaint = self._grants.apply(record.key, record.value, record.appended_at_ms)
        if complaint is not None:
            log.error(Event.TABLE_RECORD_BAD, topic=topic.value, offset=record.offset, why=complaint)

    def _apply_registry(self, record: ReadRecord) -> str | None:
        """A record replaces or, as a tombstone, removes. What cannot be read removes too: fail closed."""
        registry_key = (record.key or b"").decode("utf-8", "replace")
        birth_id = birth_id_in(record.value)
        if birth_id is None:
            self._objects.pop(registry_key, None)
        else:
            self._objects[registry_key] = birth_id
        kind, _, name = registry_key.partition("/")
        if kind == "job":
            self._jobs.pop(name, None)
            if record.value is not None:
                job = policy.job_from_record(record.key or b"", record.value)
                if isinstance(job, str):
                    return job
                self._jobs[job.name] = job
        elif kind == "trust":
            self._rules.pop(name, None)
            if record.value is not None:
                rule = policy.trust_from_record(record.key or b"", record.value)
                if isinstance(rule, str):
                    return rule
                self._rules[rule.issuer] = rule
        elif kind == "identity":
            return self._identities.apply(name, record.value)
        elif kind == "rule":
            return self._apply_mapping(name, record)
        return None

    def _apply_mapping(self, name: str, record: ReadRecord) -> str | None:
        """What cannot be read may be a denial: it stays, as such, until it is mended or removed."""
        self._mapping.pop(name, None)
        if record.value is None:
            return None
        rule = mapping_from_record(record.key or b"", record.value)
        if isinstance(rule, str):
            self._mapping[name] = None
            return rule
        self._mapping[name] = rule
        return None

    def _rebuild(self) -> None:
        """Replace the world whole; what was remembered in the one before goes with it."""
        self._ring_version = self._keys.version
        self._world = msgspec.structs.replace(
            self._world,
            ring=self._keys.ring,
            rules=dict(self._rules),
            jobs=dict(self._jobs),
            revocations=self._revocations,
            disabled=self._identities.disabled(),
            mapping=in_effect(self._mapping),
            grants=self._grants,
            objects=dict(self._objects),
            memo=Memo(),
            **self._offsets(),
        )

    def _offsets(self) -> dict[str, int]:
        return {
            "registry_offset": self._positions[Topic.REGISTRY],
            "revocations_offset": self._positions[Topic.REVOCATIONS],
        }

    # ── keys, and grants of handles ──

    def may_fetch(self, wanted: KeyWanted | GrantWanted, taken_at_s: float) -> bool:
        """Whether waiting can help a record that was taken at that time (monotonic).

        An issuer is asked again once an interval, no more. A grant is committed before anyone has its handle, so a
        table that was up to date when the trigger was here already knows all there is to know.
        """
        if isinstance(wanted, GrantWanted):
            return self._grants_as_of_s < taken_at_s
        return wanted.kid is None or self._keys.may_fetch(wanted.iss)

    def keys_read_at_s(self, issuer: str) -> float:
        """As of when (monotonic) the issuer's keys in this view were all that it had published."""
        return self._keys.read_at_s(issuer)

    async def fetch(self, wanted: KeyWanted | GrantWanted) -> None:
        """What can be done about it; judge the record again afterwards."""
        if isinstance(wanted, GrantWanted):
            # One question serves all lanes, whatever number of unknown handles strangers send.
            if self._catching_up is None or self._catching_up.done():
                self._catching_up = asyncio.create_task(self._catch_up(), name="grants")
            await asyncio.shield(self._catching_up)
        elif wanted.kid is not None:
            await self._keys.want(wanted.iss, wanted.kid)

    async def _catch_up(self) -> None:
        """Ask where the grants end now, and wait until they are read as far."""
        asked_at_s = time.monotonic()
        try:
            high = (await self._log.watermarks(self._partitions[Topic.GRANTS])).high
        except Exception as error:
            log.warning(Event.FETCH_FAILED, topic=Topic.GRANTS.value, error=type(error).__name__)
            await asyncio.sleep(WAIT_S)
            return  # the record is held, and asked about again
        # What stands behind a transaction left open cannot be read: after a while it counts as not there.
        give_up_s = asked_at_s + CATCH_UP_S
        while self._positions[Topic.GRANTS] < high and time.monotonic() < give_up_s:  # noqa: ASYNC110 - a few times
            await asyncio.sleep(CATCH_UP_LOOK_S)
        self._grants_as_of_s = asked_at_s
