"""The disk of a simulated machine: RocksDB's interface as `app.stream.store` uses it, in memory.

A write is atomic and survives its process, as with a log in the page cache; a lock lasts as long as the process. Only
what the program's store asks of RocksDB is there, and `test_contract.py` asks the same of the real one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tests.simulation.scheduler import Process, current_process


class WriteBatch:
    def __init__(self, *, raw_mode: bool) -> None:
        assert raw_mode
        self.rows: list[tuple[bytes, bytes | None]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.rows.append((key, value))

    def delete(self, key: bytes) -> None:
        self.rows.append((key, None))


class Disk:
    """All directories of a world. `full` makes writes fail, as a full disk does."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self.locks: dict[str, Process] = {}
        self.full: set[str] = set()  # names of processes

    def remove(self, path: Path | str, **_: Any) -> None:
        """As shutil.rmtree."""
        self.tables.pop(str(path), None)


DISK: ContextVar[Disk] = ContextVar("DISK")


class Rows:
    """A walk over the keys of a table; stands in for rocksdict.RdictIter."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys, self._at = keys, 0

    def seek_to_first(self) -> None:
        self._at = 0

    def seek(self, key: bytes) -> None:
        self._at = bisect_left(self._keys, key)

    def valid(self) -> bool:
        return self._at < len(self._keys)

    def next(self) -> None:
        self._at += 1

    def status(self) -> None:
        """This disk is never damaged."""


class Table:
    """An open database; stands in for rocksdict.Rdict."""

    def __init__(self, path: str, options: Any = None, column_families: Any = None) -> None:  # noqa: ARG002
        self._disk, self._path = DISK.get(), path
        process = current_process()
        assert process is not None
        holder = self._disk.locks.get(path)
        if holder is not None and holder.alive:
            raise OSError(f"IO error: While lock file: {path}/LOCK: Resource temporarily unavailable")
        self._disk.locks[path] = self._process = process
        self._rows = self._disk.tables.setdefault(path, {})
        self._closed = False

    def get(self, key: Any) -> Any:
        self._check()
        if isinstance(key, list):
            return [self._rows.get(each) for each in key]
        return self._rows.get(key)

    def write(self, batch: WriteBatch) -> None:
        self._check()
        if self._process.name in self._disk.full:
            raise OSError("IO error: No space left on device")
        for key, value in batch.rows:
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value

    def items(self, *, read_opt: Any = None, from_key: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:  # noqa: ARG002
        self._check()
        return iter([(key, self._rows[key]) for key in sorted(self._rows) if from_key is None or key >= from_key])

    def iter(self, read_opt: Any = None) -> Rows:  # noqa: ARG002
        self._check()
        return Rows(sorted(self._rows))

    def keys(self) -> Iterator[bytes]:
        self._check()
        return iter(sorted(self._rows))

    def live_files(self) -> list[Any]:
        return []

    def property_int_value(self, _: str) -> int:
        return len(self._rows)

    def close(self) -> None:
        self._closed = True
        if self._disk.locks.get(self._path) is self._process:
            del self._disk.locks[self._path]

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("DB already closed")
