"""The simulated Kafka is trusted as far as a real one answers the same questions the same way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rocksdict

from app.gate.outputs import Out
from app.stream import store
from app.stream.log import CommitUnknown, Fenced, OffsetGone
from app.stream.transaction import KafkaWriter
from tests.simulation import disk
from tests.simulation.disk import DISK, Disk
from tests.simulation.places import Contract, Place, ask_real, ask_simulated
from tests.simulation.replaced import simulated
from tests.simulation.scheduler import PROCESS, Process

INVALID_TXN_STATE = 48
# Which of them a broker says depends on its version and on who is asked; all mean: you are not the owner any more.
FENCING = {47, 48, 49, 90}
OUT_OF_ORDER_SEQUENCE = 45
SEEDS = 3

CONTRACTS: list[Contract] = []


def contract(function: Contract) -> Contract:
    CONTRACTS.append(function)
    return function


# ── offsets and visibility ──


@contract
async def markers_take_offsets(place: Place) -> None:
    writer = await place.fence()
    partition = (place.a, 0)
    first = await writer.commit({partition: place.outs(b"0", b"1", b"2")})
    second = await writer.commit({partition: place.outs(b"3")})
    assert (first[partition].base_offset, second[partition].base_offset) == (0, 4)
    await place.settled(place.a)
    assert await place.cluster.watermarks(partition) == (0, 6)
    assert [(each.offset, each.value) for each in await place.read(place.a)] == [
        (0, b"0"), (1, b"1"), (2, b"2"), (4, b"3"),
    ]  # fmt: skip


@contract
async def a_transaction_is_visible_whole_on_all_its_partitions(place: Place) -> None:
    writer = await place.fence()
    await writer.commit({(place.a, 0): place.outs(b"1"), (place.b, 0): place.outs(b"1")})
    assert await place.values(place.a) == await place.values(place.b) == [b"1"]


@contract
async def many_transactions_follow_each_other_on_one_epoch(place: Place) -> None:
    writer = await place.fence()
    for number in range(20):
        await writer.commit({(place.a, 0): place.outs(b"%d" % number), (place.b, 0): place.outs(b"x", b"y")})
    assert await place.values(place.a) == [b"%d" % number for number in range(20)]
    assert len(await place.values(place.b)) == 40


@contract
async def what_is_aborted_takes_offsets_and_is_not_read(place: Place) -> None:
    writer = await place.fence()
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.a, 0, b"1", b"2") == 0
    assert await place.end(writer, commit=False) == 0
    await place.settled(place.a)
    await place.ops.write(place.a, [b"3"])
    assert await place.high(place.a) == 4
    assert [(each.offset, each.value) for each in await place.read(place.a)] == [(3, b"3")]


@contract
async def an_open_transaction_holds_back_what_stands_behind_it(place: Place) -> None:
    await place.ops.write(place.a, [b"before"])
    end = await place.ops.begin(place.a, [b"open"])
    await place.ops.write(place.a, [b"behind"])
    assert (await place.stable(place.a), await place.high(place.a)) == (1, 3)
    wake = asyncio.Event()
    tail = place.cluster.follow((place.a, 0), 0, wake)
    taken: list[bytes | None] = []

    async def take(wanted: int) -> None:
        async with asyncio.timeout(20):
            while len(taken) < wanted:
                wake.clear()
                taken.extend(record.value for record in tail.take(100, 1 << 20))
                if len(taken) < wanted:
                    await wake.wait()

    await take(1)
    await asyncio.sleep(0.3)
    assert tail.take(100, 1 << 20) == []
    assert tail.position == 1
    await end(False)
    await take(2)
    assert taken == [b"before", b"behind"]
    await end_of(place, tail, wake)
    tail.close()


async def end_of(place: Place, tail: Any, wake: asyncio.Event) -> None:
    """A tail's position passes the marker at the end, too."""
    high = await place.high(place.a)
    async with asyncio.timeout(20):
        while tail.position < high:
            wake.clear()
            assert tail.take(100, 1 << 20) == []
            if tail.position < high:
                await wake.wait()


@contract
async def a_transaction_committed_late_is_read_in_its_place(place: Place) -> None:
    end = await place.ops.begin(place.a, [b"first"])
    await place.ops.write(place.a, [b"second"])
    await end(True)
    assert await place.values(place.a) == [b"first", b"second"]


@contract
async def reading_begins_and_ends_within_a_batch(place: Place) -> None:
    writer = await place.fence()
    await writer.commit({(place.a, 0): place.outs(b"0", b"1", b"2", b"3", b"4")})
    await place.settled(place.a)
    assert [each.value for each in await place.read(place.a, 2, 4)] == [b"2", b"3"]


@contract
async def the_broker_tells_its_time_where_the_topic_says_so(place: Place) -> None:
    writer = await place.fence()
    before_ms = time.time_ns() // 1_000_000
    placed = await writer.commit({(place.a, 0): place.outs(b"1"), (place.timed, 0): place.outs(b"1")})
    assert placed[place.a, 0].appended_at_ms == -1
    assert abs(placed[place.timed, 0].appended_at_ms - before_ms) < 60_000
    await place.settled(place.timed)
    wake = asyncio.Event()
    tail = place.cluster.follow((place.timed, 0), 0, wake)
    async with asyncio.timeout(20):
        while not (records := tail.take(1, 1 << 20)):
            wake.clear()
            await wake.wait()
    assert records[0].log_append_time
    assert records[0].appended_at_ms == placed[place.timed, 0].appended_at_ms


@contract
async def a_position_before_the_start_is_gone_and_the_end_is_not(place: Place) -> None:
    await place.ops.write(place.a, [b"%d" % number for number in range(5)])
    await place.ops.delete_before(place.a, 3)
    assert await place.cluster.watermarks((place.a, 0)) == (3, 5)
    for position in (0, 2, 6):
        with pytest.raises(OffsetGone) as raised:
            await place.read(place.a, position, 7)
        assert (raised.value.position, raised.value.start, raised.value.end) == (position, 3, 5)
    assert [each.value for each in await place.read(place.a, 3)] == [b"3", b"4"]
    wake = asyncio.Event()
    at_end, before = (place.cluster.follow((place.a, 0), position, wake) for position in (5, 0))
    at_end.close()
    async with asyncio.timeout(20):
        while True:
            wake.clear()
            try:
                before.take(1, 1 << 20)
            except OffsetGone:
                break
            await wake.wait()


# ── fencing ──


@contract
async def who_fences_gets_a_higher_epoch_and_the_former_is_fenced_everywhere(place: Place) -> None:
    old = await place.fence()
    new = await place.fence()
    assert old._producer_id == new._producer_id
    assert new._epoch > old._epoch
    assert await place.add(old, place.a) in FENCING
    assert await place.produce(old, place.a, 0, b"1") in FENCING
    assert await place.end(old) in FENCING
    with pytest.raises(Fenced):
        await old.commit({(place.a, 0): place.outs(b"1")})
    await new.commit({(place.a, 0): place.outs(b"2")})
    assert await place.values(place.a) == [b"2"]


async def begun_on_both(place: Place) -> KafkaWriter:
    """A writer that has written a record to each of two topics, in a transaction that is open."""
    writer = await place.fence()
    assert await place.add(writer, place.a, place.b) == 0
    for topic in (place.a, place.b):
        assert await place.produce(writer, topic, 0, b"1") == 0
    return writer


@contract
async def a_fence_ends_the_formers_transaction_before_it_returns(place: Place) -> None:
    old = await begun_on_both(place)
    assert await place.stable(place.a) == 0
    new = await place.fence()
    for topic in (place.a, place.b):
        assert await place.stable(topic) == await place.high(topic) == 2, "what restore relies on"
        assert await place.read(topic) == []
    assert await place.end(old) in FENCING, "an end that comes late"
    await new.commit({(place.a, 0): place.outs(b"2")})
    assert await place.values(place.a) == [b"2"]


@contract
async def a_fence_aborts_what_no_marker_has_reached_and_leaves_what_one_has(place: Place) -> None:
    """A transaction torn, as by a coordinator that is fenced amid its markers."""
    old = await begun_on_both(place)
    await place.ops.mark_committed(place.a, old)
    await place.settled(place.a)
    assert await place.stable(place.b) == 0
    new = await place.fence()
    assert (await place.values(place.a), await place.values(place.b)) == ([b"1"], [])
    assert await place.high(place.a) == 3, "the other marker takes an offset, too"
    await new.commit({(place.b, 0): place.outs(b"1")})
    assert (await place.values(place.a), await place.values(place.b)) == ([b"1"], [b"1"])


@contract
async def a_fence_right_after_an_end_finds_it_settled(place: Place) -> None:
    for number in range(5):
        old = await place.fence()
        assert await place.add(old, place.a) == 0
        assert await place.produce(old, place.a, 0, b"%d" % number) == 0
        assert await place.end(old) == 0
        await place.fence()
        assert await place.stable(place.a) == await place.high(place.a)
    assert len(await place.read(place.a)) == 5


@contract
async def a_transaction_that_times_out_is_aborted_and_its_owner_fenced(place: Place) -> None:
    writer = await place.fence()
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.a, 0, b"1") == 0
    await place.settled(place.a)
    assert await place.read(place.a) == []
    assert await place.end(writer) in FENCING
    with pytest.raises(Fenced):
        await writer.commit({(place.a, 0): place.outs(b"2")})


@contract
async def a_late_end_of_a_former_epoch_changes_nothing(place: Place) -> None:
    old = await place.fence()
    assert await place.add(old, place.a) == 0
    assert await place.produce(old, place.a, 0, b"old") == 0
    new = await place.fence()
    assert await place.add(new, place.a) == 0
    assert await place.produce(new, place.a, 0, b"new") == 0
    assert await place.end(old) in FENCING
    assert await place.stable(place.a) < await place.high(place.a)
    assert await place.end(new) == 0
    assert await place.values(place.a) == [b"new"]


@contract
async def a_late_end_where_the_epoch_was_kept_commits_half_of_the_next_transaction(place: Place) -> None:
    """The damage that the rule (never that producer again) is there for: without it the simulation must show it."""
    writer = await place.fence()
    assert await place.add(writer, place.a, place.b) == 0
    assert await place.produce(writer, place.a, 0, b"first") == 0
    assert await place.produce(writer, place.b, 0, b"first") == 0
    assert await place.end(writer) == 0  # sent again, since the first was not answered
    assert await place.add(writer, place.a, place.b) == 0
    assert await place.produce(writer, place.a, 1, b"second") == 0
    assert await place.end(writer) == 0  # the first one arrives
    await place.settled(place.a)
    assert await place.produce(writer, place.b, 1, b"second") in FENCING
    assert await place.values(place.a) == [b"first", b"second"]
    assert await place.values(place.b) == [b"first"]


# ── what is refused ──


@contract
async def an_end_is_answered_the_same_again_and_its_opposite_refused(place: Place) -> None:
    writer = await place.fence()
    assert await place.end(writer) == INVALID_TXN_STATE
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.a, 0, b"1") == 0
    assert await place.end(writer) == 0
    await place.settled(place.a)
    assert await place.end(writer) == 0
    assert await place.end(writer, commit=False) == INVALID_TXN_STATE
    assert await place.values(place.a) == [b"1"]


@contract
async def a_partition_that_was_not_added_takes_nothing(place: Place) -> None:
    writer = await place.fence()
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.b, 0, b"1") in FENCING
    assert await place.produce(writer, place.a, 0, b"1") == 0
    assert await place.end(writer) == 0
    assert await place.values(place.a) == [b"1"]
    assert await place.values(place.b) == []


@contract
async def sequence_numbers_have_no_gaps_and_begin_anew_with_an_epoch(place: Place) -> None:
    writer = await place.fence()
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.a, 0, b"1", b"2") == 0
    assert await place.produce(writer, place.a, 3, b"4") == OUT_OF_ORDER_SEQUENCE
    assert await place.produce(writer, place.a, 2, b"3") == 0
    writer = await place.fence()
    assert await place.add(writer, place.a) == 0
    assert await place.produce(writer, place.a, 0, b"5") == 0
    assert await place.end(writer) == 0
    assert await place.values(place.a) == [b"5"]


@contract
async def a_record_beyond_the_topics_limit_is_refused_and_nothing_committed(place: Place) -> None:
    writer = await place.fence()
    with pytest.raises(CommitUnknown):
        await writer.commit({(place.a, 0): [Out(b"big", bytes(2 << 20))], (place.b, 0): place.outs(b"1")})
    writer = await place.fence()
    await writer.commit({(place.a, 0): place.outs(b"2"), (place.b, 0): place.outs(b"2")})
    assert await place.values(place.a) == await place.values(place.b) == [b"2"]


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("question", CONTRACTS, ids=lambda function: function.__name__)
def test_the_simulated_kafka(question: Contract, seed: int) -> None:
    with simulated():
        ask_simulated(question, seed)


@pytest.mark.parametrize("question", CONTRACTS, ids=lambda function: function.__name__)
def test_the_real_kafka(question: Contract, broker: str) -> None:
    ask_real(question, broker)


# ── the local store's database ──


def _real_table(path: Path) -> Any:
    return rocksdict.Rdict(str(path), options=store._options())


def _simulated_table(path: Path) -> Any:
    return disk.Table(str(path), options=None)


@pytest.fixture(
    params=[(_real_table, rocksdict.WriteBatch), (_simulated_table, disk.WriteBatch)], ids=["real", "simulated"]
)
def database(request: pytest.FixtureRequest) -> Iterator[Any]:
    disk_before, process_before = DISK.set(Disk()), PROCESS.set(Process("one"))
    yield request.param
    # A process left here would be that of whatever runs the next worlds, and what one of them left in it never runs.
    PROCESS.reset(process_before)
    DISK.reset(disk_before)


def test_a_database_keeps_what_was_written_in_order_and_deletes(
    database: tuple[Callable[[Path], Any], Any], tmp_path: Path
) -> None:
    opened, batch = database
    table = opened(tmp_path / "table")
    written = batch(raw_mode=True)
    for key in (b"c", b"a", b"b", b"d"):
        written.put(key, b"of " + key)
    written.delete(b"d")
    table.write(written)
    assert table.get([b"a", b"d", b"c"]) == [b"of a", None, b"of c"]
    assert table.get(b"x") is None
    table.close()
    table = opened(tmp_path / "table")
    assert list(table.items(read_opt=store._scan_options(), from_key=None)) == [
        (b"a", b"of a"), (b"b", b"of b"), (b"c", b"of c"),
    ]  # fmt: skip
    assert [key for key, _ in table.items(from_key=b"b")] == [b"b", b"c"]
    assert list(table.keys()) == [b"a", b"b", b"c"]
    walk = table.iter(store._scan_options())
    walk.seek(b"b")
    walk.next()
    assert walk.valid()
    walk.next()
    assert not walk.valid()
    walk.status()
    table.close()


def test_a_database_has_one_owner_at_a_time(database: tuple[Callable[[Path], Any], Any], tmp_path: Path) -> None:
    opened, _ = database
    table = opened(tmp_path / "table")
    with pytest.raises(Exception, match=r"/LOCK:"):
        opened(tmp_path / "table")
    table.close()
    opened(tmp_path / "table").close()


def test_a_closed_database_is_not_read(database: tuple[Callable[[Path], Any], Any], tmp_path: Path) -> None:
    opened, _ = database
    table = opened(tmp_path / "table")
    table.close()
    with pytest.raises(Exception, match="closed"):
        table.get(b"a")
