"""Attacks on the claims and the class of a token (A11 to A16, A19): each vector has its verdict."""

import time

from tests.rows.attacks import check
from tests.rows.issuers import OURS, PARTNER
from tests.support.jose import ABSENT

NO_DATES = ["1700000000", True, 1.5, None, [1], {}, -1, 0]


def test_a11_times_are_whole_seconds(world):
    now_s = int(time.time())
    vectors = {
        f"exp {value!r}": (world.ours.token(exp=value), "expiry_malformed") for value in [*NO_DATES, float(now_s + 60)]
    }
    for name in ("nbf", "iat"):
        values = [*NO_DATES, ABSENT, float(now_s)]
        vectors |= {f"{name} {value!r:.20}": (world.ours.token(**{name: value}), "claim_malformed") for value in values}
    vectors |= {
        f"{name} 10^30": (world.ours.token(**{name: 10**30}), "token_json_malformed") for name in ("nbf", "iat")
    }
    vectors |= {
        "exp 10^30": (world.ours.token(exp=10**30), "token_json_malformed"),
        "exp 10^12": (world.ours.token(exp=10**12), "expiry_malformed"),
        "no exp": (world.ours.token(exp=ABSENT), "ttl_missing"),
        "too long": (world.ours.token(exp=now_s + 86_402, iat=now_s), "ttl_too_long"),
        "exp at nbf": (world.ours.token(nbf=now_s, exp=now_s), "claim_malformed"),
        "exp before iat": (world.ours.token(iat=now_s + 10, nbf=now_s - 10, exp=now_s), "claim_malformed"),
    }
    check(world, vectors)


def test_a12_a_token_is_out_of_its_time_beyond_the_grace(world):
    now_s = int(time.time())
    check(
        world,
        {
            "expired": (world.ours.token(iat=now_s - 600, nbf=now_s - 600, exp=now_s - 61), "token_expired"),
            "nbf to come": (world.ours.token(nbf=now_s + 300), "token_not_yet_valid"),
            "iat to come": (world.ours.token(iat=now_s + 300), "token_not_yet_valid"),
        },
    )


def test_a13_the_audience_is_this_deployment_alone(world):
    ours = world.audience
    other = [ours + "x", ours[:-1], ours.upper(), "", "tollgate:", "*", f" {ours}", [""], [ours + "x"]]
    malformed = [[ours, "another"], [ours, ours], {"aud": ours}, [1], [], None, 7, [ours] * 50]
    vectors = {f"aud {aud!r}": (world.ours.token(aud=aud), "audience_mismatch") for aud in other}
    vectors |= {f"aud {aud!r:.40}": (world.ours.token(aud=aud), "audience_malformed") for aud in malformed}
    vectors["1,000 audiences"] = (world.ours.token(aud=[ours] * 1_000), "token_too_large")
    vectors["no aud"] = (world.ours.token(aud=ABSENT), "audience_missing")
    vectors["a list of ours alone"] = (world.ours.token(aud=[ours]), "accepted")
    check(world, vectors)


def test_a14_an_issuer_is_known_by_its_exact_name(world):
    names = [
        OURS + "/",
        OURS[:-1],
        OURS + "x",
        OURS.upper(),
        OURS.replace("https", "http"),
        "null",
        f" {OURS}",
        "https://\uff49ssuer.rows.test",
    ]
    vectors = {f"iss {name}": (world.ours.token(iss=name), "issuer_untrusted") for name in names}
    vectors |= {
        f"iss {iss!r}": (world.ours.token(iss=iss), "issuer_malformed") for iss in ("", None, 1, [OURS], {"iss": OURS})
    }
    vectors |= {
        "no iss": (world.ours.token(iss=ABSENT), "issuer_missing"),
        "our kid, the partner's name": (world.ours.token(iss=PARTNER), "kid_unknown"),
        "the partner's kid and name, our key": (
            world.ours.token(iss=PARTNER, header={"kid": world.partner.kid}), "signature_invalid",
        ),
    }  # fmt: skip
    check(world, vectors)


def test_a15_a_class_is_never_accepted_in_anothers_place(world):
    kinds = [ABSENT, None, "", 1, ["trigger+jwt"], "JWT", "jwt", "at+jwt", "logout+jwt", "TRIGGER+JWT", "application/trigger+jwt", "trigger+jwt ", "trigger"]  # fmt: skip
    check(world, {f"typ {typ!r}": (world.ours.token(header={"typ": typ}), "token_type_invalid") for typ in kinds})
    classes = ["user+jwt", "host+jwt", "execution+jwt", "task+jwt"]
    check(world, {f"typ {typ!r}": (world.ours.token(header={"typ": typ}), "wrong_client_class") for typ in classes})


def test_a16_a_token_is_measured_before_it_is_decoded(world):
    sized = "token_too_large"
    check(
        world,
        {
            "header over 1 KiB": (world.ours.token(header={"x": "y" * 1_100}), sized),
            "claims over 4 KiB": (world.ours.token(x="y" * 4_200), sized),
            "over 8 KiB": ("x" * 8_193, sized),
            "900 KB of dots": ("." * 900_000, sized),
            "900 KB of a token": (world.ours.token() + "A" * 900_000, sized),
            "900 KB of three parts": (f"{'A' * 300_000}.{'A' * 300_000}.{'A' * 300_000}", sized),
            "claims just within": (world.ours.token(x="y" * 3_000), "accepted"),
        },
    )


def test_a19_a_jti_is_a_short_text(world):
    vectors = {
        f"jti {jti!r:.20}": (world.ours.token(jti=jti), "claim_malformed")
        for jti in ("", "x" * 129, 7, None, ["x"], "a\nb")
    }
    vectors["jti of 10 KB"] = (world.ours.token(jti="x" * 10_240), "token_too_large")
    vectors["no jti"] = (world.ours.token(jti=ABSENT), "jti_required")
    check(world, vectors)
