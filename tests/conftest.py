"""What every test may ask for: one real broker for the whole run, and names of its own on it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.broker import real_kafka

# The suite asks the same questions every time: a new one that fails belongs into a campaign, not into a build of
# something else. TOLLGATE_FUZZ=1 asks new ones.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fuzz" if os.environ.get("TOLLGATE_FUZZ") else "suite")

# A shell that starts us in the background has Ctrl-C ignored, and so would the programs we send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

FIRST = (
    "test_simulation.py", "test_campaign.py", "test_bench.py", "test_gates.py", "test_programs.py", "test_kafka.py",
    "test_up.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker-required", action="store_true", help="a skipped broker test is a failed one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)
    # Simulated worlds first: they want a process in which nothing else has run yet, not even a world with a script.
    # Then what takes longest, so that no process works on it when all others have nothing left to do.
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("broker"):
        _fail_if_required(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:  # a whole module: what its tests would have needed is not known
        _fail_if_required(collector.config, report)
    return report


def _fail_if_required(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if config.getoption("--broker-required"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --broker-required was given: {report.longrepr}"


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """The bootstrap address of a real Kafka, started at first use."""
    with real_kafka() as address:
        yield address


@pytest.fixture
def prefix() -> str:
    """A prefix for topics, groups and transactional ids that no other test uses: tests share the broker."""
    return f"t{secrets.token_hex(4)}."


@pytest.fixture(scope="session")
def checkout() -> Path:
    return Path(__file__).resolve().parent.parent
