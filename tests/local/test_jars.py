"""The jars' cache: nothing enters it unchecked, nothing wrong in it is used."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from app.local.errors import LocalKafkaError
from app.local.jars import LOCK_FILE, class_path, default_cache_dir, read_lock

SMALL = """
[[dependencies]]
groupId = "org.slf4j"
artifactId = "slf4j-simple"
version = "1.7.36"
sha256 = "{sha256}"
"""
RIGHT_SHA256 = next(jar.sha256 for jar in read_lock() if jar.artifact == "slf4j-simple")


def lock_with(tmp_path: Path, sha256: str) -> Path:
    lock = tmp_path / "lock.toml"
    lock.write_text(SMALL.format(sha256=sha256))
    return lock


def test_every_locked_jar_has_its_sha256() -> None:
    jars = read_lock()
    assert {"kafka_2.13", "kafka-tools", "kafka-clients"} <= {jar.artifact for jar in jars}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert len({jar.path for jar in jars}) == len(jars)


def test_the_lock_file_names_no_registry() -> None:
    assert "//" not in LOCK_FILE.read_text()


@pytest.mark.broker
def test_a_corrupt_cached_jar_is_refused_and_fetched_again(tmp_path: Path) -> None:
    lock = lock_with(tmp_path, RIGHT_SHA256)
    said: list[str] = []
    jar = Path(class_path(tmp_path, lock=lock, say=said.append))
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == RIGHT_SHA256
    jar.write_bytes(jar.read_bytes()[:-1] + b"!")
    class_path(tmp_path, lock=lock, say=said.append)
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == RIGHT_SHA256
    class_path(tmp_path, lock=lock, say=said.append)
    assert sum(line.startswith("Fetching 1 jars") for line in said) == 2


@pytest.mark.broker
def test_a_jar_with_another_digest_never_enters_the_cache(tmp_path: Path) -> None:
    lock = lock_with(tmp_path, "0" * 64)
    with pytest.raises(LocalKafkaError, match="another SHA-256 than the lock file names"):
        class_path(tmp_path, lock=lock, say=lambda _: None)
    assert not list(tmp_path.rglob("*.jar"))


def test_without_a_network_the_reason_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(LocalKafkaError, match=r"slf4j-simple-1\.7\.36\.jar .* failed: the registry did not answer"):
        class_path(tmp_path, lock=lock_with(tmp_path, RIGHT_SHA256), say=lambda _: None)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "jars").write_text("a file where the directory should be")
    with pytest.raises(LocalKafkaError, match=r"cannot be written .*TOLLGATE_LOCAL__CACHE_DIR"):
        class_path(tmp_path, lock=lock_with(tmp_path, RIGHT_SHA256), say=lambda _: None)


def test_the_cache_is_found_with_an_empty_home() -> None:
    assert default_cache_dir({"HOME": "/somebody"}) == Path("/somebody/.cache/tollgate")
    assert default_cache_dir({"HOME": "/somebody", "XDG_CACHE_HOME": "/c"}) == Path("/c/tollgate")
    assert default_cache_dir({"HOME": "/somebody", "TOLLGATE_LOCAL__CACHE_DIR": "/d"}) == Path("/d")
    assert default_cache_dir({"HOME": ""}).is_absolute()
