"""The long mode of tests/support/fuzz.py: many cases, several processes, progress, and a failing case saved."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path

from tests.support import fuzz

CHUNK = 2_000
TOLD_EVERY_S = 5.0


def work(seed: int, start: int, end: int) -> Counter[str]:
    warnings.simplefilter("ignore")  # joserfc speaks of EdDSA's newer name, once a token
    return fuzz.run(seed, range(start, end))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=fuzz.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed asks other questions (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="look at this case alone, and show it")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failed.json"), help="where a failing case goes")
    given = parser.parse_args()
    if given.only is not None:
        return only(given.seed, given.only)
    began = told = time.monotonic()
    became: Counter[str] = Counter()
    done = 0
    chunks = ((start, min(start + CHUNK, given.cases)) for start in range(0, given.cases, CHUNK))
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(work, given.seed, *chunk): chunk for chunk in islice(chunks, given.jobs * 2)}
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                start, end = running.pop(future)
                failure = future.exception()
                if failure is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return failed(given.seed, start, end, given.save)
                became += future.result()
                done += end - start
                running |= {pool.submit(work, given.seed, *chunk): chunk for chunk in islice(chunks, 1)}
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                rate = done / (told - began)
                say(f"{done:,} of {given.cases:,} cases, {rate:,.0f}/s, {(given.cases - done) / rate:,.0f} s to go")
    for what, count in became.most_common():
        print(f"{count:>10,}  {what}")
    say(f"{done:,} cases of seed {given.seed} in {time.monotonic() - began:,.0f} s: no reader differs, nothing raised.")
    return 0


def failed(seed: int, start: int, end: int, save: Path) -> int:
    """Find the case again, which a process could not hand over whole, and keep it."""
    for number in range(start, end):
        try:
            fuzz.run(seed, [number])
        except fuzz.Wrong as wrong:
            case = fuzz.case_of(seed, number)
            kept = {
                "seed": seed,
                "number": number,
                "kind": case.kind,
                "content": repr(case.content),
                "wrong": str(wrong),
            }
            save.write_text(json.dumps(kept, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
            say(f"{wrong}\nsaved in {save}; again: scripts/fuzz --seed {seed} --only {number}")
            return 1
    say(f"a process failed in cases {start} to {end} of seed {seed}, and none of them fails here")
    return 1


def only(seed: int, number: int) -> int:
    case = fuzz.case_of(seed, number)
    print(case.kind, case.content)
    try:
        print(*fuzz.run(seed, [number]))
    except fuzz.Wrong as wrong:
        say(str(wrong))
        return 1
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
