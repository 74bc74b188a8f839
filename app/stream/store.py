"""The local store of a lane: RocksDB, written after a commit is known, with the changelog offset in the same write.

It never holds what was not committed, so a crash needs no wipe; it may be deleted whenever no gate runs.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from app.gate.idempotency import IDENTITY_BYTES

FORMAT: Final = 1
BLOOM_BITS_PER_KEY: Final = 10
BLOCK_BYTES: Final = 4 * 1024
BLOCK_CACHE_BYTES: Final = 64 << 20  # shared by all lanes of a process
WRITE_BUFFER_BYTES: Final = 16 << 20
LOCK_WAIT_S: Final = 1.0  # a zombie may still hold the lock
LOCK_RETRY_S: Final = 0.05
OPEN_FILES_MAX: Final = 256
_TABLE_MAGIC: Final = 0x88E241B785F4CFF7.to_bytes(8, "little")  # kBlockBasedTableMagicNumber, the end of a table file
_LOCK_FILE: Final = "/LOCK"
_META: Final = b"meta"  # shorter than any identity

_shared_cache: Any = None


class StoreLocked(Exception):  # noqa: N818
    """Another process holds the store's lock."""


class StoreUnusable(Exception):  # noqa: N818
    """The store cannot be opened or read: wipe it and restore."""


class Belonging(msgspec.Struct, frozen=True):
    """What a store belongs to, and how far it goes."""

    cluster_id: str
    birth_id: str  # of the deployment: digest of the topics' ids
    lane: int
    changelog_offset: int  # the next changelog record to apply
    as_of_ms: int  # wall clock of the last write
    format: int = FORMAT


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Belonging).decode


def _options() -> Any:
    global _shared_cache  # noqa: PLW0603 - one block cache for a process, whatever its number of lanes
    if _shared_cache is None:
        _shared_cache = Cache(BLOCK_CACHE_BYTES)
    table = BlockBasedOptions()
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, block_based=False)
    table.set_block_size(BLOCK_BYTES)
    table.set_block_cache(_shared_cache)
    # Measured: with index and filters in that cache an absent key costs 30 µs instead of 4.
    table.set_cache_index_and_filter_blocks(False)
    table.set_format_version(5)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.none())  # digests do not compress
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_keep_log_file_num(2)
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES)
    options.set_level_compaction_dynamic_level_bytes(True)
    return options


def _open(directory: Path) -> Any:
    """RocksDB there, new or not. Without naming the column family an existing one is opened with RocksDB's defaults:
    no bloom filter (an absent key of 20,000,000 costs 15 µs instead of 2) and a cache of its own.
    """
    options = _options()
    return Rdict(str(directory), options=options, column_families={"default": options})


class Store:
    """An open store. One owner at a time, by RocksDB's lock."""

    def __init__(self, db: Any, belonging: Belonging) -> None:
        self._db, self._belonging = db, belonging
        self._swept_to: bytes | None = None
        self._closed = False

    @property
    def changelog_offset(self) -> int:
        return self._belonging.changelog_offset

    @property
    def age_ms(self) -> int:
        """Time since the last write, by the wall clock."""
        return time.time_ns() // 1_000_000 - self._belonging.as_of_ms

    def get_many(self, identities: list[bytes]) -> list[bytes | None]:
        """Packed entries, None where there is none, in the order asked."""
        try:
            found: list[bytes | None] = self._db.get(identities)
        except Exception as error:
            raise StoreUnusable(_first_line(error)) from error
        return found

    def apply(self, entries: Iterable[tuple[bytes, bytes | None]], changelog_offset: int) -> None:
        """Committed entries and how far they go, in one atomic write. None deletes."""
        self._belonging = msgspec.structs.replace(
            self._belonging, changelog_offset=changelog_offset, as_of_ms=time.time_ns() // 1_000_000
        )
        batch = WriteBatch(raw_mode=True)
        for identity, packed in entries:
            if packed is None:
                batch.delete(identity)
            else:
                batch.put(identity, packed)
        batch.put(_META, _encode(self._belonging))
        self._write(batch)

    def confirm(self) -> None:
        """Nothing came since the last write, as the owner of the lane knows."""
        self.apply((), self.changelog_offset)

    def _write(self, batch: Any) -> None:
        try:
            self._db.write(batch)
        except Exception as error:
            raise StoreUnusable(_first_line(error)) from error

    def sweep(self, limit: int, is_dead: Callable[[bytes], bool]) -> int:
        """Look at the next `limit` entries and delete those `is_dead(packed)`; begins anew at the end.

        Deleting by sweeps keeps writes single and a table of a year's keys bounded. Returns how many went.
        """
        # An iterator of its own each time: one that is kept would keep obsolete files, too.
        rows = list(islice(self._db.items(read_opt=_scan_options(), from_key=self._swept_to), limit))
        if len(rows) < limit:
            self._require_end(rows[-1][0] if rows else self._swept_to)
        self._swept_to = rows[-1][0] if len(rows) == limit else None
        doomed = [key for key, packed in rows if len(key) == IDENTITY_BYTES and is_dead(packed)]
        if doomed:
            batch = WriteBatch(raw_mode=True)
            for identity in doomed:
                batch.delete(identity)
            self._write(batch)
        return len(doomed)

    def _require_end(self, last: bytes | None) -> None:
        """Iteration ends at a damaged block as it does behind the last entry. Raises StoreUnusable."""
        beyond = self._db.iter(_scan_options())
        if last is None:
            beyond.seek_to_first()
        else:
            beyond.seek(last)
        while beyond.valid():
            beyond.next()
        try:
            beyond.status()
        except Exception as error:
            raise StoreUnusable(_first_line(error)) from error

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, for comparisons."""
        return ((key, value) for key, value in self._db.items() if len(key) == IDENTITY_BYTES)

    def estimate(self) -> int:
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)

    def close(self) -> None:
        """Once or more often. Never raises: what a failing disk did not keep is read from the changelog again."""
        if not self._closed:
            self._closed = True
            _close(self._db)


def _close(db: Any) -> None:
    # It flushes first, raises what that met ("Writer has previous error") and has closed all the same.
    with contextlib.suppress(Exception):
        db.close()


def _scan_options() -> Any:
    options = ReadOptions()
    options.fill_cache(False)
    return options


def open_store(directory: Path, cluster_id: str, birth_id: str, lane: int) -> tuple[Store, str | None]:
    """Open a lane's store, or an empty one with the reason why the old one could not serve.

    Raises StoreLocked while another process holds it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Belonging(cluster_id, birth_id, lane, 0, time.time_ns() // 1_000_000)
    finished = _finished_tables(directory)
    try:
        db = _open(directory)
    except Exception as error:
        if f"{_LOCK_FILE}:" in str(error):  # and not "lock": a block of a table may be bad
            raise StoreLocked(f"{directory} is held by another process") from None
        return _anew(directory, fresh), f"it cannot be opened: {_first_line(error)}"
    try:
        forgotten = finished - {Path(table["name"]).name for table in db.live_files()}
        raw = db.get(_META)
        belonging = None if raw is None else _decode(raw)
    except Exception as error:
        _close(db)
        return _anew(directory, fresh), f"it cannot be read: {_first_line(error)}"
    if belonging is None:
        if next(iter(db.keys()), None) is None:
            return Store(db, fresh), None
        why = "it does not say what it belongs to"
    elif forgotten:
        why = f"its manifest does not know {len(forgotten)} of its table files"
    elif belonging.format != FORMAT:
        why = f"it has format {belonging.format}"
    elif (belonging.cluster_id, belonging.birth_id, belonging.lane) != (cluster_id, birth_id, lane):
        why = "it belongs to another deployment or lane"
    else:
        return Store(db, belonging), None
    _close(db)
    return _anew(directory, fresh), why


def _finished_tables(directory: Path) -> set[str]:
    """The table files that were written to their end. RocksDB takes a manifest that was cut off for a shorter one and
    deletes the tables it does not name, with entries that the changelog offset says are there. (A kill within a large
    compaction leaves such tables too, and costs a restore.)
    """
    finished = set()
    for path in directory.glob("*.sst"):
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - len(_TABLE_MAGIC), 0))
            if file.read() == _TABLE_MAGIC:
                finished.add(path.name)
    return finished


def wipe(store: Store, directory: Path, cluster_id: str, birth_id: str, lane: int) -> Store:
    """An empty store in place of this one."""
    store.close()
    return _anew(directory, Belonging(cluster_id, birth_id, lane, 0, time.time_ns() // 1_000_000))


def _anew(directory: Path, belonging: Belonging) -> Store:
    shutil.rmtree(directory, ignore_errors=True)
    return Store(_open(directory), belonging)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
