"""A lane's table stays as large as its windows make it, however much is written; on a real store, by a clock of ours."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from app.gate import idempotency
from app.stream.store import Store, open_store
from app.stream.sweeping import RECORDS, SLICE_RECORDS, Sweeper

WINDOW_S = 4
TURNS_A_SECOND = 4


class Table:
    """A real store to which a lane of so many new keys a second writes, with the lane's sweeps."""

    def __init__(self, directory: Path, window_s: int) -> None:
        self.store, _ = open_store(directory, "cluster", "birth", 0)
        self.size = self.now_ms = 0
        self._sweeper, self._window_ms = Sweeper(), window_s * 1_000
        self._numbers = itertools.count()

    def goes_on_for(self, seconds: int, keys_a_second: int) -> int:
        """Returns the largest size meanwhile."""
        largest = 0
        for _ in range(seconds * TURNS_A_SECOND):
            self.now_ms += 1_000 // TURNS_A_SECOND
            entries = [self._entry() for _ in range(keys_a_second // TURNS_A_SECOND)]
            if entries:
                self.store.apply(entries, self.store.changelog_offset + len(entries))
                self._sweeper.written(len(entries))
            self.size += len(entries) - self._sweeper.sweep(self.store, self.now_ms / 1_000, self.now_ms)
            largest = max(largest, self.size)
        return largest

    def _entry(self) -> tuple[bytes, bytes]:
        key = idempotency._digest(b"%d" % next(self._numbers))
        return key, idempotency.pack(bytes(16), bytes(16), bytes(8), 0, 0, self.now_ms, self.now_ms + self._window_ms)


@pytest.mark.parametrize("keys_a_second", [100, 3_000])
def test_a_table_holds_at_most_about_twice_what_lives(tmp_path: Path, keys_a_second: int) -> None:
    table = Table(tmp_path / "s", WINDOW_S)
    largest = table.goes_on_for(8 * WINDOW_S, keys_a_second)
    alive = keys_a_second * WINDOW_S
    assert len(list(table.store.items())) == table.size
    assert alive <= largest <= 2.2 * alive + RECORDS
    # And what lives is there.
    dead = sum(idempotency.expires_at_ms(packed) < table.now_ms for _, packed in table.store.items())
    assert table.size - dead >= alive
    table.store.close()


def test_a_burst_is_gone_after_its_window_though_little_is_written_since(tmp_path: Path) -> None:
    table = Table(tmp_path / "s", WINDOW_S)
    table.goes_on_for(WINDOW_S, 3_000)
    table.goes_on_for(120, 40)
    assert table.size < 5 * WINDOW_S * 40 + RECORDS
    table.store.close()


def test_where_nothing_dies_little_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    sweep = Store.sweep
    monkeypatch.setattr(Store, "sweep", lambda self, limit, dead: looked_at.append(limit) or sweep(self, limit, dead))
    table = Table(tmp_path / "s", 1_000_000)
    table.goes_on_for(10, 4_000)
    assert len(looked_at) <= 10
    assert max(looked_at) <= SLICE_RECORDS
    table.store.close()
