"""One deployment for all tests of the stream; each takes lanes of its own, so none sees another's records."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.logs import log
from tests.support.deployments import Deployment

LANES = 96


@pytest.fixture(scope="package")
def deployment(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(broker, f"t{secrets.token_hex(4)}.", LANES, tmp_path_factory.mktemp("deployment"))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The events logged during a test."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    events: list[dict[str, Any]] = []
    with log.into(events):
        yield events
