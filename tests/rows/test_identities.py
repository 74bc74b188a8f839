"""Rows of identities and rights: who may have which token issued, and what tokens that are out may still start."""

import json
import secrets
import stat
import time

import pytest

from tests.rows.issuers import OURS
from tests.rows.jobs import NIGHTLY, OTHER, THIRD
from tests.rows.triggers import plain
from tests.support.jose import public_jwk
from tests.support.reader import read_topic

NOT_ALLOWED, NOTHING, USAGE, FAILED = 4, 5, 2, 1
SECRET_VARIABLE = "TOLLGATE_CLIENT_SECRET"


@pytest.fixture
def name():
    """A name nobody else has in this world."""
    return secrets.token_hex(4)


def new_identity(world, identity, role, jobs=(NIGHTLY,), deny=""):
    """Registered, with a role of its own; its secret."""
    listed = ", ".join(f'"{job}"' for job in jobs)
    world.apply("policy", f"[roles.{role}]\nallow = [{{ jobs = [{listed}], max_lifetime_s = 3600 }}]\n{deny}")
    world.apply("identities", f'[identities."{identity}"]\nroles = ["{role}"]\n')
    return world.tollgate("identities", "rotate", identity).stdout.strip()


def issue(world, identity, secret, *words, job=NIGHTLY, code=0):
    done = world.tollgate(
        "token",
        "issue",
        "--as",
        identity,
        "--job",
        job,
        "--ttl",
        "5m",
        *words,
        env={SECRET_VARIABLE: secret},
        code=code,
    )
    assert secret not in done.stdout + done.stderr
    assert bool(done.stdout) is (code == 0)
    return done.stdout.strip() if code == 0 else done.stderr


def events(world, identity, *words):
    return world.rows("audit", "issuance", "--identity", identity, *words)


def rule(world, named, **members):
    lines = "\n".join(f"{member} = {json.dumps(value)}" for member, value in members.items())
    world.apply("policy", f"[rules.{named}]\n{lines}\n")


# ── T-01, A-10 ──


def test_an_identity_without_the_right_gets_no_token_and_the_refusal_is_on_record(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    token = issue(world, identity, secret)
    started = world.present_one(plain(token))
    assert started.verdict == "accepted"
    assert started.audit[0]["subject"] == identity
    assert "job_not_granted" in issue(world, identity, secret, job=OTHER, code=NOT_ALLOWED)
    issued, denied = events(world, identity)
    assert (issued["event"], issued["jobs"], issued["identity"]) == ("issued", [NIGHTLY], identity)
    assert (issued["jti"], issued["token_fingerprint"]) == (
        started.audit[0]["jti"],
        started.audit[0]["token_fingerprint"],
    )
    assert (denied["event"], denied["reason"], denied["jobs"]) == ("issue_denied", "job_not_granted", [OTHER])
    assert denied["authenticated"] is True
    assert token not in json.dumps([issued, denied])


def test_an_identity_gets_handles_by_its_roles_and_they_are_on_record(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    handle = issue(world, identity, secret, "--reference")
    assert handle.startswith("ref:")
    started = world.present_one(plain(handle))
    assert (started.verdict, started.audit[0]["subject"]) == ("accepted", identity)
    assert "job_not_granted" in issue(world, identity, secret, "--reference", job=OTHER, code=NOT_ALLOWED)
    issued, denied = events(world, identity)
    assert (issued["event"], issued["token_fingerprint"]) == ("issued", started.audit[0]["token_fingerprint"])
    assert (denied["event"], denied["reason"]) == ("issue_denied", "job_not_granted")
    assert handle not in json.dumps([issued, denied])


@pytest.mark.parametrize("wrong", ["a secret", "another's", "an unknown identity"])
def test_who_proves_nothing_gets_nothing_and_learns_nothing(world, name, wrong):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    asked, shown = {
        "a secret": (identity, secret[:-2] + ("AA" if secret[-2:] != "AA" else "BB")),
        "another's": (identity, new_identity(world, f"svc:other-{name}", f"other-{name}")),
        "an unknown identity": (f"svc:nobody-{name}", secret),
    }[wrong]
    said = issue(world, asked, shown, code=NOT_ALLOWED)
    assert "client_unauthenticated" in said
    (denied,) = events(world, asked)
    assert (denied["reason"], denied["authenticated"]) == ("client_unauthenticated", False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--ttl", "2h"), "lifetime_not_granted"),
        (("--ttl", "25h"), "ttl_too_long"),
        (("--subject", "svc:another"), "subject_not_granted"),
        (("--org", "globex"), "org_not_granted"),
        (("--param", "password=x"), "secret_in_clear"),
    ],
)
def test_what_a_role_does_not_say_is_refused(world, name, words, reason):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    assert reason in issue(world, identity, secret, *words, code=NOT_ALLOWED)
    (denied,) = events(world, identity)
    assert denied["reason"] == reason


def test_a_changed_policy_is_obeyed_by_the_next_issue(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    issue(world, identity, secret, job=OTHER, code=NOT_ALLOWED)
    world.apply("policy", f'[roles.{name}]\nallow = [{{ jobs = ["{NIGHTLY}", "rows/o*"] }}]\n')
    issue(world, identity, secret, job=OTHER)
    world.apply("policy", f'[roles.{name}]\nallow = [{{ jobs = ["rows/*"] }}]\ndeny = [{{ jobs = ["{OTHER}"] }}]\n')
    assert "denied_by_role" in issue(world, identity, secret, job=OTHER, code=NOT_ALLOWED)
    issue(world, identity, secret)
    world.tollgate("policy", "remove", f"roles.{name}")
    assert "role_unknown" in issue(world, identity, secret, code=NOT_ALLOWED)
    said = world.apply("identities", f'[identities."{identity}"]\nroles = ["{name}"]\n')
    assert f"WARNING: {identity} gets no token: the registry has no role {name}; " in said


def test_tokens_by_the_thousand_have_each_its_record_before_any_is_shown(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    tokens = issue(world, identity, secret, "--count", "1500").split()
    issued = events(world, identity, "--event", "issued")
    assert len(tokens) == len({each["token_fingerprint"] for each in issued}) == 1_500


def test_an_issuer_that_cannot_write_the_record_shows_no_token(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    done = world.tollgate(
        "token", "issue", "--as", identity, "--job", NIGHTLY, "--ttl", "5m", "--bootstrap", "127.0.0.1:1",
        env={SECRET_VARIABLE: secret}, code=None,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (FAILED, "")


def test_a_configured_identity_is_who_asks_and_without_one_the_holder_of_the_keys_is(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    env = {"TOLLGATE_ISSUER__IDENTITY": identity, SECRET_VARIABLE: secret}
    world.tollgate("token", "issue", "--job", OTHER, "--ttl", "5m", env=env, code=NOT_ALLOWED)
    world.tollgate("token", "issue", "--job", OTHER, "--ttl", "5m", env={"TOLLGATE_BOOTSTRAP": "127.0.0.1:1"})


# ── secrets ──


def test_a_secret_is_shown_once_and_stands_in_no_topic(world, name, tmp_path):
    identity, file = f"svc:{name}", tmp_path / "secret"
    new_identity(world, identity, name)
    done = world.tollgate("identities", "rotate", identity, "--secret-file", str(file))
    secret = file.read_text()
    assert secret == secret.strip()  # who sends the file sends the secret
    assert done.stdout == ""
    assert secret not in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    world.tollgate("token", "issue", "--as", identity, "--secret-file", str(file), "--job", NIGHTLY, "--ttl", "5m")
    listed = world.tollgate("identities", "list", "-o", "json").stdout
    assert name in listed
    assert not {"digest", "salt"} & set(json.loads(listed)[0]["credentials"][0])
    for topic in ("registry", "issuance", "revocations", "audit"):
        for record in read_topic(world.bootstrap, world.topic(topic)).records:
            assert secret.split("_", 2)[2].encode() not in (record.value or b"") + (record.key or b"")


def test_a_secret_in_an_argument_is_refused_and_not_repeated(world, name):
    secret = new_identity(world, f"svc:{name}", name)
    for words in (("--as", secret), ("--secret-file", secret), ("--param", f"x={secret}")):
        done = world.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", *words, code=USAGE)
        assert done.stdout == ""
        assert secret.split("_", 2)[2] not in done.stderr


# ── K-06 ──


def test_a_rotated_secret_and_the_one_before_are_both_good_for_the_overlap_then_only_the_new(world, name):
    identity = f"svc:{name}"
    begun_s = time.time()
    old = new_identity(world, identity, name)
    overlap_s = 5 + int(3 * (time.time() - begun_s))  # these were as many commands as come now, and more
    begun_s = time.time()
    new = world.tollgate("identities", "rotate", identity, "--overlap", str(overlap_s)).stdout.strip()
    tokens = [issue(world, identity, secret) for secret in (old, new)]
    assert time.time() < begun_s + overlap_s, "the machine was too slow for this overlap"
    time.sleep(begun_s + overlap_s + 2 - time.time())
    assert "client_unauthenticated" in issue(world, identity, old, code=NOT_ALLOWED)
    tokens.append(issue(world, identity, new))
    assert [each.verdict for each in world.present(*map(plain, tokens))] == ["accepted"] * 3, "none lost"
    assert [each.verdict for each in world.present(*map(plain, tokens))] == ["duplicate"] * 3, "none doubled"


def test_an_identity_may_have_public_keys_and_no_private_one(world, name, tmp_path):
    identity, file = f"svc:{name}", tmp_path / "jwks.json"
    new_identity(world, identity, name)
    good = public_jwk(f"{name}-1", world.partner.private)
    file.write_text(json.dumps({"keys": [good]}))
    assert world.tollgate("identities", "rotate", identity, "--jwks", str(file)).stdout == ""
    (row,) = [row for row in world.rows("identities", "list") if row["name"] == identity]
    assert [(each["id"], each["kind"]) for each in row["credentials"]][1:] == [(f"{name}-1", "key")]
    for bad in ({"keys": [good | {"kid": "x", "d": "AAAA"}]}, {"keys": [{"kty": "oct", "kid": "x", "k": "AAAA"}]}, {}):
        file.write_text(json.dumps(bad))
        done = world.tollgate("identities", "rotate", identity, "--jwks", str(file), code=None)
        assert done.returncode in {FAILED, USAGE}
    assert "AAAA" not in json.dumps(world.rows("identities", "list"))


# ── T-05 ──


def test_a_disabled_identitys_tokens_are_dead_letters_and_anothers_pass(world, name):
    ci, ann = f"svc:{name}", f"u:{name}"
    tokens = {
        each: issue(world, each, new_identity(world, each, f"{name}-{each[0]}"), "--uses", "many") for each in (ci, ann)
    }
    for each in (ci, ann):
        assert world.present_one(plain(tokens[each])).verdict == "accepted"
    world.tollgate("identities", "disable", ci)
    refused = world.until("identity_disabled", lambda: plain(tokens[ci]))
    assert refused.stage == "verify"
    assert world.present_one(plain(tokens[ann])).verdict == "accepted"
    world.tollgate("identities", "enable", ci)
    world.until("accepted", lambda: plain(tokens[ci]))
    mine = world.rows("audit", "--identity", ci)
    assert {row["subject"] for row in mine} == {ci}
    every = [row for row in world.rows("audit") if row["subject"] == ci]
    assert sorted(row["trigger_id"] for row in mine) == sorted(row["trigger_id"] for row in every)
    assert {row["reason"] for row in mine} == {None, "identity_disabled"}


@pytest.mark.parametrize("how", [("rotate", "--revoke-tokens"), ("disable", "--revoke-tokens"), ("remove",)])
def test_whoever_ends_an_identitys_tokens_ends_them_all_at_once(world, name, how):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    token = issue(world, identity, secret, "--uses", "many")
    world.until("accepted", lambda: plain(token))
    world.tollgate("identities", how[0], identity, *how[1:])
    expected = "identity_disabled" if how[0] == "disable" else "token_revoked"
    world.until(expected, lambda: plain(token))
    assert issue(world, identity, secret, code=NOT_ALLOWED)
    if how[0] == "disable":
        world.tollgate("identities", "enable", identity)
        world.until("token_revoked", lambda: plain(token))
    if how[0] == "remove":
        assert identity not in {row["name"] for row in world.rows("identities", "list")}
        world.tollgate("identities", "remove", identity, code=NOTHING)


def test_a_disabled_identity_is_refused_new_tokens(world, name):
    identity = f"svc:{name}"
    secret = new_identity(world, identity, name)
    world.tollgate("identities", "disable", identity)
    assert "identity_disabled" in issue(world, identity, secret, code=NOT_ALLOWED)
    world.apply("identities", f'[identities."{identity}"]\nroles = ["{name}"]\n')
    assert "identity_disabled" in issue(world, identity, secret, code=NOT_ALLOWED), "a file enables nobody"


# ── A-11 ──


def test_an_outstanding_token_obeys_a_rule_at_once_and_deny_wins(world, name):
    subject = f"service:{name}"
    token = world.ours.token(NIGHTLY, "many", sub=subject)
    assert world.present_one(plain(token)).verdict == "accepted"
    rule(world, f"allow-{name}", effect="allow", identities=[subject], jobs=[OTHER])
    world.until("not_allowed_by_rule", lambda: plain(token))
    rule(world, f"allow-{name}", effect="allow", identities=[subject], jobs=["rows/*"])
    world.until("accepted", lambda: plain(token))
    rule(world, f"deny-{name}", effect="deny", identities=[subject], jobs=[NIGHTLY], reason="a freeze")
    refused = world.until("denied_by_rule", lambda: plain(token))
    assert refused.stage == "authorize"
    assert f"deny-{name}: a freeze" in refused.dead_letter.detail
    world.tollgate("policy", "remove", f"rules.deny-{name}")
    world.until("accepted", lambda: plain(token))


@pytest.mark.parametrize("by", ["jtis", "identities", "hosts", "issuers"])
def test_a_rule_denies_by_what_it_names_and_leaves_others_alone(world, name, by):
    subject = f"host:{name}" if by == "hosts" else f"service:{name}"
    jti = secrets.token_hex(16)
    token = world.ours.token(THIRD, "many", sub=subject, jti=jti)
    other = world.ours.token(THIRD, "many", sub="service:other")
    selected = {"jtis": [jti], "identities": [subject], "hosts": [name], "issuers": [OURS]}
    narrowed = {"identities": [subject]} if by == "issuers" else {}
    rule(world, name, effect="deny", **{by: selected[by]}, **narrowed)
    world.until("denied_by_rule", lambda: plain(token, THIRD))
    assert world.present_one(plain(other, THIRD)).verdict == "accepted"
    assert name in {row["name"] for row in world.rows("policy", "show")}
    world.tollgate("policy", "remove", f"rules.{name}")
    world.until("accepted", lambda: plain(token, THIRD))


def test_a_class_is_denied_for_one_job(world, name):
    token = world.ours.token(THIRD, "many")
    rule(world, name, effect="deny", classes=["trigger"], jobs=[THIRD])
    world.until("denied_by_rule", lambda: plain(token, THIRD))
    assert world.present_one(plain(world.ours.token())).verdict == "accepted"
    world.tollgate("policy", "remove", f"rules.{name}")
    world.until("accepted", lambda: plain(token, THIRD))


# ── M-01, as far as a topic shows it ──


@pytest.mark.parametrize("typ", ["user+jwt", "host+jwt", "execution+jwt", "task+jwt"])
def test_a_class_never_works_in_anothers_place(world, typ):
    outcome = world.present_one(plain(world.ours.token(header={"typ": typ})))
    assert (outcome.verdict, outcome.stage) == ("wrong_client_class", "verify")
