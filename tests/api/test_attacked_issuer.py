"""B21, attacks on the service that issues: each is denied and on record, a flood is slowed, a key that went is nothing.

How a flood of wrong secrets is slowed, `test_authority.py` shows of names nobody has.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from app.issuer.keystore import Keystore
from tests.api.authorities import ASSERTION_TYPE, ISSUER, Authority, error, trusted
from tests.api.conftest import Deployment
from tests.support.doors import PLAIN, DoorProcess, Emitter
from tests.support.issuer import JOB

pytestmark = pytest.mark.broker
BY = {"client_assertion_type": ASSERTION_TYPE}


@pytest.fixture(scope="module")
def authority(deployment: Deployment) -> Authority:
    return trusted(deployment)


def decided(authority: Authority, token: str) -> str:
    emitter = Emitter(authority.url, token)
    receipt = emitter.decided(JOB)
    emitter.close()
    return receipt["reason"] or receipt["outcome"]


# ── more than one may have ──

TOO_MUCH: dict[str, tuple[dict[str, str], str]] = {
    "another's job": ({"scope": "job:payroll/run"}, "job_not_granted"),
    "one's own and another's": ({"scope": f"job:{JOB} job:payroll/run", "uses": "many"}, "job_not_granted"),
    "any job": ({"scope": "job:*"}, "scope_too_broad"),
    "jobs by a pattern that one's own fits": ({"scope": "job:reports/*"}, "scope_too_broad"),
    "no job, which might be every job": ({}, "scope_too_broad"),
    "longer than the role says": ({"scope": f"job:{JOB}", "lifetime_s": "3601"}, "lifetime_not_granted"),
    "longer than anybody may": ({"scope": f"job:{JOB}", "lifetime_s": "100000000"}, "ttl_too_long"),
    "in another's name": ({"scope": f"job:{JOB}", "subject": "svc:root"}, "subject_not_granted"),
}


def test_nobody_is_issued_more_than_its_roles_say_and_each_refusal_is_on_record(authority: Authority) -> None:
    client = authority.identity()
    authority.token(client)
    for what, (form, reason) in TOO_MUCH.items():
        answer = authority.ask(client, **form)
        assert error(answer) == (400, "invalid_scope", reason), what
        assert "access_token" not in answer.json()
    issued, *denied = authority.issuance(client[0])
    assert issued["event"] == "issued"
    assert [(each["event"], each["reason"], each["authenticated"]) for each in denied] == [
        ("issue_denied", reason, True) for _, reason in TOO_MUCH.values()
    ]


def test_a_tenants_client_gets_no_token_that_starts_a_job_of_another_tenant(authority: Authority) -> None:
    stranger = authority.identity(org_id="another-tenant")
    token = authority.token(stranger, org_id="dev")  # a parameter that is not known is ignored
    assert jwt.decode(token, options={"verify_signature": False})["org_id"] == "another-tenant"
    assert decided(authority, token) == "org_mismatch"
    wanted = {"jobs": [JOB], "lifetime_s": 60, "org_id": "dev"}
    answer = httpx.post(f"{authority.url}/v1/tokens", json=wanted, auth=stranger, timeout=40, **PLAIN)
    assert (answer.status_code, answer.json()["reason"]) == (400, "request_malformed")


# ── without proof ──


def test_nothing_is_issued_listed_or_taken_back_without_proof(authority: Authority) -> None:
    name, secret = authority.identity()
    token = authority.token((name, secret), uses="many")
    now_s = int(time.time())
    claims = {"iss": name, "sub": name, "aud": ISSUER, "jti": secrets.token_hex(8), "iat": now_s, "exp": now_s + 60}
    unsigned = jwt.encode(claims, None, "none", headers={"kid": "c1"})
    by_nobodys_secret = jwt.encode(claims, "0" * 64, "HS256", headers={"kid": "c1"})
    bearers = [{"authorization": f"Bearer {shown}"} for shown in (unsigned, by_nobodys_secret, token)]
    bodies = {
        "/v1/tokens": {"jobs": [JOB], "lifetime_s": 60},
        "/v1/revocations": {"selector": "subject", "value": name},
    }
    seen = set()
    with httpx.Client(base_url=authority.url, timeout=40, **PLAIN) as http:
        for path, body in bodies.items():
            for headers in ({}, *bearers):
                seen.add(http.post(path, json=body, headers=headers).status_code)
            seen.add(http.post(path, json=body, auth=(name, "")).status_code)
        seen |= {http.get("/v1/tokens", headers=headers).status_code for headers in ({}, *bearers)}
        for path in ("/oauth/token", "/oauth/introspect", "/oauth/revoke"):
            form = {"grant_type": "client_credentials", "scope": f"job:{JOB}", "token": token}
            for shown in ({}, {"client_id": name}, BY | {"client_assertion": unsigned},
                          BY | {"client_assertion": by_nobodys_secret}):  # fmt: skip
                answer = http.post(path, data=form | shown)
                assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), (path, shown)
            seen |= {http.post(path, data=form, headers=headers).status_code for headers in bearers}
    assert seen <= {401, 403, 429}
    assert decided(authority, token) == "accepted", "and nothing was taken back"
    events = authority.issuance(name)
    assert [each["event"] for each in events if each["event"] != "issue_denied"] == ["issued"]
    assert {(each["reason"], each["authenticated"]) for each in events[1:]} == {("client_unauthenticated", False)}


def test_guessing_a_secret_is_slowed_and_who_has_it_is_not(authority: Authority) -> None:
    name, secret = authority.identity()
    authority.token((name, secret))
    guesses = [authority.ask((name, secret[:-6] + f"{number:06}")) for number in range(14)]
    statuses = [answer.status_code for answer in guesses]
    assert statuses == [401] * 10 + [429] * 4
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in guesses[10:])
    assert authority.ask((name, secret), scope=f"job:{JOB}").status_code == 200
    denied = [each for each in authority.issuance(name) if each["event"] == "issue_denied"]
    assert {(each["reason"], each["authenticated"]) for each in denied} == {("client_unauthenticated", False)}
    assert len(denied) <= 10, "those that were told to wait leave no record, nor does each of a flood"


# ── after a key is gone ──


@pytest.fixture
def own_keys(deployment: Deployment, tmp_path: Path) -> Iterator[Authority]:
    """A door that issues under a name and with keys of its own, which a test may spoil."""
    issuer, jwks, keys = "https://spoiled.localhost", tmp_path / "jwks.json", tmp_path / "keys"
    Keystore(keys, jwks).generate("ES256", 1_700_000_000)
    made = copy.copy(deployment)
    made.env = deployment.settings_for(issuer__issuer=issuer, issuer__jwks_file=str(jwks), issuer__keys_dir=str(keys))
    made.directory = tmp_path
    made.doors = [DoorProcess("spoiled", tmp_path, made.env)]
    made.doors[0].start()
    try:
        made.doors[0].wait_ready()
        authority = Authority(made)
        authority.apply(
            "trust",
            f'[trust."{issuer}"]\njwks = "{jwks}"\norgs = ["dev"]\nsubjects = ["svc:*"]\njobs = ["reports/*"]\n'
            "max_lifetime_s = 86400\n",
        )
        yield authority
        authority.tollgate("trust", "remove", issuer)
    finally:
        made.doors[0].stop()


def test_a_key_that_was_retired_issues_nothing_and_without_any_nothing_is_issued(own_keys: Authority) -> None:
    client = own_keys.identity()
    token = own_keys.token(client, uses="many")
    deadline = time.monotonic() + 30
    while decided(own_keys, token) != "accepted":
        assert time.monotonic() < deadline
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    keys = own_keys.deployment.directory / "keys"
    stolen = load_pem_private_key((keys / f"{header['kid']}.pem").read_bytes(), None)
    own_keys.tollgate("keys", "retire", header["kid"], "--emergency")
    forged = jwt.encode(claims | {"jti": secrets.token_hex(16)}, stolen, "ES256", headers=header)  # type: ignore[arg-type]
    deadline = time.monotonic() + 30
    while decided(own_keys, forged) != "kid_unknown":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert decided(own_keys, token) == "kid_unknown"
    successor = own_keys.token(client, uses="many")
    assert jwt.get_unverified_header(successor)["kid"] != header["kid"]
    assert decided(own_keys, successor) == "accepted"
    before = len(own_keys.issuance(client[0]))
    keys.rename(keys.with_name("away"))
    answer = own_keys.ask(client, scope=f"job:{JOB}")
    assert (answer.status_code, answer.json()["reason"]) == (503, "keys_unavailable")
    assert len(own_keys.issuance(client[0])) == before
