"""One broker with SASL and ACLs on, for all tests here."""

from collections.abc import Iterator

import pytest

from tests.support.secured import Secured, secured_kafka


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_kafka(tmp_path_factory.mktemp("access")) as running:
        yield running
