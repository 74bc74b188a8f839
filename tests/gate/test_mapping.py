"""What is mapped to tokens after they are out: disabled identities, and rules by jti, identity, class, host and job."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gate import decide, outputs
from app.gate.decide import Admitted, Memo, Refused, World
from app.gate.identities import Identities
from app.gate.mapping import MappingRule, in_effect, mapping_from_record, mapping_key
from app.gate.original import original
from app.gate.policy import Revocations, job_from_record, revocation_record, trust_from_record
from app.stream.log import ReadRecord
from app.stream.tables import Tables
from app.stream.topics import Topic
from tests.gate.test_standing import record
from tests.support.tokens import AUD, ISS, JTI, NOW_S, RING, token

NIGHTLY, WEEKLY = "reports/nightly", "reports/weekly"
RULE = trust_from_record(
    f"trust/{ISS}".encode(),
    orjson.dumps(
        {"version": 1, "issuer": ISS, "jwks": "/keys.json", "algorithms": ["ES256"], "orgs": ["acme"],
         "classes": ["trigger"], "subjects": ["service:*", "host:*", "u:*"], "jobs": ["reports/*", "gone"],
         "max_lifetime_s": 7_776_000}
    ),
)  # fmt: skip
WORLD = World(
    audience=AUD, lanes=4, grace_s=60, queue_age_cap_ms=14_400_000, max_window_ms=1 << 40, run_seed=7, ring=RING,
    rules={ISS: RULE}, revocations=Revocations(),
    jobs={name: job_from_record(b"job/" + name.encode(), orjson.dumps({"version": 1, "name": name}))
          for name in (NIGHTLY, WEEKLY)},
)  # fmt: skip


def rule(name="r", effect="deny", **members):
    made = mapping_from_record(
        mapping_key(name), orjson.dumps({"name": name, "version": 1, "effect": effect} | members)
    )
    assert isinstance(made, MappingRule), made
    return made


def world(*rules, **changes):
    return msgspec.structs.replace(
        WORLD, mapping=in_effect({each.name: each for each in rules}), memo=Memo(), **changes
    )


def admit(judged, text=None, job=NIGHTLY, **claims):
    text = text or token(claims=claims, grant={"jobs": [job], "params": {}})
    return decide.admit(record(1, text, NOW_S, job=job, params={}), judged, judged.memo)


def verdict(outcome):
    return (outcome.rejected.code, outcome.rejected.reason.stage.value) if isinstance(outcome, Refused) else "admitted"


# ── rules ──

DENIED, NOT_ALLOWED = ("denied_by_rule", "authorize"), ("not_allowed_by_rule", "authorize")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"jtis": [JTI]}, DENIED),
        ({"jtis": ["another"]}, "admitted"),
        ({"identities": ["service:ci"]}, DENIED),
        ({"identities": ["service:*"]}, DENIED),
        ({"identities": ["service:c"]}, "admitted"),
        ({"classes": ["trigger"]}, DENIED),
        ({"classes": ["user"]}, "admitted"),
        ({"hosts": ["*"]}, "admitted"),
        ({"jobs": [NIGHTLY]}, DENIED),
        ({"jobs": ["reports/*"]}, DENIED),
        ({"jobs": [WEEKLY]}, "admitted"),
        ({"issuers": [ISS]}, DENIED),
        ({"issuers": ["https://other"], "identities": ["*"]}, "admitted"),
        ({"identities": ["service:ci"], "jobs": [WEEKLY]}, "admitted"),
        ({"identities": ["service:ci"], "jtis": ["another"]}, "admitted"),
        ({"identities": ["service:ci"], "jtis": [JTI], "classes": ["trigger"], "jobs": [NIGHTLY]}, DENIED),
    ],
)
def test_a_deny_rule_refuses_what_fits_all_it_says(members, expected):
    assert verdict(admit(world(rule(**members)))) == expected


@pytest.mark.parametrize(
    ("hosts", "expected"), [(["hpc-a"], DENIED), (["hpc-*"], DENIED), (["hpc-b"], "admitted"), (["*"], DENIED)]
)
def test_a_host_is_named_by_its_subject(hosts, expected):
    assert verdict(admit(world(rule(hosts=hosts)), sub="host:hpc-a")) == expected


ACTING = {"act": {"sub": "svc:last", "act": {"sub": "host:hpc-a"}}}


@pytest.mark.parametrize("selector", [{"identities": ["svc:last"]}, {"identities": ["host:*"]}, {"hosts": ["hpc-a"]}])
def test_whom_a_deny_rule_names_it_denies_to_act_for_others(selector):
    assert verdict(admit(world(rule(**selector)), **ACTING)) == DENIED
    assert verdict(admit(world(rule(**selector)))) == "admitted"
    assert verdict(admit(world(rule(jobs=[WEEKLY], **selector)), **ACTING)) == "admitted"


def test_an_allow_rule_is_about_the_subject_whoever_acts():
    narrowed = world(rule(effect="allow", identities=["svc:last"], jobs=[WEEKLY]))
    assert verdict(admit(narrowed, **ACTING)) == "admitted"
    assert (
        verdict(admit(world(rule(effect="allow", identities=["service:ci"], jobs=[WEEKLY])), **ACTING)) == NOT_ALLOWED
    )


@pytest.mark.parametrize(
    ("members", "job", "expected"),
    [
        ({"identities": ["service:ci"], "jobs": [NIGHTLY]}, NIGHTLY, "admitted"),
        ({"identities": ["service:ci"], "jobs": [NIGHTLY]}, WEEKLY, NOT_ALLOWED),
        ({"identities": ["service:other"], "jobs": [NIGHTLY]}, WEEKLY, "admitted"),
        ({"jtis": [JTI], "jobs": [NIGHTLY]}, WEEKLY, NOT_ALLOWED),
        ({"jtis": ["another"], "jobs": [NIGHTLY]}, WEEKLY, "admitted"),
        ({"identities": ["*"]}, WEEKLY, "admitted"),
    ],
)
def test_an_allow_rule_says_what_those_it_fits_may_start(members, job, expected):
    assert verdict(admit(world(rule(effect="allow", **members)), job=job)) == expected


def test_deny_wins_over_allow_whatever_their_order():
    allow = rule("allow", "allow", identities=["service:ci"], jobs=["*"])
    for name in ("a", "z"):
        deny = rule(name, "deny", jobs=[NIGHTLY])
        assert verdict(admit(world(allow, deny))) == DENIED
        assert verdict(admit(world(deny, allow), job=WEEKLY)) == "admitted"


def test_of_several_allow_rules_one_that_names_the_job_is_enough():
    first = rule("a", "allow", identities=["service:*"], jobs=[WEEKLY])
    second = rule("b", "allow", jtis=[JTI], jobs=[NIGHTLY])
    assert verdict(admit(world(first))) == NOT_ALLOWED
    assert verdict(admit(world(first, second))) == "admitted"


def test_a_rule_gives_nothing_that_the_token_does_not_say():
    judged = world(rule(effect="allow", identities=["*"], jobs=["*"]))
    text = token(grant={"jobs": [NIGHTLY], "params": {}})
    outcome = decide.admit(record(1, text, NOW_S, job=WEEKLY, params={}), judged, judged.memo)
    assert verdict(outcome) == ("job_not_authorized", "authorize")


def test_who_is_denied_does_not_learn_whether_the_job_exists():
    assert verdict(admit(world(rule(jobs=["*"])), job="gone")) == DENIED
    assert verdict(admit(world(), job="gone")) == ("job_unknown", "authorize")


def test_the_refusal_names_the_rule_and_its_reason():
    outcome = admit(world(rule("freeze", jobs=["*"], reason="until Monday")))
    assert outcome.rejected.detail == "the rule freeze: until Monday"
    assert admit(world(rule("freeze", jobs=["*"]))).rejected.detail == "the rule freeze"


def test_an_outstanding_webhook_token_obeys_at_once():
    """What was remembered of it in the world before the rule is not used in the one after."""
    text = token(claims={"uses": "many"}, grant={"jobs": [NIGHTLY], "params": {}})
    before = world()
    assert verdict(admit(before, text)) == "admitted"
    assert before.memo.presented
    after = msgspec.structs.replace(before, mapping=in_effect({"r": rule(jtis=[JTI])}), memo=Memo())
    assert verdict(admit(after, text)) == DENIED


def test_two_tokens_of_one_identity_are_told_apart_by_their_jti():
    """Bearers are remembered; jtis are not theirs."""
    judged = world(rule(jtis=[JTI]))
    texts = [
        token(claims={"uses": uses, "jti": jti}, grant={"jobs": [NIGHTLY], "params": {}})
        for uses in ("once", "many")
        for jti in (JTI, "another")
    ]
    for _ in range(2):
        assert [verdict(admit(judged, text)) for text in texts] == [DENIED, "admitted"] * 2


@pytest.mark.parametrize("uses", ["once", "many"])
def test_a_home_lane_judges_a_handoff_by_the_rules_and_identities_of_now(uses):
    admitted = admit(world(), uses=uses)
    if uses == "many":
        text = token(claims={"uses": uses}, grant={"jobs": [NIGHTLY], "params": {}})
        admitted = decide.admit(record(1, text, NOW_S, job=NIGHTLY, params={}, idempotency_key="k"), world(), Memo())
    assert isinstance(admitted, Admitted)
    redacted, _ = original(record(1, "x", NOW_S), "x", lambda *_: None)
    handed, source, trigger = outputs.read_handoff(outputs.handoff(admitted, redacted, None, 0, 0).value)

    def readmitted(judged):
        seen = judged.memo.handed_token(bytes(handed.claims), handed.token_fingerprint, handed.insecure)
        return verdict(decide.readmit(source, trigger, seen, judged, judged.memo))

    table = Identities()
    assert table.apply("service:ci", identity(disabled=True)) is None
    assert readmitted(world()) == "admitted"
    assert readmitted(world(rule(identities=["service:ci"]))) == DENIED
    assert readmitted(world(disabled=table.disabled())) == ("identity_disabled", "verify")


# ── records of rules ──


def judge(under="r", **members):
    record = {"name": "r", "version": 1, "effect": "deny"} | members
    return mapping_from_record(mapping_key(under), orjson.dumps(record))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "whom is it for"),
        ({"effect": "allow", "jobs": ["a"]}, "whom is it for"),
        ({"effect": "maybe", "jobs": ["a"]}, "effect: invalid enum"),
        ({"jobs": []}, "jobs: is empty"),
        ({"identities": [], "jobs": ["a"]}, "identities: is empty"),
        ({"jobs": ["a*b"]}, "jobs: a pattern may end in *"),
        ({"hosts": ["host:a"]}, "named without host:"),
        ({"jobs": ["a"], "when": "now"}, "unknown member"),
        ({"jobs": ["a"], "reason": "x\ny"}, "control character"),
        ({"jobs": ["a"], "reason": "x" * 161}, "length"),
        ({"jobs": ["a"], "name": "other"}, "its own key"),
    ],
)
def test_a_rule_with_a_fault_is_one_clause_that_names_it(members, said):
    complaint = judge(**members)
    assert isinstance(complaint, str)
    assert said in complaint


# ── identities ──


def identity(name="service:ci", issuer=ISS, disabled=False, **members):
    return orjson.dumps({"name": name, "issuer": issuer, "disabled": disabled, "version": 1} | members)


def test_a_disabled_identity_is_refused_in_every_token_until_it_is_enabled_or_removed():
    table = Identities()
    assert table.apply("service:ci", identity(disabled=True, credentials=[{"kind": "of a later version"}])) is None
    assert verdict(admit(world(disabled=table.disabled()))) == ("identity_disabled", "verify")
    assert verdict(admit(world(disabled=table.disabled()), sub="u:ann")) == "admitted"
    assert table.apply("service:ci", identity()) is None
    assert verdict(admit(world(disabled=table.disabled()))) == "admitted"
    table.apply("service:ci", identity(disabled=True))
    assert table.apply("service:ci", None) is None
    assert verdict(admit(world(disabled=table.disabled()))) == "admitted"


def test_a_subject_of_another_issuer_is_another():
    table = Identities()
    table.apply("service:ci", identity(disabled=True, issuer="https://other"))
    assert verdict(admit(world(disabled=table.disabled()))) == "admitted"


@pytest.mark.parametrize("value", [b"", b"{}", b"null", b"\xff", identity(name="service:other"), identity(disabled=0)])
def test_an_unreadable_record_enables_nobody(value):
    table = Identities()
    assert "refused" in table.apply("service:ci", value)
    assert verdict(admit(world(disabled=table.disabled()))) == ("identity_disabled", "verify")
    table.apply("service:ci", identity())
    assert verdict(admit(world(disabled=table.disabled()))) == "admitted"


def test_an_expired_token_of_a_disabled_identity_is_expired_and_a_revoked_one_is_disabled():
    table = Identities()
    table.apply("service:ci", identity(disabled=True))
    revocations = Revocations()
    revocations.apply(
        *revocation_record(ISS, "subject", "service:ci", since_s=NOW_S, reason="r", by="ops", keep_until_s=0)
    )
    judged = world(disabled=table.disabled(), revocations=revocations)
    assert verdict(admit(judged, iat=NOW_S - 900, nbf=NOW_S - 900, exp=NOW_S - 300))[0] == "token_expired"
    assert verdict(admit(judged))[0] == "identity_disabled"


# ── the tables of a gate ──


def tables():
    keys = SimpleNamespace(version=1, ring=RING)
    made = Tables(None, ("registry", 0), ("revocations", 0), ("grants", 0), keys, WORLD, 1.0)  # type: ignore[arg-type]
    made._task = SimpleNamespace(done=lambda: False)
    return made


def world_of(made):
    return msgspec.structs.replace(WORLD, mapping=made.world.mapping, disabled=made.world.disabled, memo=Memo())


def write(made, key, value):
    complaint = made._apply_registry(ReadRecord(0, key, value))
    made._rebuild()
    return complaint


def test_tables_follow_identities_and_rules():
    made = tables()
    assert write(made, b"identity/service:ci", identity(disabled=True)) is None
    assert made.world.disabled.covers(ISS, "service:ci")
    assert write(made, b"rule/r", orjson.dumps({"name": "r", "version": 1, "effect": "deny", "jobs": ["*"]})) is None
    assert [each.name for each in made.world.mapping.deny] == ["r"]
    assert write(made, b"rule/r", None) is None
    assert write(made, b"identity/service:ci", None) is None
    assert (made.world.disabled, made.world.mapping) == (WORLD.disabled, WORLD.mapping)


def test_a_rule_that_cannot_be_read_holds_every_lane_until_it_is_mended():
    """It may be a denial: nothing is let through, and nothing is refused wrongly."""
    made = tables()
    assert made.complaint() is None
    complaint = write(made, b"rule/r", b'{"name":"r","version":1,"effect":"deny","jobs":["*"],"when":"later"}')
    assert "unknown member" in complaint
    assert "rule r cannot be read" in made.complaint()
    assert verdict(admit(world_of(made))) == DENIED
    write(made, b"rule/r", orjson.dumps({"name": "r", "version": 2, "effect": "deny", "jobs": ["other"]}))
    assert made.complaint() is None


def test_a_revocation_by_what_only_a_later_version_knows_holds_every_lane_until_it_is_removed():
    """Whom it refuses cannot be told: nobody who is refused is let through."""
    made = tables()
    later = orjson.dumps([ISS, "tenant", "t-1"])
    made._apply(Topic.REVOCATIONS, ReadRecord(0, later, b"{}", 0))
    assert "'tenant'" in made.complaint()
    made._apply(Topic.REVOCATIONS, ReadRecord(1, later, None, 0))
    assert made.complaint() is None


# ── properties ──

PATTERNS = st.lists(st.sampled_from(["*", "a", "a*", "b"]), min_size=1, max_size=2).map(tuple)
WHO = st.lists(st.sampled_from(["*", "service:ci", "service:*", "u:ann"]), min_size=1, max_size=2).map(tuple)
RULES = st.builds(
    MappingRule, name=st.sampled_from(["r1", "r2", "r3", "r4"]), version=st.just(1),
    effect=st.sampled_from(["allow", "deny"]), jtis=st.none() | st.just((JTI,)) | st.just(("other",)), identities=WHO,
    classes=st.none() | st.just(("trigger",)), jobs=st.none() | PATTERNS,
)  # fmt: skip


def claims_of(judged):
    admitted = admit(judged)
    assert isinstance(admitted, Admitted)
    return admitted.token.claims


CLAIMS = claims_of(world())


@given(st.lists(RULES, max_size=4), RULES, st.sampled_from(["a", "ab", "b", "c"]))
def test_another_deny_never_lets_anything_through(rules, another, job):
    held = {each.name: each for each in rules}
    deny = msgspec.structs.replace(another, name="r5", effect="deny")

    def refusal(those):
        mapped = in_effect(those).of_bearer(CLAIMS)
        return mapped.refuse(CLAIMS, job) if mapped else None

    assert refusal(held) is None or refusal(held | {"r5": deny}) is not None
