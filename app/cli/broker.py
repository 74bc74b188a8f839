"""`tollgate broker`: the local Kafka alone, in the foreground."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from app.cli import common
from app.cli.stopping import Interrupted, interrupt_on_signals

if TYPE_CHECKING:
    from app.local.kafka import LocalKafka

WATCH_INTERVAL_S: Final = 0.5

app = common.new_app()


class NodeCount(StrEnum):
    ONE = "1"
    THREE = "3"


@app.command()
def broker(
    nodes: Annotated[NodeCount, typer.Option(help="one broker, or a cluster of three")] = NodeCount.ONE,
    port: Annotated[
        int, typer.Option(min=0, max=65_533, help="of the first broker, the others take the next ones; 0: any free")
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="keep the data here and start from them again; default .tollgate/kafka", show_default=False),
    ] = None,
    secured: Annotated[
        bool, typer.Option("--secured", help="SASL and ACLs on: a user and a settings file for each role")
    ] = False,
) -> None:
    """Run a real Apache Kafka on this machine until Ctrl-C. Prints its address.

    With --secured each role of SECURITY.md is a user that may do what the role
    may; run a command as one with TOLLGATE_CONFIG=DATA/access/ROLE.toml.
    """
    from app.local.kafka import KAFKA_VERSION, LocalKafka, LocalKafkaError
    from app.local.secured import Security

    interrupt_on_signals()
    settings = common.settings_of()
    count: Literal[1, 3] = 3 if nodes is NodeCount.THREE else 1
    data = (data or _default_data_dir(settings.local.data_dir, count)).absolute()
    security = Security(data / "access") if secured else None
    kafka = LocalKafka(
        data, nodes=count, port=port, cache_dir=settings.local.cache_dir,
        extra=security.server if security else None, client=security.client() if security else None,
    )  # fmt: skip
    common.say(f"Starting Apache Kafka {KAFKA_VERSION}, {count} node{'s' if count > 1 else ''} ...")
    ready, died = False, None
    try:
        kafka.start()
        if security is not None:
            files = security.open_to_roles(kafka.bootstrap, settings.kafka.prefix)
            common.say(
                "Run a command as a role with TOLLGATE_CONFIG set to one of: " + " ".join(map(str, files.values()))
            )
        ready = True
        _tell(kafka)
        while died is None:
            time.sleep(WATCH_INTERVAL_S)
            died = kafka.dead_node()
    except LocalKafkaError as error:
        kafka.stop()
        common.fail(str(error))
    except Interrupted as told:
        if not ready:
            kafka.stop()
            common.fail("Stopped before it was ready.", told.code)
    common.say("Stopping ...")
    kafka.stop()
    if died is not None:
        common.fail(died)
    common.say(f"Stopped. The data are in {kafka.data_dir}")


def _default_data_dir(configured: Path, nodes: int) -> Path:
    """A cluster of three has a directory of its own: it cannot run on the data of one."""
    return configured if nodes == 1 else configured.with_name(f"{configured.name}-{nodes}-nodes")


def _tell(kafka: LocalKafka) -> None:
    for log_file in kafka.log_files:
        common.say(f"Log: {log_file}")
    common.say("Ready. Ctrl-C stops it.")
    print(kafka.bootstrap, flush=True)
