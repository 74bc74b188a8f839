"""Members that are passed over may nest as deep as a record is long: that is a record nobody can read, and no more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.gate import outputs
from app.gate.identities import Identities
from app.gate.records import UNREADABLE
from app.gate.revocation import Revocations, revocation_key
from app.gate.trigger import Record
from app.stream.judging import Foreign, Judge
from tests.support.pure_world import WORLD

DEEP = b'{"later":' + b"[" * 20_000 + b"]" * 20_000 + b"}"


def test_a_revocation_that_nests_too_deep_refuses_what_its_key_names():
    table = Revocations()
    assert table.apply(revocation_key("i", "jti", "v"), DEEP) is not None
    assert [entry.value for entry in table.entries()] == ["v"]
    assert table.apply(b"[" * 20_000, DEEP) is not None
    assert len(table) == 1


def test_an_identity_that_nests_too_deep_refuses_its_subject():
    identities = Identities()
    assert identities.apply("service:ci", DEEP) is not None
    assert identities.disabled().covers("anyone", "service:ci")


def test_a_handoff_that_nests_too_deep_is_a_strangers():
    judge = Judge(0, SimpleNamespace(world=WORLD))  # type: ignore[arg-type]
    (judged,) = judge.slice([Record(0, 0, 1, True, b"k", DEEP, ())], [], WORLD, 0.0).handoffs
    assert isinstance(judged.result, Foreign)


def test_a_checkpoint_that_nests_too_deep_is_told_as_unreadable():
    with pytest.raises(UNREADABLE):
        outputs.read_checkpoint(DEEP)
