"""Rows of the classes of tokens: what a person, a host and a trigger may each show where, and until when."""

import base64
import json
import secrets
import stat
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.rows.world import NIGHTLY, ORG, OTHER, OURS, TOLLGATE, plain
from tests.support.doors import DoorProcess
from tests.support.reader import read_topic

FAILED, USAGE, NOT_ALLOWED, NOTHING, LOGIN_NEEDED = 1, 2, 4, 5, 6
SECRET_VARIABLE = "TOLLGATE_CLIENT_SECRET"
CAP_S = 8 * 3600
CLASSES = {"bearer": "trigger", "user": "user", "host": "host"}  # as the OpenAPI document's security schemes are named


def claims_of(token):
    header, claims = (
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]
    )
    return header["typ"], claims


class Door:
    """A `tollgate serve` of the world, and the homes of people who log in at it."""

    def __init__(self, world, directory):
        self.world, self.directory = world, directory
        self.process = DoorProcess("door", directory, world.env)

    @property
    def url(self):
        return self.process.url

    def identity(self, name, classes, platform=None, max_lifetime_s=CAP_S):
        """Registered with a role of its own, and known to the door; its secret."""
        role = name.replace(":", "-")
        allow = f'{{ jobs = ["{NIGHTLY}"], classes = {json.dumps(classes)}, max_lifetime_s = {max_lifetime_s} }}'
        self.world.apply("policy", f"[roles.{role}]\nallow = [{allow}]\n")
        of = f'platform = "{platform}"\n' if platform else ""
        self.world.apply("identities", f'[identities."{name}"]\nroles = ["{role}"]\n{of}')
        secret = self.world.tollgate("identities", "rotate", name).stdout.strip()
        deadline = time.monotonic() + 30
        while httpx.get(f"{self.url}/v1/tokens", auth=(name, secret)).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return secret

    def token(self, name, secret, **wanted):
        answer = httpx.post(f"{self.url}/v1/tokens", auth=(name, secret), json=wanted, timeout=40)
        assert answer.status_code == 201, answer.text
        return answer.json()["token"]

    def call(self, method, path, token, **options):
        """Status and reason; of a stream, as it begins."""
        headers = {"authorization": f"Bearer {token}"}
        with httpx.stream(method, self.url + path, headers=headers, timeout=40, **options) as answer:
            if answer.status_code == 200 and "stream" in path:
                return 200, None
            answer.read()
        return answer.status_code, answer.json().get("reason") if answer.status_code >= 400 else None


@pytest.fixture(scope="module")
def door(world, tmp_path_factory):
    made = Door(world, tmp_path_factory.mktemp("door"))
    made.process.start()
    try:
        made.process.wait_ready()
        yield made
    finally:
        if made.process.alive:
            made.process.stop()


class Person:
    """Somebody with a home of their own who logs in by the command."""

    def __init__(self, door, home, **role):
        self.door, self.name, self.home = door, f"u:{secrets.token_hex(4)}", home
        self.secret = door.identity(self.name, ["user", "trigger"], **role)
        self.env = {"XDG_CONFIG_HOME": str(home), "TOLLGATE_BOOTSTRAP": "127.0.0.1:1"}  # no Kafka from here

    @property
    def file(self):
        return self.home / "tollgate" / "login.json"

    @property
    def token(self):
        return json.loads(self.file.read_text())["token"]

    def does(self, *words, code=0):
        done = self.door.world.tollgate(*words, env=self.env, code=code)
        if self.file.exists():
            assert self.token not in done.stdout + done.stderr
        return done

    def login(self, *words, code=0):
        env = self.env | {SECRET_VARIABLE: self.secret}
        done = self.door.world.tollgate("login", "--as", self.name, "--url", self.door.url, *words, env=env, code=code)
        assert done.stdout == ""
        assert self.secret not in done.stderr
        return done.stderr


@pytest.fixture
def person(door, tmp_path):
    return Person(door, tmp_path / "home")


# ── T-19, M-07 ──


def test_a_login_yields_a_user_token_in_a_file_of_its_owner_alone(door, person):
    said = person.login("--ttl", "8h")
    assert person.name in said
    assert str(person.file) in said
    assert person.token not in said
    assert stat.S_IMODE(person.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(person.file.parent.stat().st_mode) == 0o700
    typ, claims = claims_of(person.token)
    assert (typ, claims["sub"], claims["exp"] - claims["iat"]) == ("user+jwt", person.name, CAP_S)
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
    time.sleep(max(0, claims_of(person.token)[1]["exp"] - time.time()) + 1)
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
    typ, claims = claims_of(token)
    assert (typ, claims["sub"], claims["idempotency_key"]) == ("trigger+jwt", person.name, "k")
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
        assert door.call(method, path, door.world.ours.token(header={"typ": "at+jwt"}), **options)[0] in {401, 202}
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
    assert claims_of(shown["trigger"])[0] == "trigger+jwt"
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
        typ, claims = claims_of(token)
        assert (typ, claims["sub"], claims["platform"], claims["level"]) == ("host+jwt", name, platform, 2)
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


# ── K-05 ──


def test_one_block_of_settings_says_with_which_keys_the_command_and_the_door_sign(door, tmp_path):
    """The same file, read by both; its [issuer] table changed once."""
    world, name = door.world, f"svc:{secrets.token_hex(4)}"
    secret = door.identity(name, ["trigger"])
    env = {key: value for key, value in world.env.items() if not key.startswith("TOLLGATE_ISSUER__")}
    settings = tmp_path / "tollgate.toml"
    env["TOLLGATE_CONFIG"] = str(settings)
    process = DoorProcess("configured", tmp_path, env)

    def configure(keys):
        settings.write_text(
            f'[issuer]\nissuer = "{OURS}"\nkeys_dir = "{keys}"\njwks_file = "{keys}.json"\norg_id = "{ORG}"\n'
        )

    def kids():
        """With which key each of them signs, and which the door publishes."""
        run = {"TOLLGATE_CONFIG": str(settings), SECRET_VARIABLE: secret}
        words = ("token", "issue", "--as", name, "--job", NIGHTLY, "--ttl", "5m")
        command = configured(*words, **run).stdout.strip()
        answer = httpx.post(
            f"{process.url}/v1/tokens", auth=(name, secret), json={"jobs": [NIGHTLY], "lifetime_s": 60}, timeout=40
        )
        published = httpx.get(f"{process.url}/.well-known/jwks.json").json()["keys"]
        headers = [
            json.loads(base64.urlsafe_b64decode(each.split(".")[0] + "=="))
            for each in (command, answer.json()["token"])
        ]
        return [header["kid"] for header in headers], [each["kid"] for each in published]

    def configured(*words, **more):
        done = subprocess.run(
            [TOLLGATE, *words],
            env={**env, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done

    seen = []
    for keys in ("one", "two"):
        configure(tmp_path / keys)
        configured("keys", "generate")
        process.start()
        try:
            process.wait_ready()
            first, published = kids()
            configured("keys", "rotate", "--overlap", "0")
            rotated, _ = kids()
        finally:
            process.stop()
        assert first[0] == first[1]
        assert published == [first[0]]
        assert rotated[0] == rotated[1], "with no restart"
        seen += [first[0], rotated[0]]
    assert len(set(seen)) == 4


# ── N-04 ──


@pytest.mark.parametrize("by", ["file", "environment"])
def test_the_names_of_others_are_settings_and_a_secret_is_never_shown(world, tmp_path, by):
    secret = secrets.token_hex(32)
    env = {"TOLLGATE_CONFIG": str(tmp_path / "tollgate.toml")}
    file = Path(env["TOLLGATE_CONFIG"])
    file.write_text("")
    if by == "file":
        file.write_text(f'[security]\njwt_secret = "{secret}"\nexecution_token_max_lifetime = 1800\n')
    else:
        env |= {"TOLLGATE_SECURITY__JWT_SECRET": secret, "TOLLGATE_SECURITY__EXECUTION_TOKEN_MAX_LIFETIME": "1800"}
    done = world.tollgate("config", "check", "-o", "jsonl", env=env)
    assert secret not in done.stdout + done.stderr
    rows = {row["setting"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["security.execution_token_max_lifetime"] | {} == {
        "setting": "security.execution_token_max_lifetime", "value": 1800, "source": by,
    }  # fmt: skip
    assert (rows["security.jwt_secret"]["value"], rows["security.jwt_secret"]["source"]) == ("********", by)
    assert (rows["kafka.prefix"]["value"], rows["kafka.prefix"]["source"]) == (world.prefix, "environment")
    assert rows["gate.grace_s"]["source"] == "default"


def test_an_unknown_setting_stops_every_start_and_a_secret_of_the_wrong_kind_is_not_repeated(world, tmp_path):
    env = {"TOLLGATE_CONFIG": str(tmp_path / "tollgate.toml")}
    for toml, words in (
        ("[security]\njwt_secert = 'x'\n", "security.jwt_secert is not a setting"),
        ("[security]\nexecution_token_max_lifetime = 86401\n", "86401"),
        ("[security]\njwt_secret = 4242424242\n", "security.jwt_secret"),
    ):
        Path(env["TOLLGATE_CONFIG"]).write_text(toml)
        for command in (("config", "check"), ("gate",), ("serve",)):
            said = world.tollgate(*command, env=env, code=USAGE).stderr
            assert words in said
            assert "4242424242" not in said
