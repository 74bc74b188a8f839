"""What an entry of the same identity means for a trigger."""

import pytest

from app.gate.decide import Admitted, Memo, admit
from app.gate.idempotency import Entry, compare, home_lane, of_one_shot
from app.gate.token import verify
from tests.support.jose import ABSENT
from tests.support.pure_world import WORLD, record
from tests.support.tokens import AUD, NOW_S, RING, token

WINDOW_MS = 300_000


def entry(offset: int, appended_at_ms: int, request: bytes = b"r" * 16, jti: bytes = b"j" * 8) -> Entry:
    return Entry(b"i" * 16, request, jti, 0, offset, appended_at_ms, appended_at_ms + WINDOW_MS)


OLD = entry(1, 1_000_000)


@pytest.mark.parametrize(
    ("new", "hit"),
    [
        (OLD, "same_source"),
        (entry(2, 1_000_000), "duplicate"),
        (entry(2, 1_000_000 + WINDOW_MS), "duplicate"),
        (entry(2, 1_000_001 + WINDOW_MS), None),
        (entry(2, 1_000_000, request=b"s" * 16), "token_already_used"),
        (entry(2, 1_000_000, request=b"s" * 16, jti=b"k" * 8), "idempotency_key_reused"),
        # It came late, by another lane: however old it is, the request has run.
        (entry(2, 1_000_000 - 10 * WINDOW_MS), "duplicate"),
        (entry(2, 1_000_000 - 10 * WINDOW_MS, request=b"s" * 16), "token_already_used"),
    ],
)
def test_a_hit_is_within_the_window_or_late(new, hit):
    assert compare(new, OLD) == hit


def test_no_order_of_a_request_and_its_repeats_makes_two_runs_within_one_window():
    """Found in review: the first try and its repeat, both held up elsewhere, came after a third of much later."""
    table: Entry | None = None
    runs = []
    for each in (entry(3, 1_700_000), entry(1, 1_000_000), entry(2, 1_010_000)):
        if table is None or compare(each, table) is None:
            runs.append(each)
            table = each
    assert runs == [entry(3, 1_700_000)]


@pytest.mark.parametrize("claims", [{}, {"idempotency_key": "order-7"}], ids=["by its jti", "by its key"])
def test_a_one_shot_token_acts_for_the_one_identity_that_its_trigger_gets(claims):
    text = token(claims=claims, grant={"params": ABSENT})
    admitted = admit(record(0, text, NOW_S), WORLD, Memo())
    assert isinstance(admitted, Admitted)
    assert of_one_shot(admitted.token.claims) == admitted.identity
    assert home_lane(admitted.identity.home_by, WORLD.lanes) == admitted.home


def test_a_webhook_token_acts_for_none():
    verified = verify(token(claims={"uses": "many", "idempotency_key": "order-7"}), RING, AUD)
    assert of_one_shot(verified.claims) is None
