"""`scripts/campaign`: real gates on three real brokers, faults injected by the row, and everything judged."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.campaign.history import saved
from tests.campaign.judge import judge
from tests.campaign.report import Report
from tests.campaign.rows import BY_NAME, ROWS
from tests.campaign.runner import Campaign
from tests.planted.bugs import BUGS


def main() -> int:
    given = _arguments()
    if given.judge is not None:
        return _judge_again(given.judge)
    if given.list:
        for row in ROWS:
            print(f"{row.name:4} {row.what}: {row.full} faults, about {row.seconds} s; --quick {row.quick}")
        return 0
    wanted = given.rows.split(",") if given.rows else [row.name for row in ROWS]
    if unknown := [name for name in wanted if name not in BY_NAME]:
        print(f"no such row: {', '.join(unknown)}", file=sys.stderr)
        return 2
    plants = ["", *BUGS] if given.planted == "all" else given.planted.split(",") if given.planted is not None else []
    if unknown := [name for name in plants if name and name not in BUGS]:
        print(f"no such bug: {', '.join(unknown)}", file=sys.stderr)
        return 2
    if given.planted is not None and not given.rows:
        wanted = []
    elif given.planted is None and not given.rows and not given.quick:
        plants = ["", *BUGS]
    if given.keep is not None and given.keep.exists() and any(given.keep.iterdir()):
        print(f"{given.keep} is not empty: what another run left there would be judged, too", file=sys.stderr)
        return 2
    directory = given.keep or Path(tempfile.mkdtemp(prefix="campaign-"))
    seed = given.seed if given.seed is not None else int(time.time())
    campaign = Campaign(
        directory, seed, quick=given.quick, keep=given.keep is not None, scale=given.scale, plants=plants
    )

    def interrupted(_: int, __: FrameType | None) -> None:
        if campaign.interrupted:
            raise KeyboardInterrupt
        print("interrupted: what is under way is judged; once more ends it at once", file=sys.stderr)
        campaign.interrupted = True

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    report: Report = campaign.run([BY_NAME[name] for name in wanted])
    report.write(directory if given.out is None else given.out)
    print(report.markdown())
    if not report.good or given.keep:
        print(f"what it is judged by is kept in {directory}", file=sys.stderr)
    return 0 if report.good else 1


def _judge_again(directory: Path) -> int:
    """A stage that was saved, by the judge as it is now."""
    try:
        verdict = judge(*saved(directory))
    except FileNotFoundError as error:
        print(f"{directory} holds no saved stage: {error}", file=sys.stderr)
        return 2
    print(f"{verdict.triggers:,} triggers, {verdict.jobs:,} jobs, {len(verdict.violations)} violations")
    for what in verdict.violations:
        print(f"  VIOLATION {what}")
    return 1 if verdict.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some minutes instead of hours")
    parser.add_argument("--rows", metavar="F1,F8", help="only these")
    parser.add_argument("--seed", type=int, help="of every random choice; told in the report")
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of each row's count")
    parser.add_argument("--planted", metavar="all|BUG,…", help="check the judge by planted bugs ('' is none)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="ledger, journals and logs stay here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where campaign.md and campaign.json go")
    parser.add_argument(
        "--judge", type=Path, metavar="DIR", help="judge a stage that was kept once more, without a cluster"
    )
    parser.add_argument("--list", action="store_true", help="the rows, and what they do")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
