"""Home lanes: an identity's home is where a default Java or aiokafka producer puts a record with that key."""

from __future__ import annotations

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from app.gate.idempotency import home_lane


@given(st.text(max_size=300), st.integers(1, 1024))
def test_a_home_lane_is_the_partition_of_the_default_partitioner(key: str, lanes: int) -> None:
    everywhere = list(range(lanes))
    assert home_lane(key, lanes) == DefaultPartitioner()(key.encode(), everywhere, everywhere)


def test_home_lanes_are_what_the_java_client_computes() -> None:
    # Utils.murmur2 of these keys, from Kafka's own UtilsTest; toPositive takes the sign away.
    java = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
            "a-little-bit-longer-string": -1486304829}  # fmt: skip
    for key, number in java.items():
        for lanes in (1, 7, 12, 48):
            assert home_lane(key, lanes) == (number & 0x7FFFFFFF) % lanes


def test_keys_spread_over_all_lanes() -> None:
    counts = [0] * 12
    for number in range(12_000):
        counts[home_lane(f"key-{number}", 12)] += 1
    assert min(counts) > 700
