"""Is a deployment's set of topics right? Pure: what was found goes in, findings come out, each with how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from app.gate import limits
from app.gate.records import Checkpoint
from app.stream.inspection import Cluster, DeploymentRecord, FoundTopic, birth_id_of
from app.stream.topics import LAYOUT, OUTPUT_MAX_BYTES, Topic

OUTPUT_FACTOR: Final = 4  # what a trigger becomes (base64, envelope, audit) must always fit
UNLIMITED: Final = -1
TOMBSTONES_KEPT_MS: Final = 86_400_000  # lanes wipe a local store that is older

REBUILD: Final = (
    "restore the original topic from a backup, or rebuild: stop the gates, delete every topic of the prefix, "
    "run `tollgate topics create` (triggers not yet decided and the memory of past keys are lost)"
)


class Finding(NamedTuple):
    """One thing that is not as it must be (`fatal`: a gate refuses to start) or had better be."""

    topic: str
    setting: str
    found: str
    needed: str
    why: str
    mend: str
    fatal: bool = True

    def sentence(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found}, needed {self.needed}: {self.why}; {self.mend}"


def in_one_sentence(findings: Iterable[Finding]) -> str:
    """All of them; topics that differ in the same way are named together."""
    alike: dict[Finding, list[str]] = {}
    for finding in findings:
        alike.setdefault(finding._replace(topic=""), []).append(finding.topic)
    return "; ".join(finding._replace(topic=", ".join(topics)).sentence() for finding, topics in alike.items())


class Deployment(NamedTuple):
    """What a gate must know of its topics."""

    cluster_id: str
    birth_id: str
    lanes: int
    topic_ids: dict[str, str]  # full name → id
    idempotency_retention_ms: int  # -1: for ever
    idempotency_segment_ms: int


class Limits(NamedTuple):
    """The settings that topics must be able to bear."""

    prefix: str
    bootstrap: str
    grace_s: int
    queue_age_cap_s: int

    def window_needed_ms(self) -> int:
        """The longest time an entry of the standard windows must be kept, before the topic's segment.ms."""
        longest_s = max(limits.DEDUP_WINDOW_DEFAULT_S, limits.ONE_SHOT_LIFETIME_MAX_S + self.grace_s)
        return (longest_s + self.queue_age_cap_s) * 1_000


def findings(
    cluster: Cluster,
    record: DeploymentRecord | None,
    checkpoints: Mapping[int, Checkpoint],
    limits_: Limits,
) -> Iterator[Finding]:
    """Every finding, in the order in which to mend them."""
    # 1. Every topic exists, and is the one that was there at the founding.
    for topic in Topic:
        yield from _presence(topic, cluster, record, limits_.prefix)
    # 2. All lanes are the same lanes everywhere.
    yield from _partition_counts(cluster, record, limits_.prefix)
    # 3. Settings that break a guarantee, then those that had better be otherwise.
    for topic, found in cluster.topics.items():
        yield from _enforced(topic, found, limits_)
    yield from _sizes(cluster, limits_)
    if Topic.IDEMPOTENCY in cluster.topics:
        yield from _memory(cluster.topics[Topic.IDEMPOTENCY], limits_)
    for found in cluster.topics.values():
        yield from _durability(found, cluster.brokers, limits_)
    # 4. The founding records.
    yield from _founding(cluster, record, checkpoints, limits_.prefix)


def deployment_of(cluster: Cluster, record: DeploymentRecord) -> Deployment:
    """The deployment, when nothing fatal was found."""
    settings = cluster.topics[Topic.IDEMPOTENCY].settings
    return Deployment(
        record.cluster_id,
        record.birth_id,
        record.lanes,
        dict(record.topics),
        int(settings["retention.ms"]),
        int(settings["segment.ms"]),
    )


# fmt: off - a finding reads best in few lines: where, what, found, needed, why, how to mend
def _presence(topic: Topic, cluster: Cluster, record: DeploymentRecord | None, prefix: str) -> Iterator[Finding]:
    name = topic.named(prefix)
    found = cluster.topics.get(topic)
    if found is None:
        if record is None or not record.holds(topic, prefix):
            yield Finding(
                name, "topic", "missing", "present", "the gate reads or writes it", "run `tollgate topics create`"
            )
        else:
            yield Finding(
                name,
                "topic",
                "deleted",
                "the one created at the founding",
                "this deployment was founded with it, and what it held is gone",
                REBUILD,
            )
    elif record is not None and record.topics.get(name) not in {None, found.topic_id}:
        yield Finding(
            name,
            "topic id",
            found.topic_id,
            record.topics[name],
            "the topic was deleted and created again, so offsets and memory no longer mean what they did",
            REBUILD,
        )


def _partition_counts(cluster: Cluster, record: DeploymentRecord | None, prefix: str) -> Iterator[Finding]:
    lanes_found = {t: found.partitions for t, found in cluster.topics.items() if LAYOUT[t].per_lane}
    if record is not None:
        needed, by = record.lanes, "recorded when the topics were created"
    elif Topic.TRIGGERS in lanes_found:
        needed, by = lanes_found[Topic.TRIGGERS], f"as {Topic.TRIGGERS.named(prefix)} has"
    else:
        return
    why = "a lane is one partition of every topic, and an identity's home is its hash modulo the number of lanes"
    for topic, count in lanes_found.items():
        if count != needed:
            yield Finding(topic.named(prefix), "partitions", str(count), f"{needed} ({by})", why, REBUILD)
    for topic, found in cluster.topics.items():
        if not LAYOUT[topic].per_lane and found.partitions != 1:
            yield Finding(
                topic.named(prefix),
                "partitions",
                str(found.partitions),
                "1",
                "it is read as one ordered table",
                REBUILD,
            )


_WHY: Final = {
    "cleanup.policy": "with another policy records would be lost or kept against the rules of this topic",
    "message.timestamp.type": "times are judged by the broker's append time; with CreateTime an emitter chooses them",
}


def _enforced(topic: Topic, found: FoundTopic, limits_: Limits) -> Iterator[Finding]:
    for setting, needed in LAYOUT[topic].enforced.items():
        value = found.settings.get(setting, "unset")
        if set(value.split(",")) != set(needed.split(",")):
            yield Finding(found.name, setting, value, needed, _WHY[setting], mend(limits_, found.name, setting, needed))


def _sizes(cluster: Cluster, limits_: Limits) -> Iterator[Finding]:
    """Rule: a batch that can never commit must not exist."""
    triggers = cluster.topics.get(Topic.TRIGGERS)
    if triggers is None:
        return
    needed = int(triggers.settings["max.message.bytes"]) * OUTPUT_FACTOR
    for topic, found in cluster.topics.items():
        if LAYOUT[topic].suggested.get("max.message.bytes") != str(OUTPUT_MAX_BYTES):  # none that triggers write
            continue
        size = int(found.settings["max.message.bytes"])
        if size < needed:
            yield Finding(
                found.name,
                "max.message.bytes",
                str(size),
                f"at least {needed} ({OUTPUT_FACTOR} times that of {triggers.name})",
                "what a trigger becomes must always fit, or its batch could never commit",
                mend(limits_, found.name, "max.message.bytes", str(needed)),
            )


def _memory(found: FoundTopic, limits_: Limits) -> Iterator[Finding]:
    retention, segment = int(found.settings["retention.ms"]), int(found.settings["segment.ms"])
    needed = limits_.window_needed_ms() + segment
    if retention != UNLIMITED and retention < needed:
        yield Finding(
            found.name,
            "retention.ms",
            str(retention),
            f"at least {needed} (longest standard window, 24 h + grace, + queue-age cap + segment.ms {segment})",
            "a key forgotten too early lets the same request start a second job",
            mend(limits_, found.name, "retention.ms", str(needed)),
        )
    if int(found.settings["delete.retention.ms"]) < TOMBSTONES_KEPT_MS:
        yield Finding(
            found.name,
            "delete.retention.ms",
            found.settings["delete.retention.ms"],
            f"at least {TOMBSTONES_KEPT_MS}",
            "a local store that was away for that long would keep entries that were taken back",
            mend(limits_, found.name, "delete.retention.ms", str(TOMBSTONES_KEPT_MS)),
        )
    if int(found.settings["retention.bytes"]) != UNLIMITED:
        yield Finding(
            found.name,
            "retention.bytes",
            found.settings["retention.bytes"],
            str(UNLIMITED),
            "a key forgotten for want of room lets the same request start a second job",
            mend(limits_, found.name, "retention.bytes", str(UNLIMITED)),
        )


def _durability(found: FoundTopic, brokers: int, limits_: Limits) -> Iterator[Finding]:
    if brokers > 1 and found.replication_factor == 1:
        yield Finding(
            found.name,
            "replication factor",
            "1",
            f"{min(3, brokers)} on {brokers} brokers",
            "the loss of one broker would lose it",
            "reassign its partitions with more replicas (kafka-reassign-partitions.sh)",
            fatal=False,
        )
    elif found.replication_factor > 1 and int(found.settings["min.insync.replicas"]) < 2:
        yield Finding(
            found.name,
            "min.insync.replicas",
            found.settings["min.insync.replicas"],
            str(found.replication_factor - 1),
            "an acknowledged record may exist on one broker only",
            mend(limits_, found.name, "min.insync.replicas", str(found.replication_factor - 1)),
            fatal=False,
        )
    if found.settings.get("unclean.leader.election.enable") == "true":
        yield Finding(
            found.name,
            "unclean.leader.election.enable",
            "true",
            "false",
            "a replica that lags could become leader and acknowledged records would vanish",
            mend(limits_, found.name, "unclean.leader.election.enable", "false"),
            fatal=False,
        )


def _founding(
    cluster: Cluster, record: DeploymentRecord | None, checkpoints: Mapping[int, Checkpoint], prefix: str
) -> Iterator[Finding]:
    registry, name = Topic.REGISTRY.named(prefix), Topic.CHECKPOINTS.named(prefix)
    if record is None:
        if Topic.REGISTRY in cluster.topics:
            yield Finding(
                registry,
                "deployment record",
                "missing",
                "present",
                "it says which topics belong together and how many lanes there are",
                "run `tollgate topics create` (it adds only what is missing)",
            )
        return
    if record.cluster_id != cluster.cluster_id:
        yield Finding(
            registry,
            "cluster id",
            cluster.cluster_id,
            record.cluster_id,
            "these topics were copied from another cluster, and their offsets mean nothing here",
            REBUILD,
        )
    birth_id = birth_id_of(record.cluster_id, record.lanes, record.topics)
    if record.birth_id != birth_id:
        yield Finding(registry, "birth id", record.birth_id, birth_id, "the deployment record was altered", REBUILD)
    if Topic.CHECKPOINTS not in cluster.topics or cluster.topics[Topic.CHECKPOINTS].partitions != record.lanes:
        return
    for lane in range(record.lanes):
        checkpoint = checkpoints.get(lane)
        if checkpoint is None:
            yield Finding(
                name,
                f"checkpoint of lane {lane}",
                "missing",
                "present",
                "it says where the lane stands; without it the lane stops",
                f"read what `tollgate topics accept-gap {lane}` says, then let it go on with that",
                fatal=False,  # to the lane alone: the others go on
            )
        elif (checkpoint.birth_id, checkpoint.lanes, checkpoint.lane) != (record.birth_id, record.lanes, lane):
            yield Finding(
                name,
                f"checkpoint of lane {lane}",
                f"of deployment {checkpoint.birth_id}",
                f"of deployment {record.birth_id}",
                "it describes other topics than these",
                REBUILD,
            )


# fmt: on


def mend(limits_: Limits, topic: str, setting: str, value: str) -> str:
    """The command that sets it right; Kafka's own tool wants brackets around a list."""
    listed = f"[{value}]" if "," in value else value
    return (
        f"kafka-configs.sh --bootstrap-server {limits_.bootstrap} --alter --entity-type topics "
        f"--entity-name {topic} --add-config '{setting}={listed}'"
    )
