"""`tollgate keys` as an operator uses it: what is published, what signs, what is refused. No broker needed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Said, within
from tests.support.gates import environment

FAILED, USAGE = 1, 2
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "k"}


class Keys:
    """One keystore, and the program that keeps it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.jwks_file = directory / "keys", directory / "jwks.json"
        self.env = environment("127.0.0.1:1", "tollgate.") | {
            "HOME": str(directory),
            "TOLLGATE_CONFIG": "",
            "TOLLGATE_ISSUER__KEYS_DIR": str(self.directory),
            "TOLLGATE_ISSUER__JWKS_FILE": str(self.jwks_file),
        }

    def __call__(self, *arguments: str, code: int = 0) -> Said:
        said = within(self.env, "keys", *arguments)
        assert said.code == code, said.err
        for pem in self.directory.glob("*.pem"):
            secret = "".join(pem.read_text().splitlines()[1:-1])
            assert secret not in (said.out + said.err).replace("\n", "")
        return said

    def generate(self, *arguments: str) -> str:
        (made,) = self("generate", *arguments).rows
        return str(made["kid"])

    def published(self) -> list[dict[str, Any]]:
        return list(json.loads(self.jwks_file.read_text())["keys"])

    def statuses(self) -> dict[str, str]:
        return {row["kid"]: row["status"] for row in self("list").rows}

    def issue(self) -> str:
        """A token; returns the kid that signed it."""
        issued = within(self.env, "token", "issue", "--job", "a/b", "--ttl", "60")
        assert issued.code == 0, issued.err
        inspected = within(self.env, "token", "inspect", "--token-file", "-", "-o", "json", stdin=issued.out)
        return str(json.loads(inspected.out)["unverified_header"]["kid"])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_the_first_key_signs_at_once_and_its_public_part_is_published(keys: Keys) -> None:
    (made,) = keys("generate").rows
    assert (made["status"], made["algorithm"], made["retire_from"]) == ("active", "ES256", None)
    (published,) = keys.published()
    assert (published["kid"], published["alg"]) == (made["kid"], "ES256")
    assert not PRIVATE_MEMBERS & set(published)
    assert keys.issue() == made["kid"]


def test_private_keys_are_for_their_owner_only_and_the_set_is_for_everyone(keys: Keys) -> None:
    kid = keys.generate()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (keys.directory, keys.directory / f"{kid}.pem")}
    assert list(modes.values()) == [0o700, 0o600]
    assert stat.S_IMODE(keys.jwks_file.stat().st_mode) & stat.S_IROTH


@pytest.mark.parametrize("mode", [0o750, 0o705])
def test_a_keystore_others_may_read_is_refused_with_the_command_that_mends_it(keys: Keys, mode: int) -> None:
    keys.generate()
    keys.directory.chmod(mode)
    for command in ("list", "rotate", "jwks"):
        assert f"chmod 700 {keys.directory}" in keys(command, code=FAILED).err


def test_a_second_first_key_is_refused_and_nothing_changes(keys: Keys) -> None:
    keys.generate()
    before = keys.published()
    said = keys("generate", code=FAILED)
    assert not said.out
    assert "tollgate keys rotate" in said.err
    assert keys.published() == before


def test_eddsa_keys_are_made_when_asked_for_and_rotation_stays_with_them(keys: Keys) -> None:
    keys.generate("--algorithm", "EdDSA")
    keys("rotate")
    assert [key["alg"] for key in keys.published()] == ["EdDSA", "EdDSA"]


@pytest.mark.parametrize("algorithm", ["RS256", "HS256", "none", "es256", ""])
def test_an_algorithm_we_do_not_make_keys_for_is_a_usage_error(keys: Keys, algorithm: str) -> None:
    said = keys("generate", "--algorithm", algorithm, code=USAGE)
    assert "ES256, EdDSA" in said.err
    assert not keys.jwks_file.exists()


def test_the_next_key_is_published_before_it_signs(keys: Keys) -> None:
    first = keys.generate()
    (made,) = keys("rotate", "--overlap", "10m").rows
    assert made["status"] == "next"
    assert {key["kid"] for key in keys.published()} == {first, made["kid"]}
    assert keys.issue() == first
    assert keys.statuses() == {first: "active", made["kid"]: "next"}


def test_a_key_without_overlap_signs_at_once_and_the_one_before_it_stays_published(keys: Keys) -> None:
    first = keys.generate()
    keys.issue()
    (made,) = keys("rotate", "--overlap", "0").rows
    assert keys.statuses() == {first: "retiring", made["kid"]: "active"}
    assert keys.issue() == made["kid"]
    assert {key["kid"] for key in keys.published()} == {first, made["kid"]}


def test_rotating_while_a_key_waits_is_refused(keys: Keys) -> None:
    keys.generate()
    (waiting,) = keys("rotate").rows
    assert waiting["kid"] in keys("rotate", code=FAILED).err
    assert len(keys.published()) == 2


def test_there_is_nothing_to_rotate_before_the_first_key(keys: Keys) -> None:
    assert "tollgate keys generate" in keys("rotate", code=FAILED).err


@pytest.mark.parametrize("overlap", ["soon", "-5m", "5w", ""])
def test_an_overlap_that_is_no_length_of_time_is_a_usage_error(keys: Keys, overlap: str) -> None:
    keys.generate()
    assert "--overlap" in keys("rotate", f"--overlap={overlap}", code=USAGE).err
    assert len(keys.published()) == 1


def test_a_key_whose_tokens_may_be_honoured_is_not_retired(keys: Keys) -> None:
    first = keys.generate()
    keys.issue()
    keys("rotate", "--overlap", "0")
    said = keys("retire", first, code=FAILED)
    assert "may be honoured" in said.err
    assert first in {key["kid"] for key in keys.published()}
    (row,) = [row for row in keys("list").rows if row["kid"] == first]
    assert row["retire_from"] is not None


def test_a_key_that_signed_nothing_is_retired_and_its_private_part_is_gone(keys: Keys) -> None:
    first = keys.generate()
    keys("rotate", "--overlap", "0")
    said = keys("retire", first)
    assert not said.out
    assert not (keys.directory / f"{first}.pem").exists()
    assert first not in {key["kid"] for key in keys.published()}
    assert keys.statuses()[first] == "removed"


def test_the_key_that_signs_goes_only_in_an_emergency_and_another_takes_its_place(keys: Keys) -> None:
    first = keys.generate()
    keys.issue()
    assert "--emergency" in keys("retire", first, code=FAILED).err
    said = keys("retire", first, "--emergency")
    assert f"tollgate token revoke --kid {first}" in said.err
    (successor,) = [kid for kid, status in keys.statuses().items() if status == "active"]
    assert successor in said.err
    assert [key["kid"] for key in keys.published()] == [successor]
    assert keys.issue() == successor


@pytest.mark.parametrize("kid", ["no-such-key", "../keys/state", "", "x" * 300])
def test_a_key_that_is_not_there_cannot_be_retired(keys: Keys, kid: str) -> None:
    keys.generate()
    before = keys.published()
    assert "tollgate keys list" in keys("retire", "--emergency", "--", kid, code=FAILED).err
    assert keys.published() == before


def test_the_printed_set_is_the_one_in_the_file_and_a_lost_file_is_written_again(keys: Keys) -> None:
    keys.generate()
    before = keys.jwks_file.read_text()
    keys.jwks_file.unlink()
    said = keys("jwks")
    assert json.loads(said.out) == json.loads(before)
    assert keys.jwks_file.read_text() == before


def test_without_a_key_no_set_is_written_over_the_one_that_is_there(keys: Keys) -> None:
    keys.jwks_file.write_text("another's")
    said = keys("jwks", code=FAILED)
    assert not said.out
    assert "tollgate keys generate" in said.err
    assert keys.jwks_file.read_text() == "another's"


def test_options_name_another_keystore_than_the_settings(keys: Keys, tmp_path: Path) -> None:
    where = ("--keys-dir", str(tmp_path / "other"), "--jwks-file", str(tmp_path / "other.json"))
    (made,) = keys("generate", *where).rows
    assert not keys.directory.exists()
    assert made["kid"] in (tmp_path / "other.json").read_text()
    assert [row["kid"] for row in keys("list", *where).rows] == [made["kid"]]


def test_an_empty_keystore_lists_nothing(keys: Keys) -> None:
    said = keys("list")
    assert (said.rows, keys("list", "-o", "json").out) == ([], "[]\n")


def test_a_damaged_state_is_one_sentence_and_is_not_written_over(keys: Keys) -> None:
    keys.generate()
    state = keys.directory / "state.json"
    state.write_text('{"keys": [')
    for command in (("list",), ("rotate",), ("jwks",), ("generate",)):
        assert "damaged" in keys(*command, code=FAILED).err
    assert state.read_text() == '{"keys": ['


def test_a_lost_private_key_is_named(keys: Keys) -> None:
    kid = keys.generate()
    (keys.directory / f"{kid}.pem").unlink()
    said = within(keys.env, "token", "issue", "--job", "a/b", "--ttl", "60")
    assert (said.code, said.out) == (FAILED, "")
    assert f"{kid}.pem is missing" in said.err
