"""Each role, each resource, each operation that matters, on a real broker: allowed or refused as the table says."""

from __future__ import annotations

import secrets
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.group import HeartbeatRequest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from app.config import Kafka, Settings
from app.stream.access import Grant, Operation, Resource, Role, allows, grants
from app.stream.connect import client_options
from app.stream.topics import LAYOUT, Topic
from tests.support.secured import STRANGER, USERS, Secured

pytestmark = pytest.mark.broker

TIMEOUT_S = 30
REFUSED = {
    KafkaError._NOENT,  # what librdkafka says of a topic whose leaders it may not see
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
# As the protocol numbers them; a coordinator that never heard of the group says one of the others.
GROUP_AUTHORIZATION_FAILED = 30
GROUP_ANSWERS = {GROUP_AUTHORIZATION_FAILED, 16, 25}
ALREADY_THERE = {KafkaError.TOPIC_ALREADY_EXISTS}
TOPIC_OPERATIONS = tuple(Operation)


class Matrix:
    """A deployment's topics, empty, and what the table grants upon them."""

    def __init__(self, secured: Secured) -> None:
        self.secured = secured
        self.prefix = f"m{secrets.token_hex(3)}."
        self.granted: list[Grant] = list(grants(self.prefix))
        self.files = secured.settings_files(self.prefix)
        wanted = [NewTopic(topic.named(self.prefix), 1, 1, config=LAYOUT[topic].enforced) for topic in Topic]
        admin = secured.superuser()
        for made in admin.create_topics(wanted).values():
            made.result(TIMEOUT_S)
        with closing_producer(secured.client("cluster")) as producer:
            for topic in Topic:
                produced(producer, topic.named(self.prefix), b"first")

    def settings(self, user: str) -> Settings:
        """As `tollgate` would read them."""
        given = tomllib.loads(self.files[user].read_text())["kafka"]
        return Settings(kafka=Kafka(**{n: Path(of) if n.endswith("file") else of for n, of in given.items()}))

    def expected(self, user: str, resource: Resource, name: str, operation: Operation) -> bool:
        return user != STRANGER and allows(self.granted, Role(user), resource, name, operation)


@pytest.fixture(scope="module")
def matrix(secured: Secured) -> Matrix:
    return Matrix(secured)


@pytest.fixture(scope="module")
def clients(secured: Secured) -> Iterator[Callable[[str], tuple[Producer, Consumer, AdminClient]]]:
    """Each user's clients, made once: logging in takes longer than asking."""
    with ExitStack() as stack:
        made: dict[str, tuple[Producer, Consumer, AdminClient]] = {}

        def of(user: str) -> tuple[Producer, Consumer, AdminClient]:
            if user not in made:
                consumer = Consumer(
                    secured.client(user, group_id="nobody's", enable_auto_commit=False, auto_offset_reset="error")
                    | {"enable.partition.eof": True}
                )
                stack.enter_context(closing(consumer))
                producer = stack.enter_context(closing_producer(secured.client(user)))
                made[user] = producer, consumer, AdminClient(secured.client(user))
            return made[user]

        yield of


class closing_producer:  # noqa: N801 - as contextlib's
    def __init__(self, options: dict[str, Any]) -> None:
        # Not idempotent: then a producer's own id would be asked for first, of the cluster.
        self._producer = Producer(
            {**options, "enable.idempotence": False, "linger.ms": 0, "message.timeout.ms": 20_000}
        )

    def __enter__(self) -> Producer:
        return self._producer

    def __exit__(self, *_: object) -> None:
        self._producer.flush(TIMEOUT_S)


def allowed(work: Callable[[], Any], *, told: frozenset[int] | set[int] = frozenset()) -> bool:
    """Whether the broker let it be done; `told` are errors that only someone allowed is told."""
    try:
        work()
    except KafkaException as error:
        code = error.args[0].code()
        if code in told:
            return True
        if code not in REFUSED:
            raise
        return False
    return True


def produced(producer: Producer, topic: str, value: bytes | None, key: bytes | None = b"k") -> None:
    heard: list[KafkaError | None] = []
    producer.produce(topic, value, key, partition=0, on_delivery=lambda error, _: heard.append(error))
    assert producer.flush(TIMEOUT_S) == 0
    if heard[0] is not None:
        raise KafkaException(heard[0])


def consumed(consumer: Consumer, topic: str) -> None:
    error = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].error
    if error is not None:  # an assignment to what may not be seen waits in silence
        raise KafkaException(error)
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    for _ in range(200):
        message = consumer.poll(0.1)
        if message is None or message.topic() != topic:
            continue
        error = message.error()
        if error is None:
            return
        if error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
    raise AssertionError(f"{topic}: neither a record nor an error")


def described(admin: AdminClient, topic: str) -> None:
    error = admin.list_topics(topic, timeout=TIMEOUT_S).topics[topic].error
    if error is not None:
        raise KafkaException(error)


def of_one(futures: dict[Any, Any]) -> Any:
    (future,) = futures.values()
    return future.result(TIMEOUT_S)


def altered(admin: AdminClient, topic: str) -> None:
    entry = ConfigEntry("retention.bytes", "-1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    of_one(admin.incremental_alter_configs([resource], validate_only=True))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("topic", list(Topic))
def test_a_topic_lets_each_user_do_what_the_table_says_and_no_more(
    matrix: Matrix, clients: Callable[[str], Any], topic: Topic, user: str
) -> None:
    producer, consumer, admin = clients(user)
    name = topic.named(matrix.prefix)
    resource = ConfigResource(ResourceType.TOPIC, name)
    seen = {
        Operation.WRITE: allowed(lambda: produced(producer, name, b"x")),
        Operation.READ: allowed(lambda: consumed(consumer, name)),
        Operation.DESCRIBE: allowed(lambda: described(admin, name)),
        Operation.CREATE: allowed(lambda: of_one(admin.create_topics([NewTopic(name, 1, 1)])), told=ALREADY_THERE),
        Operation.DESCRIBE_CONFIGS: allowed(lambda: of_one(admin.describe_configs([resource]))),
        Operation.ALTER_CONFIGS: allowed(lambda: altered(admin, name)),
    }
    assert seen == {each: matrix.expected(user, Resource.TOPIC, name, each) for each in TOPIC_OPERATIONS}


@pytest.mark.parametrize("user", USERS)
def test_nobody_may_delete_grow_or_open_anything(matrix: Matrix, clients: Callable[[str], Any], user: str) -> None:
    """Not even admin: what destroys a deployment, or its boundary, is the cluster's operators' alone."""
    _, _, admin = clients(user)
    for topic in Topic:
        name = topic.named(matrix.prefix)
        partition = TopicPartition(name, 0, 1)
        assert not allowed(lambda name=name: of_one(admin.delete_topics([name])))
        assert not allowed(lambda partition=partition: of_one(admin.delete_records([partition])))
        grown = NewPartitions(name, 2)
        assert not allowed(lambda grown=grown: of_one(admin.create_partitions([grown], validate_only=True)))
    mine = AclBinding(
        ResourceType.TOPIC, Topic.JOBS.named(matrix.prefix), ResourcePatternType.LITERAL, f"User:{user}", "*",
        AclOperation.ALL, AclPermissionType.ALLOW,
    )  # fmt: skip
    every = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    assert not allowed(lambda: of_one(admin.create_acls([mine])))
    assert not allowed(lambda: of_one(admin.delete_acls([every])))


@pytest.mark.parametrize("user", USERS)
def test_a_transactional_id_is_its_owners(matrix: Matrix, user: str) -> None:
    """A stranger who could start a lane's producer would fence the lane."""
    for name in ("lane-0", "lane-1023", "registry", "revocations", "anything"):
        transactional_id = matrix.prefix + name
        producer = Producer(
            matrix.secured.client(user, transactional_id=transactional_id, transaction_timeout_ms=5_000)
        )
        seen = allowed(lambda producer=producer: producer.init_transactions(TIMEOUT_S))
        assert seen == matrix.expected(user, Resource.TRANSACTIONAL_ID, transactional_id, Operation.WRITE), name


@pytest.mark.parametrize("user", USERS)
async def test_a_group_is_its_owners(matrix: Matrix, user: str) -> None:
    """To join is to read; the group of the gates says who should take which lane."""
    client = AIOKafkaClient(**client_options(matrix.settings(user).kafka))
    await client.bootstrap()
    try:
        for name in ("gate", "worker", "worker-of-mine", "emitter", "ops", "auditor", "gates", "issuer"):
            group = matrix.prefix + name
            beat = HeartbeatRequest(group, 1, "nobody")  # the least a member does
            answer = await client.send(client.get_random_node(), beat)
            assert answer.error_code in GROUP_ANSWERS
            seen = answer.error_code != GROUP_AUTHORIZATION_FAILED
            assert seen == matrix.expected(user, Resource.GROUP, group, Operation.READ), name
    finally:
        await client.close()


def test_who_may_not_write_may_not_take_back_either(matrix: Matrix, clients: Callable[[str], Any]) -> None:
    """A tombstone of a revocation or of an idempotency entry: the records still stand after everyone has tried."""
    names = {topic: topic.named(matrix.prefix) for topic in (Topic.REVOCATIONS, Topic.IDEMPOTENCY, Topic.CHECKPOINTS)}
    _, _, boss = clients("cluster")
    for name in names.values():
        before = end_of(boss, name)
        tried = 0
        for user in USERS:
            if matrix.expected(user, Resource.TOPIC, name, Operation.WRITE):
                continue
            producer, _, _ = clients(user)
            with pytest.raises(KafkaException) as refused:
                produced(producer, name, None, b"k")
            assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
            tried += 1
        assert tried >= 5
        assert end_of(boss, name) == before


def end_of(admin: AdminClient, topic: str) -> int:
    return int(of_one(admin.list_offsets({TopicPartition(topic, 0): OffsetSpec.latest()})).offset)
