"""Rows of the settings: one block for all who sign, the names others use, and what is refused by name."""

import json
import secrets
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.rows.issuers import ORG, OURS
from tests.rows.jobs import NIGHTLY
from tests.rows.people import SECRET_VARIABLE
from tests.rows.processes import TOLLGATE
from tests.support.doors import DoorProcess
from tests.support.jose import unverified

USAGE = 2

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
        headers = [unverified(each)[0] for each in (command, answer.json()["token"])]
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
