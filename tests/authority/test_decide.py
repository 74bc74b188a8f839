"""Who may have which token issued: each test states one difference from a request that is allowed."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.authority.decide import DENIALS, Allowed, Denied, IssueRequest, fitting_lifetime_s, may_issue, unauthenticated
from app.authority.identities import Identity
from app.authority.roles import Allow, Deny, Role, role_from_record, role_key
from app.gate.reasons import BY_CODE

CI = Identity("svc:ci", 1, "service", "https://issuer.example", "acme", ("deployer",))
ANN = Identity("u:ann", 1, "user", "https://issuer.example", "acme", ("deployer",))
HOST = Identity("host:hpc-a", 1, "host", "https://issuer.example", "acme", ("deployer",), platform="hpc")
PLATFORMS = {"hpc": 1}
DEPLOYER = Role("deployer", 1, (Allow(("deploy-*",), max_lifetime_s=3_600),))
REQUEST = IssueRequest("svc:ci", "acme", 300, ("deploy-staging",))


def roles(*held):
    return {role.name: role for role in held or (DEPLOYER,)}


def with_(allow=None, deny=()):
    """The one role, with its one entry changed and these denials."""
    entry = msgspec.structs.replace(DEPLOYER.allow[0], **(allow or {}))
    return roles(msgspec.structs.replace(DEPLOYER, allow=(entry,), deny=tuple(deny)))


def ask(**changes):
    return msgspec.structs.replace(REQUEST, **changes)


def code(outcome):
    return outcome.code if isinstance(outcome, Denied) else "allowed"


def test_what_a_role_allows_may_be_issued():
    assert may_issue(CI, roles(), REQUEST) == Allowed("svc:ci", ("deployer",))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"org_id": "other"}, "org_not_granted"),
        ({"jobs": ("reports/nightly",)}, "job_not_granted"),
        ({"jobs": ("deploy-a", "reports/nightly"), "uses": "many"}, "job_not_granted"),
        ({"jobs": ("deploy-a", "deploy-b"), "uses": "many"}, "allowed"),
        ({"jobs": ("deploy-a", "deploy-b")}, "scope_too_broad"),
        ({"jobs": ()}, "scope_too_broad"),
        ({"jobs": ("deploy-a",) * 65, "uses": "many"}, "scope_too_broad"),
        ({"jobs": ("*",)}, "scope_too_broad"),
        ({"jobs": ("deploy-*",)}, "scope_too_broad"),
        ({"jobs": ("deploy-\n",)}, "job_name_malformed"),
        ({"lifetime_s": None}, "ttl_missing"),
        ({"lifetime_s": 0}, "expiry_malformed"),
        ({"lifetime_s": 3_600}, "allowed"),
        ({"lifetime_s": 3_601}, "lifetime_not_granted"),
        ({"lifetime_s": 86_401}, "ttl_too_long"),
        ({"lifetime_s": 86_401, "uses": "many"}, "lifetime_not_granted"),
        ({"lifetime_s": 91 * 86_400, "uses": "many"}, "ttl_too_long"),
        ({"subject": "svc:other"}, "subject_not_granted"),
        ({"token_class": "user", "jobs": ()}, "class_unfit"),
        ({"token_class": "host", "jobs": ()}, "class_unfit"),
    ],
)
def test_a_request_that_differs_in_one_thing(changes, expected):
    assert code(may_issue(CI, roles(), ask(**changes))) == expected


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (msgspec.structs.replace(CI, disabled=True), "identity_disabled"),
        (msgspec.structs.replace(CI, roles=()), "job_not_granted"),
        (msgspec.structs.replace(CI, roles=("deployer", "gone")), "role_unknown"),
        (msgspec.structs.replace(CI, org_id="other"), "org_not_granted"),
    ],
)
def test_an_identity_that_differs_in_one_thing(identity, expected):
    assert code(may_issue(identity, roles(), REQUEST)) == expected


@pytest.mark.parametrize(
    ("allow", "expected"),
    [
        ({"jobs": ("deploy-prod",)}, "job_not_granted"),
        ({"jobs": ("*",)}, "allowed"),
        ({"jobs": ("deploy-staging",)}, "allowed"),
        ({"classes": ("user",)}, "class_not_granted"),
        ({"uses": ("many",)}, "uses_not_granted"),
        ({"max_lifetime_s": 299}, "lifetime_not_granted"),
    ],
)
def test_a_role_that_differs_in_one_thing(allow, expected):
    assert code(may_issue(CI, with_(allow), REQUEST)) == expected


@pytest.mark.parametrize(
    ("deny", "expected"),
    [
        (Deny(jobs=("deploy-staging",)), "denied_by_role"),
        (Deny(jobs=("deploy-prod",)), "allowed"),
        (Deny(uses=("once",)), "denied_by_role"),
        (Deny(uses=("many",)), "allowed"),
        (Deny(jobs=("deploy-*",), uses=("many",)), "allowed"),
        (Deny(classes=("trigger",)), "denied_by_role"),
        (Deny(subjects=("svc:*",)), "denied_by_role"),
    ],
)
def test_deny_wins_over_allow(deny, expected):
    assert code(may_issue(CI, with_(deny=[deny]), REQUEST)) == expected


def test_another_role_s_deny_wins_too_and_one_denied_job_of_several_is_enough():
    frozen = Role("frozen", 1, deny=(Deny(jobs=("deploy-prod",)),))
    both = msgspec.structs.replace(CI, roles=("deployer", "frozen"))
    assert code(may_issue(both, roles(DEPLOYER, frozen), REQUEST)) == "allowed"
    asked = ask(jobs=("deploy-staging", "deploy-prod"), uses="many")
    assert may_issue(both, roles(DEPLOYER, frozen), asked) == Denied("denied_by_role", "the role frozen denies it")


def test_jobs_of_one_token_may_be_allowed_by_different_roles():
    reporter = Role("reporter", 1, (Allow(("reports/*",)),))
    both = msgspec.structs.replace(CI, roles=("deployer", "reporter"))
    asked = ask(jobs=("reports/nightly", "deploy-staging"), uses="many")
    assert may_issue(both, roles(DEPLOYER, reporter), asked) == Allowed("svc:ci", ("reporter", "deployer"))


def test_one_entry_must_allow_all_of_it():
    """Two that each allow half do not add up."""
    halves = Role("deployer", 1, (Allow(("deploy-*",), uses=("many",)), Allow(("reports/*",), uses=("once",))))
    assert code(may_issue(CI, roles(halves), REQUEST)) == "uses_not_granted"


def test_a_subject_of_another_s_only_where_a_role_says_so():
    asked = ask(subject="svc:device-7")
    assert code(may_issue(CI, with_({"subjects": ("svc:device-*",)}), asked)) == "allowed"
    assert code(may_issue(CI, with_({"subjects": ("svc:other-*",)}), asked)) == "subject_not_granted"


@pytest.mark.parametrize(
    ("caps", "asked_s", "found_s"), [((60,), 300, 60), ((3_600,), 300, 300), ((60, 200), 300, 200), ((), 300, None)]
)
def test_who_does_not_say_how_long_gets_as_long_as_a_role_allows(
    caps: tuple[int, ...], asked_s: int, found_s: int | None
) -> None:
    allow = tuple(Allow(("deploy-*",), max_lifetime_s=cap) for cap in caps)
    # Another job's entry is not this one's.
    others = (Allow(("reports/*",), max_lifetime_s=250),)
    role = Role("deployer", 1, (*allow, *others))
    assert fitting_lifetime_s(CI, roles(role), ask(lifetime_s=asked_s)) == found_s


def test_a_subject_of_another_s_may_be_one_that_it_was_handed_a_token_of():
    asked, handed = ask(subject="svc:device-7"), ask(subject="svc:device-7", exchanged=True)
    by_exchange = with_({"exchanged_subjects": ("svc:device-*",)})
    assert code(may_issue(CI, by_exchange, handed)) == "allowed"
    assert code(may_issue(CI, by_exchange, asked)) == "subject_not_granted"
    assert code(may_issue(CI, with_({"exchanged_subjects": ("svc:other-*",)}), handed)) == "subject_not_granted"
    assert code(may_issue(CI, with_({"subjects": ("svc:device-*",)}), handed)) == "allowed"


@pytest.mark.parametrize(
    ("identity", "token_class", "expected"),
    [
        (ANN, "user", "allowed"),
        (ANN, "host", "class_unfit"),
        (HOST, "host", "allowed"),
        (HOST, "user", "class_unfit"),
        (CI, "user", "class_unfit"),
        (ANN, "trigger", "allowed"),
        (HOST, "trigger", "allowed"),
    ],
)
def test_a_class_is_for_its_own_kind_of_identity(identity, token_class, expected):
    held = with_({"classes": ("trigger", "user", "host")})
    jobs = REQUEST.jobs if token_class == "trigger" else ()
    asked = ask(subject=identity.name, token_class=token_class, jobs=jobs)

    def told(request, roles=held):
        return code(may_issue(identity, roles, request, PLATFORMS))

    assert told(asked) == expected
    if token_class != "trigger" and expected == "allowed":
        assert told(asked, with_()) == "class_not_granted"
        assert told(msgspec.structs.replace(asked, jobs=REQUEST.jobs)) == "class_unfit"
        assert told(msgspec.structs.replace(asked, subject="u:bob")) == "class_unfit", "nobody is somebody else"
        assert told(msgspec.structs.replace(asked, left_s=86_400)) == "credential_needed", "a login begets no login"


def test_a_user_token_lives_a_day_at_most():
    held = with_({"classes": ("user",), "max_lifetime_s": 7 * 86_400})
    asked = ask(subject="u:ann", token_class="user", jobs=(), lifetime_s=86_400)
    assert code(may_issue(ANN, held, asked)) == "allowed"
    assert code(may_issue(ANN, held, msgspec.structs.replace(asked, lifetime_s=86_401))) == "ttl_too_long"


@pytest.mark.parametrize("platform", [None, "cloud"])
def test_a_host_gets_its_token_on_a_platform_that_is_there(platform):
    held = with_({"classes": ("host",)})
    asked = ask(subject=HOST.name, token_class="host", jobs=())
    lost = msgspec.structs.replace(HOST, platform=platform)
    assert code(may_issue(HOST, held, asked, PLATFORMS)) == "allowed"
    assert code(may_issue(lost, held, asked, PLATFORMS)) == "platform_unknown"
    assert code(may_issue(HOST, held, asked)) == "platform_unknown"


def test_what_is_asked_for_with_a_login_ends_no_later_than_it():
    held = with_({"max_lifetime_s": 86_400})
    for left_s, expected in ((299, "outlives_login"), (0, "outlives_login"), (300, "allowed"), (None, "allowed")):
        assert code(may_issue(ANN, held, ask(subject="u:ann", left_s=left_s))) == expected


def test_every_denial_can_be_told():
    assert code(unauthenticated()) == "client_unauthenticated"
    for denial in DENIALS:
        denied = Denied(denial.code, "x")
        assert (denied.meaning, denied.remedy) == (denial.meaning, denial.remedy)
        assert denial.code not in BY_CODE, "one code has one meaning"
    assert Denied("identity_disabled", "x").meaning == BY_CODE["identity_disabled"].meaning


# ── properties ──

NAMES = st.sampled_from(["deploy-a", "deploy-b", "reports/x"])
PATTERNS = st.lists(st.sampled_from(["*", "deploy-*", "deploy-a", "reports/x"]), min_size=1, max_size=2).map(tuple)
USES = st.lists(st.sampled_from(["once", "many"]), min_size=1, max_size=2, unique=True).map(tuple)
ALLOWS = st.builds(Allow, jobs=PATTERNS, uses=USES, max_lifetime_s=st.sampled_from([60, 300, 3_600]))
DENIES = st.builds(Deny, jobs=PATTERNS, uses=st.none() | USES)
ROLES = st.builds(
    Role, name=st.just("deployer"), version=st.just(1), allow=st.lists(ALLOWS, max_size=3).map(tuple),
    deny=st.lists(DENIES, max_size=1).map(tuple),
)  # fmt: skip
REQUESTS = st.builds(
    IssueRequest, subject=st.just("svc:ci"), org_id=st.just("acme"), lifetime_s=st.sampled_from([60, 300, 3_600]),
    jobs=st.lists(NAMES, min_size=1, max_size=2).map(tuple), uses=st.sampled_from(["once", "many"]),
)  # fmt: skip


@given(ROLES, REQUESTS, DENIES)
def test_another_deny_never_allows(role, asked, deny):
    before = may_issue(CI, roles(role), asked)
    after = may_issue(CI, roles(msgspec.structs.replace(role, deny=(*role.deny, deny))), asked)
    assert isinstance(before, Allowed) or isinstance(after, Denied)


@given(ROLES, REQUESTS)
def test_less_is_never_harder_to_get(role, asked):
    """Fewer jobs and a shorter life of what is allowed are allowed."""
    if isinstance(may_issue(CI, roles(role), asked), Allowed):
        less = msgspec.structs.replace(asked, jobs=asked.jobs[:1], lifetime_s=60)
        assert isinstance(may_issue(CI, roles(role), less), Allowed)


@given(ROLES, REQUESTS)
def test_whatever_is_allowed_stands_in_one_entry_and_in_no_deny(role, asked):
    outcome = may_issue(CI, roles(role), asked)
    fitting = [
        any(
            (pattern == job or (pattern.endswith("*") and job.startswith(pattern[:-1])))
            and asked.uses in entry.uses
            and asked.lifetime_s <= entry.max_lifetime_s
            for entry in role.allow
            for pattern in entry.jobs
        )
        for job in asked.jobs
    ]
    denied = any(
        asked.uses in (deny.uses or ("once", "many"))
        and (pattern == job or (pattern.endswith("*") and job.startswith(pattern[:-1])))
        for deny in role.deny
        for pattern in deny.jobs
        for job in asked.jobs
    )
    several = asked.uses == "once" and len(asked.jobs) > 1
    assert isinstance(outcome, Allowed) is (all(fitting) and not denied and not several)


# ── roles' records ──


def read(under="deployer", **members):
    record = {"name": "deployer", "version": 1, "allow": [{"jobs": ["deploy-*"]}]} | members
    return role_from_record(role_key(under), json.dumps(record).encode())


def test_a_role_reads_into_what_was_written():
    assert read() == Role("deployer", 1, (Allow(("deploy-*",)),))
    assert role_from_record(role_key("deployer"), msgspec.json.encode(DEPLOYER)) == DEPLOYER


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"allow": [{}]}, "allow[0].jobs: is empty"),
        ({"allow": [{"jobs": ["a"], "classes": []}]}, "allows no class"),
        ({"allow": [{"jobs": ["a"], "uses": []}]}, "or no use"),
        ({"allow": [{"jobs": ["a*b"]}]}, "may end in *"),
        ({"allow": [{"jobs": ["a"], "subjects": ["**"]}]}, "may end in *"),
        ({"allow": [{"jobs": ["a"], "exchanged_subjects": ["**"]}]}, "may end in *"),
        ({"allow": [{"jobs": ["a"], "classes": ["root"]}]}, "allow[0].classes[0]: invalid enum"),
        ({"allow": [{"jobs": ["a"], "max_lifetime_s": 10**9}]}, "max_lifetime_s"),
        ({"allow": [{"jobs": ["a"], "when": "now"}]}, "unknown member"),
        ({"deny": [{}]}, "deny[0]: says nothing"),
        ({"deny": [{"jobs": []}]}, "denies nothing"),
        ({"frob": 1}, "unknown member"),
        ({"name": "other"}, "its own key"),
    ],
)
def test_a_role_with_a_fault_is_one_clause_that_names_it(members, said):
    complaint = read(**members)
    assert isinstance(complaint, str)
    assert said in complaint


def test_a_role_has_a_plain_name():
    assert "named by letters" in read(under="a/b", name="a/b")
