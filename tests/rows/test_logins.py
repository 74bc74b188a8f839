"""Rows of logins: the user token somebody has by one, for how long, and what it gets them."""

import json
import secrets
import stat
import time

from tests.rows.issuers import ORG
from tests.rows.jobs import NIGHTLY, OTHER
from tests.rows.people import CAP_S, SECRET_VARIABLE, Person
from tests.rows.triggers import plain
from tests.support.jose import claims_of, unverified

FAILED, USAGE, NOT_ALLOWED, NOTHING, LOGIN_NEEDED = 1, 2, 4, 5, 6


# ── T-19, M-07 ──


def test_a_login_yields_a_user_token_in_a_file_of_its_owner_alone(door, person):
    said = person.login("--ttl", "8h")
    assert person.name in said
    assert str(person.file) in said
    assert person.token not in said
    assert stat.S_IMODE(person.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(person.file.parent.stat().st_mode) == 0o700
    header, claims = unverified(person.token)
    assert (header["typ"], claims["sub"], claims["exp"] - claims["iat"]) == ("user+jwt", person.name, CAP_S)
    assert {"uses", "authorization_details"}.isdisjoint(claims), "it grants nothing"
    (told,) = (json.loads(person.does("whoami", "-o", "jsonl").stdout),)
    assert (told["identity"], told["kind"], told["org_id"], told["url"]) == (person.name, "user", ORG, door.url)
    for method, path in (("GET", "/v1/me"), ("GET", "/v1/tokens"), ("GET", "/v1/receipts/stream")):
        assert door.call(method, path, person.token)[0] == 200
    rows = [
        json.loads(line)
        for line in person.does("token", "list", "--class", "user", "-o", "jsonl").stdout.split("\n")[:-1]
    ]
    assert [(row["jti"], row["revoked"]) for row in rows] == [(claims["jti"], False)]


def test_a_user_token_is_good_until_it_expires_and_then_says_so_with_an_exit_code_of_its_own(door, person):
    person.login("--ttl", "8s")
    assert door.call("GET", "/v1/me", person.token) == (200, None)
    time.sleep(max(0, claims_of(person.token)["exp"] - time.time()) + 1)
    for method, path in (("GET", "/v1/me"), ("GET", "/v1/tokens"), ("GET", "/v1/receipts/0-0")):
        assert door.call(method, path, person.token) == (401, "token_expired")
    for words in (("whoami",), ("token", "list"), ("token", "issue", "--login", "--job", NIGHTLY, "--ttl", "1m")):
        done = person.does(*words, code=LOGIN_NEEDED)
        assert done.stdout == ""
        assert f"login of {person.name}" in done.stderr
        assert "expired" in done.stderr
    person.login("--ttl", "1h")
    person.does("whoami")


def test_nobody_logged_in_is_told_with_the_same_code(person):
    for words in (("whoami",), ("token", "list"), ("token", "issue", "--login", "--job", NIGHTLY, "--ttl", "1m")):
        assert "tollgate login" in person.does(*words, code=LOGIN_NEEDED).stderr
    person.does("logout", code=NOTHING)


def test_how_long_a_login_lasts_is_for_the_role_to_say(door, tmp_path):
    person = Person(door, tmp_path, max_lifetime_s=600)
    assert "lifetime_not_granted" in person.login("--ttl", "8h", code=NOT_ALLOWED)
    assert "ttl_too_long" in person.login("--ttl", "25h", code=NOT_ALLOWED)
    assert not person.file.exists()
    person.login("--ttl", "10m")


def test_who_proves_nothing_or_is_no_person_is_not_logged_in(door, person, tmp_path):
    good, person.secret = person.secret, person.secret[:-2] + "AA"
    assert "client_unauthenticated" in person.login(code=NOT_ALLOWED)
    person.secret = good
    assert not person.file.exists()
    service = f"svc:{secrets.token_hex(4)}"
    person.name, person.secret = service, door.identity(service, ["trigger", "user", "host"])
    assert "class_unfit" in person.login(code=NOT_ALLOWED)


def test_a_secret_goes_over_tls_or_not_beyond_this_machine(person):
    env = person.env | {SECRET_VARIABLE: person.secret}
    for url in ("http://tollgate.example", "ftp://localhost", "tollgate.example", "https://user@tollgate.example"):
        done = person.door.world.tollgate("login", "--as", person.name, "--url", url, env=env, code=USAGE)
        assert "login.url" in done.stderr
    assert not person.file.exists()


def test_a_login_that_others_may_read_is_not_used(person):
    person.login()
    person.file.chmod(0o644)
    assert "others may read" in person.does("whoami", code=FAILED).stderr


def test_a_logout_ends_the_token_and_removes_the_file(door, person):
    person.login()
    token = person.token
    person.does("logout")
    assert not person.file.exists()
    deadline = time.monotonic() + 20
    while door.call("GET", "/v1/me", token) != (401, "token_revoked"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    person.does("whoami", code=LOGIN_NEEDED)


def test_a_token_got_by_a_login_starts_a_job_and_never_outlives_it(door, person):
    person.login("--ttl", "1h")
    token = person.does(
        "token", "issue", "--login", "--job", NIGHTLY, "--ttl", "5m", "--idempotency-key", "k"
    ).stdout.strip()
    header, claims = unverified(token)
    assert (header["typ"], claims["sub"], claims["idempotency_key"]) == ("trigger+jwt", person.name, "k")
    assert door.world.present_one(plain(token)).verdict == "accepted"
    ask = ("token", "issue", "--login", "--job")
    assert "outlives_login" in person.does(*ask, NIGHTLY, "--ttl", "2h", code=NOT_ALLOWED).stderr
    assert "job_not_granted" in person.does(*ask, OTHER, "--ttl", "5m", code=NOT_ALLOWED).stderr
    assert "--as" in person.does(*ask, NIGHTLY, "--ttl", "5m", "--as", "u:x", code=USAGE).stderr
    answer = door.call("POST", "/v1/tokens", person.token, json={"token_class": "user", "lifetime_s": 60})
    assert answer == (403, "issue_denied"), "a login begets no login"
    issued = door.world.rows("audit", "issuance", "--identity", person.name)
    told = [(each["event"], each["token_class"], each.get("reason")) for each in issued]
    assert told == [
        ("issued", "user", None), ("issued", "trigger", None), ("issue_denied", "trigger", "outlives_login"),
        ("issue_denied", "trigger", "job_not_granted"), ("issue_denied", "user", "credential_needed"),
    ]  # fmt: skip
    assert issued[1]["credential"] == issued[0]["jti"], "which login it was got by is on record"


# ── T-05 ──


def test_a_rotated_services_tokens_end_and_those_of_a_person_who_owns_the_same_job_pass(door, person):
    service = f"svc:{secrets.token_hex(4)}"
    token = door.token(service, door.identity(service, ["trigger"]), jobs=[NIGHTLY], uses="many", lifetime_s=3600)
    person.login("--ttl", "1h")
    mine = person.does("token", "issue", "--login", "--job", NIGHTLY, "--ttl", "30m", "--uses", "many").stdout.strip()
    assert [door.world.present_one(plain(each)).verdict for each in (token, mine)] == ["accepted"] * 2
    door.world.tollgate("identities", "rotate", service, "--revoke-tokens")
    door.world.until("token_revoked", lambda: plain(token))
    assert door.world.present_one(plain(mine)).verdict == "accepted"
    assert door.call("GET", "/v1/me", person.token) == (200, None)
    person.does("token", "issue", "--login", "--job", NIGHTLY, "--ttl", "1m")
    for name in (service, person.name):
        listed = door.world.rows("audit", "--identity", name)
        every = [row for row in door.world.rows("audit") if row["subject"] == name]
        assert {row["subject"] for row in listed} == {name}
        assert sorted(row["trigger_id"] for row in listed) == sorted(row["trigger_id"] for row in every)


def test_a_person_whose_credential_is_rotated_is_logged_out_everywhere(door, person):
    person.login("--ttl", "1h")
    door.world.tollgate("identities", "rotate", person.name, "--revoke-tokens")
    deadline = time.monotonic() + 20
    while door.call("GET", "/v1/me", person.token) != (401, "token_revoked"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "token_revoked" in person.does("whoami", code=LOGIN_NEEDED).stderr
