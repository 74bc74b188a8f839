"""Rows of the classes of tokens: what a person, a host and a trigger may each show where, and until when."""

import secrets
import time

import httpx
import pytest

from tests.rows.jobs import NIGHTLY
from tests.rows.people import CAP_S, SECRET_VARIABLE
from tests.rows.triggers import plain
from tests.support.jose import unverified
from tests.support.reader import read_topic

NOT_ALLOWED = 4
CLASSES = {"bearer": "trigger", "user": "user", "host": "host"}  # as the OpenAPI document's security schemes are named


# ── M-01 ──


@pytest.fixture(scope="module")
def shown(door, tmp_path_factory):
    """A good token of each class."""
    ann, host = f"u:{secrets.token_hex(4)}", f"host:{secrets.token_hex(4)}"
    door.world.apply("policy", "[platforms.matrix]\nlevel = 3\n")
    secret = door.identity(ann, ["user", "trigger"])
    host_secret = door.identity(host, ["host"], "matrix")
    return {
        "trigger": door.token(ann, secret, jobs=[NIGHTLY], uses="many", lifetime_s=3600),
        "user": door.token(ann, secret, token_class="user", lifetime_s=3600),
        "host": door.token(host, host_secret, token_class="host", lifetime_s=3600),
    }


def operations(door):
    """Every operation that takes a bearer token, by the published document: method, path, the classes it takes."""
    for path, methods in httpx.get(f"{door.url}/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            schemes = {name for each in operation.get("security", ()) for name in each}
            if schemes & CLASSES.keys():
                named = path.replace("{trigger_id}", "0-0").replace("{job}", NIGHTLY)
                yield method.upper(), named, {CLASSES[name] for name in schemes & CLASSES.keys()}


def test_each_class_works_where_the_document_says_and_nowhere_else(door, shown):
    strangers = {typ: door.world.ours.token(header={"typ": f"{typ}+jwt"}) for typ in ("execution", "task")}
    seen = list(operations(door))
    assert len(seen) >= 8
    for method, path, taken in seen:
        options = {} if method == "GET" else {"json": {}}
        for token_class, token in (shown | strangers).items():
            status, reason = door.call(method, path, token, **options)
            told = f"{token_class} at {method} {path}: {status} {reason}"
            if token_class in taken:
                assert status != 401, told
                assert reason != "wrong_client_class", told
            else:
                assert (status, reason) == (403, "wrong_client_class"), told
        for typ in ("at+jwt", "refresh+jwt", "trigger"):
            unknown = door.call(method, path, door.world.ours.token(header={"typ": typ}), **options)
            assert unknown == (401, "token_type_invalid"), f"{typ} at {method} {path}"
    taken_by = {token_class: {path for _, path, taken in seen if token_class in taken} for token_class in shown}
    assert taken_by["host"] == {"/v1/host"}
    assert "/v1/me" in taken_by["user"] - taken_by["trigger"]
    assert f"/v1/triggers/{NIGHTLY}" in taken_by["trigger"] - taken_by["user"]


@pytest.mark.parametrize("token_class", ["user", "host"])
def test_a_token_of_another_class_starts_no_job_over_kafka_and_is_told_so(door, shown, token_class):
    outcome = door.world.present_one(plain(shown[token_class]))
    assert (outcome.verdict, outcome.stage) == ("wrong_client_class", "verify")
    assert f"{token_class}+jwt" in outcome.dead_letter.detail


def test_the_class_is_in_token_receipt_and_audit(door, shown):
    outcome = door.world.present_one(plain(shown["trigger"]))
    assert outcome.verdict == "accepted"
    assert unverified(shown["trigger"])[0]["typ"] == "trigger+jwt"
    assert outcome.receipt["token_class"] == outcome.audit[0]["token_class"] == "trigger"
    assert door.world.present_one(plain(shown["user"])).receipt["token_class"] is None, "nothing of it was verified"


def test_a_handle_is_no_user_token(door):
    assert door.call("GET", "/v1/me", door.world.issue(NIGHTLY, "--reference")) == (403, "wrong_client_class")


def test_introspection_tells_the_class_and_nothing_once_the_token_is_gone(door, shown):
    client = (f"svc:{secrets.token_hex(4)}", "")
    client = (client[0], door.identity(client[0], ["trigger"]))

    def told(token):
        return httpx.post(f"{door.url}/oauth/introspect", data={"token": token}, auth=client).json()

    for token_class, token in shown.items():
        seen = told(token)
        assert (seen["active"], seen["class"]) == (True, token_class)
        assert ("authorization_details" in seen) is (token_class == "trigger")
    assert (told(shown["host"])["platform"], told(shown["host"])["level"]) == ("matrix", 3)
    name = f"u:{secrets.token_hex(4)}"
    gone = door.token(name, door.identity(name, ["user"]), token_class="user", lifetime_s=600)
    assert told(gone)["active"]
    door.world.tollgate("identities", "disable", name)
    deadline = time.monotonic() + 20
    while told(gone) != {"active": False}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("key", [None, "order-7"])
def test_a_one_time_token_is_gone_once_it_has_started_its_job(door, key):
    """T-18, as far as there are runs: its end is not reported yet, so it is gone from the run's acceptance on."""
    name = f"svc:{secrets.token_hex(4)}"
    client = (name, door.identity(name, ["trigger"]))
    more = {"idempotency_key": key} if key else {}
    used, unused = (door.token(*client, jobs=[NIGHTLY], lifetime_s=600, **more) for _ in range(2))
    if key:
        unused = door.token(*client, jobs=[NIGHTLY], lifetime_s=600, idempotency_key="order-8")

    def told(token):
        return httpx.post(f"{door.url}/oauth/introspect", data={"token": token}, auth=client, timeout=40).json()

    for token in (used, unused):
        seen = told(token)
        assert (seen["active"], seen["class"], seen["uses"]) == (True, "trigger", "once")
    assert door.world.present_one(plain(used)).verdict == "accepted"
    assert told(used) == {"active": False}
    assert door.world.present_one(plain(used)).verdict == "duplicate", "the same request still gets its first answer"
    assert told(unused)["active"]
    many = door.token(*client, jobs=[NIGHTLY], lifetime_s=600, uses="many")
    assert door.world.present_one(plain(many)).verdict == "accepted"
    assert told(many)["active"]


def test_no_token_of_a_login_or_host_is_on_a_topic_or_in_the_log(door, shown, person):
    person.login()
    person.does("token", "issue", "--login", "--job", NIGHTLY, "--ttl", "1m")
    log = door.process.log_file.read_text()
    for token in (person.token, shown["host"]):
        signature = token.rpartition(".")[2].encode()
        assert signature.decode() not in log
        for topic in ("issuance", "registry", "revocations", "audit", "receipts", "jobs", "dead-letters"):
            for record in read_topic(door.world.bootstrap, door.world.topic(topic)).records:
                assert signature not in (record.value or b"")


# ── hosts ──


def test_a_host_gets_a_token_of_its_platform_and_level_by_its_roles_over_http_and_by_the_command(door):
    platform, name = f"hpc-{secrets.token_hex(3)}", f"host:{secrets.token_hex(4)}"
    secret = door.identity(name, ["host"], platform)

    def command(code=0):
        words = ("token", "issue", "--class", "host", "--as", name, "--ttl", "1h")
        return door.world.tollgate(*words, env={SECRET_VARIABLE: secret}, code=code)

    def http(**more):
        wanted = {"token_class": "host", "lifetime_s": 3600} | more
        return httpx.post(f"{door.url}/v1/tokens", auth=(name, secret), json=wanted, timeout=40)

    assert "platform_unknown" in command(code=NOT_ALLOWED).stderr
    assert (http().status_code, http().json()["denial"]) == (403, "platform_unknown")
    door.world.apply("policy", f"[platforms.{platform}]\nlevel = 2\n")
    tokens = [command().stdout.strip()]
    deadline = time.monotonic() + 20
    while (answer := http()).status_code != 201:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tokens.append(answer.json()["token"])
    for token in tokens:
        header, claims = unverified(token)
        assert (header["typ"], claims["sub"], claims["platform"], claims["level"]) == ("host+jwt", name, platform, 2)
        told = httpx.get(f"{door.url}/v1/host", headers={"authorization": f"Bearer {token}"}).json()
        assert (told["identity"], told["platform"], told["level"]) == (name, platform, 2)
    assert http(jobs=[NIGHTLY]).json()["denial"] == "class_unfit"
    assert http(subject="host:another").json()["denial"] == "class_unfit", "it cannot be another host"
    assert http(token_class="user").json()["denial"] == "class_unfit"
    assert http(token_class="trigger", jobs=[NIGHTLY]).json()["denial"] == "class_not_granted"
    assert http(lifetime_s=CAP_S + 1).json()["denial"] == "lifetime_not_granted"
    (row,) = [row for row in door.world.rows("policy", "show") if row.get("name") == platform]
    assert row["level"] == 2
    issued = [each for each in door.world.rows("audit", "issuance", "--identity", name) if each["event"] == "issued"]
    assert [(each["via"], each["token_class"], each["uses"]) for each in issued] == [
        ("cli", "host", None), ("http", "host", None),
    ]  # fmt: skip
    # What a platform is worth now, its tokens are worth now, never more than they say.
    for level, seen in ((1, 1), (5, 2)):
        door.world.apply("policy", f"[platforms.{platform}]\nlevel = {level}\n")
        deadline = time.monotonic() + 20
        while (
            httpx.get(f"{door.url}/v1/host", headers={"authorization": f"Bearer {tokens[0]}"}).json()["level"] != seen
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    door.world.tollgate("policy", "remove", f"platforms.{platform}")
    deadline = time.monotonic() + 20
    while door.call("GET", "/v1/host", tokens[0]) != (403, "platform_unknown"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
