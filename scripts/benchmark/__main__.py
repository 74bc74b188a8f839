"""`scripts/bench`: measures the gate and prints figures beside what was asked of them."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from scripts.benchmark import big, door, drains, latency, report, restore, revocation, run
from scripts.benchmark.deployment import ROOT
from scripts.benchmark.figures import Figure
from scripts.benchmark.run import Run
from scripts.benchmark.traffic import Issuer

ROWS: Final = {
    "raw": "EllipticCurvePublicKey.verify of `cryptography` alone, key parsed, signature in DER beforehand: the limit",
    "webhook-home": "1,000 tokens in turn; each trigger arrives in its home lane",
    "webhook-away": "the same, each trigger arriving in the lane after its home: one handoff",
    "oneshot-home": "a new token for each trigger, arriving home",
    "oneshot-away": "the same, away from home",
    "two-processes": "oneshot-home with --workers 2",
    "latency-home": "trigger sent to receipt readable under read_committed, 100/s",
    "latency-away": "the same, away from home",
    "http": "POST /v1/triggers answered with 202, a second of the door's CPU, a gate beside it",
    "http-wait": "POST /v1/triggers with Prefer: wait, to the receipt, 20/s",
    "revoked-http": "POST /oauth/revoke, from its answer to the first refusal by the gate, 20/s under 500 triggers/s",
    "revoked": "the same by a record on the revocations topic, with no door anywhere",
    "revoked-prefix": "the same by a record that revokes the prefix of the token's subject; a fifth as many",
    "revoked-object": "the same by the deletion of the registry's object that the token is bound to; a fifth as many",
    "restore": "a gate without local stores reads 1,000,000 entries back from the changelog",
    "restart": "a gate stopped in order starts again on its stores of those entries",
    "big": "one lane with 20,000,000 live entries against an empty one (--big)",
    "confluent-webhook": "a plain confluent-kafka transactional loop: the same decision, the same records (--peers)",
    "confluent-oneshot": "the same with one-shot tokens (--peers)",
    "faust-webhook": "Faust with processing_guarantee=exactly_once and the same decision (--peers)",
    "faust-oneshot": "the same with one-shot tokens (--peers)",
}
ON_REQUEST: Final = {"big", "confluent-webhook", "confluent-oneshot", "faust-webhook", "faust-oneshot"}
NEEDS: Final = {**drains.NEEDS, "restart": "restore"}


def main() -> int:
    arguments = _arguments()
    names = _wanted(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped on the way out
    for name in [name for name in os.environ if name.startswith("TOLLGATE_")]:
        del os.environ[name]  # a setting of the caller's is no part of the measurement
    json_file = arguments.json.absolute() if arguments.json else None
    workdir = ROOT / ".tollgate" / "bench" / f"{random.SystemRandom().getrandbits(32):08x}"
    workdir.mkdir(parents=True)
    os.chdir(workdir)  # where no tollgate.toml is
    found = report.machine(ROOT, arguments.bootstrap)
    try:
        with _kafka(arguments.bootstrap) as bootstrap:
            size = run.SMOKE if arguments.smoke else run.QUICK if arguments.quick else run.FULL
            sizes = size._asdict() | ({"repeats": arguments.repeat} if arguments.repeat else {})
            this = Run(bootstrap, workdir, Issuer(), **sizes)
            if arguments.profile:
                from scripts.benchmark import profiling

                print(profiling.profile(this, arguments.profile, names))
                return 0
            figures, samples = _measure(this, names)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    found["settings"] = {"quick": arguments.quick, **sizes}
    if json_file is not None:
        report.write_json(json_file, found, figures, samples)
    print(report.table(found, figures))
    return int(arguments.strict and any(figure.ok is False for figure in figures))


def _measure(this: Run, names: list[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    figures: list[Figure] = []
    samples: list[dict[str, Any]] = []
    drained = [name for name in names if name in drains.SITUATIONS]
    if drained:
        figures, samples = drains.measure(this, drained)
    elif "raw" in names:
        figures = drains.raw_figures(this, drains.raw_values(this))
    for family, members in _families().items():
        asked = [name for name in members if name in names]
        if asked:
            more, their_samples = family(this, asked)
            figures += more
            samples += their_samples
    return figures, samples


def _families() -> dict[Any, list[str]]:
    """The rows that drain nothing, by what measures them."""
    return {
        latency.measure: ["latency-home", "latency-away"],
        door.measure: ["http", "http-wait"],
        revocation.measure: ["revoked-http", "revoked", "revoked-prefix", "revoked-object"],
        restore.measure: ["restore", "restart"],
        big.measure: ["big"],
    }


@contextmanager
def _kafka(bootstrap: str | None) -> Iterator[str]:
    """The cluster given, else a local one for this run."""
    if bootstrap:
        with nullcontext():
            yield bootstrap
        return
    from app.local.kafka import LocalKafka

    with LocalKafka(say=Run.say) as kafka:
        Run.say(f"local Kafka at {kafka.bootstrap}")
        yield kafka.bootstrap


def _wanted(arguments: argparse.Namespace) -> list[str]:
    """The rows to measure, with those they are compared with."""
    asked = arguments.rows.split(",") if arguments.rows else [name for name in ROWS if name not in ON_REQUEST]
    unknown = [name for name in asked if name not in ROWS]
    if unknown:
        sys.exit(f"scripts/bench: no row is called {unknown[0]}; there are {', '.join(ROWS)}")
    if arguments.peers:
        asked += [name for name in ROWS if name.startswith(("confluent-", "faust-"))]
    if arguments.big:
        asked.append("big")
    asked += [NEEDS[name] for name in asked if name in NEEDS]
    return [name for name in ROWS if name in asked]


def _arguments() -> argparse.Namespace:
    width = max(map(len, ROWS))
    rows = "\n".join(f"  {name.ljust(width)}  {what}" for name, what in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the gate on a real Kafka, and prints each figure beside what was asked of it.",
        epilog=f"rows:\n{rows}\n\nCPU is user + system over all threads of the processes measured. Rows are measured\n"
        "in turn, then all again; ratios are taken within a repeat; the table shows medians.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", metavar="A,B", help="these rows, and those they are compared with")
    parser.add_argument("--peers", action="store_true", help="also the confluent-kafka loop and Faust")
    parser.add_argument("--big", action="store_true", help="also a lane with 20,000,000 entries (2 GB of disk)")
    parser.add_argument("--quick", action="store_true", help="fewer triggers and repeats: to try something out")
    parser.add_argument("--smoke", action="store_true", help="next to nothing is measured: does it run?")
    parser.add_argument("--repeat", type=int, metavar="N", help="how often each row is measured (default 5; quick 2)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a cluster to measure on, instead of a local Kafka")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and figure there")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a figure misses what was asked")
    parser.add_argument(
        "--profile", nargs="?", const="cprofile", choices=("cprofile", "py-spy"),
        help="run one row (default webhook-home) under a profiler, and print the top 40 by own time",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
