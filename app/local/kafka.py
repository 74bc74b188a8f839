"""A real Apache Kafka on this machine, for development, the demo and tests: KRaft, 1 or 3 nodes, loopback only."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from app.local.errors import LocalKafkaError
from app.local.jars import KAFKA_VERSION, class_path, default_cache_dir
from app.local.java import find_java
from app.local.ports import free_ports, require_free
from app.local.process import BrokerProcess, run_tools
from app.local.properties import JAVA_OPTIONS, Node, write_properties

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

READY_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 15.0
THROWAWAY_STOP_TIMEOUT_S: Final = 2.0
READY_POLL_S: Final = 0.1
METADATA_TIMEOUT_S: Final = 1.0  # Ctrl-C waits for it, too
START_ATTEMPTS: Final = 3
STATE_FILE: Final = "cluster.json"
LOCK_FILE: Final = ".lock"

__all__ = ["KAFKA_VERSION", "LocalKafka", "LocalKafkaError", "java_and_class_path"]


def java_and_class_path(cache_dir: Path | None = None) -> tuple[Path, str]:
    """What it takes to run one of Kafka's own tools, such as `org.apache.kafka.tools.ConsoleProducer`."""
    return find_java().path, class_path(cache_dir)


@dataclass(frozen=True, slots=True)
class _Program:
    java: Path
    class_path: str

    def command(self, main_class: str, *arguments: str) -> list[str]:
        return [str(self.java), *JAVA_OPTIONS, "-cp", self.class_path, main_class, *arguments]


class LocalKafka:
    """One cluster. Without `data_dir` its data live in a temporary directory and go when it stops.

    `port` is the first node's; the other nodes take the ports after it. `extra` are server properties that
    win over ours, and `client` the librdkafka settings which reach the cluster then. A detached cluster
    outlives this process; any other dies with it, even by SIGKILL.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        nodes: Literal[1, 3] = 1,
        port: int = 0,
        *,
        extra: Mapping[str, str] | None = None,
        client: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        detached: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if nodes not in {1, 3}:
            raise LocalKafkaError(f"The local Kafka has 1 or 3 nodes, not {nodes}.")
        self._kept = data_dir is not None
        self.data_dir = Path(data_dir).expanduser().absolute() if data_dir is not None else None
        self._count = nodes
        self._port = port
        self._extra = dict(extra or {})
        self._client = dict(client or {})
        self._cache_dir = cache_dir or default_cache_dir()
        self._detached = detached
        self._say = say
        self._nodes: list[Node] = []
        self._processes: dict[int, BrokerProcess] = {}
        self._lock: int | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port`, or a comma between several."""
        return ",".join(node.address for node in self._nodes)

    @property
    def log_files(self) -> list[Path]:
        return [node.log_file for node in self._nodes]

    @property
    def pids(self) -> dict[int, int]:
        """The process of each node that runs, by node (1, 2, 3)."""
        return {number: process.pid for number, process in self._processes.items() if process.is_alive}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when every node is in the cluster and answers for it; raises `LocalKafkaError` with the reason."""
        if self._processes:
            raise LocalKafkaError("This local Kafka is started already.")
        for port in self._asked_ports():
            require_free(port)  # before anything is fetched
        _ = self._program  # fetched now, if ever
        if self.data_dir is None:
            self.data_dir = Path(tempfile.mkdtemp(prefix="tollgate-kafka-"))
        try:
            cluster_id = self._claim(self.data_dir)
            for attempt in range(START_ATTEMPTS):
                self._nodes = self._choose_ports(self.data_dir)
                try:
                    self._start_nodes(cluster_id)
                except _PortTakenError:
                    self._kill_nodes()
                    if self._port or attempt == START_ATTEMPTS - 1:
                        raise
                else:
                    return
        except BaseException:
            self._kill_nodes()
            self._release()  # the directory stays: it holds the log that says why
            raise

    def stop(self) -> None:
        """In order: SIGTERM to all, wait, SIGKILL to those of our own that stay."""
        # The last of three waits for a quorum that is gone: long enough to save data, pointless when they go.
        self._stop_nodes(STOP_TIMEOUT_S if self._kept else THROWAWAY_STOP_TIMEOUT_S)
        if not self._kept and self.data_dir is not None:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir = None

    def kill(self, node: int) -> None:
        """SIGKILL, for tests of what a crash leaves behind."""
        self._processes[node].kill()

    def restart(self, node: int) -> None:
        """Stops a node in order if it still runs, and starts it on the same port and data."""
        process = self._processes[node]
        process.ask_to_stop()
        process.wait_stopped(STOP_TIMEOUT_S)
        chosen = self._nodes[node - 1]
        self._processes[node] = self._spawn(chosen)
        self._wait_ready([chosen])

    def dead_node(self) -> str | None:
        """A sentence about the first node that ended without being asked, if there is one."""
        for number, process in self._processes.items():
            if not process.is_alive:
                return f"The local Kafka (node {number}) ended: {process.cause_of_death()}. Its log: {process.log_file}"
        return None

    @cached_property
    def _program(self) -> _Program:
        return _Program(find_java().path, class_path(self._cache_dir, say=self._say))

    def _asked_ports(self) -> Sequence[int]:
        return range(self._port, self._port + self._count) if self._port else ()

    def _choose_ports(self, data_dir: Path) -> list[Node]:
        free = free_ports(2 * self._count, random.SystemRandom())
        if asked := self._asked_ports():
            free[: self._count] = asked
        return [
            Node(
                id=number,
                broker_port=free[number - 1],
                controller_port=free[self._count + number - 1],
                directory=data_dir / f"node-{number}",
                log_file=data_dir / "logs" / f"node-{number}.log",
            )
            for number in range(1, self._count + 1)
        ]

    def _start_nodes(self, cluster_id: str) -> None:
        for node in self._nodes:
            write_properties(node, self._nodes, self._extra)
        unformatted = [node for node in self._nodes if not (node.data_dir / "meta.properties").exists()]
        run_tools([self._format_command(node, cluster_id) for node in unformatted])
        self._processes = {node.id: self._spawn(node) for node in self._nodes}
        self._wait_ready(self._nodes)

    def _format_command(self, node: Node, cluster_id: str) -> list[str]:
        tool = ("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(node.properties_file))
        return self._program.command(*tool)

    def _spawn(self, node: Node) -> BrokerProcess:
        command = self._program.command("kafka.Kafka", str(node.properties_file))
        inherited = () if self._lock is None else (self._lock,)
        return BrokerProcess(command, node.log_file, tethered=not self._detached, inherited=inherited)

    def _wait_ready(self, asked: Sequence[Node]) -> None:
        """Ready is when each asked node itself tells of all running ones: an open port says less."""
        from confluent_kafka.admin import AdminClient

        deadline = time.monotonic() + READY_TIMEOUT_S
        for node in asked:
            admin = AdminClient(
                {"bootstrap.servers": node.address, "log_level": 0, "reconnect.backoff.max.ms": 100, **self._client}
            )
            while not self._answers_for_all(admin):
                self._raise_if_dead()
                if time.monotonic() > deadline:
                    raise LocalKafkaError(
                        f"The local Kafka did not become ready in {READY_TIMEOUT_S:.0f} s. Its log: {node.log_file}"
                    )
                time.sleep(READY_POLL_S)

    def _answers_for_all(self, admin: AdminClient) -> bool:
        from confluent_kafka import KafkaException

        try:
            metadata = admin.list_topics(timeout=METADATA_TIMEOUT_S)
        except KafkaException:
            return False
        return set(metadata.brokers) == set(self.pids) and metadata.controller_id in metadata.brokers

    def _raise_if_dead(self) -> None:
        for number, process in self._processes.items():
            if not process.is_alive:
                cause = process.cause_of_death()
                kind = _PortTakenError if "Address already in use" in cause else LocalKafkaError
                raise kind(f"The local Kafka (node {number}) did not start: {cause}. Its log: {process.log_file}")

    def _stop_nodes(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.wait_stopped(max(0.0, deadline - time.monotonic()))
        self._processes = {}
        self._release()

    def _kill_nodes(self) -> None:
        for process in self._processes.values():
            if process.is_alive:
                process.kill()
        self._processes = {}

    def _claim(self, data_dir: Path) -> str:
        """The id of the cluster in this directory, which is ours alone from now on.

        The brokers inherit the lock: it is held as long as one of them runs, even detached.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _cluster_id(data_dir, self._count)
        except BlockingIOError as error:
            raise LocalKafkaError(
                f"{data_dir} is in use by another local Kafka: stop that one, or choose another directory, "
                "by --data (`tollgate up`: by --state)."
            ) from error
        except OSError as error:
            raise LocalKafkaError(
                f"The data directory {data_dir} cannot be used ({error.strerror or error}): choose another by --data "
                "(`tollgate up`: by --state)."
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _PortTakenError(LocalKafkaError):
    """Somebody took a port between the look and the start."""


def _cluster_id(data_dir: Path, nodes: int) -> str:
    """Kept beside the data, with the number of nodes: a cluster of another size cannot run on them."""
    state_file = data_dir / STATE_FILE
    if state_file.exists():
        state = json.loads(state_file.read_text(encoding="utf-8"))
        if state["nodes"] != nodes:
            raise LocalKafkaError(
                f"{data_dir} holds a cluster of {state['nodes']}: start it with --nodes {state['nodes']}, "
                "or choose another directory by --data."
            )
        return str(state["cluster_id"])
    cluster_id = base64.urlsafe_b64encode(b"\x44" + os.urandom(15)).decode().rstrip("=")  # never opens with "-"
    state_file.write_text(json.dumps({"cluster_id": cluster_id, "nodes": nodes}) + "\n", encoding="utf-8")
    return cluster_id
