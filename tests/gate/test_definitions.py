"""Records of the registry: a wrong one is a complaint that names the member, and any bytes are one or the other."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate.policy import (
    Authorized,
    job_from_record,
    trust_from_record,
)
from tests.support.judging import ISS, RULE, job, judge


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
