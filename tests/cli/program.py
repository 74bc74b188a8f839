"""The installed program, run from outside as a person or a script would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = Path(sys.executable).with_name("tollgate")


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def tollgate(env: dict[str, str], *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> Said:
    done = subprocess.run(
        [PROGRAM, *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)
