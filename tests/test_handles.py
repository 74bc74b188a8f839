"""Handles on a real broker: written, found, followed; and revocations taken back without losing a newer one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec

from app import config, grants, registry, revocations
from app.config import Settings
from app.gate.claims import BoundTo
from app.gate.reference import grant_key, handle_digest
from app.gate.revocation import revocation_key, revocation_record
from app.gate.token import GrantWanted
from app.issuer import mint
from app.issuer.keystore import SigningKey
from app.stream import administration
from app.stream.appending import appending
from app.stream.inquiry import connected
from app.stream.tables import Tables
from app.stream.topics import Topic

ISS = "https://issuer.example"
KEY = SigningKey("k1", "ES256", ec.generate_private_key(ec.SECP256R1()))
PAST_S, FUTURE_S = 1_700_000_000, int(time.time()) + 86_400


@pytest.fixture
def settings(broker: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TOLLGATE_BOOTSTRAP", broker)
    monkeypatch.setenv("TOLLGATE_PREFIX", prefix)
    loaded = config.load()
    assert not administration.create_topics(loaded, 1, 1).checked.fatal
    return loaded


def minted(**changes: Any) -> mint.Minted:
    request = mint.TriggerTokenRequest(
        ISS, "tollgate:t.", "service:ci", "acme", ("reports/nightly",), "many", 600, **changes
    )
    made = mint.mint(request, KEY, int(time.time()), handle=mint.new_handle())
    assert isinstance(made, mint.Minted)
    assert made.grant is not None
    return made


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Tables]:
    found = administration.check(settings).deployment
    assert found is not None
    async with connected(settings, found) as (_, tables):
        yield tables


async def soon(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ── grants ──


async def test_a_grant_is_there_for_everyone_before_its_handle_is_out(settings: Settings) -> None:
    made = [minted() for _ in range(3)]
    async with appending(settings.kafka) as append:
        await append(Topic.GRANTS, [each.grant for each in made if each.grant])
    for each in made:
        assert each.grant is not None
        assert await grants.find(settings.kafka, each.token) == each.grant[1]
    assert await grants.find(settings.kafka, mint.new_handle()) is None
    async with following(settings) as tables:
        assert len(tables.world.grants) == 3


async def test_a_new_grant_forgets_nothing_and_one_taken_away_everything(settings: Settings) -> None:
    first, second = minted(), minted()
    async with following(settings) as tables, appending(settings.kafka) as append:
        memo = tables.world.memo
        await append(Topic.GRANTS, [first.grant or (b"", b"")])
        await soon(lambda: tables.world.grants.get(handle_digest(first.token)))
        assert tables.world.memo is memo, "what was decided of others still holds"
        await append(Topic.GRANTS, [second.grant or (b"", b"")])
        await soon(lambda: tables.world.grants.get(handle_digest(second.token)))
        assert tables.world.memo is memo

        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
        await producer.start()
        try:
            await producer.send_and_wait(
                Topic.GRANTS.named(settings.kafka.prefix), None, key=grant_key(handle_digest(first.token)), partition=0
            )
        finally:
            await producer.stop()
        await soon(lambda: tables.world.grants.get(handle_digest(first.token)) is None)
        await soon(lambda: tables.world.memo is not memo)


async def test_an_unknown_handle_costs_one_look_at_the_end_of_the_topic_however_many_come(settings: Settings) -> None:
    async with following(settings) as tables:
        taken_at_s = time.monotonic()
        wanted = [GrantWanted(handle_digest(mint.new_handle())) for _ in range(1_000)]
        assert tables.may_fetch(wanted[0], taken_at_s), "its grant may have been committed since the last look"
        await asyncio.gather(*(tables.fetch(each) for each in wanted[:50]))
        assert not any(tables.may_fetch(each, taken_at_s) for each in wanted)
        assert tables.may_fetch(wanted[0], time.monotonic()), "of a trigger that came later, nothing is known"


async def test_what_was_committed_before_a_trigger_came_is_in_the_table_when_it_is_judged_again(
    settings: Settings,
) -> None:
    async with following(settings) as tables, appending(settings.kafka) as append:
        for _ in range(20):
            made = minted()
            await append(Topic.GRANTS, [made.grant or (b"", b"")])
            taken_at_s = time.monotonic()
            while tables.may_fetch(GrantWanted(handle_digest(made.token)), taken_at_s):
                await tables.fetch(GrantWanted(handle_digest(made.token)))
            assert tables.world.grants.get(handle_digest(made.token))


async def test_a_transaction_left_open_on_the_grants_holds_no_lane(settings: Settings) -> None:
    """Issuers may write there: none of them may stop every gate."""
    stranger = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "transactional.id": f"{settings.kafka.prefix}stranger"}
    )
    stranger.init_transactions(30)
    async with following(settings) as tables:
        stranger.begin_transaction()
        stranger.produce(Topic.GRANTS.named(settings.kafka.prefix), b"x", b"nothing", partition=0)
        stranger.flush(30)
        try:
            wanted, taken_at_s = GrantWanted(handle_digest(mint.new_handle())), time.monotonic()
            await tables.fetch(wanted)
            assert not tables.may_fetch(wanted, taken_at_s), "the handle is refused, for now, and holds nobody"
            assert tables.complaint() is None
        finally:
            stranger.abort_transaction(30)


# ── what tokens are bound to ──


async def test_the_view_of_what_is_there_follows_the_registry_and_a_successor_is_another(settings: Settings) -> None:
    def born(name: str) -> str | None:
        return tables.world.objects.get(f"job/{name}")

    job = registry.define("jobs", "reports/nightly", {})
    async with following(settings) as tables:
        await registry.apply(settings, [job], dry_run=False)
        await soon(lambda: born("reports/nightly"))
        first = BoundTo("job/reports/nightly", born("reports/nightly"))
        changed = registry.define("jobs", "reports/nightly", {"enabled": False})
        await registry.apply(settings, [changed], dry_run=False)
        await soon(lambda: not tables.world.jobs["reports/nightly"].enabled)
        assert not first.is_gone(tables.world.objects), "changed is not made anew"
        assert await registry.remove(settings, "jobs", "reports/nightly")
        await soon(lambda: born("reports/nightly") is None)
        assert first.is_gone(tables.world.objects)
        await registry.apply(settings, [job], dry_run=False)
        await soon(lambda: born("reports/nightly"))
        assert first.is_gone(tables.world.objects)
        assert not BoundTo("job/reports/nightly").is_gone(tables.world.objects)
        assert "deployment/topics" in tables.world.objects
        assert not await registry.remove(settings, "jobs", "reports/weekly")


# ── revocations ──


def revoke(settings: Settings, *values: str, keep_until_s: int = PAST_S) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "acks": "all"})
    for value in values:
        key, record = revocation_record(ISS, "subject", value, since_s=1, reason="", by="", keep_until_s=keep_until_s)
        producer.produce(Topic.REVOCATIONS.named(settings.kafka.prefix), record, key, partition=0)
    assert producer.flush(30) == 0


def key_of(value: str) -> bytes:
    return revocation_key(ISS, "subject", value)


async def test_what_is_taken_back_is_gone_and_nothing_else(settings: Settings) -> None:
    revoke(settings, *(f"service:{number}" for number in range(450)))
    present = await revocations.read(settings.kafka)
    keys = [key_of(f"service:{number}") for number in range(1, 450)]
    await revocations.take_back(settings.kafka, present, keys)
    after = await revocations.read(settings.kafka)
    assert list(after.table.by_key()) == [key_of("service:0")]


async def test_what_was_revoked_anew_meanwhile_is_not_taken_back_by_who_never_saw_it(settings: Settings) -> None:
    revoke(settings, "service:a", "service:b")
    stale = await revocations.read(settings.kafka)
    revoke(settings, "service:a", keep_until_s=FUTURE_S)
    with pytest.raises(revocations.RevocationsError, match="written anew"):
        await revocations.take_back(settings.kafka, stale, [key_of("service:b"), key_of("service:a")])
    now = await revocations.read(settings.kafka)
    assert set(now.table.by_key()) == {key_of("service:a"), key_of("service:b")}
    assert now.table.by_key()[key_of("service:a")].keep_until_s == FUTURE_S
    # The tombstones that were written in vain do not stand in the way of the next try.
    await revocations.take_back(settings.kafka, now, [key_of("service:a"), key_of("service:b")])
    assert not (await revocations.read(settings.kafka)).table.by_key()


async def test_a_revocation_still_in_a_transaction_is_not_overtaken_either(settings: Settings) -> None:
    revoke(settings, "service:a")
    other = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "transactional.id": f"{settings.kafka.prefix}other"}
    )
    other.init_transactions(30)
    other.begin_transaction()
    key, record = revocation_record(ISS, "subject", "service:a", since_s=2, reason="", by="", keep_until_s=FUTURE_S)
    other.produce(Topic.REVOCATIONS.named(settings.kafka.prefix), record, key, partition=0)
    other.flush(30)
    present = await revocations.read(settings.kafka)
    with pytest.raises(revocations.RevocationsError, match="written anew"):
        await revocations.take_back(settings.kafka, present, [key])
    other.commit_transaction(30)
    (entry,) = (await revocations.read(settings.kafka)).table.entries()
    assert entry.since_s == 2


# ── a deployment of an earlier version ──


@pytest.fixture
def older(broker: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Founded when there were no grants."""
    monkeypatch.setenv("TOLLGATE_BOOTSTRAP", broker)
    monkeypatch.setenv("TOLLGATE_PREFIX", prefix)
    loaded = config.load()
    admin = administration.connect(loaded.kafka)
    known = [topic for topic in Topic if topic is not Topic.GRANTS]
    administration._add_topics(admin, loaded, administration.describe(admin, loaded), known, 1, 1)
    cluster = administration._await_leaders(admin, loaded, known)
    administration._add_founding_records(admin, loaded, cluster, 1)
    return loaded


def test_a_topic_that_came_with_a_later_version_is_told_and_added_to_a_deployment(older: Settings) -> None:
    checked = administration.check(older)
    (finding,) = checked.fatal
    assert (finding.topic, finding.found) == (Topic.GRANTS.named(older.kafka.prefix), "missing")
    assert "topics create" in finding.mend
    created = administration.create_topics(older)
    assert (created.topics, created.records) == ([Topic.GRANTS.named(older.kafka.prefix)], [])
    assert not created.checked.fatal
    assert administration.create_topics(older).topics == []


def test_a_topic_that_was_there_at_the_founding_is_never_made_again(settings: Settings) -> None:
    admin = administration.connect(settings.kafka)
    name = Topic.GRANTS.named(settings.kafka.prefix)
    admin.delete_topics([name])[name].result(30)
    deadline = time.monotonic() + 10
    while Topic.GRANTS in administration.describe(admin, settings).topics and time.monotonic() < deadline:
        time.sleep(0.1)
    created = administration.create_topics(settings)
    assert created.topics == []
    assert [(finding.topic, finding.found) for finding in created.checked.fatal] == [(name, "deleted")]
