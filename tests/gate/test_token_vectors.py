"""Tokens: other people's vectors, at the layer they speak of (JWS)."""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from app.gate import base64url
from app.gate.jws import read_jws
from app.gate.keyset import JWKSInvalid, KeySet, dev_key
from app.gate.reasons import Rejected
from app.gate.strict_json import JSONRefused
from tests.support.tokens import (
    ISS,
)
from tests.support.verifying import verdict

VECTORS = Path(__file__).parents[1] / "vectors"


def jws_valid(presented: str, keys: KeySet | None) -> bool:
    """Whether our JWS layer takes it: form, strict header, the key's one algorithm, signature. Not kid, typ, claims."""
    read = read_jws(presented)
    if isinstance(read, Rejected):
        return False
    signing_input, header, _, signature = read
    if keys is None or isinstance(header, JSONRefused):
        return False
    return any(header[0] == key.algorithm and key.verify(signing_input, signature) for key in keys.keys.values())


def keys_of(jwk: dict) -> KeySet | None:
    """The keys our own readers make of a JWK, symmetric ones by way of the development secret."""
    if jwk.get("kty") == "oct":
        if jwk.get("alg") != "HS256" or jwk.get("use", "sig") != "sig":
            return None
        key = dev_key(base64url.decode(jwk["k"]))
        return KeySet({key.kid: key}, frozenset({"HS256"}))
    try:
        return KeySet.from_jwks(
            json.dumps({"keys": [{**jwk, "kid": jwk.get("kid", "k")}]}).encode(), ["ES256", "EdDSA"]
        )
    except JWKSInvalid:
        return None


# Every vector labelled valid upstream that we refuse, by why: the few stricter refusals.
STRICTER = {
    "profile: alg": 34,  # RS, PS and ES512 are no algorithms of ours
    "labelled valid upstream, but": 1,  # "?" in a segment: RFC 7515 section 2 wants base64url
    "as 372": 1,
}


def test_wycheproof_json_web_signatures():
    groups = json.loads((VECTORS / "wycheproof" / "json_web_signature_test.json").read_text())["testGroups"]
    expected = json.loads((VECTORS / "wycheproof" / "EXPECTATIONS_es256_hs256_profile.json").read_text())
    expected = expected["json_web_signature_test"]
    wrong, stricter, count = [], dict.fromkeys(STRICTER, 0), 0
    for group in groups:
        keys = keys_of(group.get("public") or group["private"])
        for vector in group["tests"]:
            count += 1
            presented = vector["jws"] if isinstance(vector["jws"], str) else json.dumps(vector["jws"])
            told = expected[str(vector["tcId"])]
            if jws_valid(presented, keys) != (told["expect_jws_layer"] == "valid"):
                wrong.append((vector["tcId"], vector["comment"], told))
            if (told["upstream"], told["expect_jws_layer"]) == ("valid", "invalid"):
                stricter[next(why for why in STRICTER if told["why"].startswith(why))] += 1
            assert verdict(presented, {ISS: keys}) != "accepted"
    assert not wrong
    assert count == 401
    assert stricter == STRICTER


def test_wycheproof_ecdsa_p256_signatures():
    from app.gate.keyset import es256_key

    wrong, count = [], 0
    for group in json.loads((VECTORS / "wycheproof" / "ecdsa_secp256r1_sha256_p1363_test.json").read_text())[
        "testGroups"
    ]:
        point = bytes.fromhex(group["publicKey"]["uncompressed"])
        key = es256_key("k", ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        for vector in group["tests"]:
            count += 1
            if key.verify(bytes.fromhex(vector["msg"]), bytes.fromhex(vector["sig"])) != (vector["result"] == "valid"):
                wrong.append((vector["tcId"], vector["comment"]))
    assert not wrong
    assert count > 200


def test_rfc_7515_examples_are_valid_signatures_and_no_tokens():
    for example in json.loads((VECTORS / "rfc7515" / "appendix_a.json").read_text()):
        jwk = example["jwk"] | ({"alg": "HS256"} if example["jwk"]["kty"] == "oct" else {})
        keys = keys_of(jwk)
        assert jws_valid(example["jws"], keys)
        assert verdict(example["jws"], {"joe": keys}) in {"token_type_invalid", "algorithm_not_allowed"}
