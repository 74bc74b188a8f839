"""TOML files become what gates take, or one sentence; the registry topic is written all at once, versions only grow."""

import asyncio
import json

import msgspec
import orjson
import pytest
from typer.testing import CliRunner

from app import config, registry
from app.authority.identities import Identity, identity_from_record
from app.authority.platforms import platform_key
from app.authority.roles import Allow, Deny, Role, role_from_record, role_key
from app.cli import common, jobs, trust
from app.gate.definitions import birth_id_in
from app.gate.mapping import mapping_from_record
from app.gate.policy import Job, TrustRule, job_from_record, trust_from_record
from app.registry import RegistryError, plan, read_definitions
from app.stream.topics import Topic
from tests.authority.test_identities import CI

JOBS = """
[jobs."reports/nightly"]
params_schema = "nightly.schema.json"
defaults = { region = "eu" }
sensitive = ["db_password"]
accepts = ["one_shot"]

[jobs.cleanup]
enabled = false
params_schema = { type = "object" }
"""
TRUST = """
[trust."https://issuer.example"]
jwks = "https://issuer.example/.well-known/jwks.json"
orgs = ["acme"]
subjects = ["service:*"]
jobs = ["reports/*"]
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "nightly.schema.json").write_text('{"properties": {"region": {"enum": ["eu", "us"]}}}')

    def write_file(text):
        path = tmp_path / "definitions.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


# ── files ──


def test_a_role_says_exchanged_subjects_only_where_it_has_some(write):
    """A version before them takes a role without the member, and refuses all of one with it."""
    without, with_some = read_definitions(
        write(
            '[roles.a]\nallow = [{ jobs = ["a"] }]\n[roles.b]\nallow = [{ jobs = ["b"], exchanged_subjects = ["svc:x"] }]\n'
        ),
        "roles",
    )
    said = [json.loads(each.record(1))["allow"][0] for each in (without, with_some)]
    assert "exchanged_subjects" not in said[0]
    assert said[0]["subjects"] == []
    assert said[1]["exchanged_subjects"] == ["svc:x"]
    for each in (without, with_some):
        assert isinstance(role_from_record(each.registry_key, each.record(1)), Role)


def test_job_definitions_are_read_with_their_schemas_and_defaults(write):
    nightly, cleanup = read_definitions(write(JOBS), "jobs")
    made = job_from_record(nightly.registry_key, nightly.record(7))
    assert isinstance(made, Job)
    assert (made.name, made.version, made.enabled, made.dedup_window_s) == ("reports/nightly", 7, True, 86_400)
    assert made.validate({"region": "mars"}) == "/region is not one of the values allowed"
    assert job_from_record(cleanup.registry_key, cleanup.record(1)).enabled is False


def test_a_trust_rule_is_read_and_what_it_leaves_out_is_narrow(write):
    (definition,) = read_definitions(write(TRUST), "trust")
    assert trust_from_record(definition.registry_key, definition.record(1)) == TrustRule(
        "https://issuer.example", 1, "https://issuer.example/.well-known/jwks.json", ("ES256",), ("acme",), ("trigger",),
        ("service:*",), ("reports/*",), 86_400,
    )  # fmt: skip
    assert definition.warnings == ()


def test_a_jwks_file_is_named_absolutely_from_the_place_of_the_toml(write, tmp_path):
    (tmp_path / "jwks.json").write_text("{}")
    (definition,) = read_definitions(write(TRUST.replace("https://issuer.example/.well-known/", "")), "trust")
    assert definition.members["jwks"] == str(tmp_path / "jwks.json")
    assert definition.warnings == ()


@pytest.mark.parametrize(
    ("replace", "by", "warning"),
    [
        ('jobs = ["reports/*"]', 'jobs = ["*"]', "ANY job"),
        ('subjects = ["service:*"]', 'subjects = ["*"]', "ANY subject"),
        ("orgs =", 'algorithms = ["HS256"]\norgs =', "development only"),
        ("https://issuer.example/.well-known/", "", "is not there yet"),
    ],
)
def test_what_is_wide_is_said_loudly(write, replace, by, warning):
    (definition,) = read_definitions(write(TRUST.replace(replace, by)), "trust")
    assert warning in " ".join(definition.warnings)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("jobs", "", "defines nothing"),
        ("jobs", "jobs = 3", "defines nothing"),
        ("jobs", "[jobs]\nx = 3", '[jobs."x"] is not a table'),
        ("jobs", "[jobs.x", "is not TOML"),
        ("jobs", JOBS + TRUST, "[trust] is unknown"),
        ("jobs", "[jobs.x]\ntimout_s = 3", '[jobs."x"] timout_s: unknown member; there are accepts'),
        ("jobs", "[jobs.x]\nversion = 3", "version: unknown member"),
        (
            "jobs",
            "[jobs.x]\ntimeout_s = 99999999999999999999",
            '[jobs."x"] timeout_s: 99999999999999999999 is no integer',
        ),
        ("jobs", "[jobs.x]\ntimeout_s = '3'", '[jobs."x"] timeout_s: expected int'),
        ("jobs", "[jobs.x]\naccepts = []", "accepts: is empty"),
        ("jobs", "[jobs.x]\nparams_schema = 'none.json'", "params_schema:"),
        ("jobs", "[jobs.x]\nparams_schema = 'definitions.toml'", "is not JSON"),
        ("jobs", "[jobs.x]\nparams_schema = { type = 'strnig' }", "params_schema:"),
        ("jobs", "[jobs.x]\ndefaults = { at = 2024-01-01 }", "defaults.at: 2024-01-01 has no place in JSON"),
        ("jobs", "[jobs.x]\ndefaults = { l = [nan] }", "defaults.l[0]: nan has no place in JSON"),
        ("jobs", '[jobs."x*"]', '[jobs."x*"] name:'),
        ("trust", TRUST.replace("https://issuer.example/.", "http://issuer.example/."), "jwks: neither an https://"),
        ("trust", TRUST.replace('["reports/*"]', "3"), "jobs: expected array"),
        (
            "trust",
            TRUST.replace('jwks = "https://issuer.example/.well-known/jwks.json"', "jwks = 3"),
            "jwks: expected str",
        ),
        ("jobs", "[jobs.x]\nparams_schema = 3", "params_schema: expected"),
        ("jobs", "[jobs.x]\ndefaults = 3", "defaults: expected"),
        ("trust", TRUST.replace("jwks", "jwk"), "jwk: unknown member"),
        ("trust", TRUST.replace('orgs = ["acme"]', ""), "orgs: is missing"),
        ("trust", TRUST.replace('["acme"]', "[]"), "orgs: is empty"),
        ("trust", TRUST.replace('["acme"]', '"acme"'), "orgs: expected array"),
        ("trust", TRUST.replace("orgs =", 'algorithms = ["RS256"]\norgs ='), "algorithms[0]:"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_table_and_member(write, kind, text, said):
    path = write(text)
    with pytest.raises(RegistryError) as raised:
        read_definitions(path, kind)
    sentence = str(raised.value)
    assert said in sentence
    assert str(path) in sentence
    assert "\n" not in sentence or "TOML" in sentence


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(RegistryError, match="No such file"):
        read_definitions(tmp_path / "none.toml", "jobs")


# ── what is to be written ──


def test_versions_only_grow_and_what_is_equal_is_left_alone(write):
    definitions = read_definitions(write(JOBS), "jobs")
    first = plan(definitions, {})
    assert [(change.action, change.version) for change in first] == [("created", 1)] * 2
    present = {definition.registry_key: change.record for definition, change in zip(definitions, first, strict=True)}
    assert {change.action for change in plan(definitions, present)} == {"unchanged"}
    changed = read_definitions(write(JOBS.replace('"eu"', '"us"')), "jobs")
    assert [(change.action, change.version) for change in plan(changed, present)] == [("changed", 2), ("unchanged", 1)]


def test_an_object_keeps_its_birth_id_through_changes_and_one_made_anew_has_another(write):
    definition, _ = read_definitions(write(JOBS), "jobs")
    changed, _ = read_definitions(write(JOBS.replace('"eu"', '"us"')), "jobs")

    def born(definition, present):
        (change,) = plan([definition], present)
        birth_id = birth_id_in(change.record)
        assert not isinstance(job_from_record(definition.registry_key, change.record), str)
        assert job_from_record(definition.registry_key, change.record).version == change.version
        return birth_id, {definition.registry_key: change.record}

    first, present = born(definition, {})
    assert len(bytes.fromhex(first)) == 16
    again, present = born(changed, present)
    anew, _ = born(definition, {})
    assert first == again != anew


def test_what_an_earlier_version_wrote_gets_a_birth_id_when_it_is_applied_again(write):
    (definition,) = read_definitions(write(TRUST), "trust")
    (change,) = plan([definition], {definition.registry_key: definition.record(3)})
    assert (change.action, change.version) == ("changed", 4)
    assert birth_id_in(change.record)
    assert {each.action for each in plan([definition], {definition.registry_key: change.record})} == {"unchanged"}


def test_no_file_sets_a_birth_id(write):
    with pytest.raises(RegistryError, match="birth_id: unknown member"):
        read_definitions(write(TRUST + 'birth_id = "mine"\n'), "trust")


@pytest.mark.parametrize(("value", "birth_id"), [(None, None), (b"", None), (b"[]", None), (b"{}", ""),
                                                 (b'{"birth_id": 3}', ""), (b'{"birth_id": "b"}', "b")])  # fmt: skip
def test_any_object_has_a_birth_id_or_none_and_what_is_none_is_no_object(value, birth_id):
    assert birth_id_in(value) == birth_id


@pytest.mark.parametrize(("there", "version"), [(b'{"version": 9, "of": "later"}', 10), (b"\xff", 1), (b"[]", 1)])
def test_a_record_of_another_version_is_replaced_by_a_higher_one(write, there, version):
    (definition,) = read_definitions(write(TRUST), "trust")
    (change,) = plan([definition], {definition.registry_key: there})
    assert (change.action, change.version) == ("changed", version)


def test_rows_show_what_no_gate_can_read(write):
    (definition,) = read_definitions(write(TRUST), "trust")
    rows = registry.definitions_in(
        {
            definition.registry_key: definition.record(2),
            b"trust/x": b"{}",
            b"job/x": b"{}",
            b"deployment/topics": b"{}",
        },
        "trust",
    )
    assert [row["issuer"] for row in rows] == ["https://issuer.example", "x"]
    assert "error" not in rows[0]
    assert rows[0]["version"] == 2
    assert "error" in rows[1]


# ── identities and policy ──

IDENTITIES = """
[identities."svc:ci"]
roles = ["deployer"]

[identities."u:ann"]
org_id = "other"
"""
POLICY = """
[roles.deployer]
allow = [{ jobs = ["deploy-*"], max_lifetime_s = 3600 }]
deny = [{ jobs = ["deploy-prod"], uses = ["many"] }]

[rules.freeze]
effect = "deny"
jobs = ["deploy-*"]
reason = "until Monday"
"""
OURS = {"issuer": "https://issuer.example", "org_id": "acme"}


def test_identities_are_read_with_their_kind_and_our_issuer_and_organisation(write):
    ci, ann = read_definitions(write(IDENTITIES), "identities", defaults=OURS)
    assert identity_from_record(ci.registry_key, ci.record(3)) == Identity(
        "svc:ci", 3, "service", "https://issuer.example", "acme", ("deployer",)
    )
    made = identity_from_record(ann.registry_key, ann.record(1))
    assert (made.kind, made.org_id, made.roles) == ("user", "other", ())


def test_a_policy_file_holds_roles_and_rules_and_all_members_are_said(write):
    role, rule = read_definitions(write(POLICY), "roles", "rules")
    assert role_from_record(role.registry_key, role.record(1)) == Role(
        "deployer", 1, (Allow(("deploy-*",), max_lifetime_s=3_600),), (Deny(("deploy-prod",), uses=("many",)),)
    )
    assert json.loads(role.record(1))["allow"][0]["classes"] == ["trigger"]
    made = mapping_from_record(rule.registry_key, rule.record(1))
    assert (made.effect, made.jobs, made.reason, made.jtis) == ("deny", ("deploy-*",), "until Monday", None)


@pytest.mark.parametrize(
    ("kinds", "text", "said"),
    [
        (("identities",), '[identities."ci"]', "name: an identity is named KIND:NAME"),
        (
            ("identities",),
            '[identities."svc:ci"]\ndisabled = true',
            "disabled: unknown member; there are issuer, org_id",
        ),
        (("identities",), '[identities."svc:ci"]\ncredentials = []', "credentials: unknown member"),
        (("identities",), '[identities."svc:ci"]\nkind = "user"', "kind: unknown member"),
        (("identities",), '[identities."svc:ci"]\nroles = []', "roles: is empty"),
        (("identities",), '[identities."svc:ci"]\nroles = "x"', "roles: expected array"),
        (("roles", "rules"), "[jobs.x]", '[jobs] is unknown; the file holds [roles."NAME"] and [rules."NAME"] tables'),
        (("roles", "rules"), "[roles.x]\nallow = [{}]", "allow[0].jobs: is empty"),
        (("roles", "rules"), '[rules.x]\neffect = "deny"', "whom is it for"),
        (("roles", "rules"), '[rules.x]\neffect = "deny"\njobs = ["a*b"]', "jobs: a pattern may end in *"),
    ],
)
def test_a_wrong_policy_is_one_sentence_too(write, kinds, text, said):
    with pytest.raises(RegistryError) as raised:
        read_definitions(write(text), *kinds, defaults=OURS if kinds == ("identities",) else None)
    assert said in str(raised.value)


def test_applying_a_file_keeps_credentials_and_whether_an_identity_is_disabled(write):
    ci, _ = read_definitions(write(IDENTITIES), "identities", defaults=OURS)
    held = msgspec.structs.replace(CI, version=4, disabled=True, birth_id="b")
    present = {ci.registry_key: msgspec.json.encode(held)}
    assert [change.action for change in plan([ci], present)] == ["unchanged"]
    changed = read_definitions(write(IDENTITIES.replace("deployer", "reporter")), "identities", defaults=OURS)
    (change, _) = plan(changed, present)
    made = identity_from_record(ci.registry_key, change.record)
    assert made == msgspec.structs.replace(held, version=5, roles=("reporter",))


def test_what_an_identity_names_and_the_registry_has_not_is_told(write):
    host = '[identities."host:h"]\nplatform = "vm"\nroles = ["deployer"]\n'
    (made,) = read_definitions(write(host), "identities", defaults=OURS)
    there = {role_key("deployer"): b"{}", platform_key("vm"): b"{}"}
    told = [change.absent for present in ({}, there) for change in plan([made], present)]
    assert told == [("role deployer", "platform vm"), ()]


def test_an_identity_that_cannot_be_read_is_not_written_over(write):
    """Its credentials would be lost, and it might come to life again."""
    ci, _ = read_definitions(write(IDENTITIES), "identities", defaults=OURS)
    with pytest.raises(RegistryError, match="cannot be read"):
        plan([ci], {ci.registry_key: b'{"name": "svc:ci", "later": true}'})


# ── a real broker ──


@pytest.fixture
def settings(broker, prefix, monkeypatch):
    from confluent_kafka.admin import AdminClient, NewTopic

    monkeypatch.setenv("TOLLGATE_BOOTSTRAP", broker)
    monkeypatch.setenv("TOLLGATE_PREFIX", prefix)
    topic = NewTopic(Topic.REGISTRY.named(prefix), 1, 1, config={"cleanup.policy": "compact"})
    admin = AdminClient({"bootstrap.servers": broker})  # its requests die with it
    for future in admin.create_topics([topic]).values():
        future.result()
    return config.load()


async def test_definitions_written_are_read_back_and_not_written_twice(settings, write):
    definitions = read_definitions(write(JOBS), "jobs")
    assert {change.action for change in await registry.apply(settings, definitions, dry_run=True)} == {"created"}
    assert await registry.read_registry(settings) == {}
    await registry.apply(settings, definitions, dry_run=False)
    present = await registry.read_registry(settings)
    assert sorted(present) == [b"job/cleanup", b"job/reports/nightly"]
    assert {change.action for change in await registry.apply(settings, definitions, dry_run=False)} == {"unchanged"}
    changed = read_definitions(write(JOBS.replace('"eu"', '"us"')), "jobs")
    await registry.apply(settings, changed, dry_run=False)
    record = orjson.loads((await registry.read_registry(settings))[b"job/reports/nightly"])
    assert (record["version"], record["defaults"]) == (2, {"region": "us"})


async def test_two_who_apply_at_once_never_write_the_same_version(settings, write):
    def changed(region):
        return read_definitions(write(JOBS.replace('"eu"', f'"{region}"')), "jobs")

    await registry.apply(settings, changed("eu"), dry_run=False)
    outcomes = await asyncio.gather(
        *(registry.apply(settings, changed(region), dry_run=False) for region in ("us", "ca", "jp")),
        return_exceptions=True,
    )
    written = [
        change.version
        for outcome in outcomes if isinstance(outcome, list)
        for change in outcome if change.action == "changed"
    ]  # fmt: skip
    assert written
    assert len(set(written)) == len(written)


def test_the_commands_apply_list_and_fail_in_one_sentence(settings, write):
    runner = CliRunner()
    applied = runner.invoke(trust.app, ["apply", str(write(TRUST)), "-o", "json"])
    assert applied.exit_code == common.DONE, applied.output
    assert json.loads(applied.stdout) == [
        {"kind": "trust", "name": "https://issuer.example", "action": "created", "version": 1}
    ]
    listed = runner.invoke(trust.app, ["list", "-o", "jsonl"])
    assert json.loads(listed.stdout)["jobs"] == ["reports/*"]
    assert "reports/*" in runner.invoke(trust.app, ["list", "-o", "table"]).stdout
    empty = runner.invoke(jobs.app, ["list", "-o", "json"])
    assert (empty.exit_code, json.loads(empty.stdout)) == (common.DONE, [])
    wrong = runner.invoke(jobs.app, ["apply", str(write("[jobs.x]\nfrob = 1"))])
    assert wrong.exit_code == common.FAILED
    assert wrong.stdout == ""
    assert isinstance(wrong.exception, RegistryError)  # which the program tells in one sentence
    assert "frob: unknown member" in str(wrong.exception)
