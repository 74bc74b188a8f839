"""The program: the installed one, run from outside as a person or a script would, or the same within this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.cli import main

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


def within(env: Mapping[str, str], *arguments: str, stdin: str | None = None) -> Said:
    """`tollgate` in this process, which starts it at a fiftieth of the cost: for what shows by code, output and files."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for name in ("stdout", "stderr")}
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), "utf-8")
    with pytest.MonkeyPatch.context() as patched:
        for name in os.environ.keys() - env.keys():
            patched.delenv(name)
        for name, value in env.items():
            patched.setenv(name, value)
        for name, value in ({"argv": ["tollgate", *arguments], "stdin": given} | streams).items():
            patched.setattr(sys, name, value)
        with pytest.raises(SystemExit) as end:
            main.main()
    return Said(int(end.value.code or 0), *(stream.buffer.getvalue().decode() for stream in streams.values()))
