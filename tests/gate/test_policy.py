"""What rules and definitions say of a verified token and its parameters: each test states one difference from a valid world."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate import limits
from app.gate.canonical import canonical
from app.gate.policy import (
    Authorized,
    Revocations,
    check_token,
    within_grace,
)
from app.gate.reasons import PRECEDENCE, Rejected
from tests.support.judging import GRACE_S, ISS, NOW_MS, NOW_S, RULE, authorize, claims, code, job, judge

SCHEMA = {
    "type": "object", "required": ["region"], "additionalProperties": False,
    "properties": {"region": {"enum": ["eu", "us"]}, "n": {"type": "integer", "maximum": 5}, "tags": {"items": {"pattern": "^[a-z]+$"}}},
}  # fmt: skip


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
