"""Issuing over HTTP: the rights decide, the record comes before the token, and nothing is decided here."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError

from app.api.caller import Caller, require_fresh
from app.api.clients import Client
from app.api.following import Follower
from app.api.pace import Pace
from app.api.problems import Problem
from app.api.producing import Producer
from app.authority.decide import Denied, IssueRequest, unauthenticated
from app.authority.records import Issued, Record
from app.authority.revoking import record_of, revocation, shown
from app.authority.rights import Rights
from app.config import Settings
from app.gate import limits
from app.gate.records import UNREADABLE
from app.gate.revocation import Selector
from app.issuer.issuing import Issuer, Wanted
from app.issuer.keystore import Keystore, KeystoreError
from app.issuer.mint import Minted
from app.logs import Event, log
from app.stream.cluster import Cluster
from app.stream.log import require_read
from app.stream.tables import Tables
from app.stream.topics import Topic

__all__ = ["Issuing", "Refusals", "Wanted"]

TAKE_RECORDS: Final = 5_000
TAKE_BYTES: Final = 16 << 20
STALLED_S: Final = 60.0  # at the start, without anything read
SWEEP_EVERY_S: Final = 60
REFUSALS_AT_ONCE: Final = 20  # records of clients that proved nothing, and then
REFUSAL_EVERY_S: Final = 5  # one in so many seconds, which tells of the others
_REFUSED: Final = b'"event":"issue_denied"}'


class Refusals:
    """Which refusals of strangers are recorded: all of them, unless there are many. Whoever starts reads them all."""

    def __init__(self) -> None:
        self._left, self._at_s, self._unrecorded = float(REFUSALS_AT_ONCE), 0.0, 0

    def take(self, now_s: float) -> int | None:
        """How many before this one were not recorded; None: nor is this one. `now_s` is monotonic."""
        self._left = min(self._left + (now_s - self._at_s) / REFUSAL_EVERY_S, REFUSALS_AT_ONCE)
        self._at_s = now_s
        if self._left < 1:
            self._unrecorded += 1
            return None
        self._left -= 1
        before, self._unrecorded = self._unrecorded, 0
        return before


class Issuing:
    """The process's way to tokens: keys, the record of what was issued, and revocations."""

    def __init__(self, settings: Settings, cluster: Cluster, tables: Tables, rights: Rights) -> None:
        self._settings, self._cluster, self._tables, self.rights = settings, cluster, tables, rights
        self._keys = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
        self._issuer = Issuer(settings, self._keys, self._append, "http")
        self._topic = Topic.ISSUANCE.named(settings.kafka.prefix)
        self._producer = Producer(settings.kafka)
        self.follower = Follower()
        self._live: dict[str, Issued] = {}  # by jti
        self._live_of: dict[str, dict[str, Issued]] = {}  # by identity and by subject, then by jti
        self._issued_to: Counter[str] = Counter()  # how many of them, by identity
        self._under_way: Counter[str] = Counter()  # how many may be added to them
        self._swept_s = 0
        self._refusals, self._pace = Refusals(), Pace(settings.serve.client_requests_per_s)

    # ── life ──

    async def start(self) -> None:
        """Returns when all that tells of tokens still out has been read. Raises TimeoutError when that stalls."""
        await self._producer.start()
        partition = (self._topic, 0)
        marks = await self._cluster.watermarks(partition)
        oldest_s = int(time.time()) - limits.WEBHOOK_LIFETIME_MAX_S - self._settings.gate.grace_s
        found = await self._cluster.first_since(partition, oldest_s * 1000)
        position = marks.high if found is None else found[1]
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(STALLED_S) as stalled:
            if position < marks.high:
                async for chunk, position in self._cluster.read(partition, position, marks.high):  # noqa: B007, B020
                    for record in chunk:
                        self._take(record.value)
                    stalled.reschedule(clock() + STALLED_S)  # however much there is
                    await asyncio.sleep(0)
        self.follower.start(self._follow(position), "issuance")

    async def stop(self) -> None:
        await self.follower.stop()
        await self._producer.stop()

    def complaint(self) -> str | None:
        """Why nothing is issued or revoked, or None."""
        return "there is no producer of what is issued" if self._producer.current is None else None

    async def _follow(self, position: int) -> None:
        wake = asyncio.Event()
        tail = self._cluster.follow((self._topic, 0), position, wake)
        try:
            while True:
                wake.clear()
                taken = tail.take(TAKE_RECORDS, TAKE_BYTES)
                for record in taken:
                    require_read(record, self._topic)  # what was issued there could be neither listed nor taken back
                    self._take(record.value)
                if not taken:
                    await wake.wait()
        finally:
            tail.close()

    def _take(self, value: bytes | None) -> None:
        """A token that may still be out; refusals and what expired are passed over."""
        if value is None or value.endswith(_REFUSED):
            return
        try:
            record = _decode(value)
        except UNREADABLE:
            return
        now_s = int(time.time())
        if record.event == "issued" and record.expires_at_s + self._settings.gate.grace_s > now_s:
            self._issued_to[record.identity] += record.jti not in self._live
            self._live[record.jti] = record
            for name in (record.identity, record.subject):
                self._live_of.setdefault(name, {})[record.jti] = record
        self._sweep(now_s)

    def _sweep(self, now_s: int) -> None:
        """What expired is let go, now and then."""
        if now_s - self._swept_s <= SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        dead = [jti for jti, each in self._live.items() if each.expires_at_s + self._settings.gate.grace_s <= now_s]
        for jti in dead:
            self._forget(self._live.pop(jti))

    def _forget(self, record: Issued) -> None:
        _count_down(self._issued_to, record.identity)
        for name in {record.identity, record.subject}:
            self._live_of[name].pop(record.jti, None)
            if not self._live_of[name]:
                del self._live_of[name]

    # ── what is asked ──

    def live(self, name: str) -> Iterable[Issued]:
        """Every token issued to an identity or speaking for it that has not expired; a revoked one is among them."""
        now_s = int(time.time())
        return [each for each in self._live_of.get(name, {}).values() if each.expires_at_s > now_s]

    def of(self, jti: str) -> Issued | None:
        return self._live.get(jti)

    async def published_until_s(self, kid: str) -> float:
        """Until when a key of our key files was published, in seconds; 0: it is none of them. Raises Problem."""
        try:
            records = await asyncio.to_thread(self._keys.records)
        except (KeystoreError, OSError) as error:
            raise _keys_unavailable(error) from None
        record = next((each for each in records if each.kid == kid), None)
        if record is None:
            return 0
        return math.inf if record.removed_s is None else record.removed_s

    async def issue(self, client: Client, wanted: Wanted) -> Minted | Denied:
        """A token, once the cluster has its record; or the refusal, likewise. Raises Problem without Kafka or keys,
        and where the client asks too fast or has too many: each is kept in memory until it expires.
        """
        name = client.identity.name
        self._pace.take(name, time.monotonic())
        self._sweep(int(time.time()))
        if self._issued_to[name] + self._under_way[name] >= self._settings.serve.client_tokens_max:
            full = Problem("client_has_too_many", headers={"Retry-After": str(SWEEP_EVERY_S)})
            await self._issuer.deny(
                Denied(full.code, full.told.meaning), wanted.request(name, client.identity.org_id), name
            )  # fmt: skip
            raise full
        birth_id_of = self._tables.world.objects.get
        self._under_way[name] += 1
        try:
            made = await self._issuer.issue(client, self.rights, wanted, birth_id_of, current=self._current)
        except (KeystoreError, OSError) as error:
            raise _keys_unavailable(error) from None
        finally:
            _count_down(self._under_way, name)
        return made if isinstance(made, Denied) else made[0]

    def _current(self, client: Client) -> Client | Denied:
        """The client as it stands now; a login that is revoked is nobody. Raises Problem where that is unknown."""
        require_fresh(self._tables)
        if client.login is not None:
            fault = Caller(client.login, "").fault(self._tables.world)
            if fault is not None:
                return Denied(fault.code, "the login is not honoured any more")
        return self.rights.current(client, self._settings.issuer.issuer, int(time.time()))

    async def refused(self, client: Client, code: str, words: str, wanted: Wanted | None = None) -> None:
        """Leave the record of what a client was refused before its rights were asked. Raises Problem without Kafka."""
        name, org_id = client.identity.name, client.identity.org_id
        self._pace.take(name, time.monotonic())
        request = IssueRequest(name, org_id, None) if wanted is None else wanted.request(name, org_id)
        await self._issuer.deny(Denied(code, words), request, name)

    async def unauthenticated(self, claimed: str) -> None:
        """Leave the record of a client that proved nothing; of a flood, of some of them, and how many there were."""
        unrecorded = self._refusals.take(time.monotonic())
        if unrecorded is None:
            return
        denied = unauthenticated()
        if unrecorded:
            denied = Denied(denied.code, f"{denied.words}; {unrecorded} refusals before it left no record")
        request = IssueRequest(claimed, self._settings.issuer.org_id, None)
        await self._issuer.deny(denied, request, claimed, authenticated=False)

    async def revoke(self, selector: Selector, value: str, by: str, reason: str) -> dict[str, Any]:
        """Write a revocation of our own issuer, unless it is in force; gates honour it within a second. Raises Problem
        without Kafka, and where the client asks too fast.
        """
        self._pace.take(by, time.monotonic())
        require_fresh(self._tables)
        now_s, gate = int(time.time()), self._settings.gate
        entry = revocation(
            self._settings.issuer.issuer, selector, value, now_s=now_s, grace_s=gate.grace_s,
            queue_age_cap_s=gate.queue_age_cap_s, reason=reason, by=by,
        )  # fmt: skip
        there = self._tables.world.revocations.of(entry.issuer, selector, value)
        if there is not None and there.since_s >= entry.since_s:
            entry = there
        else:
            await self._append(Topic.REVOCATIONS, [record_of(entry)])
        return shown(entry)

    async def _append(self, topic: Topic, records: Sequence[Record]) -> None:
        producer = self._producer.current
        if producer is None:
            raise Problem("kafka_unavailable")
        name = topic.named(self._settings.kafka.prefix)
        try:
            async with asyncio.timeout(self._settings.serve.publish_timeout_s):
                sent = [await producer.send(name, value, key=key, partition=0) for key, value in records]
                await asyncio.gather(*sent)
            if topic is Topic.ISSUANCE:
                for _, value in records:
                    self._take(value)  # it counts from now on, not from when it is read back
        except (TimeoutError, KafkaError, AssertionError) as error:
            log.failed(Event.PUBLISH_FAILED, error, level=logging.ERROR)
            if not isinstance(error, TimeoutError):
                self._producer.renew(producer)
            raise Problem("outcome_unknown") from None


def _count_down(counts: Counter[str], name: str) -> None:
    """What is counted no more leaves no name behind."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _keys_unavailable(error: Exception) -> Problem:
    log.error(Event.SERVE_ERROR, what=f"{type(error).__name__}: {error}")
    return Problem("keys_unavailable")


_decode: Final = msgspec.json.Decoder(Issued).decode
