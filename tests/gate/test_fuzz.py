"""A short run of the differential fuzzing that scripts/fuzz does at length; and that it would find what is planted."""

import json
import os
import secrets
from types import SimpleNamespace

import pytest

from app.gate.outputs import Redacted
from app.gate.reasons import Rejected
from tests.support import fuzz
from tests.support.tokens import CLAIMS

CASES = 6_000
OTHER = SimpleNamespace(header={"kid": "k1"}, claims=CLAIMS | {"sub": "service:another"})


def kept(record):
    return Redacted(None, record.value or b"", ())


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_no_reader_differs_from_ours_and_nothing_raises():
    """The suite asks the same questions every time; TOLLGATE_FUZZ=1 asks new ones."""
    seed = secrets.randbits(32) if os.environ.get("TOLLGATE_FUZZ") else 7
    became = fuzz.run(seed, range(CASES))
    assert became.total() == CASES
    for what in ("json: taken", "json: duplicate_member", "token: verified", "record: admitted"):
        assert became[what] > 50, became


def test_a_case_is_its_seed_and_number():
    assert [fuzz.case_of(3, number) for number in range(40)] == [fuzz.case_of(3, number) for number in range(40)]
    assert fuzz.case_of(3, 1) != fuzz.case_of(4, 1)


PLANTED = {
    "a member that stands twice is taken": ("loads_object", json.loads),
    "a refusal of our own making": ("verify", lambda *_: Rejected("internal_deny")),
    "a quick reading that is not strict": ("quick_claims", lambda raw: ({}, ()) if b"exp" in raw else None),
    "a token is verified with its claims exchanged": ("jwt", SimpleNamespace(decode=lambda *_, **__: OTHER)),
    "a dead letter that keeps what it was sent": ("original", lambda record, *_: (kept(record), None)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name, monkeypatch):
    where, instead = PLANTED[name]
    monkeypatch.setattr(fuzz, where, instead)
    with pytest.raises(fuzz.Wrong):
        fuzz.run(7, range(2_000))
