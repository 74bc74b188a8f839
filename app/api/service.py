"""What the routes share: one connection, one view of the tables, one producer, one follower of the receipts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.api.keys import PublicKeys
from app.api.publisher import Publisher
from app.api.receipts import Receipts
from app.api.search import Search
from app.config import Settings
from app.stream.cluster import Cluster
from app.stream.inquiry import connected
from app.stream.tables import Tables
from app.stream.topic_check import Deployment
from app.stream.topics import Topic


class Service:
    """One process's. It keeps nothing that is not on a topic: another instance answers alike."""

    def __init__(self, settings: Settings, found: Deployment, cluster: Cluster, tables: Tables) -> None:
        prefix = settings.kafka.prefix
        self.settings, self.cluster, self.tables = settings, cluster, tables
        self.keys = PublicKeys(settings.issuer.jwks_file)
        self.publisher = Publisher(settings)
        self.receipts = Receipts(cluster, Topic.RECEIPTS.named(prefix), found.lanes, settings.serve.receipts_kept)
        self.search = Search(self.receipts, Topic.TRIGGERS.named(prefix))
        self.stopping = asyncio.Event()

    def ready(self) -> tuple[bool, str]:
        """Ready: triggers are taken, and what is read is up to date."""
        if self.stopping.is_set():
            return False, "stopping"
        complaint = self.publisher.complaint() or self.receipts.complaint() or self.tables.complaint()
        return complaint is None, complaint or "ok"

    async def ended(self) -> None:
        """Wait for what never ends but by an error, and raise that."""
        followers = [asyncio.create_task(each.ended()) for each in (self.tables, self.receipts)]
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
    async with connected(settings, found) as (cluster, tables):
        service = Service(settings, found, cluster, tables)
        try:
            await service.receipts.start()
            await service.publisher.start()
            yield service
        finally:
            await service.publisher.stop()
            await service.receipts.stop()
