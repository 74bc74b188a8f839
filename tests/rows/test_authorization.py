"""Rows A: a token that is good may still not start this job."""

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.issuers import OURS, PARTNER_ORG, Issuer
from tests.rows.jobs import DISABLED, FORBIDDEN, NIGHTLY, OTHER, UNREGISTERED
from tests.rows.triggers import plain
from tests.support.jose import ABSENT

# ── A-01 ──


def test_a_token_for_one_job_does_not_start_another(world):
    outcome = world.present_one(plain(world.ours.token(NIGHTLY), OTHER))
    assert (outcome.verdict, outcome.stage) == ("job_not_authorized", "authorize")
    assert OTHER in outcome.dead_letter.detail
    assert outcome.dead_letter.headers["tollgate-reason"] == "job_not_authorized"


@pytest.mark.parametrize("actions", [["106-Read"], [], ["106-trigger"], ABSENT, ["106-Trigger "]])
def test_a_grant_without_the_trigger_permission_starts_nothing(world, actions):
    outcome = world.present_one(plain(world.ours.token(grant={"actions": actions})))
    assert (outcome.verdict, outcome.stage) == ("permission_missing", "authorize")


def test_a_grant_with_job_and_permission_starts_the_job(world):
    token = world.ours.token(grant={"actions": ["106-Read", "106-Trigger"]})
    started = world.present_one(plain(token))
    assert started.verdict == "accepted"
    assert started.job["job"] == NIGHTLY


# ── A-02 ──


def test_two_tokens_of_one_identity_open_each_what_it_grants(world):
    first, second = world.ours.token(NIGHTLY, "many"), world.ours.token(OTHER, "many")
    outcomes = world.present(plain(first), plain(first, OTHER), plain(second), plain(second, OTHER))
    assert [outcome.verdict for outcome in outcomes] == [
        "accepted", "job_not_authorized", "job_not_authorized", "accepted",
    ]  # fmt: skip


def test_taking_back_one_token_of_an_identity_does_not_touch_the_other(world):
    first, second = world.ours.token(NIGHTLY, "many"), world.ours.token(NIGHTLY, "many")
    world.tollgate("token", "revoke", "--token-file", "-", stdin=first)
    world.until("token_revoked", lambda: plain(first))
    assert world.present_one(plain(second)).verdict == "accepted"


# ── A-03 ──


def test_each_refusal_says_at_which_stage_and_why(world):
    now_s = int(time.time())
    past = {"iat": now_s - 900, "nbf": now_s - 900, "exp": now_s - 300}
    token = world.ours.token()
    assert world.present_one(plain(token, params={"n": 1})).verdict == "accepted"
    cases = {
        "nothing to verify": (plain("", NIGHTLY), "parse", "token_missing"),
        "no job and not even a token": (plain(token, NIGHTLY, surplus=1), "parse", "envelope_malformed"),
        "an expired token for a forbidden job": (plain(world.ours.token(**past), FORBIDDEN), "verify", "token_expired"),
        "an expired token for no job at all": (plain(world.ours.token(**past), "no/such"), "verify", "token_expired"),
        "an expired token that was used": (plain(world.ours.token(**past)), "verify", "token_expired"),
        "a job that is not granted": (plain(world.ours.token(), FORBIDDEN), "authorize", "job_not_authorized"),
        "a job that is neither granted nor there": (
            plain(world.ours.token(), UNREGISTERED), "authorize", "job_not_authorized",
        ),
        "a used token for another request": (plain(token, params={"n": 2}), "dedupe", "token_already_used"),
    }  # fmt: skip
    outcomes = world.present(*(trigger for trigger, *_ in cases.values()))
    for (what, (_, stage, reason)), outcome in zip(cases.items(), outcomes, strict=True):
        assert (outcome.stage, outcome.verdict) == (stage, reason), what
        assert (outcome.dead_letter.stage, outcome.dead_letter.reason) == (stage, reason), what


# ── A-07 ──

NO_JOBS = ("tollgate/keys", "token/revoke", "registry", "jobs/apply", "dead-letters/replay", "deployment/topics")


@pytest.mark.parametrize("job", NO_JOBS)
def test_no_trigger_reaches_the_system_itself(world, job):
    outcome = world.present_one(plain(world.ours.token([NIGHTLY, job], "many"), job))
    assert outcome.verdict == "job_not_authorized"


@pytest.mark.parametrize("action", ["issue", "revoke", "106-Issue", "*", "admin"])
def test_no_other_action_of_a_grant_is_worth_anything(world, action):
    assert world.present_one(plain(world.ours.token(grant={"actions": [action]}))).verdict == "permission_missing"


def test_who_holds_a_token_can_issue_no_other(world, tmp_path):
    held = {"TOLLGATE_TOKEN": world.issue(), "TOLLGATE_ISSUER__KEYS_DIR": str(tmp_path / "none")}
    done = world.tollgate("token", "issue", "--job", OTHER, "--ttl", "5m", code=1, env=held)
    assert not done.stdout
    made = Issuer(OURS, "my-own", ec.generate_private_key(ec.SECP256R1()), world.audience, "acme")
    named_alike = Issuer(OURS, world.ours.kid, made.private, world.audience, "acme")
    outcomes = world.present(plain(made.token()), plain(named_alike.token()))
    assert [outcome.verdict for outcome in outcomes] == ["kid_unknown", "signature_invalid"]


# ── A-12 ──


def test_a_perfect_token_starts_no_job_that_is_unregistered_disabled_or_beyond_its_issuers_rule(world):
    outcomes = world.present(
        *(plain(world.ours.token(job), job) for job in (UNREGISTERED, DISABLED, FORBIDDEN, NIGHTLY))
    )
    assert [outcome.verdict for outcome in outcomes] == [
        "job_unknown", "job_disabled", "job_not_authorized", "accepted",
    ]  # fmt: skip


def test_a_job_switched_off_and_on_again_follows_without_a_restart(world):
    job = "rows/switched"
    for enabled, verdict in (("true", "accepted"), ("false", "job_disabled"), ("true", "accepted")):
        world.apply("jobs", f'[jobs."{job}"]\nenabled = {enabled}\n')
        world.until(verdict, lambda: plain(world.ours.token(job), job))


# ── X-05 ──


def test_a_jobs_owner_says_who_may_start_it_and_the_audit_suggests_whom(world):
    job, stranger = "rows/listed", {"sub": "service:elsewhere"}
    world.apply("jobs", f'[jobs."{job}"]\n')
    started = world.until("accepted", lambda: plain(world.ours.token(job), job))
    suggested = world.tollgate("allowlist", "suggest", job).stdout
    assert f'{{ issuer = "{OURS}", subject = "{started.job["identity"]["subject"]}" }},' in suggested
    assert [row["issuer"] for row in world.rows("allowlist", "suggest", job)] == [OURS]
    assert world.tollgate("allowlist", "suggest", "rows/never-started", code=5).stdout == ""
    world.apply("jobs", f'[jobs."{job}"]\n{suggested}')
    refused = world.until("not_on_allowlist", lambda: plain(world.ours.token(job, **stranger), job))
    assert refused.stage == "authorize"
    assert world.present_one(plain(world.ours.token(job), job)).verdict == "accepted"
    # Who is not on the list does not learn by its reason whether the job is switched on.
    world.apply("jobs", f'[jobs."{job}"]\nenabled = false\n{suggested}')
    world.until("job_disabled", lambda: plain(world.ours.token(job), job))
    assert world.present_one(plain(world.ours.token(job, **stranger), job)).verdict == "not_on_allowlist"


# ── A-13 ──


def test_a_token_speaks_only_for_the_organisation_of_its_issuers_rule(world):
    ours, partner = world.ours, world.partner
    cases = {
        "another organisation": (ours.token(org_id=PARTNER_ORG), "org_mismatch"),
        "no organisation": (ours.token(org_id=ABSENT), "org_missing"),
        "an empty one": (ours.token(org_id=""), "claim_malformed"),
        "the same in other letters": (ours.token(org_id="Acme"), "org_mismatch"),
        "a list of both": (ours.token(org_id=["acme", PARTNER_ORG]), "claim_malformed"),
        "the partner as us": (partner.token(org_id="acme"), "org_mismatch"),
        "the partner's key under our name": (partner.token(iss=OURS, org_id="acme"), "kid_unknown"),
        "the partner's key under our name and kid": (
            partner.token(iss=OURS, org_id="acme", header={"kid": ours.kid}), "signature_invalid",
        ),
        "our key under the partner's name": (ours.token(iss=partner.iss, org_id=PARTNER_ORG), "kid_unknown"),
        "the partner for itself": (partner.token(), "accepted"),
    }  # fmt: skip
    outcomes = world.present(*(plain(token) for token, _ in cases.values()))
    assert {what: outcome.verdict for what, outcome in zip(cases, outcomes, strict=True)} == {
        what: verdict for what, (_, verdict) in cases.items()
    }
    assert outcomes[-1].job["org_id"] == PARTNER_ORG
    assert "acme" not in json.dumps(outcomes[-1].receipt)
