"""JWK Sets followed: the last good one kept, one read for a storm, nothing read from where no rule points."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from app.config import ConfigError, load
from app.gate.token import VerifiedToken, verify
from app.trust import JwksFollower, is_loopback, load_dev_secret
from tests.support.jwks_server import Server, document, following, rule
from tests.support.tokens import AUD, ISS, OTHER, public_jwk, token

pytestmark = pytest.mark.slow


async def until(condition, within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


async def test_a_file_is_read_followed_and_versioned(tmp_path):
    file = tmp_path / "jwks.json"
    file.write_bytes(document(public_jwk("k1")))
    async with following({ISS: rule(file)}) as follower:
        assert isinstance(verify(token(), follower.ring, AUD), VerifiedToken)
        version = follower.version
        file.write_bytes(document(public_jwk("k1"), public_jwk("k2", OTHER)))
        await until(lambda: set(follower.ring[ISS].keys) == {"k1", "k2"})
        assert follower.version > version
        file.write_bytes(document(public_jwk("k2", OTHER)))  # removed: rejected within the poll
        await until(lambda: set(follower.ring[ISS].keys) == {"k2"})


async def test_a_missing_set_leaves_the_issuer_trusted_and_without_keys(tmp_path):
    async with following({ISS: rule(tmp_path / "none.json")}) as follower:
        assert follower.ring == {ISS: None}
        (tmp_path / "none.json").write_bytes(document(public_jwk()))
        await until(lambda: follower.ring[ISS] is not None)


async def test_as_of_when_a_set_was_all_there_is_counts_from_the_begin_of_a_read_that_went_well(tmp_path):
    file = tmp_path / "jwks.json"
    file.write_bytes(document(public_jwk("k1")))
    inline = rule(file)
    inline.jwks = {"keys": [public_jwk("k1")]}
    began_s = time.monotonic()
    async with following({ISS: rule(file), "inline": inline}) as follower:
        assert began_s < follower.read_at_s(ISS) < time.monotonic()
        assert (follower.read_at_s("inline"), follower.read_at_s("nobody")) == (float("inf"), float("-inf"))
        asked_s = time.monotonic()
        await until(lambda: follower.read_at_s(ISS) > asked_s)  # unchanged is as good as read
        file.write_bytes(b"<html>")
        await until(lambda: follower._sources[ISS].failure is not None)
        failed = follower.read_at_s(ISS)
        await follower.want(ISS, "k9")
        await asyncio.sleep(0.6)
        assert follower.read_at_s(ISS) == failed


BAD = {
    "html": (b"<html>", 200, ""), "server error": (document(public_jwk()), 500, ""), "10 MB": (b" " * 10_000_000, 200, ""),
    "redirect to a file": (b"", 302, "location: file:///etc/passwd\r\n"), "empty set": (b'{"keys":[]}', 200, ""),
    "redirect to itself": (b"", 307, "location: /jwks.json\r\n"), "no content": (b"", 204, ""),
    "shared key": (document(public_jwk(), {"kty": "oct", "k": "AA"}), 200, ""),
    "private key": (document(public_jwk(d="AA")), 200, ""),
    "kid twice": (document(public_jwk(), public_jwk(private=OTHER)), 200, ""),
}  # fmt: skip


@pytest.mark.parametrize("form", BAD)
async def test_what_fails_keeps_the_last_good_set_until_it_is_too_old(form):
    async with (
        Server(document(public_jwk())) as server,
        following(
            {ISS: rule(server.url)}, jwks_refresh_s=0.1, jwks_refetch_floor_s=0.1, jwks_max_stale_s=1
        ) as follower,
    ):
        assert follower.ring[ISS] is not None
        server.body, server.status, server.headers = BAD[form]
        before = server.requests
        await until(lambda: server.requests > before + 1)
        assert follower.ring[ISS] is not None
        version = follower.version
        await until(lambda: follower.ring[ISS] is None)
        assert follower.version > version
        server.body, server.status, server.headers = document(public_jwk()), 200, ""
        await until(lambda: follower.ring[ISS] is not None)


async def test_a_storm_of_unknown_kids_costs_one_fetch():
    async with Server(document(public_jwk())) as server, following({ISS: rule(server.url)}) as follower:
        before = server.requests
        server.delay_s = 0.2
        assert follower.may_fetch(ISS)
        await asyncio.gather(*(follower.want(ISS, f"unknown-{n}") for n in range(1000)))
        for n in range(1000):
            await follower.want(ISS, f"later-{n}")
        assert server.requests == before + 1
        assert not follower.may_fetch(ISS)
        assert not follower.may_fetch("https://stranger.example")


@pytest.mark.parametrize("kind", ["file", "server"])
async def test_x26_a_key_published_just_now_is_there_after_one_fetch(kind, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_bytes(document(public_jwk("k0", OTHER)))
    async with (
        Server(file.read_bytes()) as server,
        following({ISS: rule(file if kind == "file" else server.url)}) as follower,
    ):
        server.body = document(public_jwk("k0", OTHER), public_jwk("k1"))
        file.write_bytes(server.body)
        await follower.want(ISS, "k1")
        assert isinstance(verify(token(), follower.ring, AUD), VerifiedToken)


async def test_a_slow_server_is_waited_for_a_second():
    async with Server(document(public_jwk())) as server, following({ISS: rule(server.url)}) as follower:
        server.delay_s = 30
        start = time.monotonic()
        await follower.want(ISS, "k9")
        assert time.monotonic() - start < 1.5


async def test_however_often_it_is_asked_a_slow_server_holds_a_trigger_for_a_second():
    async with Server(document(public_jwk("k1"))) as server, following({ISS: rule(server.url)}) as follower:
        server.delay_s = 4.0
        began, waits = time.monotonic(), 0
        while follower.may_fetch(ISS):
            await follower.want(ISS, "unknown")
            waits += 1
        assert time.monotonic() - began < 2.0
        assert waits < 3


async def test_a_set_that_stands_in_the_rule_is_there_at_once_and_follows_it():
    in_rule = SimpleNamespace(jwks={"keys": [public_jwk("k1")]}, algorithms=("ES256",))
    async with following({ISS: in_rule}) as follower:
        assert set(follower.ring[ISS].keys) == {"k1"}
        assert not follower.may_fetch(ISS), "there is nowhere to look for another"
        follower.follow({ISS: SimpleNamespace(jwks={"keys": [public_jwk("k2")]}, algorithms=("ES256",))})
        assert set(follower.ring[ISS].keys) == {"k2"}
        follower.follow({})
        assert ISS not in follower.ring


async def test_plain_http_is_for_this_machine_only():
    async with following({ISS: rule("http://issuer.example/jwks.json")}) as follower:
        assert follower.ring == {ISS: None}


async def test_rules_that_go_take_their_keys_along(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(document(public_jwk(name)))
    async with following({"a": rule(tmp_path / "a"), "b": rule(tmp_path / "b")}) as follower:
        version = follower.version
        follower.follow({"a": rule(tmp_path / "a"), "b": rule(tmp_path / "b")})
        assert follower.version == version
        follower.follow({"a": rule(tmp_path / "b")})
        assert set(follower.ring) == {"a"}
        assert follower.ring["a"] is None  # never the keys of where it was before
        await until(lambda: follower.ring["a"] is not None)
        assert set(follower.ring["a"].keys) == {"b"}


# ── the development secret (K-02, K-07) ──


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 32 + b"\n")
    path.chmod(0o600)
    return path


def with_secret(path, bootstrap="localhost:9092"):
    return load(gate__insecure_dev_hs256=path, kafka__bootstrap=bootstrap)


def test_there_is_no_secret_unless_one_is_configured():
    assert load_dev_secret(load()) is None


def test_a_secret_is_read_from_a_file_of_ones_own(secret):
    assert load_dev_secret(with_secret(secret, "127.0.0.1:9092,[::1]:9092,localhost:9093")) == b"s" * 32


@pytest.mark.parametrize(
    "bootstrap", ["kafka.example:9092", "localhost:9092,10.0.0.1:9092", "localhost.evil.example:1", "0.0.0.0:9092"]
)
def test_a_broker_elsewhere_refuses_the_secret(secret, bootstrap):
    with pytest.raises(ConfigError, match="localhost"):
        JwksFollower(with_secret(secret, bootstrap))


def test_a_secret_everyone_may_read_or_too_short_or_missing_is_refused(secret, tmp_path):
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_dev_secret(with_secret(secret))
    secret.chmod(0o600)
    secret.write_bytes(b"s" * 31 + b"\n")
    with pytest.raises(ConfigError, match="31 bytes"):
        load_dev_secret(with_secret(secret))
    with pytest.raises(ConfigError, match="No such file"):
        load_dev_secret(with_secret(tmp_path / "none"))


def test_a_secret_of_the_settings_is_honoured_where_the_dangerous_setting_names_it_alone(tmp_path, monkeypatch):
    """security.jwt_secret by itself makes nothing acceptable: a file of settings may come from another system."""
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "tollgate.toml"
    settings.write_text(f'[security]\njwt_secret = "{"s" * 32}"\n')
    assert load_dev_secret(load()) is None
    named = {"gate__insecure_dev_hs256": "security.jwt_secret"}
    settings.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_dev_secret(load(**named))
    settings.chmod(0o600)
    assert load_dev_secret(load(**named)) == b"s" * 32
    with pytest.raises(ConfigError, match="localhost"):
        load_dev_secret(load(**named, kafka__bootstrap="kafka.example:9092"))
    monkeypatch.setenv("TOLLGATE_SECURITY__JWT_SECRET", "s" * 31)
    with pytest.raises(ConfigError, match="31 bytes"):
        load_dev_secret(load(**named))
    monkeypatch.delenv("TOLLGATE_SECURITY__JWT_SECRET")
    settings.unlink()
    with pytest.raises(ConfigError, match="not set"):
        load_dev_secret(load(**named))


async def test_the_secret_serves_only_rules_that_list_hs256(secret, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_bytes(document(public_jwk()))
    rules = {"dev": rule("/nowhere", "HS256"), "both": rule(file, "ES256", "HS256"), "prod": rule(file, "ES256")}
    async with following(rules, insecure_dev_hs256=secret) as follower:
        assert set(follower.ring["dev"].keys) == {"dev"}
        assert set(follower.ring["both"].keys) == {"k1", "dev"}
        assert set(follower.ring["prod"].keys) == {"k1"}
    async with following(rules) as follower:
        assert not follower.ring["dev"].keys
        assert follower.ring["both"].algorithms == {"ES256"}


def test_loopback_is_told_by_the_name_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "10.0.0.1", "localhost.example", "127.0.0.1.example")))
