"""Ports on the loopback address that a broker can have."""

from __future__ import annotations

import random
import socket
from typing import Final

from app.local.errors import LocalKafkaError
from app.local.properties import LOOPBACK

# Below the range from which systems take the ports of outgoing connections: a port found free here is not
# handed to a client while the broker starts.
FREE_PORTS: Final = range(20_000, 32_000)
TRIES: Final = 200


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: TIME_WAIT is no obstacle
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def port_of(address: str) -> int:
    """Of `host:port`."""
    return int(address.rpartition(":")[2])


def free_ports(count: int, choice: random.Random) -> list[int]:
    found: list[int] = []
    for port in choice.sample(FREE_PORTS, TRIES):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise LocalKafkaError(f"No {count} free ports were found on {LOOPBACK} between 20000 and 32000.")


def require_free(port: int) -> None:
    if not is_free(port):
        raise LocalKafkaError(
            f"Port {port} on {LOOPBACK} is in use: stop what listens there, choose another --port, or leave it out."
        )
