"""Classes of tokens: each is taken in its own place, says its own claims, and never works in another's."""

import json

import pytest

from app.authority.platforms import Platform
from app.gate.claims import NO_GRANT, HostClaims
from app.gate.reasons import BY_CODE, Rejected
from app.gate.token import CLASSES, HOST_CLASSES, USER_CLASSES, VerifiedToken, class_fault, verify
from app.issuer.keystore import SigningKey
from app.issuer.mint import ClientTokenRequest, Minted, Refusal, TriggerTokenRequest, mint, mint_client
from tests.support.jose import ABSENT, changed
from tests.support.tokens import AUD, CLAIMS, ISS, NOW_S, PRIVATE, RING, signed, token

KEY = SigningKey("k1", "ES256", PRIVATE)
PLACES = {"trigger": CLASSES, "user": USER_CLASSES, "host": HOST_CLASSES}
EXTRA = {"uses": ABSENT, "authorization_details": ABSENT}
OF_HOST = EXTRA | {"platform": "hpc-a", "level": 2}


def shown(typ: object, **claims: object) -> str:
    return signed(
        json.dumps({"alg": "ES256", "kid": "k1", "typ": typ}).encode(),
        json.dumps(changed(CLAIMS, claims)).encode(),
    )


def code(presented: str, place: str) -> str:
    got = verify(presented, RING, AUD, classes=PLACES[place])
    return got.code if isinstance(got, Rejected) else "accepted"


def client(token_class: str, **changes: object) -> Minted | Refusal:
    platform = Platform("hpc-a", 1, 2) if token_class == "host" else None
    wanted = {"issuer": ISS, "audience": AUD, "subject": "u:ann", "org_id": "acme", "ttl_s": 8 * 3600}
    return mint_client(
        ClientTokenRequest(**(wanted | {"token_class": token_class, "platform": platform} | changes)), KEY, NOW_S
    )


def trigger_token() -> str:
    made = mint(TriggerTokenRequest(ISS, AUD, "service:ci", "acme", ("reports/nightly",), "once", 60), KEY, NOW_S)
    assert isinstance(made, Minted)
    return made.token


MADE = {"trigger": trigger_token(), "user": client("user").token, "host": client("host").token}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token_class", MADE)
def test_a_class_is_taken_in_its_own_place_and_in_no_other(token_class, place):
    assert code(MADE[token_class], place) == ("accepted" if token_class == place else "wrong_client_class")
    assert BY_CODE["wrong_client_class"].http_status == 403


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "USER+JWT", "grant+jwt", ""])
def test_an_unknown_class_is_taken_nowhere(typ, place):
    assert code(shown(typ), place) == "token_type_invalid"


@pytest.mark.parametrize("place", ["user", "host"])
def test_a_handle_is_taken_where_jobs_are_started_only(place):
    assert code("ref:" + "A" * 43, place) == "wrong_client_class"


def test_a_users_token_grants_nothing_whatever_it_says():
    """Not even claims of a trigger token, correctly signed, are worth anything in it."""
    for presented in (MADE["user"], shown("user+jwt"), token(header={"typ": "user+jwt"}, grant={"params": ABSENT})):
        got = verify(presented, RING, AUD, classes=USER_CLASSES)
        assert isinstance(got, VerifiedToken)
        assert (got.claims.token_class, got.claims.grant, got.claims.idempotency_key) == ("user", NO_GRANT, None)


def test_a_hosts_token_says_its_platform_and_level():
    got = verify(MADE["host"], RING, AUD, classes=HOST_CLASSES)
    assert isinstance(got, VerifiedToken)
    assert isinstance(got.claims, HostClaims)
    assert (got.claims.platform, got.claims.level, got.claims.grant) == ("hpc-a", 2, NO_GRANT)


@pytest.mark.parametrize(
    "changes",
    [{"platform": ABSENT}, {"platform": ""}, {"platform": "a\n"}, {"platform": 1}, {"level": ABSENT}, {"level": 0},
     {"level": 10}, {"level": True}, {"level": "2"}, {"level": 1.0}],
    ids=str,
)  # fmt: skip
def test_a_hosts_token_without_platform_and_level_is_refused(changes):
    assert code(shown("host+jwt", **OF_HOST), "host") == "accepted"
    assert code(shown("host+jwt", **(OF_HOST | changes)), "host") == "claim_malformed"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"exp": ABSENT}, "ttl_missing"), ({"jti": ABSENT}, "jti_required"), ({"aud": "other"}, "audience_mismatch"),
     ({"org_id": ABSENT}, "org_missing"), ({"sub": ""}, "claim_malformed"), ({"nbf": ABSENT}, "claim_malformed")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("typ", ["user+jwt", "host+jwt"])
def test_what_every_token_needs_these_need_too(typ, changes, expected):
    assert code(shown(typ, **(OF_HOST | changes)), typ.partition("+")[0]) == expected


@pytest.mark.parametrize(("token_class", "cap_s"), [("user", 86_400), ("host", 90 * 86_400)])
def test_none_is_made_beyond_the_cap_of_its_class(token_class, cap_s):
    assert isinstance(client(token_class, ttl_s=cap_s), Minted)
    for ttl_s in (0, -1, cap_s + 1):
        refused = client(token_class, ttl_s=ttl_s)
        assert isinstance(refused, Refusal)
        assert refused.code == "ttl_too_long"


def test_a_host_without_a_platform_gets_none():
    refused = client("host", platform=None)
    assert isinstance(refused, Refusal)
    assert refused.code == "claim_malformed"


def test_what_a_token_says_of_its_class_is_seen_without_verifying_it():
    assert [class_fault(each) for each in MADE.values()] == [None, "wrong_client_class", "wrong_client_class"]
    for unknown in ("JWT", "at+jwt", "grant+jwt", "TRIGGER+JWT", ""):
        assert class_fault(shown(unknown)) == "token_type_invalid"
    for other in ("", "x", "a.b.c", "ref:" + "A" * 43, "." * 9, "e30.e30.", shown(7), "\ud800.x.y"):
        assert class_fault(other) is None
