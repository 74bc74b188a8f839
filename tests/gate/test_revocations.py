"""Revocations: what each covers, until when, and what an unreadable one does not undo."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate.policy import (
    Revocations,
    check_token,
    revocation_key,
    revocation_record,
)
from tests.support.judging import CLAIMS, GRACE_S, ISS, NOW_MS, NOW_S, RULE, claims, code


def revoke(table, selector, value, since_s=NOW_S, issuer=ISS):
    assert (
        table.apply(*revocation_record(issuer, selector, value, since_s=since_s, reason="r", by="ops", keep_until_s=0))
        is None
    )


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("jti", "jti-1"),
        ("subject", "service:ci"),
        ("subject_prefix", "service:"),
        ("subject_prefix", ""),
        ("job", "reports/nightly"),
        ("class", "trigger"),
        ("kid", "k1"),
        ("issuer", None),
    ],
)
def test_what_is_revoked_is_refused_until_a_tombstone(selector, value):
    table = Revocations()
    revoke(table, selector, value)
    assert code(check_token(CLAIMS, RULE, table, NOW_MS, GRACE_S)) == "token_revoked"
    assert not table.covers(claims(iss="https://other"))
    assert table.apply(revocation_key(ISS, selector, ISS if value is None else value), None) is None
    assert not table.covers(CLAIMS)


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("jti", "jti-1"),
        ("subject", "service:ci"),
        ("subject_prefix", "service:c"),
        ("job", "reports/nightly"),
        ("class", "trigger"),
    ],
)
def test_all_but_keys_and_issuers_are_revoked_up_to_an_iat(selector, value):
    table = Revocations()
    revoke(table, selector, value, since_s=NOW_S)
    assert table.covers(claims(iat=NOW_S))
    assert not table.covers(claims(iat=NOW_S + 1))


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("subject_prefix", "service:ci-"),
        ("subject_prefix", "ervice"),
        ("job", "reports/"),
        ("job", "exact"),
        ("class", "user"),
    ],
)
def test_what_a_bulk_revocation_does_not_name_stays_good(selector, value):
    table = Revocations()
    revoke(table, selector, value)
    assert not table.covers(CLAIMS)


@pytest.mark.parametrize(("selector", "value"), [("kid", "k1"), ("issuer", None)])
def test_a_key_or_issuer_is_revoked_for_every_iat(selector, value):
    table = Revocations()
    revoke(table, selector, value, since_s=0)
    assert table.covers(claims(iat=NOW_S + 10**6))


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"\xff", b"null", revocation_record("x", "jti", "y", since_s=1, reason="", by="", keep_until_s=0)[1]],
)
def test_an_unreadable_record_never_un_revokes_live_or_after_compaction(value):
    for before in ([b"{}"], []):
        table = Revocations()
        if before:
            revoke(table, "jti", "jti-1", since_s=1)
        assert table.apply(revocation_key(ISS, "jti", "jti-1"), value) is not None
        assert table.covers(CLAIMS)


@pytest.mark.parametrize(
    "key", [None, b"", b"{}", b'["a","b","c","d"]', b'["a","jti"]', b"\xff", b'["a","issuer","b"]']
)
def test_a_record_whose_key_names_nothing_changes_nothing(key):
    table = Revocations()
    revoke(table, "jti", "jti-1")
    assert table.apply(key, None) is not None
    assert table.apply(key, b"{}") is not None
    assert len(table) == 1


def test_a_selector_of_a_later_version_is_told_until_it_is_removed():
    table = Revocations()
    later = json.dumps([ISS, "tenant", "t-1"]).encode()
    assert "tenant" in str(table.apply(later, b"{}"))
    assert table.unknown() == {later: "tenant"}
    assert table.apply(b'["other","tenant","t-1"]', None) is None
    assert table.unknown() == {later: "tenant"}
    assert table.apply(later, None) is None
    assert table.unknown() == {}


def test_a_key_in_another_spelling_revokes_but_cannot_un_revoke():
    table = Revocations()
    spaced = json.dumps([ISS, "jti", "jti-1"]).encode()
    _, value = revocation_record(ISS, "jti", "jti-1", since_s=NOW_S, reason="", by="", keep_until_s=0)
    assert table.apply(spaced, value) is not None
    assert table.covers(CLAIMS)
    assert table.apply(spaced, None) is not None
    assert table.covers(CLAIMS)


def test_what_may_be_cleaned_is_what_says_until_when_it_is_kept():
    table = Revocations()
    for value, until in (("a", 0), ("b", NOW_S - 1), ("c", NOW_S)):
        table.apply(*revocation_record(ISS, "jti", value, since_s=1, reason="", by="", keep_until_s=until))
    assert table.outlived(NOW_S) == [revocation_key(ISS, "jti", "b")]


@given(st.text(), st.text(), st.text(), st.text())
def test_revocation_keys_do_not_collide(a, b, c, d):
    if (a, b) != (c, d):
        assert revocation_key(a, "jti", b) != revocation_key(c, "jti", d)


@given(st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=40))
def test_any_record_can_be_applied(key, value):
    Revocations().apply(key, value)
