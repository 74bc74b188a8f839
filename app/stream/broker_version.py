"""Which Kafka answers: brokers do not tell their version, but the newest metadata.version they know gives it away.

By ApiVersions v3 (KIP-511, KIP-584), which neither client library shows: aiokafka asks with v0.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from app import __version__
from app.stream.connect import client_options

if TYPE_CHECKING:
    from app.config import Kafka

_METADATA_VERSION: Final = "metadata.version"
# Tags of the response, and what stands in them.
_SUPPORTED, _FINALIZED = 0, 2
_NAMED_RANGE: Final = CompactArray(("name", CompactString()), ("one", Int16), ("other", Int16), ("tags", TaggedFields))
# The newest level of each release, by `kafka-storage.sh version-mapping --release-version RELEASE`.
RELEASES: Final = {
    7: "3.3", 8: "3.4", 11: "3.5", 14: "3.6", 19: "3.7", 20: "3.8", 21: "3.9",
    25: "4.0", 27: "4.1", 29: "4.2", 30: "4.3",
}  # fmt: skip
# Releases with which a committed transaction may not stay one.
FLAWS: Final = {
    "4.3": "it does not write the end of a transaction to partitions without a leader (KAFKA-20734)",
}  # fmt: skip


class BrokerVersion(NamedTuple):
    """metadata.version as a broker knows it and as the cluster uses it; None where it is not told."""

    supported: int | None
    finalized: int | None

    def flaw(self) -> str | None:
        """What this release does to committed transactions, where that is known."""
        return None if self.supported is None else FLAWS.get(release_of(self.supported))

    def told(self) -> str:
        """In words, for people."""
        if self.supported is None:
            return "Kafka older than 3.3, or one that does not tell its features"
        used = f", the cluster uses {self.finalized}" if self.finalized not in {None, self.supported} else ""
        return f"Kafka {release_of(self.supported)} (metadata.version {self.supported}{used})"


def release_of(level: int) -> str:
    """The release that brought a level of metadata.version; levels of previews belong to the next one."""
    newest = max(RELEASES)
    if level > newest:
        return f"newer than {RELEASES[newest]}"
    return RELEASES[min(known for known in RELEASES if known >= level)]


class _ResponseV3(Response):  # type: ignore[misc]
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("api_versions", CompactArray(("api_key", Int16), ("min", Int16), ("max", Int16), ("tags", TaggedFields))),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _RequestV3(RequestStruct):  # type: ignore[misc]
    API_KEY = 18
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _ResponseV3
    SCHEMA = Schema(("software_name", CompactString()), ("software_version", CompactString()), ("tags", TaggedFields))

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> ResponseHeader_v0:
        return ResponseHeader_v0.decode(read_buffer)  # of this response alone: any client must be able to read it


class _ApiVersions(Request[_RequestV3]):  # type: ignore[misc]
    API_KEY = 18

    def build(self, request_struct_class: type[_RequestV3]) -> _RequestV3:
        return request_struct_class("tollgate", __version__, {})


async def ask(kafka: Kafka) -> BrokerVersion:
    """Ask any broker. Raises KafkaError, NotImplementedError where it does not know ApiVersions v3."""
    client = AIOKafkaClient(**client_options(kafka))
    try:
        await client.bootstrap()
        response = await client.send(client.get_random_node(), _ApiVersions())
        return BrokerVersion(
            _level(response.tags.get(_SUPPORTED), at=2),  # name, least, most
            _level(response.tags.get(_FINALIZED), at=1),  # name, most, least
        )
    finally:
        await client.close()


def _level(features: bytes | None, at: int) -> int | None:
    if features is None:
        return None
    rows = {row[0]: row for row in _NAMED_RANGE.decode(BytesIO(features)) or ()}
    return int(rows[_METADATA_VERSION][at]) if _METADATA_VERSION in rows else None
