"""N: the figures and their script, the tests by name, the words of the glossary, the layout and the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

TOP_LEVEL = {"pyproject.toml", "README.md", "app", "schemas", "tests", "docker-compose.yml", "scripts",
             "requirements.lock", "LICENSE"}  # fmt: skip
TERMS = ("Trigger token", "Emitter", "Executor", "Scope", "TTL", "Idempotency key")  # of the seed's definitions
PACKAGES = {"aiokafka", "pyjwt", "cryptography", "orjson"}
TEST_PACKAGES = {"testcontainers", "pytest"}
MINUTES_S = 300


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=! ;]", each, maxsplit=1)[0].lower() for each in requirements}


# ── N-01 (the figures themselves are the bench's) ──


def test_the_bench_is_one_script_and_the_readme_has_its_figures(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "scripts" / "bench", "--help"], capture_output=True, text=True, timeout=MINUTES_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--peers" in done.stdout
    readme = (checkout / "README.md").read_text()
    assert "scripts/bench" in readme
    assert re.search(r"p99", readme)


# ── N-02 ──


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marker", "names"),
    [
        ("not broker", ("generat|issue|mint", "verif|valid", "scope|authori[sz]|grant", "expire")),
        ("broker", ("accepted|starts", "expired", "another|not_authorized|not_start")),
    ],
)
def test_generation_and_validation_have_tests_without_a_broker_and_with_one(
    checkout: Path, marker: str, names: tuple[str, ...]
) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-m",
        marker,
        "tests/gate",
        "tests/issuer",
        "tests/rows",
    ]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=MINUTES_S, check=True)
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    for name in names:
        assert any(re.search(name, test) for test in collected), f"no test is named after {name}"


# ── N-07 ──


def test_the_six_terms_are_in_the_readme_and_their_words_in_the_schemas(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text().lower()
    assert [term for term in TERMS if term.lower() not in readme] == []
    schemas = "\n".join(file.read_text() for file in (checkout / "schemas").iterdir())
    for word in ("trigger", "emitter", "idempotency_key", "jobs", "exp"):
        assert word in schemas


# ── N-08 ──


def test_the_top_level_has_the_names_agreed(checkout: Path) -> None:
    assert [name for name in sorted(TOP_LEVEL) if not (checkout / name).exists()] == []
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=checkout, capture_output=True, text=True,
                            timeout=60, check=False).stdout.splitlines()  # fmt: skip
    others = {path.split("/")[0] for path in listed} - TOP_LEVEL
    assert {name for name in others if not name.startswith(".")} <= {
        "SECURITY.md",
        "Dockerfile",
        "requirements-bench.lock",
    }


def test_the_packages_agreed_are_dependencies_and_faust_only_of_the_bench(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    assert names_of(project["project"]["dependencies"]) >= PACKAGES
    assert names_of(project["dependency-groups"]["dev"]) >= TEST_PACKAGES
    assert "faust-streaming" in names_of(project["dependency-groups"]["bench"])
    assert "faust-streaming" not in names_of(project["project"]["dependencies"])


def test_a_wheel_is_built_and_installs_the_program(checkout: Path, tmp_path: Path) -> None:
    built = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=checkout,
                           capture_output=True, text=True, timeout=MINUTES_S, check=False)  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("tollgate-*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {"app/cli/main.py", "app/gate/decide.py", "app/local/kafka.lock.toml"} <= set(held)
    assert not [name for name in held if name.startswith(("tests/", "scripts/"))]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run([sys.executable, "-c", "from app.cli.main import main; main()", "--version"], cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in wheel.name
