"""Creates a deployment's topics and its founding records, and checks them. Adds what is missing; alters nothing.

The order makes a creation that was cut short safe to repeat: topics, then one initial checkpoint per lane, then
the deployment record. A record therefore means that every checkpoint was there; a checkpoint that is missing
later was lost, and is never written anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from app.config import Settings
from app.gate.outputs import checkpoint as checkpoint_record
from app.gate.records import NO_AUDIT_YET, Checkpoint
from app.stream.connect import confluent_options
from app.stream.inspection import (
    DEPLOYMENT_KEY,
    DEPLOYMENT_VERSION,
    Cluster,
    DeploymentRecord,
    birth_id_of,
    connect,
    describe,
    read_checkpoints,
    read_deployment,
)
from app.stream.topic_check import Deployment, Finding, Limits, deployment_of, findings, in_one_sentence
from app.stream.topics import LANES_DEFAULT, LAYOUT, Topic

__all__ = ["Checked", "Created", "Deployment", "Finding", "TopicsError", "check", "create_topics", "print_commands"]

LEADER_TIMEOUT_S: Final = 30.0
LEADER_POLL_S: Final = 0.1
WRITE_TIMEOUT_S: Final = 30.0
LANES_AT_ONCE: Final = 8
REPLICATION_DEFAULT: Final = 3
# What brokers answer of a partition that is new, until all of them have learnt who leads it.
_MAY_PASS: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    # A client that has heard of the new leader asks with its epoch, and the leader itself has yet to hear of it.
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError._TIMED_OUT,  # noqa: SLF001 - its public names; of a controller, too
)
T = TypeVar("T")


class TopicsError(Exception):
    """The topics cannot be made right without a person; the message says what to do."""


class Checked(NamedTuple):
    """What a check found, and the deployment when nothing fatal was among it."""

    findings: list[Finding]
    deployment: Deployment | None

    @property
    def fatal(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fatal]

    @property
    def complaint(self) -> str:
        """What keeps a gate from starting, and how to mend it."""
        return in_one_sentence(self.fatal)


class Created(NamedTuple):
    """What a creation added (empty when run again), and the check that followed."""

    topics: list[str]
    records: list[str]
    checked: Checked


def check(settings: Settings) -> Checked:
    """Look at everything, change nothing.

    Raises KafkaException, TimeoutError or ConfigError; TopicsError for a founding record or checkpoint that is none.
    """
    return _check(settings, describe(connect(settings.kafka), settings))


def create_topics(settings: Settings, lanes: int | None = None, replication_factor: int | None = None) -> Created:
    """Add the topics and founding records that are missing.

    `lanes`: default what is there, else LANES_DEFAULT. `replication_factor`: default 3, or as many as there are
    brokers. Raises TopicsError where what exists stands in the way.
    """
    admin = connect(settings.kafka)
    cluster = describe(admin, settings)
    record = _record(settings, cluster)
    if record is not None and lanes not in {None, record.lanes}:
        raise TopicsError(f"this deployment has {record.lanes} lanes, and lanes cannot be added or taken later")
    lanes = record.lanes if record is not None else _lanes(settings, cluster, lanes)
    # A topic that was there at the founding is never made again: what it held is gone.
    missing = [t for t in Topic if t not in cluster.topics and not (record and record.holds(t, settings.kafka.prefix))]
    added = _add_topics(
        admin, settings, cluster, missing, lanes, replication_factor or min(REPLICATION_DEFAULT, cluster.brokers)
    )
    if added:
        cluster = _await_leaders(admin, settings, [*cluster.topics, *missing])
    if record is not None:
        return Created(added, [], _check(settings, cluster))
    records = _add_founding_records(admin, settings, cluster, lanes)
    return Created(added, records, _check(settings, cluster))


def print_commands(settings: Settings, lanes: int | None = None, replication_factor: int | None = None) -> list[str]:
    """The shell commands that create the topics, for those who may not; no connection is made."""
    lanes, replicas = lanes or LANES_DEFAULT, replication_factor or REPLICATION_DEFAULT
    commands = ["# with security, add: --command-config client.properties"]
    for topic in Topic:
        partitions = lanes if LAYOUT[topic].per_lane else 1
        words = [
            f"kafka-topics.sh --bootstrap-server {settings.kafka.bootstrap} --create --if-not-exists",
            f"--topic {topic.named(settings.kafka.prefix)} --partitions {partitions} --replication-factor {replicas}",
        ]
        words += [f"--config {name}={value}" for name, value in topic_settings(topic, replicas).items()]
        commands.append(" \\\n  ".join(words))
    return [
        *commands,
        "# then, to write the founding records (needs no right to create topics):",
        "tollgate topics create",
    ]


def topic_settings(topic: Topic, replication_factor: int) -> dict[str, str]:
    """What a topic is created with."""
    layout = LAYOUT[topic]
    durable = {"min.insync.replicas": str(max(1, replication_factor - 1))} if replication_factor > 1 else {}
    return {**layout.enforced, **layout.suggested, **durable}


def _check(settings: Settings, cluster: Cluster) -> Checked:
    limits = Limits(
        settings.kafka.prefix, settings.kafka.bootstrap, settings.gate.grace_s, settings.gate.queue_age_cap_s
    )
    record = _record(settings, cluster)
    found = cluster.topics.get(Topic.CHECKPOINTS)
    checkpoints = _checkpoints(settings, range(found.partitions)) if record is not None and found is not None else {}
    listed = list(findings(cluster, record, checkpoints, limits))
    sound = record is not None and not any(finding.fatal for finding in listed)
    return Checked(listed, deployment_of(cluster, record) if record is not None and sound else None)


def _record(settings: Settings, cluster: Cluster) -> DeploymentRecord | None:
    if Topic.REGISTRY not in cluster.topics:
        return None
    try:
        return read_deployment(settings)
    except ValueError as error:
        raise TopicsError(str(error)) from None


def _checkpoints(settings: Settings, lanes: Sequence[int]) -> dict[int, Checkpoint]:
    try:
        return {lane: found.checkpoint for lane, found in read_checkpoints(settings, lanes).items()}
    except ValueError as error:
        raise TopicsError(str(error)) from None


def _lanes(settings: Settings, cluster: Cluster, wanted: int | None) -> int:
    """How many lanes this deployment is founded with: existing lane topics decide."""
    counts = {found.name: found.partitions for topic, found in cluster.topics.items() if LAYOUT[topic].per_lane}
    if not counts:
        return wanted or LANES_DEFAULT
    if len(set(counts.values())) > 1 or (wanted is not None and wanted not in counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise TopicsError(
            f"all lane topics must have the same number of partitions{f', {wanted}' if wanted else ''}; "
            f"found: {listed}; delete those that are wrong, or use another --prefix than {settings.kafka.prefix}"
        )
    return next(iter(counts.values()))


def _add_topics(
    admin: AdminClient, settings: Settings, cluster: Cluster, topics: Sequence[Topic], lanes: int,
    replication_factor: int,
) -> list[str]:  # fmt: skip
    if not topics:
        return []
    if replication_factor > cluster.brokers:
        raise TopicsError(f"replication factor {replication_factor} needs as many brokers; there are {cluster.brokers}")
    timeout_s = settings.kafka.request_timeout_ms / 1_000
    wanted = [
        NewTopic(
            topic.named(settings.kafka.prefix),
            num_partitions=lanes if LAYOUT[topic].per_lane else 1,
            replication_factor=replication_factor,
            config=topic_settings(topic, replication_factor),
        )
        for topic in topics
    ]
    added = []
    for name, future in admin.create_topics(wanted, operation_timeout=timeout_s, request_timeout=timeout_s).items():
        try:
            future.result(timeout_s * 2 + 1)
            added.append(name)
        except KafkaException as error:
            match error.args[0].code():
                case KafkaError.TOPIC_ALREADY_EXISTS:  # someone else creates them at this moment
                    continue
                case KafkaError.TOPIC_AUTHORIZATION_FAILED | KafkaError.CLUSTER_AUTHORIZATION_FAILED:
                    raise TopicsError(
                        f"the broker does not allow us to create {name}: give the commands of `tollgate topics create "
                        "--print` to those who may, then run this again"
                    ) from None
            raise TopicsError(f"{name} could not be created: {error.args[0].str()}") from None
    return added


def _await_leaders(admin: AdminClient, settings: Settings, topics: Sequence[Topic]) -> Cluster:
    """The cluster once every new partition has a leader, and that leader knows it: each broker learns for itself."""
    deadline = time.monotonic() + LEADER_TIMEOUT_S
    while True:
        try:
            cluster = describe(admin, settings)
            waiting = [
                t.named(settings.kafka.prefix) for t in topics if t not in cluster.topics or not cluster.topics[t].led
            ]
            if not waiting:
                _first_offsets(
                    admin,
                    settings,
                    [(found.name, n) for found in cluster.topics.values() for n in range(found.partitions)],
                )
        except KafkaException as error:
            if not _may_pass(error):
                raise
            waiting = ["the new topics"]  # created, and not yet known to a broker that was asked
        else:
            if not waiting:
                return cluster
        if time.monotonic() > deadline:
            raise TopicsError(f"no leader within {LEADER_TIMEOUT_S:.0f} s for {', '.join(waiting)}: are brokers down?")
        time.sleep(LEADER_POLL_S)


def once_led(
    ask: Callable[[], T],
    timeout_s: float = LEADER_TIMEOUT_S,
    failed: Callable[[KafkaException], object] = lambda _: None,
) -> T:
    """The answer to a question, asked again while the brokers learn who leads partitions or controls them.

    `failed` is told of each time they could not answer; what it raises ends the asking.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if not _may_pass(error) or time.monotonic() > deadline:
                raise
            failed(error)
        time.sleep(LEADER_POLL_S)


def _may_pass(error: KafkaException) -> bool:
    """Whether brokers that are there may answer in a moment: they look for a leader or a controller just now."""
    told: KafkaError = error.args[0]
    return told.code() in _MAY_PASS or told.retriable()


# ── founding records ──


def _add_founding_records(admin: AdminClient, settings: Settings, cluster: Cluster, lanes: int) -> list[str]:
    ids = {found.name: found.topic_id for found in cluster.topics.values()}
    record = DeploymentRecord(
        DEPLOYMENT_VERSION, birth_id_of(cluster.cluster_id, lanes, ids), cluster.cluster_id, lanes, ids
    )
    have = _checkpoints(settings, range(lanes))
    foreign = [lane for lane, checkpoint in have.items() if checkpoint.birth_id != record.birth_id]
    if foreign:
        raise TopicsError(
            f"{Topic.CHECKPOINTS.named(settings.kafka.prefix)} holds checkpoints of another deployment "
            f"(lanes {foreign}): some topics were created again; delete every topic of the prefix, then create them"
        )
    missing = [lane for lane in range(lanes) if lane not in have]
    starts = _starts(admin, settings, missing)

    def found_lane(lane: int) -> str:
        first = Checkpoint(
            lane=lane, lanes=lanes, birth_id=record.birth_id, sequence=0,
            triggers_offset=starts[Topic.TRIGGERS, lane], handoffs_offset=starts[Topic.HANDOFFS, lane],
            lane_clock_ms=0, audit_head_sha256=NO_AUDIT_YET,
        )  # fmt: skip
        return _write_initial_checkpoint(settings, first)

    with ThreadPoolExecutor(LANES_AT_ONCE) as pool:
        written = list(pool.map(found_lane, missing))
    producer = _producer(settings, {})
    _write(producer, Topic.REGISTRY.named(settings.kafka.prefix), 0, DEPLOYMENT_KEY, msgspec.json.encode(record))
    if producer.flush(WRITE_TIMEOUT_S):
        raise TimeoutError("the deployment record was not acknowledged")
    return [*written, DEPLOYMENT_KEY.decode()]


def _write_initial_checkpoint(settings: Settings, first: Checkpoint) -> str:
    """Under the lane's own lock: its transactional id. Whoever else takes the lane meanwhile fences us."""
    prefix, topic = settings.kafka.prefix, Topic.CHECKPOINTS.named(settings.kafka.prefix)
    own = {
        "transactional.id": f"{prefix}lane-{first.lane}",
        "transaction.timeout.ms": max(settings.gate.transaction_timeout_ms, settings.kafka.request_timeout_ms),
    }
    producer = _producer(settings, own)
    told = f"checkpoint of lane {first.lane}"
    producer.init_transactions(WRITE_TIMEOUT_S)
    if first.lane in _checkpoints(settings, [first.lane]):  # another creation was faster
        return told
    record = checkpoint_record(first)
    producer.begin_transaction()
    _write(producer, topic, first.lane, record.key or b"", record.value or b"")
    producer.commit_transaction(WRITE_TIMEOUT_S)
    return told


def _producer(settings: Settings, more: dict[str, Any]) -> Producer:
    return Producer(
        {**confluent_options(settings.kafka), "acks": "all", "enable.idempotence": True, "linger.ms": 0, **more}
    )


def _write(producer: Producer, topic: str, partition: int, key: bytes, value: bytes) -> None:
    """Queue one record; its failure surfaces at the flush or commit that follows."""

    def delivered(error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            raise KafkaException(error)

    producer.produce(topic, value, key, partition=partition, on_delivery=delivered)


def _starts(admin: AdminClient, settings: Settings, lanes: Sequence[int]) -> dict[tuple[Topic, int], int]:
    """The first offset of each input partition: nothing that waits there is passed over."""
    if not lanes:
        return {}
    wanted = {
        (topic, lane): (topic.named(settings.kafka.prefix), lane)
        for topic in (Topic.TRIGGERS, Topic.HANDOFFS)
        for lane in lanes
    }
    # A busy broker may not lead a partition yet that its metadata say it leads.
    offsets = once_led(lambda: _first_offsets(admin, settings, wanted.values()))
    return {place: offsets[partition] for place, partition in wanted.items()}


def _first_offsets(
    admin: AdminClient, settings: Settings, partitions: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """As the leader of each partition tells. Raises KafkaException."""
    timeout_s = settings.kafka.request_timeout_ms / 1_000
    asked = {TopicPartition(*partition): OffsetSpec.earliest() for partition in partitions}
    answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=timeout_s)
    return {(p.topic, p.partition): future.result(timeout_s + 1).offset for p, future in answers.items()}
