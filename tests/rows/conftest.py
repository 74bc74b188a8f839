"""The one world that the tests of rows share."""

from collections.abc import Iterator

import pytest

from tests.rows.aside import aside
from tests.rows.people import door, person
from tests.rows.world import World

__all__ = ["aside", "door", "person", "world"]


@pytest.fixture(scope="session")
def world(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A deployment with a running gate of two workers; founded once."""
    with World(broker, tmp_path_factory.mktemp("rows")) as founded:
        founded.start_gate().wait_ready()
        yield founded
