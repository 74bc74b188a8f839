"""The door on its listeners with nothing behind it yet: what it answers without Kafka it answers by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from app.api import server
from app.api.application import internal, public
from app.api.service import Service
from app.authority.rights import Rights
from app.config import Issuer, Kafka, Serve, Settings
from app.stream.cluster import Cluster
from app.stream.inquiry import empty_world
from app.stream.tables import Tables
from app.stream.topic_check import Deployment
from app.trust import JwksFollower

NOWHERE = "127.0.0.1:1"


class Closed:
    """Addresses of a door without Kafka."""

    def __init__(self, public_at: str, internal_at: str, jwks_file: Path) -> None:
        self.public_at, self.internal_at, self.jwks_file = public_at, internal_at, jwks_file

    @property
    def url(self) -> str:
        return f"http://{self.public_at}"

    @property
    def internal_url(self) -> str:
        return f"http://{self.internal_at}"


def unconnected(directory: Path, *, issuer: str = Issuer().issuer, **serve: Any) -> Service:
    """A service that has been told of a deployment and has not reached it. Within an event loop."""
    settings = Settings(
        kafka=Kafka(bootstrap=NOWHERE), issuer=Issuer(issuer=issuer, jwks_file=directory / "jwks.json"),
        serve=Serve(port=0, internal_port=0, **serve),
    )  # fmt: skip
    found = Deployment("cluster", "birth", 4, {}, 8 * 86_400_000, 86_400_000)
    gate = settings.gate
    cluster = Cluster(
        settings.kafka, [], transaction_timeout_ms=gate.transaction_timeout_ms, codec=gate.compression,
        max_batch_bytes=gate.expanded_batch_max_bytes,
    )  # fmt: skip
    tables = Tables(
        cluster, ("registry", 0), ("revocations", 0), ("grants", 0), JwksFollower(settings),
        empty_world(settings, found), 1.0,
    )  # fmt: skip
    return Service(settings, found, cluster, tables, Rights())


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """The service on a listener, served by the program's own server within this event loop; the address."""
    listener = server._bound("serve.port", "127.0.0.1", 0)
    serving = server._Server(public(service), service.settings.serve, service.settings.serve.connections_max)
    task = asyncio.create_task(serving.serve([listener]))
    while not serving.started:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://{server._address(listener)}"
    finally:
        serving.should_exit = True
        service.receipts.let_go()
        await task
        await service.cluster.stop()


@contextmanager
def closed_door(directory: Path, **serve: Any) -> Iterator[Closed]:
    """Its two listeners, served by the program's own servers on a thread of its own."""
    up, stop = threading.Event(), threading.Event()
    addresses: list[str] = []

    async def run() -> None:
        service = unconnected(directory, **serve)
        listeners = [server._bound("serve.port", "127.0.0.1", 0) for _ in range(2)]
        addresses.extend(server._address(each) for each in listeners)
        given = service.settings.serve
        servers = [
            server._Server(public(service), given, given.connections_max, server._certificate(given)),
            server._Server(internal(service), given, given.connections_max),
        ]
        running = [asyncio.create_task(each.serve([at])) for each, at in zip(servers, listeners, strict=True)]
        while not all(each.started for each in servers):  # noqa: ASYNC110 - they have no event for it
            await asyncio.sleep(0.01)
        up.set()
        await asyncio.to_thread(stop.wait)
        for each in servers:
            each.should_exit = True
        await asyncio.gather(*running)
        await service.cluster.stop()

    def live() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=live, name="door")
    thread.start()
    try:
        assert up.wait(30)
        yield Closed(*addresses, directory / "jwks.json")
    finally:
        stop.set()
        thread.join()
