"""Asking about partitions that were made a moment ago; and the broker's version, as a real one tells it."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from app.config import Kafka
from app.local.jars import KAFKA_VERSION
from app.stream import broker_version
from app.stream.administration import once_led
from app.stream.broker_version import FLAWS, RELEASES, BrokerVersion


class Broker:
    """Answers with these errors, one after the other, then with the answer."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def __call__(self) -> str:
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return "answer"


NOT_LEADER, UNKNOWN_TOPIC, NOT_AVAILABLE, NOT_ALLOWED, EPOCH_TOO_NEW = 6, 3, 5, 29, 75


def test_a_partition_no_broker_leads_yet_is_asked_for_again() -> None:
    assert once_led(Broker(NOT_LEADER, UNKNOWN_TOPIC, NOT_AVAILABLE, EPOCH_TOO_NEW)) == "answer"


def test_a_partition_that_gets_no_leader_in_time_is_an_error() -> None:
    with pytest.raises(KafkaException, match="NOT_LEADER"):
        once_led(Broker(*[NOT_LEADER] * 100), timeout_s=0.2)


def test_any_other_error_is_told_at_once() -> None:
    broker = Broker(NOT_ALLOWED, NOT_ALLOWED)
    with pytest.raises(KafkaException):
        once_led(broker)
    assert broker.codes == [NOT_ALLOWED]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (BrokerVersion(30, 30), "Kafka 4.3 (metadata.version 30)"),
        (BrokerVersion(25, 21), "Kafka 4.0 (metadata.version 25, the cluster uses 21)"),
        (BrokerVersion(24, None), "Kafka 4.0 (metadata.version 24)"),
        (BrokerVersion(max(RELEASES) + 1, None), f"Kafka newer than {RELEASES[max(RELEASES)]}"),
        (BrokerVersion(None, None), "does not tell its features"),
    ],
)
def test_a_version_is_told_by_the_release_that_brought_it(version: BrokerVersion, told: str) -> None:
    assert told in version.told()


async def test_a_real_broker_tells_what_it_supports_and_uses(broker: str) -> None:
    version = await broker_version.ask(Kafka(bootstrap=broker))
    assert version.supported is not None
    assert version.finalized is not None
    assert version.finalized <= version.supported


def test_the_kafka_we_bring_along_is_known_by_its_release_and_keeps_what_was_committed() -> None:
    release = ".".join(KAFKA_VERSION.split(".")[:2])
    assert release in RELEASES.values()
    assert release not in FLAWS


def test_a_release_that_loses_the_ends_of_transactions_is_known() -> None:
    assert "KAFKA-20734" in (BrokerVersion(30, 30).flaw() or "")
    assert [BrokerVersion(level, level).flaw() for level in (25, 28, 29, None)] == [None] * 4
