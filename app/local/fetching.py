"""How fetching is shown: a bar on a terminal, two plain lines anywhere else; always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MEGABYTE: Final = 1_000_000


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Watch:
    """Counts what has come; called from several threads."""

    def __init__(self, changed: Callable[[int, int], None]) -> None:
        self._guard = threading.Lock()
        self._changed = changed
        self.jars = 0
        self.bytes = 0

    def got_bytes(self, count: int) -> None:
        with self._guard:
            self.bytes += count
            self._changed(self.jars, self.bytes)

    def got_jar(self) -> None:
        with self._guard:
            self.jars += 1
            self._changed(self.jars, self.bytes)


@contextmanager
def watch_fetching(what: str, jars: int, store: Path, say: Callable[[str], None] | None) -> Iterator[Watch]:
    """`say` takes the plain lines when given; without it, a terminal gets a bar."""
    if say is None and sys.stderr.isatty():
        with _bar(what, jars) as watch:
            yield watch
        return
    say = say or say_on_stderr
    say(f"Fetching {jars} jars of {what} into {store} ...")
    started = time.monotonic()
    watch = Watch(lambda _jars, _bytes: None)
    yield watch
    say(f"Fetched {watch.jars} jars, {watch.bytes / MEGABYTE:.0f} MB, in {time.monotonic() - started:.0f} s.")


@contextmanager
def _bar(what: str, jars: int) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("Fetching {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jars, {task.fields[megabytes]:.0f} MB"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(what, total=jars, megabytes=0.0)
        yield Watch(lambda done, size: progress.update(task, completed=done, megabytes=size / MEGABYTE))
