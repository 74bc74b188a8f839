"""Who has an identity in the world of rows: a door to get tokens at, and people with homes who log in there."""

import json
import secrets
import time

import httpx
import pytest

from tests.rows.jobs import NIGHTLY
from tests.support.doors import DoorProcess

SECRET_VARIABLE = "TOLLGATE_CLIENT_SECRET"
CAP_S = 8 * 3600


class Door:
    """A `tollgate serve` of the world, and the homes of people who log in at it."""

    def __init__(self, world, directory):
        self.world, self.directory = world, directory
        self.process = DoorProcess("door", directory, world.env)
        world.logs.append(self.process.log_file)
        self._roles = set()

    @property
    def url(self):
        return self.process.url

    def identity(self, name, classes, platform=None, max_lifetime_s=CAP_S):
        """Registered with a role that allows these classes so long, and known to the door; its secret."""
        role = "-".join([*classes, str(max_lifetime_s)])
        if role not in self._roles:
            self._roles.add(role)
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
        self.world.canaries.note(answer.content)
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
        self.door.world.canaries.note(self.file.read_bytes() if self.file.exists() else None)
        return done.stderr


@pytest.fixture
def person(door, tmp_path):
    return Person(door, tmp_path / "home")
