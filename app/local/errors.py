"""What can go wrong with the local Kafka, as one sentence that says what to do."""

from __future__ import annotations


class LocalKafkaError(Exception):
    """The message is meant for a person, as it stands."""
