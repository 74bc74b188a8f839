"""`scripts/bench` runs: every row of the gate on next to nothing, so that the harness keeps step with the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = "webhook-away,confluent-webhook,http,http-wait,revoked,revoked-http,revoked-prefix,revoked-object,restart"


@pytest.mark.slow
def test_every_kind_of_row_is_measured_and_told_with_its_goal(broker: str, checkout: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    command = [sys.executable, "-m", "scripts.benchmark", "--smoke", "--rows", ROWS, "--bootstrap", broker]
    done = subprocess.run(
        [*command, "--json", str(report)], cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    drained = {sample["row"]: sample for sample in found["samples"] if "triggers" in sample}
    assert {"webhook-home", "webhook-away", "confluent-webhook"} == drained.keys()
    for sample in drained.values():
        assert sample["receipts"] == sample["triggers"] == sample["jobs"] + sample["duplicates"]
        assert 0 < sample["duplicates"] < sample["triggers"] / 2
    # The same backlog, the same decision: a peer starts neither more jobs nor fewer.
    assert drained["webhook-home"]["jobs"] == drained["confluent-webhook"]["jobs"]
    told = {figure["what"] for figure in found["figures"] if figure["goal"]}
    assert len(told) == 12, told
    assert all(what in done.stdout for what in told)


def test_an_unknown_row_is_refused_by_name(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "--rows", "webhook"], cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no row is called webhook" in done.stderr
