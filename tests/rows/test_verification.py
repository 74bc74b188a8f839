"""Rows V: what a token must be before anything it says counts."""

import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.issuers import Issuer
from tests.rows.jobs import NIGHTLY
from tests.rows.triggers import Trigger, by_headers, plain
from tests.rows.world import World
from tests.support.jose import ABSENT
from tests.support.reader import read_topic

FULL = "TOLLGATE_ROWS_FULL" in os.environ  # the rows' own numbers; the table says which are reduced without it
FUZZED = 100_000 if FULL else 20_000
FUZZED_CLAIMS = 10_000 if FULL else 2_000
OTHER_GRACE_S = 10
FAULTS = Path(__file__).parent / "faults"
STRANGER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def other_world(broker, tmp_path_factory):
    """Another deployment: its grace is 10 s, and its gate's verifier fails while the file `break` exists."""
    directory = tmp_path_factory.mktemp("rows-other")
    with World(broker, directory, lanes=1, gate__grace_s=str(OTHER_GRACE_S)) as founded:
        founded.env["PYTHONPATH"] = str(FAULTS)
        founded.env["ROWS_BREAK_VERIFIER"] = str(directory / "break")
        founded.start_gate(workers=1).wait_ready()
        yield founded


# ── V-01 ──


def test_garbage_a_stranger_and_an_expired_token_have_each_its_reason_and_leave_no_entry(world):
    now_s = int(time.time())
    stranger = Issuer("https://stranger.example", "k1", STRANGER, world.audience, "acme")
    cases = {
        "token_malformed": plain("garbage"),
        "issuer_untrusted": plain(stranger.token()),
        "signature_invalid": plain(world.ours.token(private=STRANGER)),
        "kid_unknown": plain(world.ours.token(header={"kid": "nobody-has-it"})),
        "token_expired": plain(world.ours.token(iat=now_s - 900, nbf=now_s - 900, exp=now_s - 300)),
    }
    before = read_topic(world.bootstrap, world.topic("idempotency")).ends
    outcomes = world.present(*cases.values())
    assert [outcome.verdict for outcome in outcomes] == list(cases)
    assert {outcome.stage for outcome in outcomes} == {"verify"}
    assert read_topic(world.bootstrap, world.topic("idempotency")).ends == before


# ── V-02 ──

# In the order in which the first thing wrong is named.
FIELDS = ("kid", "iss", "aud", "exp")
STATES = ("absent", "wrong type", "wrong value", "right")
CODES = {
    ("kid", "absent"): "kid_missing",
    ("kid", "wrong type"): "kid_malformed",
    ("iss", "absent"): "issuer_missing",
    ("iss", "wrong type"): "issuer_malformed",
    ("iss", "wrong value"): "issuer_untrusted",
    ("kid", "wrong value"): "kid_unknown",
    ("aud", "absent"): "audience_missing",
    ("aud", "wrong type"): "audience_malformed",
    ("aud", "wrong value"): "audience_mismatch",
    ("exp", "absent"): "ttl_missing",
    ("exp", "wrong type"): "expiry_malformed",
    ("exp", "wrong value"): "token_expired",
}
WRONG = {
    "kid": {"absent": ABSENT, "wrong type": 7, "wrong value": "another"},
    "iss": {"absent": ABSENT, "wrong type": ["https://issuer.rows.test"], "wrong value": "https://issuer.rows.tes"},
    "aud": {"absent": ABSENT, "wrong type": {"tollgate": 1}, "wrong value": "tollgate:another."},
    "exp": {"absent": ABSENT, "wrong type": "2100-01-01", "wrong value": -300},
}


def test_only_a_token_with_all_of_kid_iss_aud_and_exp_right_passes(world):
    now_s = int(time.time())
    expected, triggers = [], []
    for states in itertools.product(STATES, repeat=len(FIELDS)):
        state_of = dict(zip(FIELDS, states, strict=True))
        wrong = {name: WRONG[name][state] for name, state in state_of.items() if state != "right"}
        if isinstance(wrong.get("exp"), int):
            wrong["exp"] += now_s
        header = {"kid": wrong.pop("kid")} if "kid" in wrong else None
        triggers.append(plain(world.ours.token(header=header, iat=now_s - 600, nbf=now_s - 600, **wrong)))
        expected.append(next((code for (name, state), code in CODES.items() if state_of[name] == state), "accepted"))
    outcomes = world.present(*triggers)
    assert [outcome.verdict for outcome in outcomes] == expected
    assert len(expected) == 256
    assert expected.count("accepted") == 1
    assert set(expected) == {*CODES.values(), "accepted"}
    assert len(CODES) == len(set(CODES.values()))


# ── V-03 ──

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\x00é"


def mutated(token, dice):
    """The token with one to four edits; never the token itself."""
    text = token
    while text.strip(" ") in (token, ""):  # spaces before a token belong to the header it stands in
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(text) + 1)
            more = dice.choice(ALPHABET)
            text = dice.choice(
                (
                    text[:at] + more + text[at + 1 :],
                    text[:at] + more + text[at:],
                    text[:at] + text[at + 1 :],
                    text[:at],
                    text[at:] + text[:at],
                    ".".join(dice.sample(text.split("."), text.count(".") + 1)),
                    text[:at] + text[at : at + 8].swapcase() + text[at + 8 :],
                    text + text[at:],
                )
            )
    return text


def test_no_mutated_token_is_accepted_and_each_has_its_dead_letter_and_receipt(world):
    dice = random.Random(3)
    token = world.ours.token(uses="many")
    outcomes = world.outcomes(
        world.send_all(
            plain(mutated(token, dice)) if dice.random() < 0.7 else by_headers(mutated(token, dice))
            for _ in range(FUZZED)
        ),
        timeout_s=240,
    )
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts.keys().isdisjoint({"accepted", "duplicate", "internal_deny"}), verdicts
    assert sum(verdicts.values()) == FUZZED
    assert all(len(outcome.dead_letters) == 1 for outcome in outcomes)
    assert world.present_one(plain(token)).verdict == "accepted"


JUNK = (ABSENT, None, True, 0, -1, 1.5, 10**14, "", "x" * 5_000, "\u202e", [], [1], [[]], {}, {"a": 1}, "*", ["*"])
REQUIRED = ("iss", "aud", "sub", "org_id", "iat", "nbf", "exp", "jti", "uses", "authorization_details")
HARMLESS = {("sub", "*"), ("jti", "*")}  # texts are texts: the subject is judged by the trust rule, the jti by nobody


def test_no_signed_token_with_a_required_claim_missing_or_malformed_is_accepted(world):
    dice = random.Random(4)
    triggers = []
    while len(triggers) < FUZZED_CLAIMS:
        name, junk = dice.choice(REQUIRED), dice.choice(JUNK)
        if not (isinstance(junk, str) and (name, junk) in HARMLESS):
            triggers.append(plain(world.ours.token(**{"uses": dice.choice(("once", "many")), name: junk})))
    verdicts = Counter(outcome.verdict for outcome in world.present(*triggers))
    assert verdicts.keys().isdisjoint({"accepted", "duplicate", "internal_deny"}), verdicts


def test_a_verifier_that_fails_refuses_and_never_starts_a_job(other_world):
    broken = Path(other_world.env["ROWS_BREAK_VERIFIER"])
    token = other_world.ours.token()
    broken.touch()
    another = other_world.ours.token(uses="many")
    during = other_world.present(plain(token), plain(another))
    broken.unlink()
    for gate in other_world.gates:  # what an error of ours says of it holds no token (B16)
        assert not any(each.rpartition(".")[2] in gate.log() for each in (token, another))
    assert [outcome.verdict for outcome in during] == ["internal_deny", "internal_deny"]
    assert other_world.present_one(plain(token)).verdict == "accepted"


# ── V-04 ──


def _at_the_edge(world, grace_s):
    """Tokens around both ends of the grace; each is judged by the append time that the broker gave it."""
    now_s = int(time.time())
    asked = []
    for late_s in (1, grace_s - 4, grace_s - 1, grace_s, grace_s + 1, grace_s + 4):
        exp = now_s - late_s
        asked.append(({"iat": exp - 300, "nbf": exp - 300, "exp": exp}, "token_expired"))
    for early_s in (4, grace_s - 1, grace_s, grace_s + 1, grace_s + 4, grace_s + 30):
        nbf = now_s + early_s
        asked.append(({"nbf": nbf}, "token_not_yet_valid"))
        asked.append(({"iat": nbf, "nbf": now_s - 300}, "token_not_yet_valid"))
    outcomes = world.present(*(plain(world.ours.token(**claims)) for claims, _ in asked))
    seen = Counter()
    for (claims, code), outcome in zip(asked, outcomes, strict=True):
        appended_at_ms = (
            outcome.job["trigger"]["appended_at_ms"]
            if outcome.jobs
            else int(outcome.dead_letter.headers["tollgate-timestamp"])
        )
        exp, nbf = claims.get("exp", now_s + 600), max(claims.get("nbf", now_s), claims.get("iat", now_s))
        beyond = appended_at_ms > (exp + grace_s) * 1000 or nbf * 1000 > appended_at_ms + grace_s * 1000
        assert outcome.verdict == (code if beyond else "accepted"), (claims, appended_at_ms)
        if not beyond:
            out_of_time = appended_at_ms > exp * 1000 or nbf * 1000 > appended_at_ms
            assert outcome.audit[0]["within_grace"] is out_of_time
        seen[outcome.verdict] += 1
    assert min(seen["accepted"], seen["token_expired"], seen["token_not_yet_valid"]) >= 2, seen


def test_a_token_is_good_up_to_sixty_seconds_out_of_its_time_by_the_brokers_clock(world):
    _at_the_edge(world, 60)


def test_one_setting_moves_both_ends_of_the_grace(other_world):
    _at_the_edge(other_world, OTHER_GRACE_S)


# ── V-06 (the vectors themselves: test_attacks_*) ──


def test_a_gate_does_not_start_with_a_weak_shared_secret(other_world, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"a" * 31)
    secret.chmod(0o600)
    done = other_world.tollgate(
        "gate",
        "--workers",
        "1",
        code=None,
        env={"TOLLGATE_GATE__INSECURE_DEV_HS256": str(secret), "TOLLGATE_TELEMETRY__PORT": "0"},
    )
    assert done.returncode == 2
    assert "holds 31 bytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_of_a_shared_secret_is_refused_where_none_is_configured(world):
    trigger = Trigger({"job": NIGHTLY, "token": world.ours.token(header={"alg": "HS256"})})
    assert world.present_one(trigger).verdict == "algorithm_not_allowed"
