"""What rules, definitions and revocations say of a verified token: each test states one difference from a valid world."""

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate import limits
from app.gate.canonical import canonical
from app.gate.policy import (
    Authorized,
    Job,
    Revocations,
    TrustRule,
    check_token,
    job_from_record,
    merge_params,
    permit,
    revocation_key,
    revocation_record,
    trust_from_record,
    within_grace,
)
from app.gate.reasons import PRECEDENCE, Rejected
from app.gate.token import Claims, Grant

ISS = "https://issuer.example"
NOW_S = 1_700_000_000
NOW_MS = NOW_S * 1000
GRACE_S = 60
RULE = TrustRule(
    ISS, 1, "/jwks.json", ("ES256",), ("acme",), ("trigger",), ("service:*",), ("reports/*", "exact"), 90 * 86_400
)
GRANT = Grant(("106-Trigger",), ("reports/nightly",), {})
CLAIMS = Claims(ISS, "k1", "service:ci", "acme", "jti-1", NOW_S - 10, NOW_S - 10, NOW_S + 600, "once", "trigger", GRANT)
SCHEMA = {
    "type": "object", "required": ["region"], "additionalProperties": False,
    "properties": {"region": {"enum": ["eu", "us"]}, "n": {"type": "integer", "maximum": 5}, "tags": {"items": {"pattern": "^[a-z]+$"}}},
}  # fmt: skip


def job(**members) -> Job:
    name = members.setdefault("name", "reports/nightly")
    made = job_from_record(f"job/{name}".encode(), json.dumps({"version": 1} | members).encode())
    assert isinstance(made, Job), made
    return made


def claims(**changes):
    grant = {name: changes.pop(name) for name in ("actions", "jobs", "params", "params_sha256") if name in changes}
    return msgspec.structs.replace(CLAIMS, grant=msgspec.structs.replace(GRANT, **grant), **changes)


def authorize(claims, rule, jobs, name, payload, params_sha256):
    """Stage 3 whole, as a decision takes it in two steps."""
    definition = permit(claims, rule, jobs, name)
    if isinstance(definition, Rejected):
        return definition
    return merge_params(claims.grant, definition, payload, params_sha256)


def judge(token=CLAIMS, name="reports/nightly", payload=None, definition=None, params_sha256=None, rule=RULE):
    definition = definition or job()
    return authorize(token, rule, {definition.name: definition}, name, payload or {}, params_sha256)


def code(outcome):
    return outcome.code if isinstance(outcome, Rejected) else outcome


# ── stage 2, the rest ──


@pytest.mark.parametrize(
    ("expected", "changes", "rule"),
    [
        (None, {}, {}),
        ("ttl_too_long", {"iat": NOW_S - 86_000, "exp": NOW_S + 401}, {}),
        (None, {"iat": NOW_S - 86_000, "exp": NOW_S + 400}, {}),
        (None, {"uses": "many", "iat": NOW_S - 86_000, "exp": NOW_S + 401}, {}),
        ("ttl_too_long", {"uses": "many", "exp": NOW_S + 91 * 86_400}, {}),
        ("ttl_too_long", {}, {"max_lifetime_s": 609}),
        ("token_not_yet_valid", {"nbf": NOW_S + 61}, {}),
        (None, {"nbf": NOW_S + 59}, {}),
        ("token_not_yet_valid", {"iat": NOW_S + 61}, {}),
        ("token_expired", {"exp": NOW_S - 61, "iat": NOW_S - 100}, {}),
        (None, {"exp": NOW_S - 60, "iat": NOW_S - 100}, {}),
        (None, {"exp": NOW_S - 59, "iat": NOW_S - 100}, {}),
        ("org_mismatch", {"org_id": "other"}, {}),
        ("org_mismatch", {}, {"orgs": ()}),
        ("class_not_allowed", {"token_class": "user"}, {}),
        ("class_not_allowed", {}, {"classes": ()}),
        ("subject_not_allowed", {"sub": "user:ci"}, {}),
        ("subject_not_allowed", {}, {"subjects": ()}),
        ("subject_not_allowed", {}, {"subjects": ("service:c",)}),
        (None, {}, {"subjects": ("*",)}),
    ],
)  # fmt: skip
def test_a_token_is_judged_at_append_time(expected, changes, rule):
    refusal = check_token(claims(**changes), msgspec.structs.replace(RULE, **rule), Revocations(), NOW_MS, GRACE_S)
    assert (refusal and refusal.code) == expected


@pytest.mark.parametrize(
    ("changes", "graced"),
    [({}, False), ({"exp": NOW_S}, False), ({"exp": NOW_S - 1}, True), ({"exp": NOW_S - 60}, True),
     ({"exp": NOW_S - 61}, False), ({"nbf": NOW_S + 1}, True), ({"iat": NOW_S + 60}, True), ({"iat": NOW_S + 61}, False)],
)  # fmt: skip
def test_grace_is_told_when_it_mattered(changes, graced):
    assert within_grace(claims(**changes), NOW_MS, GRACE_S) is graced


# ── revocations ──


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


# ── stage 3: the job ──


@pytest.mark.parametrize(
    ("expected", "token", "name", "definition", "rule"),
    [
        ("permission_missing", {"actions": ()}, "reports/nightly", {}, {}),
        ("permission_missing", {"actions": ("107-Read",)}, "reports/nightly", {}, {}),
        ("scope_too_broad", {"jobs": ()}, "reports/nightly", {}, {}),
        ("scope_too_broad", {"jobs": ("*",)}, "reports/nightly", {}, {}),
        ("scope_too_broad", {"jobs": ("reports/[a-z]",), "uses": "many"}, "reports/nightly", {}, {}),
        ("scope_too_broad", {"jobs": ("reports/night?y",), "uses": "many"}, "reports/nightly", {}, {}),
        ("scope_too_broad", {"jobs": ("reports/nightly", "exact")}, "reports/nightly", {}, {}),
        ("job_missing", {"jobs": ("reports/nightly", "exact"), "uses": "many"}, None, {}, {}),
        ("job_not_authorized", {}, "exact", {}, {}),
        ("job_not_authorized", {}, "reports/Nightly", {}, {}),
        ("job_not_authorized", {"jobs": ("other",)}, "other", {"name": "other"}, {}),
        ("job_not_authorized", {}, "reports/nightly", {}, {"jobs": ()}),
        ("job_unknown", {}, "reports/nightly", {"name": "else"}, {}),
        ("not_on_allowlist", {}, "reports/nightly", {"allowlist": [], "enabled": False}, {}),
        ("job_disabled", {}, "reports/nightly", {"enabled": False}, {}),
        ("token_class_too_weak", {"uses": "many"}, "reports/nightly", {"accepts": ["one_shot"]}, {}),
        ("token_class_too_weak", {}, "reports/nightly", {"accepts": ["webhook"]}, {}),
    ],
)  # fmt: skip
def test_a_job_is_started_only_by_who_may(expected, token, name, definition, rule):
    outcome = judge(claims(**token), name, definition=job(**definition), rule=msgspec.structs.replace(RULE, **rule))
    assert code(outcome) == expected


@pytest.mark.parametrize(
    ("allowed", "may"),
    [
        (None, True),
        ([{"issuer": ISS, "subject": "service:ci"}], True),
        ([{"issuer": ISS, "subject": "service:*"}], True),
        ([{"issuer": "other", "subject": "x"}, {"issuer": ISS, "subject": "*"}], True),
        ([], False),
        ([{"issuer": ISS, "subject": "service:c"}], False),
        ([{"issuer": ISS, "subject": "Service:CI"}], False),
        ([{"issuer": "https://issuer.example/", "subject": "service:ci"}], False),
        ([{"issuer": "*", "subject": "service:ci"}], False),  # issuers are never patterns
    ],
)
def test_a_jobs_allowlist_wins_over_what_a_token_says(allowed, may):
    outcome = judge(definition=job(allowlist=allowed))
    assert isinstance(outcome, Authorized) if may else code(outcome) == "not_on_allowlist"


def test_a_valid_token_starts_its_job_named_or_not():
    for name in ("reports/nightly", None):
        outcome = judge(name=name, payload={"a": 1})
        assert isinstance(outcome, Authorized)
        assert (outcome.params, outcome.requested) == ({"a": 1}, {"a": 1})
        assert outcome.requested_canonical == b'{"a":1}'


def test_a_token_for_two_jobs_starts_each_and_no_third():
    token = claims(jobs=("reports/nightly", "exact"), uses="many")
    jobs = {name: job(name=name) for name in ("reports/nightly", "exact", "reports/other")}
    outcomes = [authorize(token, RULE, jobs, name, {}, None) for name in jobs]
    assert [isinstance(outcome, Authorized) for outcome in outcomes] == [True, True, False]
    assert outcomes[2].detail == "the token does not grant reports/other"


@given(
    st.sets(
        st.sampled_from(["permission_missing", "job_not_authorized", "param_conflict", "payload_digest_mismatch"]),
        min_size=1,
    )
)
def test_of_several_faults_the_earliest_names_the_reason(faults):
    token = claims(
        actions=() if "permission_missing" in faults else ("106-Trigger",),
        params={"region": "eu"} if "param_conflict" in faults else {},
    )
    name = "exact" if "job_not_authorized" in faults else "reports/nightly"
    digest = "0" * 64 if "payload_digest_mismatch" in faults else None
    assert code(judge(token, name, {"region": "us"}, params_sha256=digest)) == min(faults, key=PRECEDENCE.__getitem__)


# ── stage 3: the parameters ──


@pytest.mark.parametrize(("in_token", "in_payload", "in_defaults", "expected"), [
    ("t", "t", "d", "t"), ("t", None, "d", "t"), ("t", None, None, "t"),
    (None, "p", "d", "p"), (None, "p", None, "p"), (None, None, "d", "d"), (None, None, None, None),
])  # fmt: skip
def test_token_over_payload_over_default(in_token, in_payload, in_defaults, expected):
    def one(value):
        return {} if value is None else {"x": value}

    outcome = judge(claims(params=one(in_token)), payload=one(in_payload), definition=job(defaults=one(in_defaults)))
    assert outcome.params == one(expected)
    assert outcome.requested == one(in_token or in_payload)


CONFLICTS = [({"env": "dev"}, {"env": "prod"}), ({"n": True}, {"n": 1}), ({"o": {"a": 1}}, {"o": {}}),
             ({"l": [1, 2]}, {"l": [2, 1]}), ({"e\u0301": "dev"}, {"\u00e9": "prod"}), ({"\uff45nv": "dev"}, {"env": "prod"}),
             ({"env": "dev"}, {"\uff45nv": "prod"})]  # fmt: skip


@pytest.mark.parametrize(("payload", "fixed"), CONFLICTS)
def test_a_conflict_is_refused_or_the_token_wins_as_the_job_says(payload, fixed):
    assert code(judge(claims(params=fixed), payload=payload)) == "param_conflict"
    outcome = judge(claims(params=fixed), payload=payload | {"more": 1}, definition=job(on_param_conflict="token_wins"))
    assert outcome.params == fixed | {"more": 1}


@pytest.mark.parametrize(
    ("payload", "fixed"), [({"n": 1.0}, {"n": 1}), ({"o": {"b": 1, "a": 2}}, {"o": {"a": 2, "b": 1}})]
)
def test_an_equal_value_is_no_conflict(payload, fixed):
    assert judge(claims(params=fixed), payload=payload).params == fixed


def test_names_in_another_spelling_are_the_jobs_affair_where_the_token_fixes_nothing_like_them():
    payload = {"\u00e9": 1, "e\u0301": 2}
    assert judge(claims(params={"x": 1}), payload=payload).params == payload | {"x": 1}


def test_nothing_that_is_given_is_changed():
    payload, fixed, defaults = {"a": 1}, {"b": 2}, {"c": 3}
    judge(claims(params=fixed), payload=payload, definition=job(defaults=defaults))
    assert (payload, fixed, defaults) == ({"a": 1}, {"b": 2}, {"c": 3})


def test_a_sensitive_parameter_in_a_token_is_refused():
    assert (
        code(judge(claims(params={"db_password": "x"}), definition=job(sensitive=["db_password"]))) == "secret_in_token"
    )


def test_digests_are_over_the_params_as_sent():
    sent = {"b": 1.0, "a": "é"}
    good = hashlib.sha256(canonical(sent)).hexdigest()
    definition = job(defaults={"z": 1})
    assert isinstance(judge(payload=sent, params_sha256=good, definition=definition), Authorized)
    assert isinstance(
        judge(claims(params_sha256=good, params={"y": 1}), payload=sent, definition=definition), Authorized
    )
    assert code(judge(payload=sent, params_sha256="0" * 64)) == "payload_digest_mismatch"
    assert code(judge(claims(params_sha256="0" * 64), payload=sent, params_sha256=good)) == "payload_digest_mismatch"
    assert code(judge(claims(params_sha256=good), payload=sent | {"c": 1})) == "payload_digest_mismatch"


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        ({}, "(params) lacks the member region"),
        ({"region": "secret"}, "/region is not one of the values allowed"),
        ({"region": "eu", "secret": 1}, "(params) has a member the schema does not know"),
        ({"region": "eu", "n": "secret"}, "/n is not of type integer"),
        ({"region": "eu", "n": 6}, "/n does not satisfy maximum 5"),
        ({"region": "eu", "tags": ["a", "SECRET"]}, "/tags/1 does not satisfy pattern"),
    ],
)
def test_parameters_must_fit_the_schema_and_the_detail_points_without_the_value(payload, detail):
    assert judge(payload=payload, definition=job(params_schema=SCHEMA)) == Rejected("payload_invalid", detail)


def test_the_schema_sees_the_merged_parameters():
    assert isinstance(judge(definition=job(params_schema=SCHEMA, defaults={"region": "eu"})), Authorized)
    assert code(judge(claims(params={"region": "mars"}), definition=job(params_schema=SCHEMA))) == "payload_invalid"


def test_parameters_beyond_the_limit_are_refused_defaults_included():
    size = limits.PARAMS_MAX_BYTES - len(b'{"a":""}')
    assert isinstance(judge(payload={"a": "x" * size}), Authorized)
    assert code(judge(payload={"a": "x" * (size + 1)})) == "payload_too_large"
    assert code(judge(payload={"a": "x" * size}, definition=job(defaults={"b": 1}))) == "payload_too_large"


# ── records of the registry ──


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"frob": 1}, "unknown member"),
        ({"version": 0}, "version:"),
        ({"timeout_s": "x"}, "timeout_s:"),
        ({"timeout_s": 1.5}, "timeout_s:"),
        ({"accepts": []}, "accepts:"),
        ({"accepts": ["any"]}, "accepts"),
        ({"on_param_conflict": "x"}, "on_param_conflict:"),
        ({"name": "reports/*"}, "name:"),
        ({"name": ""}, "name:"),
        ({"defaults": {"a": 10**15}}, "defaults:"),
        ({"defaults": {"pw": "x"}, "sensitive": ["pw"]}, "defaults.pw:"),
        ({"allowlist": [{"issuer": ISS, "subject": "*:ci"}]}, "allowlist:"),
        ({"allowlist": [{"issuer": ISS}]}, "subject"),
        ({"allowlist": [{"issuer": ISS, "subject": "a", "job": "b"}]}, "unknown member"),
        ({"allowlist": ["service:ci"]}, "allowlist"),
        ({"params_schema": "x"}, "params_schema:"),
        ({"params_schema": {"type": "strnig"}}, "params_schema:"),
        ({"params_schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "params_schema: $schema"),
        ({"params_schema": {"$schema": 1}}, "params_schema: $schema"),
        ({"params_schema": {"$ref": "http://127.0.0.1:9/x.json"}}, "params_schema: a $ref leads out"),
        ({"params_schema": {"properties": {"a": {"$ref": "file:///etc/passwd"}}}}, "params_schema: a $ref leads out"),
        ({"params_schema": {"$ref": "#/$defs/none"}}, "params_schema:"),
        ({"params_schema": {"pattern": "(a+)\\1"}}, "params_schema:"),
        ({"params_schema": {"description": "x" * 300_000}}, "params_schema: larger"),
    ],
)
def test_a_wrong_job_record_is_a_complaint_that_names_the_member(members, complaint):
    record = {"name": "reports/nightly", "version": 1} | members
    said = job_from_record(f"job/{record['name']}".encode(), json.dumps(record).encode())
    assert isinstance(said, str)
    assert complaint in said


def test_a_schema_that_refers_to_itself_ends():
    loops = {"allOf": [{"$ref": "#"}], "properties": {"a": {"$ref": "#"}}}
    assert isinstance(judge(payload={"a": {"a": {}}}, definition=job(params_schema=loops)), Authorized)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"jwks": "http://issuer.example/jwks"}, "jwks:"),
        ({"jwks": "relative.json"}, "jwks:"),
        ({"algorithms": ["RS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"subjects": ["*:ci"]}, "subjects:"),
        ({"jobs": ["a*b"]}, "jobs:"),
        ({"jobs": [""]}, "jobs"),
        ({"issuer": "other"}, "issuer:"),
        ({"max_lifetime_s": 90 * 86_400 + 1}, "max_lifetime_s:"),
        ({"conditions": {}}, "unknown member"),
    ],
)
def test_a_wrong_trust_record_is_a_complaint_that_names_the_member(members, complaint):
    record = msgspec.to_builtins(RULE) | members
    said = trust_from_record(b"trust/" + ISS.encode(), json.dumps(record).encode())
    assert isinstance(said, str)
    assert complaint in said


def test_a_trust_record_reads_back():
    assert trust_from_record(b"trust/" + ISS.encode(), msgspec.json.encode(RULE)) == RULE


@given(st.binary(max_size=60))
def test_any_bytes_are_a_definition_or_a_complaint(value):
    assert isinstance(job_from_record(b"job/x", value), str)
    assert isinstance(trust_from_record(b"trust/x", value), str)


# ── anything at all ──

JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("aé\u0301e", max_size=2),
                    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.text("aé\u0301e", max_size=2), v, max_size=2), max_leaves=5)  # fmt: skip
PARAMS = st.dictionaries(st.sampled_from(["a", "b", "é", "e\u0301"]), JSON, max_size=3)
TEXTS = st.lists(st.sampled_from(["106-Trigger", "reports/nightly", "exact", "*", ""]), max_size=3).map(tuple)


@given(
    TEXTS, TEXTS, PARAMS, PARAMS, PARAMS, st.sampled_from(["once", "many"]), st.sampled_from(["refuse", "token_wins"])
)
def test_any_grant_and_payload_give_a_decision_and_what_the_token_fixes_holds(
    actions, jobs, fixed, payload, defaults, uses, policy
):
    token = claims(actions=actions, jobs=jobs, params=fixed, uses=uses)
    outcome = judge(token, None, payload, job(defaults=defaults, on_param_conflict=policy))
    if isinstance(outcome, Authorized):
        assert {name: outcome.params[name] for name in fixed} == fixed
        assert outcome.requested_canonical == canonical(outcome.requested)
        assert outcome.params.keys() <= {*fixed, *payload, *defaults}
        assert "106-Trigger" in actions
