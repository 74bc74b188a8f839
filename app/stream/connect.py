"""How to reach the cluster: the [kafka] settings as options of the two client libraries."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from app.config import ConfigError, Kafka
from app.tls import verifying

if TYPE_CHECKING:
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

_LIBRDKAFKA_LOG_LEVEL: Final = 2  # critical: what a command has to say of a failure, it says itself


def client_options(kafka: Kafka) -> dict[str, Any]:
    """Options of aiokafka's AIOKafkaClient, AIOKafkaProducer and AIOKafkaConsumer. Raises ConfigError."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "client_id": kafka.client_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls(kafka)
    if kafka.security_protocol.startswith("SASL"):
        username, password = _credentials(kafka)
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": username,
            "sasl_plain_password": password,
        }
    return options


def confluent_options(kafka: Kafka) -> dict[str, Any]:
    """Options of confluent-kafka's AdminClient, Producer and Consumer. Raises ConfigError."""
    options: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap,
        "client.id": kafka.client_id,
        "socket.timeout.ms": kafka.request_timeout_ms,
        "security.protocol": kafka.security_protocol,
        "log_level": _LIBRDKAFKA_LOG_LEVEL,
    }
    if kafka.security_protocol.endswith("SSL"):
        _tls(kafka)  # for its clear errors: librdkafka's are not
        options["enable.ssl.certificate.verification"] = True
        options["ssl.endpoint.identification.algorithm"] = "https"
        files = {
            "ssl.ca.location": kafka.ssl_cafile,
            "ssl.certificate.location": kafka.ssl_certfile,
            "ssl.key.location": kafka.ssl_keyfile,
        }
        options |= {name: str(file) for name, file in files.items() if file is not None}
    if kafka.security_protocol.startswith("SASL"):
        username, password = _credentials(kafka)
        options |= {"sasl.mechanism": kafka.sasl_mechanism, "sasl.username": username, "sasl.password": password}
    return options


async def why_unseen(client: AIOKafkaClient, topic: str) -> KafkaError:
    """The error for a topic that a list of all does not hold: there is none, or none that we may see.

    It is asked by its name only now, and must not be created by that: a broker that creates topics would.
    """
    from aiokafka.errors import UnknownTopicOrPartitionError, for_code
    from aiokafka.protocol.metadata import MetadataRequest

    answer = await client.send(client.get_random_node(), MetadataRequest([topic], allow_auto_topic_creation=False))
    code = next((found[0] for found in answer.topics if found[1] == topic), 0)
    error: KafkaError = (for_code(code) if code else UnknownTopicOrPartitionError)(topic)
    return error


def _tls(kafka: Kafka) -> ssl.SSLContext:
    context = verifying(kafka.ssl_cafile, "kafka.ssl_cafile")
    if kafka.ssl_certfile is None:
        if kafka.ssl_keyfile is not None:
            raise ConfigError("setting kafka.ssl_keyfile is given without kafka.ssl_certfile: mutual TLS needs both")
        return context
    try:
        # Without a password callback OpenSSL would ask for one on the terminal, and a gate would hang there.
        context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"settings kafka.ssl_certfile and kafka.ssl_keyfile: {kafka.ssl_certfile} cannot be loaded with "
            f"{kafka.ssl_keyfile or 'the key in it'}: {error}"
        ) from None
    return context


def _credentials(kafka: Kafka) -> tuple[str, str]:
    if not kafka.sasl_username or kafka.sasl_password_file is None:
        raise ConfigError(
            f"kafka.security_protocol is {kafka.security_protocol}: set kafka.sasl_username and "
            "kafka.sasl_password_file (the path of a file that holds the password)"
        )
    try:
        password = kafka.sasl_password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"setting kafka.sasl_password_file: {kafka.sasl_password_file}: {error}") from None
    if not password:
        raise ConfigError(f"setting kafka.sasl_password_file: {kafka.sasl_password_file} is empty")
    return kafka.sasl_username, password
