"""What a node of the local Kafka is told: its server.properties and its Java options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.issuer.files import write_atomically

LOOPBACK: Final = "127.0.0.1"
BROKER_SESSION_MS: Final = 5_000

JAVA_OPTIONS: Final = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # up sooner; the C1 compiler is enough for a broker on one machine
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
    # Hundreds of lines at every start that say nothing of ours.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config.AbstractConfig=warn",
    "-Dorg.slf4j.simpleLogger.log.state.change.logger=warn",
)


@dataclass(frozen=True, slots=True)
class Node:
    """One process that is broker and controller."""

    id: int
    broker_port: int
    controller_port: int
    directory: Path
    log_file: Path

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.broker_port}"

    @property
    def properties_file(self) -> Path:
        return self.directory / "server.properties"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"


def server_properties(node: Node, cluster: Sequence[Node], extra: Mapping[str, str]) -> dict[str, str]:
    """`extra` comes last and wins; SASL and ACLs come that way, see `secured.py`."""
    copies = str(min(3, len(cluster)))
    in_sync = "2" if len(cluster) > 1 else "1"
    settings = {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{each.id}@{LOOPBACK}:{each.controller_port}" for each in cluster),
        "listeners": f"BROKER://{node.address},CONTROLLER://{LOOPBACK}:{node.controller_port}",
        "advertised.listeners": f"BROKER://{node.address}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(node.data_dir),
        # A topic nobody made is a mistake to be told, not made good.
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Internal topics of 50 partitions each are made at first use, which someone then waits for.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # How soon an abandoned transaction is found to have timed out: 10 s by default, on top of its timeout.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # How soon a killed node is missed: 9 s by default.
        "broker.session.timeout.ms": str(BROKER_SESSION_MS),
        "broker.heartbeat.interval.ms": "1000",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "4",
        "log.cleaner.dedupe.buffer.size": "33554432",
    }
    return {**settings, **extra}


def write_properties(node: Node, cluster: Sequence[Node], extra: Mapping[str, str]) -> None:
    node.directory.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}={_escaped(value)}" for name, value in server_properties(node, cluster, extra).items()]
    write_atomically(node.properties_file, ("\n".join(lines) + "\n").encode(), 0o600)  # it may hold passwords


def _escaped(value: str) -> str:
    """Java's property files: a backslash escapes, a line ends the value."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")
