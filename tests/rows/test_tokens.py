"""Rows T: what a token is, who may make which, and what it opens."""

import json
import shutil
import time
from collections import Counter
from datetime import datetime

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.issuers import ORG, SUBJECT, Issuer
from tests.rows.jobs import DEFAULTED, NIGHTLY, OTHER, SENSITIVE, THIRD, TOKEN_WINS
from tests.rows.triggers import Trigger, by_headers, plain
from tests.support.jose import ABSENT, b64, claims_of, public_jwk

DAY_S = 86_400
USAGE, NOT_ALLOWED = 2, 4


# ── T-01 ──


def test_an_issued_token_names_job_params_and_expiry_and_starts_that_job(world):
    token = world.tollgate("token", "issue", "--job", NIGHTLY, "--param", "region=eu", "--ttl", "300").stdout.strip()
    claims = claims_of(token)
    (grant,) = claims["authorization_details"]
    assert grant["jobs"] == [NIGHTLY]
    assert grant["params"] == {"region": "eu"}
    assert claims["exp"] == claims["iat"] + 300
    assert abs(claims["iat"] - time.time()) < DAY_S
    started = world.present_one(plain(token, job=None))
    assert started.verdict == "accepted"
    assert (started.job["job"], started.params) == (NIGHTLY, {"region": "eu"})


# ── T-02 ──


def test_ten_thousand_tokens_have_distinct_and_random_ids(world):
    tokens = world.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--count", "10000").stdout.split()
    ids = [claims_of(token)["jti"] for token in tokens]
    assert len(set(ids)) == len(set(tokens)) == 10_000
    numbers = [int(jti, 16) for jti in ids]
    assert {len(jti) for jti in ids} == {32}  # 128 bits
    for bit in range(128):  # each of them is a coin: 5,000 ± 8 standard deviations
        assert 4_600 < sum(number >> bit & 1 for number in numbers) < 5_400, bit


def test_a_token_with_any_one_byte_flipped_starts_nothing_and_the_token_is_still_good(world):
    token = world.issue()
    as_bytes = token.encode()
    flipped = [
        as_bytes[:at] + bytes([as_bytes[at] ^ mask]) + as_bytes[at + 1 :]
        for at in range(len(as_bytes))
        for mask in (0x01, 0x20, 0x80)
    ]
    outcomes = world.present(
        *(Trigger({}, [("authorization", b"Bearer " + bad), ("tollgate-job", NIGHTLY)]) for bad in flipped)
    )
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts.keys().isdisjoint({"accepted", "duplicate", "internal_deny"}), verdicts
    assert len(outcomes) == 3 * len(token)
    assert world.present_one(by_headers(token)).verdict == "accepted"


# ── T-04 ──


def test_an_emitter_goes_on_after_all_local_state_is_deleted_and_every_gate_restarted(world):
    webhook = world.ours.token(uses="many")
    before = world.present_one(plain(webhook, idempotency_key="before"))
    (gate,) = world.gates
    gate.stop()
    shutil.rmtree(gate.state_dir)
    gate.start().wait_ready()
    after, again = world.present(plain(webhook, idempotency_key="after"), plain(webhook, idempotency_key="before"))
    assert (before.verdict, after.verdict, again.verdict) == ("accepted", "accepted", "duplicate")
    assert again.run_id == before.run_id


# ── T-09, T-10 ──


def test_a_correctly_signed_token_without_kid_is_refused(world):
    outcome = world.present_one(plain(world.ours.token(header={"kid": ABSENT})))
    assert (outcome.verdict, outcome.stage) == ("kid_missing", "verify")


@pytest.mark.parametrize("uses", ["once", "many"])
def test_what_is_minted_carries_kid_iat_and_jti(world, uses):
    token = world.issue(NIGHTLY, "--uses", uses)
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": world.ours.kid, "typ": "trigger+jwt"}
    claims = claims_of(token)
    assert isinstance(claims["iat"], int)
    assert len(claims["jti"]) == 32


@pytest.mark.parametrize("uses", ["once", "many"])
def test_a_token_without_jti_is_refused(world, uses):
    assert world.present_one(plain(world.ours.token(uses=uses, jti=ABSENT))).verdict == "jti_required"


# ── T-12 ──

TOO_LONG = [
    ("once", ("--ttl", "24h"), 0),
    ("once", ("--ttl", "86401"), NOT_ALLOWED),
    ("many", ("--ttl", "90d"), 0),
    ("many", ("--ttl", "7776001"), NOT_ALLOWED),
    ("once", (), USAGE),
    ("many", (), USAGE),
]


@pytest.mark.parametrize(("uses", "lifetime", "code"), TOO_LONG)
def test_the_issuer_refuses_a_lifetime_that_is_missing_or_above_the_cap(world, uses, lifetime, code):
    done = world.tollgate("token", "issue", "--job", NIGHTLY, "--uses", uses, *lifetime, code=code)
    assert bool(done.stdout) is (code == 0)
    if code:
        assert ("ttl_too_long" if lifetime else "ttl_missing") in done.stderr


def test_the_gate_refuses_a_lifetime_that_is_missing_or_above_the_cap_whoever_signed_it(world):
    now_s = int(time.time())
    cases = {
        "ours once, a day": (world.ours, "once", DAY_S, "accepted"),
        "ours once, a day and a second": (world.ours, "once", DAY_S + 1, "ttl_too_long"),
        "ours many, 90 days": (world.ours, "many", 90 * DAY_S, "accepted"),
        "ours many, 90 days and a second": (world.ours, "many", 90 * DAY_S + 1, "ttl_too_long"),
        "partner, its rule's hour": (world.partner, "many", 3600, "accepted"),
        "partner, a second more": (world.partner, "many", 3601, "ttl_too_long"),
    }
    outcomes = world.present(
        *(plain(who.token(uses=uses, iat=now_s, exp=now_s + ttl_s)) for who, uses, ttl_s, _ in cases.values()),
        plain(world.ours.token(exp=ABSENT)),
        plain(world.ours.token(uses="many", exp=ABSENT)),
    )
    assert [outcome.verdict for outcome in outcomes] == [
        *(verdict for *_, verdict in cases.values()), "ttl_missing", "ttl_missing",
    ]  # fmt: skip


# ── T-13 ──

SECRETS = ["db_password=x", "apiKey=x", 'db:={"passphrase":"x"}', "note=-----BEGIN PRIVATE KEY-----"]


@pytest.mark.parametrize("param", SECRETS)
def test_the_issuer_puts_no_secret_into_a_token(world, param):
    done = world.tollgate("token", "issue", "--job", NIGHTLY, "--ttl", "5m", "--param", param, code=NOT_ALLOWED)
    assert not done.stdout
    assert "secret_in_clear" in done.stderr


def test_a_signed_token_that_carries_a_secret_in_clear_is_refused(world):
    inner = world.ours.token()
    outcomes = world.present(
        plain(world.ours.token(SENSITIVE, grant={"params": {"db_password": "x"}}), SENSITIVE),
        plain(world.ours.token(SENSITIVE, grant={"params": {"table": "users"}}), SENSITIVE),
        plain(world.ours.token(grant={"params": {"note": inner}})),
        plain(world.ours.token(), params={"note": inner}),
        plain(world.ours.token(), params={"note": "ref:" + "a" * 20}),
    )
    assert [outcome.verdict for outcome in outcomes] == [
        "secret_in_token", "accepted", "grant_malformed", "token_in_params", "token_in_params",
    ]  # fmt: skip
    assert "db_password" not in json.dumps(outcomes[0].receipt) or outcomes[0].receipt["detail"] == "db_password"


# ── T-14 ──


@pytest.mark.parametrize("jobs", [("--job", "*"), ("--job", "rows/*"), ("--job", "rows/n?ghtly"), ()])
def test_the_issuer_makes_no_token_for_any_job(world, jobs):
    done = world.tollgate("token", "issue", *jobs, "--ttl", "5m", code=NOT_ALLOWED if jobs else USAGE)
    assert not done.stdout
    assert "scope_too_broad" in done.stderr


@pytest.mark.parametrize(
    ("uses", "jobs"),
    [("many", ["*"]), ("many", ["rows/*"]), ("many", []), ("many", [NIGHTLY, "*"]), ("many", ABSENT), ("once", ["*"]),
     ("once", [NIGHTLY, OTHER])],
)  # fmt: skip
def test_a_signed_token_for_any_job_starts_none(world, uses, jobs):
    outcome = world.present_one(plain(world.ours.token(uses=uses, grant={"jobs": jobs})))
    assert (outcome.verdict, outcome.stage) == ("scope_too_broad", "authorize")


def test_a_token_for_two_jobs_starts_those_two_only(world):
    both = world.ours.token([NIGHTLY, OTHER], "many")
    outcomes = world.present(plain(both, NIGHTLY), plain(both, OTHER), plain(both, THIRD), plain(both, None))
    assert [outcome.verdict for outcome in outcomes] == ["accepted", "accepted", "job_not_authorized", "job_missing"]


# ── T-15 ──

SPELLINGS = {
    "plain": b'{"env":"dev"}',
    "escaped": rb'{"\u0065nv":"dev"}',
    "the value escaped": rb'{"env":"d\u0065v"}',
    "fullwidth": '{"\uff45\uff4e\uff56":"dev"}'.encode(),
    "mathematical": '{"\U0001d41e\U0001d427\U0001d42f":"dev"}'.encode(),
    "nested": b'{"env":{"name":"dev"}}',
    "another type": b'{"env":["dev"]}',
    "null": b'{"env":null}',
}
TWICE = {
    "twice": b'{"env":"prod","env":"dev"}',
    "twice, once escaped": rb'{"env":"prod","\u0065nv":"dev"}',
    "twice, the other way round": b'{"env":"dev","env":"prod"}',
}


def _fixed_to_prod(world, job, payload):
    return by_headers(world.ours.token(job, grant={"params": {"env": "prod"}}), job)._replace(value=payload)


@pytest.mark.parametrize("payload", SPELLINGS.values(), ids=SPELLINGS)
def test_what_a_token_fixes_is_never_what_the_payload_says(world, payload):
    refused, won = world.present(_fixed_to_prod(world, NIGHTLY, payload), _fixed_to_prod(world, TOKEN_WINS, payload))
    assert refused.verdict == "param_conflict"
    assert won.verdict == "accepted"
    assert won.params == {"env": "prod"}


@pytest.mark.parametrize("payload", TWICE.values(), ids=TWICE)
@pytest.mark.parametrize("job", [NIGHTLY, TOKEN_WINS])
def test_a_parameter_named_twice_is_refused(world, job, payload):
    assert world.present_one(_fixed_to_prod(world, job, payload)).verdict == "json_duplicate_member"


@pytest.mark.parametrize("job", [NIGHTLY, TOKEN_WINS, DEFAULTED])
def test_an_equal_value_is_no_conflict_and_a_missing_one_is_filled_in(world, job):
    same, missing = world.present(
        _fixed_to_prod(world, job, rb'{"env":"pro\u0064","x":1}'), _fixed_to_prod(world, job, b'{"x":1}')
    )
    for outcome in (same, missing):
        assert outcome.verdict == "accepted"
        assert outcome.params | {"env": "prod", "x": 1} == outcome.params


# ── T-20 ──


def test_a_webhook_token_is_accepted_a_thousand_times_until_it_is_revoked(world):
    subject = "service:webhook-of-a-partner"
    token = world.issue(THIRD, "--uses", "many", "--subject", subject)
    jti = claims_of(token)["jti"]
    outcomes = world.present(*(plain(token, THIRD, idempotency_key=f"event-{number}") for number in range(1_000)))
    assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": 1_000}
    assert len({outcome.run_id for outcome in outcomes}) == 1_000
    counted = world.rows("audit", "--identity", subject, "--outcome", "accepted")
    assert [presented["jti"] for presented in counted] == [jti] * 1_000
    assert {presented["run_id"] for presented in counted} == {outcome.run_id for outcome in outcomes}
    inspected = inspect(world, token)
    assert (inspected["use_count"], inspected["duplicates"], inspected["rejected"]) == (1_000, 0, 0)
    last_used_s = datetime.fromisoformat(inspected["last_used"]).timestamp()
    assert max(outcome.job["accepted_at_ms"] for outcome in outcomes) // 1_000 <= last_used_s <= time.time()
    world.tollgate("token", "revoke", "--jti", jti)
    refused = world.until("token_revoked", lambda: plain(token, THIRD))
    assert world.present_one(plain(world.issue(THIRD), THIRD)).verdict == "accepted"
    presented = [row for row in world.rows("audit", "--identity", subject) if row["outcome"] != "accepted"]
    assert refused.trigger_id in {row["trigger_id"] for row in presented}
    again = inspect(world, token)
    uses = Counter(row["outcome"] for row in world.rows("audit", "--identity", subject))
    assert (again["use_count"], again["rejected"]) == (uses["accepted"], uses["rejected"])
    assert subject != SUBJECT


def test_a_tokens_uses_are_its_own_and_are_counted_of_a_handle_too(world):
    token, other = world.issue(THIRD, "--uses", "many"), world.issue(THIRD, "--uses", "many")
    assert [inspect(world, token)[name] for name in ("use_count", "last_used")] == [0, None]
    same = plain(token, THIRD, idempotency_key="the same")
    verdicts = [each.verdict for each in world.present_in_turn(same, same, plain(other, THIRD), plain(token, OTHER))]
    assert verdicts == ["accepted", "duplicate", "accepted", "job_not_authorized"]
    seen = inspect(world, token)
    assert [seen[name] for name in ("use_count", "duplicates", "rejected")] == [1, 1, 1]
    handle = world.issue(THIRD, "--uses", "many", "--reference")
    assert world.present_one(plain(handle, THIRD)).verdict == "accepted"
    assert inspect(world, handle)["use_count"] == 1


def test_a_token_is_inspected_without_kafka_and_says_that_its_uses_are_not_known(world):
    token = world.issue(THIRD, "--uses", "many")
    unknown = dict.fromkeys(("use_count", "duplicates", "rejected", "last_used"))
    nowhere = {"TOLLGATE_KAFKA__BOOTSTRAP": "127.0.0.1:1"}
    for words, told in (((), True), (("--no-uses",), False)):
        said = world.tollgate("token", "inspect", "--token-file", "-", "-o", "jsonl", *words, stdin=token, env=nowhere)
        row = json.loads(said.stdout)
        assert row["unverified_claims"] == claims_of(token)
        assert {name: row[name] for name in unknown} == unknown
        assert ("its uses are not known" in said.stderr) is told


def inspect(world, token):
    return json.loads(world.tollgate("token", "inspect", "--token-file", "-", "-o", "jsonl", stdin=token).stdout)


# ── T-21 ──


def test_an_emitter_signs_its_own_tokens_for_its_own_jobs_and_as_nobody_else(world, tmp_path):
    made = {}
    for name, kid, job in (("emitter:a", "a-1", NIGHTLY), ("emitter:b", "b-1", OTHER)):
        made[name] = Issuer(name, kid, ec.generate_private_key(ec.SECP256R1()), world.audience, ORG)
        file = tmp_path / f"{kid}.json"
        file.write_text(json.dumps({"keys": [public_jwk(kid, made[name].private)]}))
        world.tollgate("trust", "register", name, "--jwks", str(file), "--job", job, "--org", ORG)
        file.unlink()  # the rule has them
    a, b = made.values()

    def own(issuer, job, **claims):
        return plain(issuer.token(job, **({"sub": issuer.iss} | claims)), job)

    world.until("accepted", lambda: own(a, NIGHTLY))
    world.until("accepted", lambda: own(b, OTHER))
    cases = {
        "another's job": (own(a, OTHER), "job_not_authorized"),
        "as the other": (own(a, NIGHTLY, sub="emitter:b"), "subject_not_allowed"),
        "the other's name": (own(a, OTHER, iss="emitter:b", sub="emitter:b"), "kid_unknown"),
        "the other's name and kid": (
            plain(a.token(OTHER, header={"kid": "b-1"}, iss="emitter:b", sub="emitter:b"), OTHER), "signature_invalid",
        ),
        "another organisation": (own(a, NIGHTLY, org_id="globex"), "org_mismatch"),
        "for longer than it may": (own(a, NIGHTLY, exp=int(time.time()) + 2 * DAY_S), "ttl_too_long"),
    }  # fmt: skip
    found = world.present(*(trigger for trigger, _ in cases.values()))
    assert {name: each.verdict for name, each in zip(cases, found, strict=True)} == {
        name: verdict for name, (_, verdict) in cases.items()
    }
    world.tollgate("trust", "remove", "emitter:a")
    world.until("issuer_untrusted", lambda: own(a, NIGHTLY))
    assert world.present_one(own(b, OTHER)).verdict == "accepted"
    assert "emitter:a" not in {row["issuer"] for row in world.rows("trust", "list")}
    world.tollgate("trust", "remove", "emitter:a", code=5)


def test_a_registered_set_with_a_private_key_or_without_a_usable_one_is_refused(world, tmp_path):
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = public_jwk("k-1", private)
    secret = b64(private.private_numbers().private_value.to_bytes(32, "big"))
    file = tmp_path / "jwks.json"
    for content in ({"keys": [jwk | {"d": secret}]}, {"keys": []}, {"keys": [jwk, jwk]}, [jwk], "not JSON"):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        done = world.tollgate("trust", "register", "emitter:c", "--jwks", str(file), "--job", NIGHTLY, code=None)
        assert done.returncode in {1, 2}
        assert "Traceback" not in done.stderr
        assert secret not in done.stdout + done.stderr
    assert "emitter:c" not in {row["issuer"] for row in world.rows("trust", "list")}
