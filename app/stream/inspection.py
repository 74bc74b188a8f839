"""What the cluster holds of a deployment: topics, their settings and ids, the founding records. Reads only.

Kafka's answers become frozen values here; `topic_check.py` judges them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from app.config import Kafka, Settings
from app.gate import outputs
from app.gate.records import UNREADABLE, Checkpoint
from app.stream.connect import confluent_options
from app.stream.topics import Topic

REACH_TIMEOUT_S: Final = 5.0  # to say that no broker answers
REFUSED_TIMEOUT_S: Final = 1.5  # the same, when every broker refuses the connection
READ_TIMEOUT_S: Final = 60.0  # for the small topics that are read whole here
CHECKPOINTS_LAST: Final = 100  # offsets before the end, where a lane that works has its newest; two a transaction
DEPLOYMENT_KEY: Final = b"deployment/topics"
DEPLOYMENT_VERSION: Final = 1
_NEVER_CLEAR: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)  # noqa: SLF001 - librdkafka's public names


class FoundTopic(NamedTuple):
    """A topic as it is."""

    name: str
    topic_id: str
    partitions: int
    replication_factor: int
    led: bool  # every partition has a leader
    settings: dict[str, str]


class DeploymentRecord(msgspec.Struct, frozen=True):
    """registry, key `deployment/topics`: which topics belong together. Written once, when all of them are right."""

    version: int
    birth_id: str
    cluster_id: str
    lanes: int
    topics: dict[str, str]  # name → topic id

    def holds(self, topic: Topic, prefix: str) -> bool:
        """Whether the topic was there at the founding; a later version may read one more."""
        return topic.named(prefix) in self.topics


class Cluster(NamedTuple):
    """What a cluster answered: the deployment's topics that exist, and how many brokers there are."""

    cluster_id: str
    brokers: int
    topics: dict[Topic, FoundTopic]


class FoundCheckpoint(NamedTuple):
    """A lane's newest checkpoint and when the broker appended it."""

    checkpoint: Checkpoint
    appended_at_ms: int


class _Message(NamedTuple):
    partition: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


def birth_id_of(cluster_id: str, lanes: int, topic_ids: dict[str, str]) -> str:
    """Names one founding: the same topics created anew are another deployment."""
    parts = [cluster_id, str(lanes), *sorted(f"{name}={topic_id}" for name, topic_id in topic_ids.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def connect(kafka: Kafka) -> AdminClient:
    """An admin client of a cluster that answers. Raises KafkaException within REACH_TIMEOUT_S, ConfigError at once."""
    told: list[KafkaError] = []
    admin = AdminClient({**confluent_options(kafka), "error_cb": told.append})
    answer = admin.describe_cluster(request_timeout=REACH_TIMEOUT_S)
    started = time.monotonic()
    while not answer.done():
        admin.poll(0.05)
        # librdkafka tells the cause aside, tries on, and in the end says only that time ran out.
        for error in told:
            if error.code() in _NEVER_CLEAR:
                raise KafkaException(error)
            down = error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001
            if down and time.monotonic() - started > REFUSED_TIMEOUT_S:
                # Its own text counts the brokers as they come and go: "0/2 brokers are down".
                raise KafkaException(KafkaError(error.code(), "connections are refused"))
    answer.result()
    return admin


def describe(admin: AdminClient, settings: Settings) -> Cluster:
    """The cluster and those of the deployment's topics that exist, with settings."""
    timeout_s = settings.kafka.request_timeout_ms / 1_000
    about = admin.describe_cluster(request_timeout=timeout_s).result(timeout_s + 1)
    names = {topic.named(settings.kafka.prefix): topic for topic in Topic}
    described: dict[Topic, Any] = {}
    for name, future in admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s).items():
        try:
            described[names[name]] = future.result(timeout_s + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _naming(name, error.args[0]) from None
    resources = [ConfigResource(ResourceType.TOPIC, topic.named(settings.kafka.prefix)) for topic in described]
    configured: dict[str, dict[str, str]] = {}
    if resources:
        for resource, future in admin.describe_configs(resources, request_timeout=timeout_s).items():
            try:
                entries = future.result(timeout_s + 1)
            except KafkaException as error:
                raise _naming(f"settings of {resource.name}", error.args[0]) from None
            configured[resource.name] = {name: str(entry.value) for name, entry in entries.items()}
    return Cluster(
        str(about.cluster_id),
        len(about.nodes),
        {
            topic: FoundTopic(
                found.name,
                str(found.topic_id),
                len(found.partitions),
                min((len(partition.replicas) for partition in found.partitions), default=0),
                all(partition.leader is not None for partition in found.partitions),
                configured[found.name],
            )
            for topic, found in described.items()
        },
    )


def _naming(what: str, error: KafkaError) -> KafkaException:
    """The same error, which says what it is about: librdkafka's own text does not."""
    return KafkaException(KafkaError(error.code(), f"{what}: {error.str()}"))


def read_deployment(settings: Settings) -> DeploymentRecord | None:
    """The deployment record, or None. Raises ValueError for one that this version cannot read."""
    newest: bytes | None = None
    for message in _read(settings.kafka, Topic.REGISTRY.named(settings.kafka.prefix), [0]):
        if message.key == DEPLOYMENT_KEY:
            newest = message.value
    if newest is None:
        return None
    try:
        record = msgspec.json.decode(newest, type=DeploymentRecord)
    except UNREADABLE as error:
        raise ValueError(f"the record {DEPLOYMENT_KEY.decode()} in the registry cannot be read: {error}") from None
    if record.version != DEPLOYMENT_VERSION:
        raise ValueError(
            f"the record {DEPLOYMENT_KEY.decode()} in the registry is of version {record.version}, and this Tollgate "
            f"reads {DEPLOYMENT_VERSION}: use the version that wrote it, or a newer one"
        )
    return record


def read_checkpoints(settings: Settings, lanes: Sequence[int]) -> dict[int, FoundCheckpoint]:
    """The newest committed checkpoint of each of these lanes that has one. Raises ValueError for one not ours."""
    topic = Topic.CHECKPOINTS.named(settings.kafka.prefix)
    found = _checkpoints(_read(settings.kafka, topic, lanes, CHECKPOINTS_LAST))
    unseen = [lane for lane in lanes if lane not in found]
    return found | _checkpoints(_read(settings.kafka, topic, unseen)) if unseen else found


def _checkpoints(messages: Iterable[_Message]) -> dict[int, FoundCheckpoint]:
    found: dict[int, FoundCheckpoint] = {}
    for message in messages:
        if message.key != str(message.partition).encode():
            continue
        if message.value is None:
            found.pop(message.partition, None)
            continue
        try:
            found[message.partition] = FoundCheckpoint(outputs.read_checkpoint(message.value), message.timestamp_ms)
        except UNREADABLE as error:
            raise ValueError(f"the checkpoint of lane {message.partition} cannot be read: {error}") from None
    return found


def _read(kafka: Kafka, topic: str, partitions: Iterable[int], last: int | None = None) -> Iterator[_Message]:
    """Every committed record of these partitions, up to where they ended when each end was reached.

    With `last` only those within so many offsets before the end.
    """
    consumer = Consumer(
        {
            **confluent_options(kafka),
            "group.id": f"{kafka.prefix}inspection",  # librdkafka wants a name; nothing joins or commits
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
        }
    )
    waiting = set(partitions)
    deadline = time.monotonic() + READ_TIMEOUT_S
    try:
        # An assignment before the leaders are known waits 500 ms; one to a topic that is not ours to see, for ever.
        unseen = consumer.list_topics(topic, timeout=REACH_TIMEOUT_S).topics[topic].error
        if unseen is not None and unseen.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise _naming(topic, unseen)
        places = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in waiting]
        for place in places if last is not None else ():
            low, high = consumer.get_watermark_offsets(place, timeout=REACH_TIMEOUT_S)
            place.offset = max(low, high - last)
        consumer.assign(places)
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}, partitions {sorted(waiting)}: not read within {READ_TIMEOUT_S:.0f} s")
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            if error is None:
                yield _Message(message.partition(), message.timestamp()[1], message.key(), message.value())
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's public name
                waiting.discard(message.partition())
            elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # it looks for the coordinator of its name, which a reader of given offsets has no need of
            elif error.fatal() or not error.retriable():
                raise _naming(topic, error)
    finally:
        consumer.close()
