"""Issuing over HTTP: the rights decide, the record comes before the token, and nothing is decided here."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka.errors import KafkaError

from app.api.caller import require_fresh
from app.api.clients import Client
from app.api.following import Follower
from app.api.problems import Problem
from app.api.producing import Producer
from app.authority.decide import Allowed, Denied, IssueRequest, may_issue, unauthenticated
from app.authority.identities import Identity
from app.authority.records import Issued, Record, issue_denied, issued
from app.authority.revoking import record_of, revocation
from app.authority.rights import Rights
from app.authority.roles import TokenClass
from app.config import Settings
from app.gate import limits
from app.gate.claims import BoundTo, Parent, Uses
from app.gate.records import UNREADABLE
from app.gate.revocation import Selector
from app.issuer.keystore import Keystore, KeystoreError
from app.issuer.mint import ClientTokenRequest, Minted, TriggerTokenRequest, issue, new_handle
from app.logs import Event, log
from app.stream.cluster import Cluster
from app.stream.log import require_read
from app.stream.tables import Tables
from app.stream.topics import Topic

VIA: Final = "http"
TAKE_RECORDS: Final = 5_000
TAKE_BYTES: Final = 16 << 20
STALLED_S: Final = 60.0  # at the start, without anything read
REFUSALS_AT_ONCE: Final = 20  # records of clients that proved nothing, and then
REFUSAL_EVERY_S: Final = 5  # one in so many seconds, which tells of the others
_REFUSED: Final = b'"event":"issue_denied"}'


class Wanted(NamedTuple):
    """What a client asks for."""

    jobs: tuple[str, ...]
    uses: Uses
    lifetime_s: int
    subject: str | None = None  # None: its own
    params: Mapping[str, Any] = {}
    params_sha256: str | None = None
    idempotency_key: str | None = None
    actors: tuple[str, ...] = ()  # who acts for the subject, the last first (RFC 8693 section 4.1)
    bound_to: BoundTo | None = None
    parents: tuple[Parent, ...] = ()  # the tokens it is exchanged for, the last first
    reference: bool = False  # a handle is to stand for it
    bind_to: str | None = None  # the registry's key of an object: looked up once it may be issued
    token_class: TokenClass = "trigger"  # noqa: S105 - a class


def token_request(wanted: Wanted, request: IssueRequest, issuer: str, audience: str) -> TriggerTokenRequest:
    """What is minted of what a client wants and of what was allowed."""
    return TriggerTokenRequest(
        issuer=issuer, audience=audience, subject=request.subject, org_id=request.org_id, jobs=wanted.jobs,
        uses=wanted.uses, ttl_s=wanted.lifetime_s, params=wanted.params, params_sha256=wanted.params_sha256,
        idempotency_key=wanted.idempotency_key, actors=wanted.actors, bound_to=wanted.bound_to, parents=wanted.parents,
    )  # fmt: skip


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
        self._store = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
        self._topic = Topic.ISSUANCE.named(settings.kafka.prefix)
        self._grants = Topic.GRANTS.named(settings.kafka.prefix)
        self._revocations = Topic.REVOCATIONS.named(settings.kafka.prefix)
        self._producer = Producer(settings.kafka)
        self.follower = Follower()
        self._live: dict[str, Issued] = {}  # by jti
        self._live_of: dict[str, dict[str, Issued]] = {}  # by identity and by subject, then by jti
        self._swept_s = 0
        self._refusals = Refusals()

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
            self._live[record.jti] = record
            for name in (record.identity, record.subject):
                self._live_of.setdefault(name, {})[record.jti] = record
        if now_s - self._swept_s > 60:
            self._swept_s = now_s
            dead = [jti for jti, each in self._live.items() if each.expires_at_s + self._settings.gate.grace_s <= now_s]
            for jti in dead:
                self._forget(self._live.pop(jti))

    def _forget(self, record: Issued) -> None:
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
            records = await asyncio.to_thread(self._store.records)
        except (KeystoreError, OSError) as error:
            raise _keys_unavailable(error) from None
        record = next((each for each in records if each.kid == kid), None)
        if record is None:
            return 0
        return math.inf if record.removed_s is None else record.removed_s

    async def issue(self, client: Client, wanted: Wanted) -> Minted | Denied:
        """A token, once the cluster has its record; or the refusal, likewise. Raises Problem without Kafka or keys."""
        require_fresh(self._tables)
        issuer = self._settings.issuer
        identity = self.rights.known(client.identity.name, issuer.issuer) or client.identity  # as it stands now
        request = IssueRequest(
            wanted.subject or identity.name, identity.org_id, wanted.lifetime_s, wanted.jobs, wanted.token_class,
            wanted.uses, None if client.until_s is None else client.until_s - int(time.time()),
        )  # fmt: skip
        allowed = may_issue(identity, self.rights.roles, request, self.rights.platforms)
        bound = self._bound(wanted) if isinstance(allowed, Allowed) else allowed
        made: Minted | Denied
        if isinstance(bound, Denied):
            made = bound
        else:  # on a thread: the key is read from its file, and another process may hold the lock of its directory
            made = await asyncio.to_thread(self._mint, bound, request, identity)
        now_ms = time.time_ns() // 1_000_000
        if isinstance(made, Denied):
            denied = issue_denied(made, request, identity.name, issuer.issuer, VIA, now_ms, authenticated=True)
            await self._write(self._topic, denied)
            return made
        assert isinstance(allowed, Allowed)  # for the type checker  # noqa: S101
        record = issued(made.claims, made.fingerprint, identity, client.credential_id, allowed.roles, VIA, now_ms)
        await self._write(self._topic, record)
        if made.grant is not None:  # whoever has a handle may use it at once
            await self._write(self._grants, made.grant)
        return made

    def _bound(self, wanted: Wanted) -> Wanted | Denied:
        """With the object that the registry holds now under the key. Raises Problem where that is not known."""
        key = wanted.bind_to
        if key is None:
            return wanted
        complaint = self._tables.complaint()
        if complaint is not None:
            raise Problem("not_ready", complaint)
        birth_id = self._tables.world.objects.get(key)
        if not birth_id:
            what = "nothing" if birth_id is None else "what has no birth id to tell it from one made anew"
            return Denied("bound_object_gone", f"under that key the registry holds {what}")
        return wanted._replace(bound_to=BoundTo(key, birth_id))

    async def refused(self, client: Client, code: str, words: str) -> None:
        """Leave the record of what a client was refused before anything was asked for. Raises Problem without Kafka."""
        identity, issuer, now_ms = client.identity, self._settings.issuer.issuer, time.time_ns() // 1_000_000
        request = IssueRequest(identity.name, identity.org_id, None)
        denied = Denied(code, words)
        record = issue_denied(denied, request, identity.name, issuer, VIA, now_ms, authenticated=True)
        await self._write(self._topic, record)

    async def unauthenticated(self, claimed: str) -> None:
        """Leave the record of a client that proved nothing; of a flood, of some of them, and how many there were."""
        now_ms = time.time_ns() // 1_000_000
        unrecorded = self._refusals.take(time.monotonic())
        if unrecorded is None:
            return
        denied = unauthenticated()
        if unrecorded:
            denied = Denied(denied.code, f"{denied.words}; {unrecorded} refusals before it left no record")
        request = IssueRequest(claimed, self._settings.issuer.org_id, None)
        issuer = self._settings.issuer.issuer
        record = issue_denied(denied, request, claimed, issuer, VIA, now_ms, authenticated=False)
        await self._write(self._topic, record)

    def _mint(self, wanted: Wanted, request: IssueRequest, identity: Identity) -> Minted | Denied:
        issuer, audience = self._settings.issuer.issuer, self._settings.audience
        asked: TriggerTokenRequest | ClientTokenRequest
        if wanted.token_class == "trigger":  # noqa: S105 - a class
            asked = token_request(wanted, request, issuer, audience)
        else:
            asked = ClientTokenRequest(
                issuer, audience, request.subject, request.org_id, wanted.token_class, wanted.lifetime_s,
                self.rights.platforms.get(identity.platform or ""),
            )  # fmt: skip
        try:
            handle = new_handle() if wanted.reference else None
            made = issue(asked, self._store, int(time.time()), handle)
        except (KeystoreError, OSError) as error:
            raise _keys_unavailable(error) from None
        return made if isinstance(made, Minted) else Denied(made.code, made.sentence)

    async def revoke(self, selector: Selector, value: str, by: str, reason: str) -> dict[str, Any]:
        """Write a revocation of our own issuer; gates honour it within a second. Raises Problem without Kafka."""
        now_s, gate = int(time.time()), self._settings.gate
        entry = revocation(
            self._settings.issuer.issuer, selector, value, now_s=now_s, grace_s=gate.grace_s,
            queue_age_cap_s=gate.queue_age_cap_s, reason=reason, by=by,
        )  # fmt: skip
        await self._write(self._revocations, record_of(entry))
        told: dict[str, Any] = msgspec.to_builtins(entry)
        return told

    async def _write(self, topic: str, record: Record) -> None:
        producer = self._producer.current
        if producer is None:
            raise Problem("kafka_unavailable")
        try:
            async with asyncio.timeout(self._settings.serve.publish_timeout_s):
                await producer.send_and_wait(topic, record[1], key=record[0], partition=0)
        except (TimeoutError, KafkaError, AssertionError) as error:
            log.error(Event.PUBLISH_FAILED, error=type(error).__name__)
            if not isinstance(error, TimeoutError):
                self._producer.renew(producer)
            raise Problem("outcome_unknown") from None


def _keys_unavailable(error: Exception) -> Problem:
    log.error(Event.SERVE_ERROR, what=f"{type(error).__name__}: {error}")
    return Problem("keys_unavailable")


_decode: Final = msgspec.json.Decoder(Issued).decode
