"""What is replaced for all worlds of this process, all of it outside the program; and the settings of its gates."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app import trust
from app.config import Gate as GateSettings
from app.config import Kafka, Settings, Telemetry
from app.logs import log
from app.stream import cluster, store
from tests.simulation import traffic
from tests.simulation.disk import DISK, Table, WriteBatch
from tests.simulation.scheduler import current_process
from tests.simulation.wire import Wire

# Whose events are kept: (process, level and members).
listeners: list[Callable[[str, dict[str, Any]], None]] = []
_settings_made: dict[tuple[Any, ...], Settings] = {}
_directories: list[str] = []


def directory() -> str:
    if not _directories:
        _directories.append(tempfile.mkdtemp(prefix="simulation-"))
        secret = Path(_directories[0]) / "secret"
        secret.write_bytes(traffic.SECRET)
        secret.chmod(0o600)
    return _directories[0]


def settings(batch_max_records: int, transaction_timeout_ms: int, max_staleness_ms: int, state_dir: Path) -> Settings:
    wanted = (batch_max_records, transaction_timeout_ms, max_staleness_ms, state_dir)
    if wanted not in _settings_made:
        _settings_made[wanted] = Settings(
            kafka=Kafka(bootstrap="localhost:9092", prefix=traffic.PREFIX, request_timeout_ms=1_000),
            gate=GateSettings(
                batch_max_records=batch_max_records, transaction_timeout_ms=transaction_timeout_ms,
                max_staleness_ms=max_staleness_ms, state_dir=state_dir, compression="none",
                insecure_dev_hs256=Path(directory()) / "secret",
            ),
            telemetry=Telemetry(port=0),
        )  # fmt: skip
    return _settings_made[wanted]


def _log(entry: dict[str, Any]) -> None:
    del entry["timestamp"]  # of the real clock
    for listener in listeners:
        listener(str(current_process()), entry)


@contextmanager
def simulated() -> Iterator[None]:
    """What lies outside the program is replaced while inside."""
    replaced: list[tuple[Any, str, Any]] = [
        (cluster, "Connections", Wire), (store, "Rdict", Table), (store, "WriteBatch", WriteBatch),
        (store, "_options", lambda: None), (store, "_scan_options", lambda: None),
        (shutil, "rmtree", lambda path, **_: DISK.get().remove(path)), (trust, "verifying", lambda *_: None),
    ]  # fmt: skip
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    configured = log._level, log._write
    log.configure(logging.INFO, _log)
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
        log.configure(*configured)
        for directory in _directories:
            shutil.rmtree(directory, ignore_errors=True)
        _directories.clear()
        _settings_made.clear()
