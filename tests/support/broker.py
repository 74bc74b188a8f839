"""The real Kafka that tests run against: an address given, else a container, else one started from jars."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

GIVEN = "TOLLGATE_TEST_BOOTSTRAP"
IMAGE = "apache/kafka:4.2.1"


@contextmanager
def real_kafka() -> Iterator[str]:
    """The bootstrap address of one broker."""
    if given := os.environ.get(GIVEN):
        yield given
    elif _docker_answers():
        with _container() as address:
            yield address
    else:
        from app.local.kafka import LocalKafka

        with LocalKafka() as kafka:
            yield kafka.bootstrap


def _docker_answers() -> bool:
    import docker

    try:
        client = docker.from_env(timeout=3)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except Exception:  # the client lets errors of its HTTP library through
        return False
    finally:
        client.close()


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    from app.local.ports import free_ports

    # The advertised address must be known before the start, so Docker does not choose the port; and the broker
    # reaches itself by that address too, so the port is the same within the container and without.
    port = free_ports(1, random.SystemRandom())[0]
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": f"BROKER://:{port},CONTROLLER://localhost:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"BROKER://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "BROKER",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
    }
    container = DockerContainer(IMAGE).with_bind_ports(port, port)
    for name, value in settings.items():
        container = container.with_env(name, value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started")):
        yield f"127.0.0.1:{port}"
