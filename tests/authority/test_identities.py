"""Identities: what a record must hold, what a secret proves, and how a rotation overlaps."""

import hashlib
import json

import msgspec
import pytest

from app.authority import identities
from app.authority.identities import (
    CREDENTIALS_MAX,
    ClientKey,
    ClientSecret,
    Identity,
    check_secret,
    identity_from_record,
    identity_key,
    keep_secret,
    key_at,
    kind_of,
    rotated,
    secret_text,
)
from tests.support.tokens import public_jwk

NOW_S = 1_700_000_000
DAY_S = 86_400
SECRET = secret_text("00" * 8, bytes(32))
KEPT = keep_secret(SECRET, bytes(16), NOW_S)
OTHER_SECRET = secret_text("11" * 8, b"\1" * 32)
OTHER = keep_secret(OTHER_SECRET, b"\1" * 16, NOW_S)
KEY = ClientKey("k1", public_jwk())
CI = Identity("svc:ci", 1, "service", "https://issuer.example", "acme", ("deployer",), credentials=(KEPT, KEY))


def record(**changes):
    """The record of CI with members changed; None leaves one out."""
    members = json.loads(msgspec.json.encode(CI)) | changes
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


def read(name="svc:ci", **changes):
    return identity_from_record(identity_key(name), record(**changes))


# ── records ──


def test_a_record_reads_into_what_was_written():
    assert read() == CI
    assert read(roles=None, disabled=None, credentials=None) == Identity(
        "svc:ci", 1, "service", "https://issuer.example", "acme"
    )


def test_a_record_holds_neither_secret_nor_private_key():
    written = msgspec.json.encode(CI).decode()
    assert SECRET not in written
    assert SECRET.rpartition("_")[2] not in written
    (secret, _) = json.loads(written)["credentials"]
    assert sorted(secret) == ["digest", "id", "kind", "not_after_s", "not_before_s", "salt"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "user"}, "kind: svc:ci is a service"),
        ({"kind": "robot"}, "kind: invalid enum"),
        ({"frob": 1}, "unknown member"),
        ({"version": 0}, "version: expected"),
        ({"issuer": None}, "missing required"),
        ({"issuer": "a\nb"}, "no control characters"),
        ({"disabled": "no"}, "disabled: expected"),
        ({"credentials": [{"kind": "password", "id": "x"}]}, "invalid value"),
        ({"credentials": [{"kind": "key", "id": "k2", "jwk": public_jwk()}]}, "is not the kid"),
        ({"credentials": [{"kind": "key", "id": "k1", "jwk": public_jwk(d="AAAA")}]}, "private or shared key"),
        ({"credentials": [{"kind": "key", "id": "k1", "jwk": {"kty": "oct", "kid": "k1", "k": "AAAA"}}]}, "private or"),
        ({"credentials": [{"kind": "key", "id": "k1", "jwk": public_jwk(crv="P-384")}]}, "no usable key"),
        ({"credentials": [{"kind": "key", "id": "k1", "jwk": public_jwk()}] * 2}, "stands twice"),
        (
            {"credentials": [{"kind": "key", "id": "k1", "jwk": public_jwk(), "not_before_s": 9, "not_after_s": 9}]},
            "ends before it begins",
        ),
        ({"credentials": [{"kind": "key", "id": f"k{n}", "jwk": {}} for n in range(CREDENTIALS_MAX + 1)]}, "length"),
    ],
)
def test_a_record_with_a_fault_is_one_clause_that_names_it(changes, said):
    complaint = read(**changes)
    assert isinstance(complaint, str)
    assert said in complaint


def test_a_record_cannot_make_a_wrong_secret_dear():
    (secret, key) = json.loads(record())["credentials"]
    assert "unknown member" in read(credentials=[secret | {"n": 1 << 14}, key])


def former(credential):
    """As a record had it when secrets were kept as scrypt hashes."""
    return credential | {"n": 1 << 14, "r": 8, "p": 1}


def test_a_secret_kept_as_it_was_before_proves_nobody_and_leaves_the_identity_readable():
    (secret, key) = json.loads(record())["credentials"]
    there = read(credentials=[former(secret), key])
    assert there == msgspec.structs.replace(CI, credentials=(KEY,))
    assert check_secret(there, SECRET, NOW_S) is None
    assert rotated(there, (KEPT,), NOW_S, 0).credentials == (KEPT,)
    assert read(credentials=[former(secret)]).credentials == ()
    assert "unknown member" in read(credentials=[former(key)])
    assert "unknown member" in read(credentials=[former(secret)], frob=1)


@pytest.mark.parametrize("under", ["svc:cd", "ci", ""])
def test_a_record_stands_under_its_own_name_only(under):
    assert "its own key" in identity_from_record(identity_key(under), record())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("svc:ci", "service"),
        ("service:ci:blue", "service"),
        ("task:0192-a", "task"),
        ("u:ann@acme", "user"),
        ("host:hpc-a", "host"),
        ("robot:x", None),
        ("svc:", None),
        ("ci", None),
        ("SVC:ci", None),
        ("svc:c i", None),
        ("svc:*", None),
        ("svc:" + "x" * 253, None),
        ("svc:ref:aaaaaaaaaaaaaaaaaaaaaa", None),
    ],
)
def test_a_name_says_its_kind(name, kind):
    assert kind_of(name) == kind


# ── secrets ──


def test_a_secret_proves_its_own_credential_and_no_other():
    both = msgspec.structs.replace(CI, credentials=(KEPT, OTHER))
    assert check_secret(both, SECRET, NOW_S) == KEPT
    assert check_secret(both, OTHER_SECRET, NOW_S) == OTHER
    assert check_secret(CI, OTHER_SECRET, NOW_S) is None


@pytest.mark.parametrize(
    "wrong",
    ["", "x", SECRET[:-1], SECRET + "A", SECRET[:-1] + "B", SECRET.replace("tgs", "tgx"), SECRET.upper(), " " + SECRET,
     SECRET + "\n", "tgs_" + "00" * 8 + "_" + OTHER_SECRET[-43:], "\ud800", "tgs_nobody's_" + "A" * 43, "x" * 100_000],
)  # fmt: skip
def test_anything_else_proves_nothing(wrong):
    assert check_secret(CI, wrong, NOW_S) is None
    assert check_secret(None, wrong, NOW_S) is None


def test_a_secret_is_good_from_its_beginning_until_its_end():
    ends = msgspec.structs.replace(CI, credentials=(msgspec.structs.replace(KEPT, not_after_s=NOW_S + 10),))
    seen = [check_secret(ends, SECRET, NOW_S + at) is not None for at in (-1, 0, 9, 10)]
    assert seen == [False, True, True, False]


def test_whoever_asks_costs_one_hash(monkeypatch):
    hashed = []
    real = identities._digest
    monkeypatch.setattr(identities, "_digest", lambda text, salt: hashed.append(salt) or real(text, salt))
    ended = msgspec.structs.replace(CI, credentials=(msgspec.structs.replace(KEPT, not_after_s=NOW_S + 1),))
    asked = [(CI, SECRET), (CI, OTHER_SECRET), (CI, "garbage"), (None, SECRET), (None, ""), (ended, SECRET),
             (msgspec.structs.replace(CI, credentials=()), SECRET), (CI, "x" * 1_000_000)]  # fmt: skip
    for count, (identity, secret) in enumerate(asked, 1):
        check_secret(identity, secret, NOW_S + 5)
        assert len(hashed) == count


def test_a_secret_is_of_the_one_form():
    assert check_secret(msgspec.structs.replace(CI, credentials=(KEPT,)), SECRET, NOW_S) == KEPT
    for wrong in ((("00" * 8), bytes(31)), (("0" * 15), bytes(32)), (("XY" * 8), bytes(32))):
        with pytest.raises(ValueError, match="secret"):
            secret_text(*wrong)
    with pytest.raises(ValueError, match="secret"):
        keep_secret("hunter2", bytes(16), NOW_S)


def test_what_is_kept_of_a_secret_is_sha_256_of_the_salt_and_it():
    kept = keep_secret(SECRET, b"\1" * 16, NOW_S)
    assert kept.digest == hashlib.sha256(b"\1" * 16 + SECRET.encode()).digest()
    assert kept.digest != KEPT.digest


# ── keys ──


def test_a_clients_keys_are_those_that_are_valid_now():
    later = ClientKey("k2", public_jwk("k2"), not_before_s=NOW_S + 10)
    identity = msgspec.structs.replace(CI, credentials=(KEPT, KEY, later))
    assert key_at(identity, "k1", NOW_S) is KEY.key
    assert key_at(identity, "k2", NOW_S) is None
    assert key_at(identity, "k2", NOW_S + 10) is later.key
    assert key_at(msgspec.structs.replace(CI, credentials=(KEPT,)), "k1", NOW_S) is None


# ── rotation ──


def test_old_and_new_are_both_valid_for_the_overlap_then_only_the_new():
    new = rotated(msgspec.structs.replace(CI, credentials=(KEPT,)), (OTHER,), NOW_S, DAY_S)
    assert check_secret(new, SECRET, NOW_S + DAY_S - 1).id == KEPT.id
    assert check_secret(new, OTHER_SECRET, NOW_S).id == OTHER.id
    assert check_secret(new, SECRET, NOW_S + DAY_S) is None
    assert check_secret(new, OTHER_SECRET, NOW_S + DAY_S).id == OTHER.id


def test_without_an_overlap_only_the_new_is_left():
    assert rotated(CI, (OTHER,), NOW_S, 0).credentials == (OTHER,)


def test_rotating_again_prolongs_nothing_and_drops_what_has_ended():
    once = rotated(msgspec.structs.replace(CI, credentials=(KEPT,)), (OTHER,), NOW_S, 100)
    third = keep_secret(secret_text("22" * 8, bytes(32)), bytes(16), NOW_S + 50)
    twice = rotated(once, (third,), NOW_S + 50, DAY_S)
    assert [(each.id, each.not_after_s) for each in twice.credentials] == [
        (KEPT.id, NOW_S + 100),
        (OTHER.id, NOW_S + 50 + DAY_S),
        (third.id, None),
    ]
    fourth = ClientSecret("33" * 8, bytes(16), bytes(32))
    assert [each.id for each in rotated(twice, (fourth,), NOW_S + 200, 5).credentials] == [
        OTHER.id,
        third.id,
        fourth.id,
    ]


def test_a_key_comes_again_under_a_new_kid_only():
    assert "new key has a new kid" in rotated(CI, (KEY,), NOW_S, DAY_S)
    assert rotated(CI, (KEY,), NOW_S, 0).credentials == (KEY,)


def test_credentials_do_not_heap_up():
    full = msgspec.structs.replace(
        CI, credentials=tuple(ClientSecret(f"{n:016x}", bytes(16), bytes(32)) for n in range(CREDENTIALS_MAX))
    )
    assert "more than 16" in rotated(full, (OTHER,), NOW_S, DAY_S)


def test_a_rotated_identity_is_one_that_can_be_read():
    new = rotated(CI, (OTHER,), NOW_S, DAY_S)
    assert identity_from_record(identity_key("svc:ci"), msgspec.json.encode(new)) == new
