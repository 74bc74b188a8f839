"""What a check finds, and what the checks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka.admin import AdminClient

    from app.config import Settings
    from app.stream.topics import Topic

OK, WARN, BAD = "ok", "warn", "bad"
COLUMNS: Final = ("verdict", "what", "found", "mend")


class Row(NamedTuple):
    """One thing looked at."""

    verdict: str
    what: str
    found: str
    mend: str | None = None


class Place(NamedTuple):
    """What the checks share."""

    settings: Settings
    admin: AdminClient

    def named(self, topic: str) -> str:
        return self.settings.kafka.prefix + topic

    def ends(self, topics: Iterable[Topic], *, committed: bool) -> dict[tuple[str, int], int]:
        """Where each partition ends, by topic and number: for readers of committed records, or at all."""
        from confluent_kafka import IsolationLevel, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        from app.stream.inspection import describe

        timeout_s = self.settings.kafka.request_timeout_ms / 1_000
        found = describe(self.admin, self.settings).topics
        asked = {
            TopicPartition(self.named(topic), partition): OffsetSpec.latest()
            for topic in topics
            for partition in range(found[topic].partitions if topic in found else 0)
        }
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        answers = self.admin.list_offsets(asked, isolation_level=level, request_timeout=timeout_s)
        return {(each.topic, each.partition): future.result(timeout_s + 1).offset for each, future in answers.items()}
