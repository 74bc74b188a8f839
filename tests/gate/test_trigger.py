"""A record becomes a trigger, or a refusal that names its earliest fault; any bytes and headers give one of the two."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate import limits
from app.gate.reasons import BY_CODE, PRECEDENCE, Rejected, Stage
from app.gate.trigger import DECIDING_HEADERS, Record, Trigger, parse

TOKEN = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIiwidHlwIjoidHJpZ2dlcitqd3QifQ.eyJpc3MiOiJpIn0." + "A" * 86
BEARER = ("authorization", b"Bearer " + TOKEN.encode())
EVENT = {"specversion": "1.0", "id": "e1", "source": "/ci", "type": "build.done"}
CE_HEADERS = tuple((f"ce_{name}", value.encode()) for name, value in EVENT.items())
STRUCTURED = ("content-type", b"application/cloudevents+json; charset=utf-8")


def record(value=None, *headers, append_time=True):
    raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return Record(3, 1042, 1_700_000_000_000, append_time, b"k", raw, headers)


def plain(**members):
    return {"job": "reports/nightly", "params": {"region": "eu"}, "token": TOKEN} | members


def code_of(parsed):
    assert isinstance(parsed, Rejected), parsed
    return parsed.code


def taken(parsed) -> Trigger:
    assert isinstance(parsed, Trigger), parsed
    return parsed


# ── the three forms ──


def test_plain_json_is_a_trigger():
    trigger = taken(parse(record(plain(idempotency_key="k-1", correlation_id="c", params_sha256="a" * 64))))
    assert trigger == Trigger("reports/nightly", {"region": "eu"}, TOKEN, "k-1", "c", "a" * 64, None)


def test_only_a_token_is_enough_in_plain_form():
    assert taken(parse(record({"token": TOKEN}))) == Trigger(None, {}, TOKEN, None, None, None, None)


@pytest.mark.parametrize("name", ["tollgate-job", "ce_subject"])
def test_with_a_job_header_the_whole_value_is_the_params(name):
    trigger = taken(parse(record({"job": "other", "token": "word"}, BEARER, (name, b"reports/nightly"))))
    assert (trigger.job, trigger.params) == ("reports/nightly", {"job": "other", "token": "word"})


def test_a_null_value_with_a_job_header_is_no_params():
    assert taken(parse(record(None, BEARER, ("tollgate-job", b"j")))).params == {}


def test_without_a_job_header_the_value_is_plain_form_less_its_token():
    trigger = taken(parse(record({"job": "j", "params": {"a": 1}}, BEARER)))
    assert (trigger.job, trigger.params, trigger.unverified_token) == ("j", {"a": 1}, TOKEN)


def test_headers_give_key_and_correlation_beside_either_form():
    more = (("idempotency-key", b"k"), ("tollgate-correlation-id", "ü".encode()))
    for parsed in (
        parse(record(plain(), *more)),
        parse(record({}, BEARER, ("tollgate-job", b"j"), *more)),
    ):
        assert (taken(parsed).idempotency_key, taken(parsed).correlation_id) == ("k", "ü")


def test_a_binary_cloudevent_with_subject_has_params_as_its_data():
    trigger = taken(parse(record({"region": "eu"}, BEARER, *CE_HEADERS, ("ce_subject", b"reports/nightly"))))
    assert (trigger.job, trigger.params, trigger.ce_id, trigger.ce_source) == (
        "reports/nightly", {"region": "eu"}, "e1", "/ci",
    )  # fmt: skip


def test_a_binary_cloudevent_without_subject_has_plain_form_as_its_data():
    trigger = taken(parse(record(plain(), *CE_HEADERS)))
    assert (trigger.job, trigger.unverified_token, trigger.ce_id) == ("reports/nightly", TOKEN, "e1")


def test_a_structured_cloudevent_is_known_by_content_type_or_by_its_look():
    event = EVENT | {"subject": "reports/nightly", "data": {"region": "eu"}, "time": "2024-01-01T00:00:00Z"}
    for headers in ((STRUCTURED,), (), (("content-type", b"application/json"),)):
        trigger = taken(parse(record(event, BEARER, *headers)))
        assert (trigger.job, trigger.params, trigger.ce_id) == ("reports/nightly", {"region": "eu"}, "e1")


def test_a_structured_cloudevent_without_subject_may_carry_the_token_in_its_data():
    trigger = taken(parse(record(EVENT | {"data": plain(), "partitionkey": "x", "dataschema": None})))
    assert (trigger.job, trigger.unverified_token) == ("reports/nightly", TOKEN)


def test_headers_may_repeat_the_attributes_of_a_structured_event_but_truly():
    event = EVENT | {"subject": "j", "data": {}}
    assert taken(parse(record(event, BEARER, STRUCTURED, *CE_HEADERS, ("ce_subject", b"j")))).job == "j"
    assert code_of(parse(record(event, BEARER, STRUCTURED, ("ce_id", b"e2")))) == "cloudevent_malformed"
    assert code_of(parse(record(event, BEARER, STRUCTURED, ("ce_subject", b"k")))) == "job_conflict"


@pytest.mark.parametrize(
    ("given", "carried"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", True), (f"00-{'0' * 32}-{'b' * 16}-01", False),
        (f"00-{'a' * 32}-{'0' * 16}-01", False), (f"01-{'a' * 32}-{'b' * 16}-01", False),
        (f"00-{'A' * 32}-{'b' * 16}-01", False), ("", False), ("\xff", False),
    ],
)  # fmt: skip
def test_trace_context_is_carried_when_well_formed_and_never_a_reason_to_refuse(given, carried):
    trigger = taken(parse(record(plain(), ("traceparent", given.encode("latin-1")))))
    assert trigger.traceparent == (given if carried else None)


def test_trace_context_given_twice_is_none():
    one = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01".encode())
    assert taken(parse(record(plain(), one, one))).traceparent is None


def test_headers_that_decide_nothing_are_passed_over():
    others = (("tollgate-reason", b"\xff"), ("x", None), ("tollgate-reason", b""), ("ce_time", b"\xff"))
    assert taken(parse(record(plain(), *others))).job == "reports/nightly"


def test_header_names_count_in_any_case():
    trigger = taken(parse(record({}, ("Authorization", b"bearer  " + TOKEN.encode()), ("Tollgate-Job", b"j"),
                                 ("Idempotency-Key", b"k"))))  # fmt: skip
    assert (trigger.job, trigger.idempotency_key, trigger.unverified_token) == ("j", "k", TOKEN)


# ── one difference from a valid record ──

LONG_KEY = "k" * (limits.IDEMPOTENCY_KEY_MAX_BYTES + 1)
DEEP = {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}
FAULTS = [
    ("record_too_large", record(b" " * (limits.RECORD_MAX_BYTES + 1))),
    ("record_too_large", record(plain(), ("x", b"x" * (limits.HEADERS_MAX_BYTES + 1)))),
    ("timestamp_type_invalid", record(plain(), append_time=False)),
    ("timestamp_type_invalid", record(plain(), ("x", b""), append_time=False)),
    ("headers_malformed", record(plain(), *[("x", b"")] * (limits.HEADERS_MAX + 1))),
    ("headers_malformed", record({}, BEARER, ("tollgate-job", b"\xff"))),
    ("headers_malformed", record({}, BEARER, ("tollgate-job", None))),
    ("value_missing", record(None)),
    ("value_missing", record(None, BEARER)),
    ("json_malformed", record(b"")),
    ("json_malformed", record(b"[]")),
    ("json_malformed", record(b'{"token": NaN}')),
    ("json_malformed", record('{"token": "x"}'.encode("utf-16"))),
    ("json_duplicate_member", record(b'{"token": "x", "token": "x"}')),
    ("json_too_deep", record(plain(params=DEEP))),
    ("json_number_unsafe", record(plain(params={"n": 10**15}))),
    ("envelope_malformed", record(plain(prams={}))),
    ("envelope_malformed", record(plain(params=[]))),
    ("envelope_malformed", record(plain(params="x"))),
    ("envelope_malformed", record(plain(params=None))),
    ("envelope_malformed", record(plain(job=1))),
    ("envelope_malformed", record(plain(job=None))),
    ("envelope_malformed", record(plain(job=""))),
    ("envelope_malformed", record(plain(job="a\nb"))),
    ("envelope_malformed", record(plain(job="a\u202eb"))),
    ("envelope_malformed", record(plain(job="j" * 201))),
    ("envelope_malformed", record(plain(job=TOKEN))),
    ("envelope_malformed", record({}, BEARER, ("tollgate-job", b""))),
    ("envelope_malformed", record(plain(correlation_id="\x00"))),
    ("envelope_malformed", record(plain(correlation_id=f"see {TOKEN}"))),
    ("envelope_malformed", record(plain(correlation_id="a"), ("tollgate-correlation-id", b"b"))),
    ("envelope_malformed", record(plain(params_sha256="A" * 64))),
    ("envelope_malformed", record(plain(token=["x"]))),
    ("envelope_malformed", record(EVENT | {"subject": "j", "data": "text"}, BEARER)),
    ("cloudevent_malformed", record(EVENT | {"specversion": "0.3", "data": plain()})),
    ("cloudevent_malformed", record({"specversion": "1.0", "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"id": "", "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"id": LONG_KEY, "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"data_base64": "e30=", "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"datacontenttype": "text/plain", "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"token": TOKEN, "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"Upper": "x", "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"nested": {}, "data": plain()})),
    ("cloudevent_malformed", record(EVENT | {"data": plain()}, ("content-type", b"application/cloudevents+avro"))),
    ("cloudevent_malformed", record(plain(), ("ce_id", b"e1"))),
    ("cloudevent_malformed", record(plain(), *CE_HEADERS[1:])),
    ("job_conflict", record({}, BEARER, ("tollgate-job", b"a"), ("ce_subject", b"b"))),
    ("job_conflict", record(EVENT | {"subject": "b", "data": {}}, BEARER, ("tollgate-job", b"a"), STRUCTURED)),
    ("idempotency_key_malformed", record(plain(idempotency_key=""))),
    ("idempotency_key_malformed", record(plain(idempotency_key=None))),
    ("idempotency_key_malformed", record(plain(idempotency_key=7))),
    ("idempotency_key_malformed", record(plain(idempotency_key=LONG_KEY))),
    ("idempotency_key_malformed", record(plain(idempotency_key="é" * 129))),
    ("idempotency_key_malformed", record(plain(idempotency_key="a\r\nb"))),
    ("idempotency_key_malformed", record(plain(), ("idempotency-key", b"\x00"))),
    ("token_missing", record({"job": "j"})),
    ("token_missing", record(plain(token=""))),
    ("token_missing", record(plain(), ("tollgate-job", b"j"))),
    ("token_ambiguous", record(plain(), BEARER)),
    ("authorization_malformed", record({}, ("authorization", b""))),
    ("authorization_malformed", record({}, ("authorization", TOKEN.encode()))),
    ("authorization_malformed", record({}, ("authorization", b"Basic " + TOKEN.encode()))),
    ("authorization_malformed", record({}, ("authorization", b"Bearer a b"))),
    ("token_in_params", record(plain(params={"a": {"b": ["x", TOKEN]}}))),
    ("token_in_params", record(plain(params={TOKEN: 1}))),
    ("token_in_params", record({"token": TOKEN}, BEARER, ("tollgate-job", b"j"))),
    *[("header_repeated", record({}, BEARER, (name, b"1"), (name.title(), b"1"))) for name in DECIDING_HEADERS],
]


@pytest.mark.parametrize(("code", "faulty"), FAULTS)
def test_one_fault_is_named(code, faulty):
    assert code_of(parse(faulty)) == code


@pytest.mark.parametrize(("code", "faulty"), FAULTS)
def test_a_detail_never_shows_a_token(code, faulty):
    assert TOKEN not in (parse(faulty).detail or "")


def test_every_parse_reason_of_a_record_has_a_case():
    codes = {code for code, reason in BY_CODE.items() if reason.stage is Stage.PARSE}
    assert codes - {code for code, _ in FAULTS} == {"batch_too_large", "batch_unreadable", "handoff_unreadable"}


def test_key_of_header_and_value_may_agree_and_their_conflict_is_told():
    assert not taken(parse(record(plain(idempotency_key="k"), ("idempotency-key", b"k")))).idempotency_key_conflict
    assert taken(parse(record(plain(idempotency_key="k"), ("idempotency-key", b"l")))).idempotency_key_conflict


def test_keys_are_not_normalised():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert taken(parse(record(plain(idempotency_key=composed)))).idempotency_key == composed
    assert taken(parse(record(plain(idempotency_key=decomposed)))).idempotency_key == decomposed


MEMBER_FAULTS = {
    "envelope_malformed": {"surplus": 1}, "idempotency_key_malformed": {"idempotency_key": ""},
    "token_missing": {"token": ""}, "token_in_params": {"params": {"x": TOKEN}},
}  # fmt: skip
HEADER_FAULTS = {
    "headers_malformed": (("idempotency-key", b"\xff"),), "header_repeated": (("content-type", b"a"),) * 2,
    "cloudevent_malformed": (("ce_id", b"1"),), "record_too_large": (("x", b"x" * 70_000),),
}  # fmt: skip


@given(st.sets(st.sampled_from([*MEMBER_FAULTS, *HEADER_FAULTS]), min_size=1), st.booleans())
def test_of_several_faults_the_earliest_names_the_reason(faults, append_time):
    value, headers = plain(), ()
    for fault in faults:
        value |= MEMBER_FAULTS.get(fault, {})
        headers += HEADER_FAULTS.get(fault, ())
    expected = faults if append_time else faults | {"timestamp_type_invalid"}
    assert code_of(parse(record(value, *headers, append_time=append_time))) == min(expected, key=PRECEDENCE.__getitem__)


# ── anything at all ──

NAMES = st.sampled_from([*DECIDING_HEADERS, "Authorization", "traceparent", "tollgate-x"]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(TOKEN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
VALUES = (
    st.none()
    | st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["job", "params", "token", "idempotency_key", "correlation_id", "params_sha256", "data",
                         "subject", *EVENT]),
        JSON | st.sampled_from(list(EVENT.values())), max_size=8,
    ).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
)  # fmt: skip


@given(VALUES, st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=20)), max_size=6), st.booleans())
def test_any_bytes_and_headers_give_a_trigger_or_a_parse_reason(value, headers, append_time):
    match parse(Record(0, 0, 0, append_time, None, value, tuple(headers))):
        case Rejected() as rejected:
            assert rejected.reason.stage is Stage.PARSE
        case trigger:
            assert isinstance(trigger.params, dict)
            assert trigger.unverified_token
