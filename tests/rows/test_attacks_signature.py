"""Attacks on the header, the signature and the encoding of a token (A1 to A10): each vector has its verdict.

Vectors are records on the triggers topic, sent to a running gate by a client that is not ours.
"""

import hashlib
import hmac
import json
import socket
from collections import Counter

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.rows.attacks import STRANGER, check, deep
from tests.rows.issuers import OURS
from tests.rows.jobs import NIGHTLY
from tests.rows.triggers import Trigger, plain
from tests.support.jose import ABSENT, ORDER, b64, changed, public_jwk, signed, unb64


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


def test_a17_a_storm_of_unknown_kids_is_refused_and_honest_triggers_pass(world):
    storm = [plain(world.ours.token(header={"kid": f"storm-{number}"})) for number in range(2_000)]
    honest = [plain(world.ours.token()) for _ in range(20)]
    outcomes = world.present(*storm[:1_000], *honest, *storm[1_000:])
    assert Counter(outcome.verdict for outcome in outcomes) == {"kid_unknown": 2_000, "accepted": 20}
