"""The local store alone: foreign, locked, damaged or on a failing disk, it never holds what its offset does not say."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.stream import restore, store
from tests.support.stores import BIRTH, CLUSTER, LANE, identity, opened, packed, stale_store


def test_a_store_that_is_opened_again_has_its_bloom_filter_and_the_shared_cache(tmp_path: Path) -> None:
    """rocksdict opens what exists with RocksDB's defaults, unless the column family is named."""
    for _ in range(3):
        opened(tmp_path / "s").close()
    for told in sorted((tmp_path / "s").glob("LOG*")):
        text = told.read_text()
        assert "filter_policy: bloomfilter" in text, told
        assert f"capacity : {store.BLOCK_CACHE_BYTES}" in text, told


@pytest.mark.parametrize(("lane", "birth"), [(1, BIRTH), (LANE, "another")])
def test_a_store_of_another_lane_or_birth_is_wiped(tmp_path: Path, lane: int, birth: str) -> None:
    stale_store(tmp_path / "s", 5, lane, birth)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why == "it belongs to another deployment or lane"
    assert (dict(made.items()), made.changelog_offset) == ({}, 0)
    made.close()


def test_a_store_of_the_same_lane_is_kept(tmp_path: Path) -> None:
    stale_store(tmp_path / "s", 5)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why is None
    assert (dict(made.items()), made.changelog_offset) == ({identity(99): b"of another time"}, 5)
    made.close()


def test_a_sweep_deletes_only_what_is_dead_and_comes_round(tmp_path: Path) -> None:
    made = opened(tmp_path / "s")
    made.apply([(identity(number), b"dead" if number % 2 else b"live") for number in range(100)], 100)
    assert sum(made.sweep(30, lambda value: value == b"dead") for _ in range(5)) == 50
    assert set(made.items()) == {(identity(number), b"live") for number in range(0, 100, 2)}
    made.apply([(identity(1), b"dead")], 101)
    assert sum(made.sweep(30, lambda value: value == b"dead") for _ in range(4)) == 1
    made.close()


def test_a_sweep_meets_damage_that_no_lookup_has_met(tmp_path: Path) -> None:
    made, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    made.apply([(identity(number), os.urandom(60)) for number in range(5_000)], 5_000)
    made.close()
    (table,) = (tmp_path / "s").glob("*.sst")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    again, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert why is None, "opening reads no entry"
    with pytest.raises(store.StoreUnusable, match="checksum"):
        again.sweep(10_000, lambda _: False)
    again.close()


def _fill(made: store.Store) -> None:
    for number in range(1, 1_000):
        made.apply([(identity(number), bytes(500))], number)


def test_a_store_that_its_disk_failed_is_closed_and_let_go(tmp_path: Path) -> None:
    made, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32_768, before[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(store.StoreUnusable, match="IO error"):
            _fill(made)
        made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again, _ = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    assert set(dict(again.items())) == {identity(number) for number in range(1, again.changelog_offset + 1)}
    again.close()


async def test_a_store_whose_lock_a_zombie_holds_gets_one_beside_it(
    tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.2)
    zombie, _ = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    second, path = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    assert path == tmp_path / f"lane-{LANE}.1"
    assert [event["event"] for event in logged] == ["store_locked"]
    second.close()
    zombie.close()


async def test_a_store_whose_lock_is_let_go_within_a_second_is_waited_for(tmp_path: Path) -> None:
    former, _ = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    asyncio.get_running_loop().call_later(0.2, former.close)
    second, path = await restore.open_local(tmp_path, CLUSTER, BIRTH, LANE)
    assert path == tmp_path / f"lane-{LANE}"
    second.close()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as a kill leaves it: entry n was applied with changelog offset n + 1, over two tables and a log."""
    directory = tmp_path_factory.mktemp("grown")
    made = opened(directory / "s")
    for number in range(300):
        made.apply([(identity(number), packed(number))], number + 1)
        if number in {99, 199}:
            made._db.flush()
    shutil.copytree(directory / "s", directory / "as-killed")
    made.close()
    return directory / "as-killed"


@pytest.mark.parametrize("seed", range(120))
def test_a_store_damaged_anywhere_is_refused_or_holds_exactly_what_its_offset_says(
    grown: Path, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    shutil.copytree(grown, tmp_path / "s")
    files = sorted(path for path in (tmp_path / "s").iterdir() if path.stat().st_size and path.name != "LOG")
    victim = dice.choice(files)
    data = bytearray(victim.read_bytes())
    at = dice.randrange(len(data))
    if seed % 4 == 3:
        victim.write_bytes(data[:at])
    else:
        data[at] ^= 1 << dice.randrange(8)
        victim.write_bytes(data)
    made, why = store.open_store(tmp_path / "s", CLUSTER, BIRTH, LANE)
    try:
        # As a lane reads it; RocksDB's iterators end at damage without a word.
        asked = [identity(number) for number in range(300)]
        held = {key: value for key, value in zip(asked, made.get_many(asked), strict=True) if value is not None}
    except Exception:  # RocksDB's: the lane wipes such a store when it meets it
        return
    finally:
        offset = made.changelog_offset
        made.close()
    assert held == {identity(number): packed(number) for number in range(offset)}, f"{victim.name}: {why}"
