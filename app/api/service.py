"""What the routes share: one connection, one view of the tables, one producer, one follower of the receipts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.api.clients import Clients
from app.api.issuing import Issuing
from app.api.keys import PublicKeys
from app.api.publisher import Publisher
from app.api.receipts import Receipts
from app.api.requests import Bodies
from app.api.search import Search
from app.api.used import Used
from app.authority.rights import Rights
from app.config import Settings
from app.stream.cluster import Cluster
from app.stream.inquiry import connected
from app.stream.tables import Tables
from app.stream.topic_check import Deployment
from app.stream.topics import Topic


class Service:
    """One process's. It keeps nothing that is not on a topic: another instance answers alike."""

    def __init__(self, settings: Settings, found: Deployment, cluster: Cluster, tables: Tables, rights: Rights) -> None:
        prefix, serve = settings.kafka.prefix, settings.serve
        self.settings, self.cluster, self.tables = settings, cluster, tables
        self.rights = rights
        self.keys = PublicKeys(settings.issuer.jwks_file)
        self.bodies = Bodies(serve.bodies_max_bytes)
        self.publisher = Publisher(settings)
        self.receipts = Receipts(cluster, Topic.RECEIPTS.named(prefix), found.lanes, settings.serve.receipts_kept)
        self.search = Search(self.receipts, Topic.TRIGGERS.named(prefix))
        self.clients = Clients(rights, settings.issuer.issuer, serve.public_url, settings.gate.grace_s)
        self.clients.complaint = tables.complaint
        self.issuing = Issuing(settings, cluster, tables, rights) if serve.issues else None
        self.clients.on_failure = self.issuing.unauthenticated if self.issuing is not None else None
        self.used = Used(cluster, Topic.IDEMPOTENCY.named(prefix), found.lanes, settings.gate.grace_s)
        self.streams_max = serve.streams_max
        self.stopping = asyncio.Event()

    def ready(self) -> tuple[bool, str]:
        """Ready: triggers are taken, and what is read is up to date."""
        if self.stopping.is_set():
            return False, "stopping"
        complaint = self.publisher.complaint() or self.receipts.complaint() or self.tables.complaint()
        if complaint is None and self.issuing is not None:
            complaint = self.issuing.complaint()
        return complaint is None, complaint or "ok"

    async def ended(self) -> None:
        """Wait for what never ends but by an error, and raise that."""
        ends = [self.tables.ended(), self.receipts.follower.ended()]
        if self.issuing is not None:
            ends.append(self.issuing.follower.ended())
        followers = [asyncio.create_task(each) for each in ends]
        try:
            done, _ = await asyncio.wait(followers, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in followers:
                each.cancel()


@asynccontextmanager
async def serving(settings: Settings, found: Deployment) -> AsyncIterator[Service]:
    """A service that has read what it needs. Raises KafkaError when Kafka does not answer."""
    rights = Rights()
    async with connected(settings, found, rights.apply) as (cluster, tables):
        service = Service(settings, found, cluster, tables, rights)
        try:
            await service.receipts.start()
            await service.publisher.start()
            if service.issuing is not None:
                await service.issuing.start()
            yield service
        finally:
            await service.publisher.stop()
            if service.issuing is not None:
                await service.issuing.stop()
            await service.receipts.stop()
