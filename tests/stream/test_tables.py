"""What is remembered of tokens belongs to one world: a removed key must not live on in it."""

from __future__ import annotations

from types import SimpleNamespace

from app.gate.decide import World
from app.gate.policy import Revocations
from app.stream.tables import Tables


def test_a_change_of_keys_forgets_what_was_verified_with_those_before():
    world = World(
        audience="tollgate:t.", lanes=1, grace_s=60, queue_age_cap_ms=1, max_window_ms=1, run_seed=1, ring={}, rules={},
        jobs={}, revocations=Revocations(),
    )  # fmt: skip
    keys = SimpleNamespace(version=1, ring={})
    tables = Tables(None, ("registry", 0), ("revocations", 0), ("grants", 0), keys, world, 1.0)  # type: ignore[arg-type]
    before = tables.world
    before.memo.tokens["a token"] = None  # type: ignore[assignment]
    assert tables.world is before, "nothing changed, so nothing is forgotten"

    keys.version = 2
    after = tables.world
    # A slice that is still being judged in the world before goes on writing there, and nowhere else.
    before.memo.tokens["another"] = None  # type: ignore[assignment]
    assert after.memo.tokens == {}
