"""The short form of the fault campaign, for every change: `scripts/campaign` without --quick is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.rows import ROWS
from tests.campaign.runner import Campaign

SEED = 1
TRIGGERS_MIN = 60_000


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(1_800)
def test_faults_of_gates_brokers_and_wire_under_load_lose_nothing_and_double_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        report = Campaign(tmp_path, SEED, quick=True, keep=False).run(ROWS)
        print(f"\n{report.markdown()}")
    assert report.good, report.failed
    assert {each.row: each.faults >= each.asked for each in report.outcomes} == dict.fromkeys(
        ("F1", "F3", "F5", "F8"), True
    )
    assert report.outcomes[0].triggers >= TRIGGERS_MIN
