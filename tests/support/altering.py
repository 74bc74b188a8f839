"""Settings of topics and brokers, changed while they run, as their operator might."""

from __future__ import annotations

from typing import Final

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

ANSWER_S: Final = 120


def alter(admin: AdminClient, name: str, *, kind: ResourceType = ResourceType.TOPIC, **changes: str | None) -> None:
    """Set each setting, its dots written as underscores; None takes it back to its default. Raises KafkaException."""
    entries = [
        ConfigEntry(
            setting.replace("_", "."), value,
            incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET,
        )
        for setting, value in changes.items()
    ]  # fmt: skip
    # The client finds the future by its resource when the answer comes: it stays in the dict until then.
    answers = admin.incremental_alter_configs([ConfigResource(kind, name, incremental_configs=entries)])
    for answer in answers.values():
        answer.result(ANSWER_S)
