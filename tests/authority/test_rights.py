"""Identities and roles out of the registry, and what issuing writes down."""

import json

import jsonschema
import msgspec
import pytest

from app.authority.decide import Denied, IssueRequest, unauthenticated
from app.authority.identities import identity_key
from app.authority.platforms import Platform, platform_key
from app.authority.records import UNSHOWN, issue_denied, issued
from app.authority.rights import Client, Rights
from app.authority.roles import role_key
from app.gate.claims import Claims, Grant
from tests.authority.test_decide import DEPLOYER
from tests.authority.test_identities import CI, KEPT, NOW_S, OTHER_SECRET, SECRET
from tests.test_schemas import SCHEMAS

OURS = "https://issuer.example"


def rights():
    made = Rights()
    assert made.apply(identity_key("svc:ci"), msgspec.json.encode(CI)) is None
    assert made.apply(role_key("deployer"), msgspec.json.encode(DEPLOYER)) is None
    return made


def test_records_of_the_registry_become_rights_and_tombstones_end_them():
    made = rights()
    assert (made.identities, made.roles) == ({"svc:ci": CI}, {"deployer": DEPLOYER})
    assert made.apply(b"job/reports", b"{}") is None
    assert made.apply(b"\xff/x", b"{}") is None
    assert made.apply(identity_key("svc:ci"), None) is None
    assert made.apply(role_key("deployer"), None) is None
    assert (made.identities, made.roles) == ({}, {})


def test_what_cannot_be_read_grants_nothing_and_has_displaced_what_was_there():
    made = rights()
    assert "unknown member" in made.apply(role_key("deployer"), b'{"name":"deployer","version":2,"when":"now"}')
    assert "not JSON" in made.apply(identity_key("svc:ci"), b"\xff")
    assert (made.identities, made.roles) == ({}, {})


def test_a_platform_is_there_as_long_as_its_record_can_be_read():
    made, hpc = Rights(), Platform("hpc-a", 1, 2)
    assert made.apply(platform_key("hpc-a"), msgspec.json.encode(hpc)) is None
    assert made.platforms == {"hpc-a": hpc}
    assert "level" in made.apply(platform_key("hpc-a"), b'{"name":"hpc-a","version":2,"level":0}')
    assert made.platforms == {}
    made.apply(platform_key("hpc-a"), msgspec.json.encode(hpc))
    assert "its own key" in made.apply(platform_key("hpc-b"), msgspec.json.encode(hpc))
    assert made.apply(platform_key("hpc-a"), None) is None
    assert made.platforms == {}


def test_an_identity_is_proved_by_its_secret_to_the_issuer_it_belongs_to():
    assert rights().authenticate("svc:ci", OURS, SECRET, NOW_S) == Client(CI, KEPT.id)


@pytest.mark.parametrize(
    ("name", "issuer", "secret"),
    [("svc:cd", OURS, SECRET), ("svc:ci", "https://other", SECRET), ("svc:ci", OURS, OTHER_SECRET), ("", "", "")],
)
def test_whatever_is_wrong_is_the_same_refusal(name, issuer, secret):
    assert rights().authenticate(name, issuer, secret, NOW_S) == unauthenticated()


# ── what it is later ──


def with_ci(**changed):
    made = rights()
    made.apply(identity_key("svc:ci"), msgspec.json.encode(msgspec.structs.replace(CI, **changed)))
    return made


def test_who_was_authenticated_is_as_the_registry_has_it_now():
    client = Client(CI, KEPT.id)
    assert rights().current(client, OURS, NOW_S) == client
    changed = with_ci(roles=("other",), disabled=True, version=2)
    assert changed.current(client, OURS, NOW_S) == Client(changed.identities["svc:ci"], KEPT.id)


def test_who_is_gone_or_was_proved_by_what_is_gone_is_nobody_any_more():
    client, login = Client(CI, KEPT.id), Client(CI, CLAIMS.jti, CLAIMS)
    gone, rotated = rights(), with_ci(credentials=(msgspec.structs.replace(KEPT, id="1" * 16),))
    gone.apply(identity_key("svc:ci"), None)
    ended = with_ci(credentials=(msgspec.structs.replace(KEPT, not_after_s=NOW_S),))
    for made in (gone, rotated, ended, with_ci(issuer="https://other")):
        assert made.current(client, OURS, NOW_S) == unauthenticated()
    assert rotated.current(login, OURS, NOW_S) == login._replace(identity=rotated.identities["svc:ci"])
    assert gone.current(login, OURS, NOW_S) == unauthenticated()


# ── records ──

GRANT = Grant(("106-Trigger",), ("deploy-staging",), {})
CLAIMS = Claims(OURS, "k1", "svc:ci", "acme", "j" * 32, NOW_S, NOW_S, NOW_S + 300, "once", "trigger", GRANT)


def fits(schema, record):
    jsonschema.Draft202012Validator(SCHEMAS[schema]).validate(record)
    return record


def test_an_issued_token_leaves_its_names_and_no_token():
    key, value = issued(CLAIMS, "f" * 32, CI, KEPT.id, ("deployer",), "cli", NOW_S * 1000)
    record = fits("issued.v1", json.loads(value))
    assert key == CLAIMS.jti.encode()
    assert (record["identity"], record["credential"], record["expires_at_s"]) == ("svc:ci", KEPT.id, NOW_S + 300)


def test_a_refusal_leaves_what_was_asked_for():
    request = IssueRequest("svc:ci", "acme", 300, ("reports/nightly",))
    denied = Denied("job_not_granted", "svc:ci may not issue for reports/nightly")
    key, value = issue_denied(denied, request, "svc:ci", OURS, "cli", NOW_S * 1000, authenticated=True)
    record = fits("issue-denied.v1", json.loads(value))
    assert key == b"svc:ci"
    assert (record["reason"], record["jobs"], record["lifetime_s"]) == ("job_not_granted", ["reports/nightly"], 300)


def test_a_strangers_words_are_names_or_not_shown():
    token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJhIn0." + "A" * 86
    request = IssueRequest(token, "a\x1b[2J", None, (token, "x\ny", "deploy-a"))
    key, value = issue_denied(unauthenticated(), request, SECRET, OURS, "http", 0, authenticated=False)
    record = fits("issue-denied.v1", json.loads(value))
    assert key == UNSHOWN.encode()
    assert (record["identity"], record["subject"], record["org_id"]) == (UNSHOWN, UNSHOWN, UNSHOWN)
    assert record["jobs"] == [UNSHOWN, UNSHOWN, "deploy-a"]
    assert SECRET not in value.decode()
    assert token not in value.decode()
