"""Tests of simulated worlds run with what lies outside the program replaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.replaced import simulated


@pytest.fixture
def replaced() -> Iterator[None]:
    with simulated():
        yield
