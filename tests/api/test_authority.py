"""The OAuth endpoints and those of tokens, from outside: who gets which token, and loses it."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import httpx
import jwt
import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec

from tests.api.authorities import ISSUER, Authority, error, signing, trusted
from tests.api.conftest import Deployment
from tests.support import reader
from tests.support.doors import Emitter
from tests.support.issuer import JOB
from tests.support.jose import claims_of

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def authority(deployment: Deployment) -> Authority:
    return trusted(deployment)


def test_an_identity_whose_secret_was_kept_as_it_was_before_is_rotated_like_any(authority: Authority) -> None:
    name, before = authority.identity()
    registry = authority.deployment.prefix + "registry"
    written = [read for read in reader.read_topic(authority.deployment.bootstrap, registry).records
               if read.key == f"identity/{name}".encode()]  # fmt: skip
    of_before = json.loads(written[-1].value or b"{}")
    of_before["credentials"][0] |= {"n": 1 << 14, "r": 8, "p": 1}
    producer = Producer({"bootstrap.servers": authority.deployment.bootstrap})
    producer.produce(registry, json.dumps(of_before).encode(), f"identity/{name}".encode(), partition=0)
    assert producer.flush(30) == 0
    deadline = time.monotonic() + 10
    while authority.ask((name, before), scope=f"job:{JOB}").status_code != 401:
        assert time.monotonic() < deadline
    (listed,) = (row for row in map(json.loads, authority.tollgate("identities", "list").splitlines())
                 if row["name"] == name)  # fmt: skip
    assert "rotate" in listed["credentials"][0]["former"]
    assert authority.token((name, authority.tollgate("identities", "rotate", name)))
    authority.tollgate("identities", "disable", name)


def test_a_client_gets_a_token_by_its_secret_and_starts_a_job_with_it(authority: Authority) -> None:
    client = authority.identity()
    token = authority.token(client)
    answer = authority.ask(client, scope=f"job:{JOB}", lifetime_s="60")
    told = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (told["token_type"], told["expires_in"], told["scope"]) == ("Bearer", 60, f"job:{JOB}")
    emitter = Emitter(authority.url, token)
    receipt = emitter.decided(JOB)
    assert receipt["outcome"] == "accepted"
    assert emitter.decided(JOB, {"n": 1})["reason"] == "token_already_used"
    issued = authority.issuance(client[0])
    assert [(each["event"], each["via"], each["identity"]) for each in issued] == [("issued", "http", client[0])] * 2
    assert token not in json.dumps(issued)


def test_a_client_may_show_its_secret_in_the_form_or_an_assertion_once(authority: Authority) -> None:
    name, secret = authority.identity()
    authority.token((name, secret))
    answer = authority.ask(None, scope=f"job:{JOB}", client_id=name, client_secret=secret)
    assert answer.status_code == 200, answer.text
    assertion = signing(authority, name)
    deadline = time.monotonic() + 10
    while authority.ask(None, scope=f"job:{JOB}", **assertion()).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    shown = assertion()
    assert authority.ask(None, scope=f"job:{JOB}", **shown).status_code == 200
    assert error(authority.ask(None, scope=f"job:{JOB}", **shown)) == (401, "invalid_client", "client_unauthenticated")
    wrong = assertion(aud="https://elsewhere")
    assert error(authority.ask(None, scope=f"job:{JOB}", **wrong)) == (401, "invalid_client", "client_unauthenticated")


def test_a_client_that_has_only_a_key_issues_lists_and_takes_back(authority: Authority) -> None:
    name, _ = authority.identity(secret=False)
    assertion = signing(authority, name)

    def proof() -> dict[str, str]:
        return {"authorization": f"Bearer {assertion()['client_assertion']}"}

    tokens, body = f"{authority.url}/v1/tokens", {"jobs": [JOB], "lifetime_s": 60}
    deadline = time.monotonic() + 10
    while (answer := httpx.post(tokens, json=body, headers=proof(), timeout=40)).status_code != 201:
        assert (answer.status_code, time.monotonic() < deadline) == (401, True), answer.text
        time.sleep(0.3)
    jti = answer.json()["jti"]
    while jti not in [each["jti"] for each in httpx.get(tokens, headers=proof()).json()["tokens"]]:
        assert time.monotonic() < deadline
    revoking = {"json": {"selector": "jti", "value": jti}, "headers": proof()}
    revocations = f"{authority.url}/v1/revocations"
    assert httpx.post(revocations, **revoking).status_code == 201  # type: ignore[arg-type]
    again = httpx.post(revocations, **revoking)  # type: ignore[arg-type]
    assert error(again) == (401, "invalid_client", "client_unauthenticated")
    assert again.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert Emitter(authority.url, answer.json()["token"]).decided(JOB)["reason"] == "token_revoked"
    # Good where a client proves itself, and nowhere else.
    elsewhere = httpx.get(f"{authority.url}/v1/me", headers=proof())
    assert (elsewhere.status_code, elsewhere.json()["reason"]) == (401, "token_type_invalid")


def test_a_standard_client_library_gets_a_token_and_triggers_a_job_with_it(authority: Authority) -> None:
    from authlib.integrations.httpx_client import OAuth2Client

    name, secret = authority.identity()
    authority.token((name, secret))
    metadata = httpx.get(f"{authority.url}/.well-known/oauth-authorization-server").json()
    for method in ("client_secret_basic", "client_secret_post"):
        assert method in metadata["token_endpoint_auth_methods_supported"]
        with OAuth2Client(name, secret, token_endpoint_auth_method=method, scope=f"job:{JOB}") as client:
            client.fetch_token(metadata["token_endpoint"], grant_type="client_credentials")
            answer = client.post(
                f"{authority.url}/v1/triggers/{JOB}", json={}, headers={"prefer": "wait=25"}, timeout=40
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["outcome"] == "accepted"


def test_wrong_secrets_and_unknown_clients_are_told_alike_and_then_have_to_wait(authority: Authority) -> None:
    name, secret = authority.identity()
    authority.token((name, secret))
    wrong, unknown = authority.ask((name, secret[:-3] + "AAA")), authority.ask((f"{name}-x", secret))
    assert error(wrong) == error(unknown) == (401, "invalid_client", "client_unauthenticated")
    assert wrong.text == unknown.text
    assert wrong.headers["www-authenticate"].startswith("Basic")
    statuses = [authority.ask((f"{name}-x", "x")).status_code for _ in range(12)]
    assert statuses == sorted(statuses)
    assert statuses[-1] == 429
    assert authority.ask((name, secret), scope=f"job:{JOB}").status_code == 200  # others are not kept waiting
    denied: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while not denied:  # of many refusals of strangers, which other tests have had, one in some seconds is recorded
        assert time.monotonic() < deadline
        another = f"{name}-{secrets.token_hex(4)}"
        assert authority.ask((another, "x")).status_code == 401
        denied = authority.issuance(another)
    assert {(each["reason"], each["authenticated"]) for each in denied} == {("client_unauthenticated", False)}


def test_roles_decide_and_a_changed_policy_is_obeyed_without_a_restart(authority: Authority) -> None:
    client = authority.identity()
    authority.token(client)
    refused = authority.ask(client, scope="job:reports/other")
    assert error(refused) == (400, "invalid_scope", "job_not_granted")
    assert authority.issuance(client[0])[-1]["reason"] == "job_not_granted"
    assert error(authority.ask(client, scope=f"job:{JOB}", lifetime_s="7200"))[2] == "lifetime_not_granted"
    assert error(authority.ask(client))[2] == "scope_too_broad"
    role = client[0].replace("svc:", "r")
    authority.apply("policy", f'[roles.{role}]\nallow = [{{ jobs = ["reports/*"], max_lifetime_s = 3600 }}]\n')
    deadline = time.monotonic() + 10
    while authority.ask(client, scope="job:reports/other").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"), ({"scope": "read"}, "invalid_scope"),
        ({"uses": "thrice"}, "invalid_request"), ({"lifetime_s": "-1"}, "invalid_request"),
        ({"audience": "elsewhere"}, "invalid_target"), ({"resource": "https://elsewhere"}, "invalid_target"),
        ({"scope": f"job:{JOB}", "lifetime_s": "0"}, "invalid_request"), ({"scope": f"job:{JOB}", "subject": "svc:x"}, "invalid_scope"),
        ({}, "invalid_scope"), ({"scope": f"job:{JOB}", "lifetime_s": "999999999"}, "invalid_scope"),
        ({"authorization_details": "[]"}, "invalid_authorization_details"),
        ({"authorization_details": '[{"type":"payment"}]'}, "invalid_authorization_details"),
        ({"authorization_details": '[{"type":"job_trigger","jobs":["a"],"jobs":["b"]}]'}, "invalid_authorization_details"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused_in_the_words_of_oauth(
    authority: Authority, form: dict[str, str], code: str, one: tuple[str, str]
) -> None:
    answer = authority.ask(one, **form)
    assert (answer.status_code, answer.json()["error"]) == (400, code)


def test_what_is_not_known_is_ignored_and_what_is_said_twice_is_refused(
    authority: Authority, one: tuple[str, str]
) -> None:
    audience = f"tollgate:{authority.deployment.prefix}"
    asked = authority.ask(one, scope=f"job:{JOB}", x="1", nonce="2", audience=audience, resource=audience)
    assert asked.status_code == 200, asked.text
    body = {"grant_type": "client_credentials", "scope": f"job:{JOB}", "x": ["1", "1"]}
    twice = httpx.post(f"{authority.url}/oauth/token", data=body, auth=one)
    assert error(twice) == (400, "invalid_request", None)


@pytest.fixture(scope="module")
def one(authority: Authority) -> tuple[str, str]:
    """A client that is there."""
    client = authority.identity()
    authority.token(client)
    return client


def test_a_grant_says_what_the_token_fixes(authority: Authority, one: tuple[str, str]) -> None:
    grant = [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [JOB], "params": {"region": "eu"}}]
    answer = authority.ask(one, authorization_details=json.dumps(grant), uses="many", idempotency_key="k-1")
    assert answer.json()["authorization_details"] == grant
    receipt = Emitter(authority.url, answer.json()["access_token"]).decided(JOB, {"region": "us"})
    assert receipt["reason"] == "param_conflict"


def test_introspection_tells_of_a_live_token_and_nothing_of_any_other(
    authority: Authority, one: tuple[str, str]
) -> None:
    token = authority.token(one)
    told = authority.ask(one, "/oauth/introspect", token=token).json()
    assert told["active"] is True
    assert (told["sub"], told["iss"], told["scope"]) == (one[0], ISSUER, f"job:{JOB}")
    assert token not in json.dumps(told)
    expired = authority.deployment.issuer.token(iat=1_600_000_000, nbf=1_600_000_000, exp=1_600_000_600)
    for dead in ("x", token[:-4] + "AAAA", expired, "a.b.c"):
        assert authority.ask(one, "/oauth/introspect", token=dead).json() == {"active": False}
    assert authority.ask(None, "/oauth/introspect", token=token).status_code == 401
    assert authority.ask(one, "/oauth/introspect").json()["error"] == "invalid_request"


def test_introspection_names_the_client_that_asked_and_not_whom_the_token_speaks_for(
    authority: Authority, one: tuple[str, str]
) -> None:
    agent = authority.identity()
    allow = f'[{{ jobs = ["{JOB}"], subjects = ["{one[0]}"], max_lifetime_s = 3600 }}]'
    authority.apply("policy", f"[roles.{agent[0].replace('svc:', 'r')}]\nallow = {allow}\n")
    deadline = time.monotonic() + 10
    while (answer := authority.ask(agent, scope=f"job:{JOB}", subject=one[0])).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    token = answer.json()["access_token"]
    while "client_id" not in (told := authority.ask(one, "/oauth/introspect", token=token).json()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (told["client_id"], told["sub"]) == (agent[0], one[0])
    # Whose key files make a token, is on no record.
    file = ("token", "issue", "--job", JOB, "--ttl", "5m", "--subject", one[0])
    unrecorded = authority.ask(one, "/oauth/introspect", token=authority.tollgate(*file)).json()
    assert (unrecorded["active"], unrecorded["sub"], "client_id" in unrecorded) == (True, one[0], False)


def test_a_client_learns_nothing_of_another_organisations_tokens(authority: Authority, one: tuple[str, str]) -> None:
    token, stranger = authority.token(one), authority.identity(org_id="other")
    deadline = time.monotonic() + 10
    while (answer := authority.ask(stranger, "/oauth/introspect", token=token)).status_code == 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert answer.json() == {"active": False}
    assert authority.ask(one, "/oauth/introspect", token=token).json()["active"] is True


def test_a_client_takes_its_own_token_back_and_no_others(authority: Authority, one: tuple[str, str]) -> None:
    mine, theirs = authority.token(one, uses="many"), authority.token(authority.identity(), uses="many")
    assert Emitter(authority.url, mine).decided(JOB)["outcome"] == "accepted"
    assert error(authority.ask(one, "/oauth/revoke", token=theirs))[:2] == (400, "unauthorized_client")
    for _ in range(2):  # again is as good (RFC 7009 section 2.2)
        answer = authority.ask(one, "/oauth/revoke", token=mine)
        assert (answer.status_code, answer.content) == (200, b"")
        deadline = time.monotonic() + 5
        while authority.ask(one, "/oauth/introspect", token=mine, door=1).json()["active"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert authority.ask(one, "/oauth/revoke", token="nonsense").status_code == 200
    assert Emitter(authority.url, mine).decided(JOB)["reason"] == "token_revoked"
    # Of a key that nobody has: good for nothing here, and of another issuer not this one's to say.
    claims = jwt.decode(mine, options={"verify_signature": False}) | {"jti": secrets.token_hex(8)}
    private, header = ec.generate_private_key(ec.SECP256R1()), {"kid": "nobodys", "typ": "trigger+jwt"}
    forged = jwt.encode(claims, private, "ES256", headers=header)
    deadline = time.monotonic() + 10  # of a set read before it was shown the door takes no word
    while (answer := authority.ask(one, "/oauth/revoke", token=forged)).status_code != 200:
        assert (answer.status_code, answer.json()["reason"]) == (503, "not_ready")
        assert time.monotonic() < deadline
    foreign = jwt.encode(claims | {"iss": authority.deployment.issuer.issuer}, private, "ES256", headers=header)
    assert error(authority.ask(one, "/oauth/revoke", token=foreign))[:2] == (400, "unauthorized_client")
    revoked = reader.read_topic(authority.deployment.bootstrap, f"{authority.deployment.prefix}revocations").records
    assert not [each for each in revoked if claims["jti"].encode() in (each.key or b"")]
    assert Emitter(authority.url, theirs).decided(JOB)["outcome"] == "accepted"


def test_tokens_are_issued_listed_by_fingerprint_and_taken_back(authority: Authority) -> None:
    client = authority.identity()
    authority.token(client)
    url = f"{authority.url}/v1/tokens"
    body = {"jobs": [JOB], "lifetime_s": 600, "uses": "once"}
    answer = httpx.post(url, json=body, auth=client, headers={"idempotency-key": "order-9"}, timeout=40)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert jwt.decode(told["token"], options={"verify_signature": False})["idempotency_key"] == "order-9"
    rows = []
    deadline = time.monotonic() + 10
    while told["jti"] not in [row["jti"] for row in rows]:
        assert time.monotonic() < deadline
        listed = httpx.get(
            url.replace(authority.url, authority.deployment.doors[1].url), params={"job": JOB}, auth=client
        )
        rows = listed.json()["tokens"]
    assert told["token"] not in listed.text
    row = next(row for row in rows if row["jti"] == told["jti"])
    assert (row["token_fingerprint"], row["identity"], row["revoked"]) == (told["token_fingerprint"], client[0], False)
    assert httpx.get(url, params={"job": "reports/none"}, auth=client).json() == {"tokens": [], "more": False}
    revocations = f"{authority.url}/v1/revocations"
    other = authority.identity()
    authority.token(other)
    asked = {"selector": "jti", "value": told["jti"]}
    assert httpx.post(revocations, json=asked, auth=other).json()["reason"] == "revocation_denied"
    assert httpx.post(revocations, json=asked, auth=client).status_code == 201
    receipt = Emitter(authority.url, told["token"]).decided(JOB)
    assert receipt["reason"] == "token_revoked"
    refused = httpx.post(url, json=body | {"jobs": ["reports/other"]}, auth=client)
    assert (refused.status_code, refused.json()["reason"], refused.json()["denial"]) == (
        403,
        "issue_denied",
        "job_not_granted",
    )
    unknown = httpx.post(url, json=body | {"ttl": 1}, auth=client)
    assert (unknown.status_code, unknown.json()["reason"]) == (400, "request_malformed")


def test_no_token_and_no_secret_is_on_the_topics_of_the_authority(authority: Authority, one: tuple[str, str]) -> None:
    token = authority.token(one)
    for topic in ("issuance", "registry", "revocations"):
        for read in reader.read_topic(authority.deployment.bootstrap, authority.deployment.prefix + topic).records:
            assert token.rpartition(".")[2].encode() not in (read.value or b"")
            assert one[1].encode() not in (read.value or b"")
    for door in authority.deployment.doors:
        assert one[1] not in door.log_file.read_text()


def test_a_token_is_exchanged_for_one_that_says_who_acts_for_whom_and_never_for_more(authority: Authority) -> None:
    owner, agent = authority.identity(), authority.identity()
    role = agent[0].replace("svc:", "r")
    authority.apply(
        "policy",
        f'[roles.{role}]\nallow = [{{ jobs = ["{JOB}"], subjects = ["{owner[0]}"], max_lifetime_s = 3600 }}]\n',
    )
    handed, one_shot = authority.token(owner, uses="many", lifetime_s="120"), authority.token(owner)
    kind = "urn:ietf:params:oauth:token-type:jwt"

    def exchanged(client: tuple[str, str], token: str, **form: str) -> httpx.Response:
        grant_type = "urn:ietf:params:oauth:grant-type:token-exchange"
        return authority.ask(client, grant_type=grant_type, subject_token=token, subject_token_type=kind, **form)

    deadline = time.monotonic() + 10
    while (answer := exchanged(agent, handed, lifetime_s="3000")).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    told = answer.json()
    assert told["issued_token_type"] == kind
    access_token = kind.replace("jwt", "access_token")
    assert exchanged(agent, handed, requested_token_type=access_token).json()["issued_token_type"] == access_token
    assert told["expires_in"] <= 120
    seen = authority.ask(agent, "/oauth/introspect", token=told["access_token"]).json()
    assert (seen["sub"], seen["act"]) == (owner[0], {"sub": agent[0]})
    receipt = Emitter(authority.url, told["access_token"]).decided(JOB)
    assert receipt["outcome"] == "accepted"
    assert error(exchanged(agent, one_shot)) == (400, "invalid_request", "token_already_used")
    assert error(exchanged(agent, handed, scope="job:reports/other")) == (400, "invalid_scope", "job_not_authorized")
    assert error(exchanged(agent, "a.b.c")) == (400, "invalid_request", "token_malformed")
    denied = [each["reason"] for each in authority.issuance(agent[0]) if each["event"] == "issue_denied"]
    assert denied[-3:] == ["token_already_used", "job_not_authorized", "token_malformed"]
    stranger = authority.identity()
    authority.token(stranger)
    assert error(exchanged(stranger, handed)) == (400, "invalid_request", "subject_not_granted")
    issued = [each for each in authority.issuance(agent[0]) if each["event"] == "issued"]
    assert (issued[-1]["identity"], issued[-1]["subject"]) == (agent[0], owner[0])


def test_a_client_that_says_no_lifetime_gets_what_its_role_allows(authority: Authority) -> None:
    client = authority.identity()
    assert claims_lifetime(authority.token(client)) == 300
    role = client[0].replace("svc:", "r")
    authority.apply("policy", f'[roles.{role}]\nallow = [{{ jobs = ["{JOB}"], max_lifetime_s = 60 }}]\n')
    deadline = time.monotonic() + 10
    while claims_lifetime(authority.token(client)) != 60:  # not there yet
        assert time.monotonic() < deadline
        time.sleep(0.2)
    asked = authority.ask(client, scope=f"job:{JOB}", lifetime_s="300")
    assert error(asked) == (400, "invalid_scope", "lifetime_not_granted")


def claims_lifetime(token: str) -> int:
    claims = claims_of(token)
    return int(claims["exp"] - claims["iat"])


@pytest.mark.parametrize("name", ["bound_to", "class", "params", "reference"])
def test_what_would_have_narrowed_a_token_is_not_passed_over(authority: Authority, name: str) -> None:
    client = authority.identity()
    authority.token(client)  # it is there
    assert error(authority.ask(client, scope=f"job:{JOB}", **{name: "x"}))[:2] == (400, "invalid_request")
