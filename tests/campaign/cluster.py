"""Three brokers on one host, and who plays which part among them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.local.kafka import LocalKafka, java_and_class_path

TIMEOUT_S = 10.0


class Cluster(LocalKafka):
    """A local Kafka whose brokers are killed one by one or all at once."""

    def __init__(self, directory: Path, **extra: str) -> None:
        super().__init__(directory, 3, extra={"log.segment.bytes": "67108864"} | extra)

    def revive(self) -> None:
        """Start all that are dead. One alone has no quorum, so none is waited for before all are started."""
        dead = [node for node in self._nodes if node.id not in self.pids]
        for node in dead:
            self._processes[node.id] = self._spawn(node)
        if dead:
            self._wait_ready(self._nodes)

    def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition, 1 to 3."""
        found = AdminClient({"bootstrap.servers": self.bootstrap}).list_topics(topic, timeout=TIMEOUT_S)
        return int(found.topics[topic].partitions[partition].leader)

    def transaction_coordinator(self, transactional_id: str) -> int:
        """Java's String.hashCode picks the partition of the state topic, whose leader coordinates."""
        number = 0
        for letter in transactional_id:
            number = (31 * number + ord(letter)) & 0xFFFFFFFF
        return self.leader("__transaction_state", (number & 0x7FFFFFFF) % 8)

    def group_coordinator(self, group: str) -> int:
        number = 0
        for letter in group:
            number = (31 * number + ord(letter)) & 0xFFFFFFFF
        return self.leader("__consumer_offsets", (number & 0x7FFFFFFF) % 4)

    def quorum_leader(self) -> int:
        """As the nodes themselves last noted it on their disks."""
        newest, leader = -1, 1
        for node in self._nodes:
            state = json.loads((node.data_dir / "__cluster_metadata-0" / "quorum-state").read_text())
            if state["leaderEpoch"] > newest and state["leaderId"] > 0:
                newest, leader = state["leaderEpoch"], state["leaderId"]
        return leader

    def replicas_in_sync(self) -> bool:
        """Whether every partition of every topic has all its replicas in sync."""
        try:
            found = AdminClient({"bootstrap.servers": self.bootstrap}).list_topics(timeout=TIMEOUT_S)
        except KafkaException:
            return False
        return all(
            len(partition.isrs) == len(partition.replicas)
            for topic in found.topics.values()
            for partition in topic.partitions.values()
        )

    def ongoing_transactions(self, prefix: str) -> list[str]:
        """Transactional ids of a deployment that are not at rest, as Kafka's own tool lists them."""
        java, class_path = java_and_class_path()
        told = subprocess.run(
            [str(java), "-XX:TieredStopAtLevel=1", "-cp", class_path, "org.apache.kafka.tools.TransactionsCommand",
             "--bootstrap-server", self.bootstrap, "list"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        rows = [line.split() for line in told.stdout.splitlines() if line.startswith(prefix)]
        return [f"{row[0]} {row[-1]}" for row in rows if row[-1] not in {"CompleteCommit", "CompleteAbort", "Empty"}]
