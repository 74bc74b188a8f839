"""SECURITY.md names tests that exist, a row of it does not go without, and the table of access is everywhere the same."""

import re
import tomllib
from pathlib import Path

import pytest

from app.registry import define
from app.stream.access import ROLES
from app.stream.topics import Topic
from tests.support.named import functions_of

TESTS = Path(__file__).resolve().parent
TEXT = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))
NONE_NEEDED = ("| asset |", "| role |", "| topic |")


@pytest.mark.parametrize(("file", "function"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_that_is_named_exists(file, function):
    assert function in functions_of(TESTS / file)


def tables():
    """Each table, as its lines."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)]


def test_every_claim_threat_and_compromise_names_its_test_or_says_that_there_is_none():
    claims = [rows for rows in tables() if not rows[0].startswith(NONE_NEEDED)]
    assert len(claims) == 8
    for rows in claims:
        for row in rows[2:]:
            assert "::test_" in row or "none: " in row, row
    assert sum(row.count("none: ") for rows in claims for row in rows) == 1
    assert len(NAMED) > 50


def test_who_is_compromised_covers_every_role_and_more():
    (rows,) = [rows for rows in tables() if rows[0].startswith("| compromised |")]
    told = " ".join(row.split("|")[1] for row in rows[2:]).lower()
    for role in ("emitter", "worker", "dead letters", "gate host", "issuer", "ops", "registry", "admin", "broker"):
        assert role in told
    assert {role.value for role in ROLES} - {"auditor", "gate"} <= set(re.findall(r"\w+", told))


def test_every_topic_is_an_asset_or_named_where_access_is():
    for topic in Topic:
        assert f"`{topic}`" in TEXT


def test_what_authors_of_jobs_are_shown_is_there_and_good():
    (shown,) = re.findall(r"^```toml\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
    ours = {"issuer": "https://issuer.example", "org_id": "acme"}
    for kind, definitions in tomllib.loads(shown).items():
        for name, table in definitions.items():
            assert define(kind, name, (ours if kind == "identities" else {}) | table).warnings == ()
    for target in re.findall(r"\]\((?!#)([^)]+)\)", TEXT):
        assert (TESTS.parent / target).exists(), target


def test_there_is_no_address_to_write_to():
    assert not re.search(r"[\w.]+@[\w.]+|mailto:|https?://", TEXT)
