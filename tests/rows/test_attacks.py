"""The attack table: each vector differs from a good trigger in one respect, and each has its verdict.

Vectors are records on the triggers topic, sent to a running gate by a client that is not ours.
"""

import hashlib
import hmac
import json
import socket
import struct
import time
from collections import Counter

import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.rows.world import (
    ABSENT,
    NIGHTLY,
    OTHER,
    OURS,
    PARTNER,
    Trigger,
    b64,
    by_headers,
    changed,
    plain,
    public_jwk,
    signed,
    unb64,
)
from tests.support.reader import read_topic

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
STRANGER = ec.generate_private_key(ec.SECP256R1())


def check(world, vectors):
    """`vectors`: what it is → (trigger or token, the verdict). All are sent at once; then a good one is accepted."""
    triggers = [each if isinstance(each, Trigger) else plain(each) for each, _ in vectors.values()]
    *outcomes, good = world.present(*triggers, plain(world.ours.token()))
    seen = {what: outcome.verdict for what, outcome in zip(vectors, outcomes, strict=True)}
    assert seen == {what: verdict for what, (_, verdict) in vectors.items()}
    assert good.verdict == "accepted"
    for outcome in outcomes:
        if outcome.stage in ("parse", "verify") and outcome.audit[0]["subject"] is None:
            assert outcome.receipt["detail"] is None  # a stranger learns the code, and nothing more


def all_refused(code, **tokens):
    return {what: (token, code) for what, token in tokens.items()}


def hs256(header, claims, secret):
    message = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{message}.{b64(hmac.digest(secret, message.encode(), hashlib.sha256))}"


def resigned(token, signature):
    return f"{token.rpartition('.')[0]}.{b64(signature)}"


def raw_claims(world, **changes):
    return json.dumps(changed(world.ours.claims(), changes))


def with_claims(world, text):
    """Correctly signed, whatever the bytes."""
    return signed(
        json.dumps(world.ours.header).encode(), text if isinstance(text, bytes) else text.encode(), world.ours.private
    )


def with_header(world, text):
    return signed(text if isinstance(text, bytes) else text.encode(), raw_claims(world).encode(), world.ours.private)


# ── A1 to A5: the header ──


def test_a1_only_the_keys_own_algorithm_counts(world):
    algorithms = [
        "none",
        "None",
        "NONE",
        "noNE",
        ABSENT,
        ["ES256"],
        256,
        "es256",
        "ES384",
        "RS256",
        "EdDSA",
        "HS256",
        None,
    ]
    vectors = {f"alg {alg}": (world.ours.token(header={"alg": alg}), "algorithm_not_allowed") for alg in algorithms}
    good = world.ours.token(header={"alg": "none"})
    vectors["none, unsigned"] = (f"{good.rpartition('.')[0]}.", "token_malformed")
    check(world, vectors)


def test_a2_the_public_key_is_no_secret(world):
    public = world.ours.private.public_key()
    point = public.public_numbers()
    secrets = {
        "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": json.dumps(public_jwk(world.ours.kid, world.ours.private)).encode(),
        "x||y": point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"),
        "SSH": public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "nothing": b"",
    }
    claims, header = world.ours.claims(), world.ours.header
    vectors = {
        name: (hs256(header | {"alg": "HS256"}, claims, key), "algorithm_not_allowed") for name, key in secrets.items()
    }
    vectors |= {f"{name} as ES256": (hs256(header, claims, key), "signature_invalid") for name, key in secrets.items()}
    check(world, vectors)


@pytest.mark.parametrize("attack", ["a3", "a4"])
def test_a3_a4_a_header_holds_alg_kid_and_typ_only(world, attack):
    jwk = public_jwk(world.ours.kid, STRANGER)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    members = {
        "a3": {"jwk": jwk, "jku": f"{url}/jwks", "x5u": f"{url}/x", "x5c": ["AA=="], "x5t": "AA", "x5t#S256": "AA"},
        "a4": {"crit": ["exp"], "b64": False, "zip": "DEF", "cty": "JWT", "nonce": "x", "iss": OURS, "": ""},
    }[attack]
    vectors = {
        name: (world.ours.token(header={name: value}), "token_header_not_allowed") for name, value in members.items()
    }
    for crit in ([], "exp", ["alg"], None):
        vectors[f"crit {crit}"] = (world.ours.token(header={"crit": crit}), "token_header_not_allowed")
    vectors["signed by the key it brings"] = (
        world.ours.token(header={"jwk": jwk}, private=STRANGER), "token_header_not_allowed",
    )  # fmt: skip
    with listener:
        check(world, vectors)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came to look
            listener.accept()


def test_a5_a_kid_is_looked_up_and_nothing_else(world):
    unknown = [
        "../../dev/null",
        "' OR '1'='1",
        "|sleep 10",
        "http://127.0.0.1:1/",
        "$(reboot)",
        "${jndi:ldap://x}",
        "%s%n",
        "x" * 128,
    ]
    malformed = ["a\0b", "a\r\nb", "", "é", "x" * 129, 7, ["k"], {"k": 1}, None, True]
    vectors = {f"kid {kid!r:.20}": (world.ours.token(header={"kid": kid}), "kid_unknown") for kid in unknown}
    vectors |= {f"kid {kid!r:.20}": (world.ours.token(header={"kid": kid}), "kid_malformed") for kid in malformed}
    twice = f'{{"alg":"ES256","typ":"trigger+jwt","kid":"x","kid":"{world.ours.kid}"}}'
    vectors |= {
        "kid of 100 KB": (world.ours.token(header={"kid": "x" * 100_000}), "token_too_large"),
        "no kid": (world.ours.token(header={"kid": ABSENT}), "kid_missing"),
        "kid twice": (with_header(world, twice), "token_json_malformed"),
    }
    check(world, vectors)


# ── A6, A7, A8: the signature ──


def test_a6_a_token_is_three_parts(world):
    token = world.ours.token()
    header, claims, signature = token.split(".")
    in_json = {"payload": claims, "signatures": [{"protected": header, "signature": signature}]}
    check(
        world,
        all_refused(
            "token_malformed", empty=f"{header}.{claims}.", one=header, two=f"{header}.{claims}", four=f"{token}.{signature}",
            five=f"{token}.{signature}.{signature}", no_header=f".{claims}.{signature}", no_claims=f"{header}..{signature}",
            dots="..", json=json.dumps(in_json), text="not a token",
        )
        | {
            "a signature of the word null": (f"{header}.{claims}.null", "signature_invalid"),
            "an object for a token": (Trigger({"job": NIGHTLY, "token": in_json}), "envelope_malformed"),
            "no token": (Trigger({"job": NIGHTLY}), "token_missing"),
        },
    )  # fmt: skip


def test_a7_a_signature_is_two_numbers_in_range_in_64_bytes(world):
    token = world.ours.token()
    good = unb64(token.rpartition(".")[2])
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    vectors = {}
    for odd in (0, 1, ORDER - 1, ORDER, ORDER + 1, 2**256 - 1):
        raw = odd.to_bytes(32, "big")
        vectors[f"r {odd:x}"] = resigned(token, raw + good[32:])
        vectors[f"s {odd:x}"] = resigned(token, good[:32] + raw)
        vectors[f"both {odd:x}"] = resigned(token, raw + raw)
    for size in (1, 32, 63, 65, 66, 96, 301):
        vectors[f"{size} bytes"] = resigned(token, (good * 5)[:size])
    vectors["DER"] = resigned(token, encode_dss_signature(r, s))
    vectors["r and s exchanged"] = resigned(token, good[32:] + good[:32])
    vectors["another token's"] = resigned(token, unb64(world.ours.token().rpartition(".")[2]))
    vectors["a stranger's"] = world.ours.token(private=STRANGER)
    check(world, {what: (bad, "signature_invalid") for what, bad in vectors.items()})


def twin(token):
    """The other valid signature of the same message: (r, n-s)."""
    signature = unb64(token.rpartition(".")[2])
    s = ORDER - int.from_bytes(signature[32:], "big")
    return resigned(token, signature[:32] + s.to_bytes(32, "big"))


def test_a8_the_twin_of_a_used_token_starts_nothing(world):
    token = world.ours.token()
    first, again, other = world.present_in_turn(
        plain(token, params={"n": 1}), plain(twin(token), params={"n": 1}), plain(twin(token), params={"n": 2})
    )
    assert (first.verdict, again.verdict, other.verdict) == ("accepted", "duplicate", "token_already_used")
    assert again.run_id == first.run_id
    assert first.audit[0]["token_fingerprint"] != again.audit[0]["token_fingerprint"]
    assert first.audit[0]["jti"] == again.audit[0]["jti"]


# ── A9, A10: the encoding ──


def test_a9_base64url_is_strict(world):
    token = world.ours.token()
    spare = token
    while spare == token:  # 64 bytes leave four spare bits in the last character
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        spare = token[:-1] + alphabet[alphabet.index(token[-1]) | 1]
    header, claims, signature = token.split(".")
    middles = {
        "header": len(header) // 2,
        "claims": len(header) + 1 + len(claims) // 2,
        "signature": len(token) - len(signature) // 2,
    }
    odd = [
        "=",
        "==",
        "+",
        "/",
        " ",
        "\r\n",
        "\n",
        "\t",
        "?",
        "\0",
        "\u00a0",
        "\u200b",
        "\uff25",
        "\u0435",
        "%2e",
        "\u2024",
    ]
    vectors = {
        f"{more!r} in the {part}": (token[:middle] + more + token[middle:], "token_malformed")
        for more in odd
        for part, middle in middles.items()
    }
    vectors |= {f"{more!r} at the end": (token + more, "token_malformed") for more in odd}
    vectors |= {f"{more!r} at the start": (more + token, "token_malformed") for more in odd}
    vectors["spare bits"] = (spare, "token_malformed")
    vectors["three characters more"] = (token + "AAA", "token_malformed")
    vectors["a byte more"] = (token + "A", "signature_invalid")  # 65 bytes, well encoded
    check(world, vectors)


def deep(levels):
    return "[" * levels + "]" * levels


def test_a10_claims_are_strict_json(world):
    good = raw_claims(world)
    body = good[1:]
    bad = {
        "aud twice": f'{{"aud":"x",{body}',
        "iss twice, once escaped": f'{{"\\u0069ss":"{OURS}",{body}',
        "NaN": f'{{"x":NaN,{body}', "Infinity": f'{{"x":-Infinity,{body}', "1e999": f'{{"x":1e999,{body}',
        "a lone surrogate": f'{{"x":"\\ud800",{body}', "too deep": f'{{"x":{deep(9)},{body}',
        "16 digits": f'{{"x":1234567890123456,{body}', "10^30": f'{{"x":1{"0" * 30},{body}',
        "a byte order mark": b"\xef\xbb\xbf" + good.encode(), "UTF-16": good.encode("utf-16"),
        "UTF-32": good.encode("utf-32"), "bad UTF-8": good.replace("acme", "\xff").encode("latin-1"),
        "a list": f"[{good}]", "a text": '"x"', "null": "null", "a number": "1", "two objects": good + good,
        "a comment": "/**/" + good, "a comma too many": good[:-1] + ",}", "single quotes": good.replace('"', "'"),
        "cut off": good[:-1],
    }  # fmt: skip
    header = json.dumps(world.ours.header)
    bad_headers = {
        "a list": f"[{header}]", "alg twice": '{"alg":"none",' + header[1:], "UTF-16": header.encode("utf-16"),
        "cut off": header[:-1], "null": "null",
    }  # fmt: skip
    vectors = {what: (with_claims(world, text), "token_json_malformed") for what, text in bad.items()}
    vectors |= {
        f"header: {what}": (with_header(world, text), "token_json_malformed") for what, text in bad_headers.items()
    }
    check(world, vectors)


RECORDS = {
    "empty": (b"", "json_malformed"),
    "null": (None, "value_missing"),
    "the word null": (b"null", "json_malformed"),
    "a list": (b"[]", "json_malformed"),
    "an open object": (b"{", "json_malformed"),
    "random bytes": (bytes(range(256)), "json_malformed"),
    "UTF-16": ('{"job":"x"}'.encode("utf-16"), "json_malformed"),
    "a byte order mark": (b'\xef\xbb\xbf{"job":"x"}', "json_malformed"),
    "bad UTF-8": (b'{"job":"\xff"}', "json_malformed"),
    "a lone surrogate": (rb'{"job":"\ud800"}', "json_malformed"),
    "NaN": (b'{"params":{"x":NaN}}', "json_malformed"),
    "a member twice": (b'{"job":"a","job":"a"}', "json_duplicate_member"),
    "a member twice, deeper": (b'{"params":{"a":{"b":1,"b":2}}}', "json_duplicate_member"),
    "too deep": (f'{{"params":{{"x":{deep(9)}}}}}'.encode(), "json_too_deep"),
    "100,000 deep": (deep(100_000).encode(), "json_malformed"),
    "16 digits": (b'{"params":{"x":1234567890123456}}', "json_number_unsafe"),
    "an unknown member": (b'{"surprise":1}', "envelope_malformed"),
    "params are a list": (b'{"params":[]}', "envelope_malformed"),
    "no token": (b"{}", "token_missing"),
}


def test_any_bytes_of_a_record_are_decided_and_the_next_good_trigger_at_once(world):
    refused = {what: (Trigger(value), verdict) for what, (value, verdict) in RECORDS.items()}
    triggers = [trigger for trigger, _ in refused.values()]
    *outcomes, good = world.present(*triggers, plain(world.ours.token()))
    seen = {what: outcome.verdict for what, outcome in zip(refused, outcomes, strict=True)}
    seen["100,000 deep"] = seen["100,000 deep"].replace("json_too_deep", "json_malformed")  # either is said of a list
    assert seen == {what: verdict for what, (_, verdict) in refused.items()}
    assert good.verdict == "accepted"


# ── A11 to A16, A19: the claims ──

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


def test_a17_a_storm_of_unknown_kids_is_refused_and_honest_triggers_pass(world):
    storm = [plain(world.ours.token(header={"kid": f"storm-{number}"})) for number in range(2_000)]
    honest = [plain(world.ours.token()) for _ in range(20)]
    outcomes = world.present(*storm[:1_000], *honest, *storm[1_000:])
    assert Counter(outcome.verdict for outcome in outcomes) == {"kid_unknown": 2_000, "accepted": 20}


def test_a19_a_jti_is_a_short_text(world):
    vectors = {
        f"jti {jti!r:.20}": (world.ours.token(jti=jti), "claim_malformed")
        for jti in ("", "x" * 129, 7, None, ["x"], "a\nb")
    }
    vectors["jti of 10 KB"] = (world.ours.token(jti="x" * 10_240), "token_too_large")
    vectors["no jti"] = (world.ours.token(jti=ABSENT), "jti_required")
    check(world, vectors)


# ── B: replays, squatters and ambiguity ──


def test_b1_b3_the_same_record_again_names_the_same_job_wherever_it_lands(world):
    trigger = by_headers(world.ours.token(), NIGHTLY, {"n": 1})
    first, *again = world.present_in_turn(*(trigger._replace(partition=lane, key=b"k") for lane in (0, 0, 1, 2, 3)))
    assert first.verdict == "accepted"
    assert [(outcome.verdict, outcome.run_id) for outcome in again] == [("duplicate", first.run_id)] * 4


def test_b2_a_token_for_another_deployment_opens_nothing_here(world):
    check(world, {"staging": (world.ours.token(aud="tollgate:staging."), "audience_mismatch")})


def test_b4_b5_a_captured_token_is_worth_nothing_for_another_request(world):
    token, with_key = world.ours.token(), world.ours.token(idempotency_key="captured")
    webhook = world.ours.token(uses="many", idempotency_key="captured-too")
    for each in (token, with_key, webhook):
        assert world.present_one(plain(each, params={"n": 1})).verdict == "accepted"
    check(
        world,
        {
            "a new key": (plain(token, params={"n": 1}, idempotency_key="new"), "idempotency_key_not_in_token"),
            "a new key beside the signed one": (
                plain(with_key, params={"n": 1}, idempotency_key="new"),
                "idempotency_key_conflict",
            ),
            "the same of a webhook": (
                plain(webhook, params={"n": 1}, idempotency_key="new"),
                "idempotency_key_conflict",
            ),
            "another payload": (plain(token, params={"n": 2}), "token_already_used"),
            "another payload under the signed key": (plain(with_key, params={"n": 2}), "token_already_used"),
            "another job": (plain(token, OTHER, {"n": 1}), "job_not_authorized"),
        },
    )


def test_b6_a_key_used_for_another_request_is_refused(world):
    first, other = world.present_in_turn(
        *(plain(world.ours.token(uses="many"), params={"n": number}, idempotency_key="b6") for number in (1, 2))
    )
    assert (first.verdict, other.verdict) == ("accepted", "idempotency_key_reused")
    assert other.dead_letter.headers["tollgate-first-run-id"] == first.run_id  # to its owner: the key is nobody else's


def test_b7_a_squatter_has_no_effect_on_the_victims_key(world):
    key = "the victim's"
    squats = world.present(
        plain(world.partner.token(uses="many"), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="service:squatter"), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", private=STRANGER), params={"n": 6}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="person:squatter"), params={"n": 6}, idempotency_key=key),
    )
    assert [each.verdict for each in squats] == ["accepted", "accepted", "signature_invalid", "subject_not_allowed"]
    victim = world.present_one(plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key=key))
    assert victim.verdict == "accepted"
    assert victim.run_id not in {each.run_id for each in squats}


def test_b8_keys_that_look_alike_are_different_keys(world):
    alike = ["b8", "B8", " b8", "b8 ", "é", "e\u0301", "a|b", "a:b", "a/b", "null", "0", "x" * 256]
    split = [("service:a", "bc"), ("service:ab", "c"), ("service:abc", "b8:"), ("service:a\u00e9", "b8")]
    outcomes = world.present(
        *(plain(world.ours.token(uses="many"), idempotency_key=key) for key in alike),
        *(plain(world.ours.token(uses="many", sub=subject), idempotency_key=key) for subject, key in split),
    )
    assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": len(alike) + len(split)}
    assert len({outcome.run_id for outcome in outcomes}) == len(outcomes)
    many = world.ours.token(uses="many")
    check(
        world,
        {
            f"key {key!r:.20}": (plain(many, idempotency_key=key), "idempotency_key_malformed")
            for key in ("", "x" * 10_240, 7, None, ["k"], "b8\0", "b8\n")
        },
    )


def test_b9_what_is_said_twice_is_refused_even_when_it_agrees(world):
    token, other = world.ours.token(uses="many"), world.ours.token(uses="many")
    bearer = ("authorization", f"Bearer {token}")
    job = ("tollgate-job", NIGHTLY)
    in_value = {"job": NIGHTLY, "token": token}
    check(
        world,
        {
            "the same token twice": (Trigger(in_value, [bearer]), "token_ambiguous"),
            "two tokens": (Trigger(in_value | {"token": other}, [bearer]), "token_ambiguous"),
            "two authorization headers": (
                Trigger({}, [bearer, ("authorization", f"Bearer {other}"), job]),
                "header_repeated",
            ),
            "in other letters": (Trigger({}, [bearer, ("Authorization", f"Bearer {token}"), job]), "header_repeated"),
            "two job headers": (Trigger({}, [bearer, job, job]), "header_repeated"),
            "two keys": (
                Trigger({}, [bearer, job, ("idempotency-key", "a"), ("idempotency-key", "a")]),
                "header_repeated",
            ),
            "job and subject disagree": (Trigger({}, [bearer, job, ("ce_subject", OTHER)]), "job_conflict"),
            "another scheme": (Trigger({}, [("authorization", f"Basic {token}"), job]), "authorization_malformed"),
            "no scheme": (Trigger({}, [("authorization", token), job]), "authorization_malformed"),
            "two in one header": (
                Trigger({}, [("authorization", f"Bearer {token} {other}"), job]),
                "authorization_malformed",
            ),
            "a header that is no text": (Trigger({}, [("authorization", b"Bearer \xff"), job]), "headers_malformed"),
            "a null header": (Trigger({}, [("authorization", None), job]), "headers_malformed"),
        },
    )


def test_b10_a_producers_timestamp_buys_nothing(world):
    now_s = int(time.time())
    expired = plain(world.ours.token(iat=now_s - 900, nbf=now_s - 900, exp=now_s - 300))
    good = plain(world.ours.token(uses="many"))
    sent, ids = [(expired, now_s - 600), (good, 1), (good, 4_102_444_800)], []
    producer = Producer({"bootstrap.servers": world.bootstrap})
    for trigger, timestamp_s in sent:
        producer.produce(
            world.topic("triggers"), trigger.encoded(), timestamp=timestamp_s * 1000, partition=0,
            on_delivery=lambda _, message: ids.append(f"{message.partition()}-{message.offset()}"),
        )  # fmt: skip
        assert producer.flush(60) == 0
    outcomes = world.outcomes(ids)
    assert [outcome.verdict for outcome in outcomes] == ["token_expired", "accepted", "accepted"]
    for outcome in outcomes[1:]:
        assert abs(outcome.job["trigger"]["appended_at_ms"] / 1000 - now_s) < 600


NASTY = [
    "a\r\nINFO forged line",
    "\x1b[31mred",
    "\u202egnp.exe",
    "%s%n%d",
    "${jndi:ldap://x/a}",
    "<script>",
    "a\0b",
    "x" * 200,
]


def test_b12_a_receipt_of_anothers_key_tells_nothing_of_it(world):
    """Probing: whoever asks with a key that is not theirs gets a run of their own, and learns of no other."""
    key = "order-of-mine"  # nothing that an id, made at random, could hold
    victim = world.present_one(plain(world.ours.token(uses="many"), params={"n": 1}, idempotency_key=key))
    probes = world.present(
        plain(world.partner.token(uses="many"), params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(uses="many", sub="service:curious"), params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(OTHER, uses="many"), OTHER, params={"n": 1}, idempotency_key=key),
        plain(world.ours.token(uses="many", private=STRANGER), params={"n": 1}, idempotency_key=key),
    )
    assert [each.verdict for each in probes] == ["accepted"] * 3 + ["signature_invalid"]
    for each in probes:
        told = json.dumps(each.receipt)
        assert victim.run_id not in told
        assert key not in told
    assert probes[3].receipt["emitter"] is None
    assert len({each.receipt["emitter"] for each in probes[:2]} | {victim.receipt["emitter"]}) == 3


def test_b15_a_strangers_words_stay_in_their_line(world):
    many = world.ours.token(uses="many")
    triggers = [
        each
        for text in NASTY
        for each in (
            plain(world.ours.token(header={"kid": text})),
            plain(world.ours.token(sub=text)),
            plain(world.ours.token(jti=text)),
            plain(many, text),
            plain(many, idempotency_key=text),
            plain(many, correlation_id=text),
            plain(many, params={text: 1}),
            plain(many, **{text: 1}),
            by_headers(many, NIGHTLY, {}, (text, "x"), ("x", text), ("traceparent", text)),
        )
    ]
    for outcome in world.present(*triggers):
        assert outcome.verdict != "internal_deny"
        for letter in outcome.dead_letters:
            assert letter.detail.isprintable()
            assert len(letter.detail) <= 2_000
    for gate in world.gates:
        lines = gate.log().splitlines()
        assert all(json.loads(piece) for line in lines for piece in line.replace("}{", "}\n{").split("\n") if piece)
        assert "forged line" not in "".join(line for line in lines if not line.startswith("{"))


def test_b17_what_is_revoked_is_refused_from_then_on(world):
    subject, now_s = "service:let-go", int(time.time())
    token = world.ours.token(uses="many", sub=subject)
    ahead = world.ours.token(uses="many", sub=subject, iat=now_s + 40)  # its issuer's clock is, within the grace
    assert {each.verdict for each in world.present(plain(token), plain(ahead))} == {"accepted"}
    world.tollgate("token", "revoke", "--subject", subject)
    world.until("token_revoked", lambda: plain(token))
    assert world.present_one(plain(ahead)).verdict == "token_revoked"


def test_b17_a_revocation_up_to_a_moment_leaves_what_was_issued_after_it(world):
    subject, now_s = "service:let-go-once", int(time.time())
    before = world.ours.token(uses="many", sub=subject, iat=now_s - 120)
    world.tollgate("token", "revoke", "--subject", subject, "--since", "1m")
    world.until("token_revoked", lambda: plain(before))
    assert world.present_one(plain(world.ours.token(uses="many", sub=subject))).verdict == "accepted"


def test_b18_odd_records_are_refused_and_the_next_is_decided_at_once(world):
    token = world.ours.token(uses="many")
    job = ("tollgate-job", NIGHTLY)
    bearer = ("authorization", f"Bearer {token}")
    check(
        world,
        {
            "a tombstone": (Trigger(None, (), b"key"), "value_missing"),
            "a tombstone with a token": (Trigger(None, [bearer]), "value_missing"),
            "no value and no params": (Trigger(None, [bearer, job]), "accepted"),
            "1,000 headers": (Trigger({}, [bearer, job, *[("x", b"")] * 998]), "headers_malformed"),
            "65 KB of headers": (Trigger({}, [bearer, job, ("x", b"y" * 66_000)]), "record_too_large"),
            "100 headers": (Trigger({}, [bearer, job, *[("x", b"y")] * 98]), "accepted"),
            "a header without a name": (Trigger({}, [bearer, job, ("", b"y")]), "accepted"),
            "the largest value the topic takes": (
                plain(token, params={"x": "a" * (1_048_588 - 100 - len(token) - 90)}), "payload_too_large",
            ),
        },
    )  # fmt: skip


def test_b18_a_batch_that_expands_beyond_the_limit_is_refused_by_its_coordinates(world):
    bomb = Producer(
        {
            "bootstrap.servers": world.bootstrap,
            "compression.type": "zstd",
            "message.max.bytes": 100_000_000,
            "linger.ms": 50,
        }
    )
    blown = Trigger(b'{"params":{"x":"' + b"a" * 20_000_000 + b'"}}', partition=0)
    good = plain(world.ours.token())._replace(partition=0)
    refused, accepted = world.outcomes([*world.send_all([blown], bomb), *world.send_all([good])])
    assert (refused.verdict, accepted.verdict) == ("batch_too_large", "accepted")
    assert refused.dead_letter.value is None


def test_a_handoff_or_an_entry_is_never_made_of_what_was_refused(world):
    """The bytes of a refused trigger's identity stand nowhere in the table."""
    refused = world.present_one(plain(world.ours.token(private=STRANGER), idempotency_key="never-in-the-table"))
    partition, offset = (int(number) for number in refused.trigger_id.split("-"))
    coordinates = struct.pack(">IQ", partition, offset)
    records = read_topic(world.bootstrap, world.topic("idempotency")).records
    assert not any(coordinates == (record.value or b"")[41:53] for record in records)
