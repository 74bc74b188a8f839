"""TLS to the broker: its certificate is verified, ours is shown, and both clients of the product take part."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.local.secured import Tls
from app.stream.access import Role
from tests.access.test_programs import NOT_ALLOWED, OK, TIMEOUT_S, Programs
from tests.support.certificates import certificates
from tests.support.gates import COMMAND
from tests.support.secured import secured_kafka

pytestmark = pytest.mark.broker


def tls_files(directory: Path) -> Tls:
    """The broker's certificate serves as the client's as well: both are of this machine, by one authority."""
    directory.mkdir()
    authority, chain = certificates(directory)
    return Tls(authority, chain, chain, chain)


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    directory = tmp_path_factory.mktemp("tls")
    with secured_kafka(directory / "access", tls_files(directory / "certificates")) as secured:
        yield Programs(secured, "tls.", directory, lanes=1)


def test_a_trigger_becomes_a_job_over_mutual_tls(over_tls: Programs) -> None:
    gate = over_tls.gate()
    gate.start()
    try:
        code, receipt = over_tls.emit(over_tls.issuer.token())
        assert (code, receipt["outcome"]) == (OK, "accepted")
        (job,) = over_tls.ok(Role.WORKER, "jobs", "tail", "-o", "jsonl").splitlines()
        assert json.loads(job)["run_id"] == receipt["run_id"]
        over_tls.ok(Role.AUDITOR, "audit", "verify")
        over_tls.ok(Role.OPS, "topics", "check")
    finally:
        gate.stop()


@pytest.mark.parametrize("command", [("topics", "check"), ("jobs", "list")], ids=["by librdkafka", "by aiokafka"])
@pytest.mark.parametrize("wrong", ["another authority", "no certificate", "no TLS", "no SASL", "the file is not there"])
def test_a_broker_that_cannot_be_trusted_is_not_talked_to(
    over_tls: Programs, tmp_path: Path, wrong: str, command: tuple[str, str]
) -> None:
    """Nor one that does not trust us; and the sentence names the setting."""
    changed, named = {
        "another authority": ({"SSL_CAFILE": str(tls_files(tmp_path / "other").authority)}, "kafka.ssl_cafile"),
        "no certificate": ({"SSL_CERTFILE": "", "SSL_KEYFILE": ""}, "kafka."),
        "no TLS": ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, "kafka.security_protocol"),
        "no SASL": ({"SECURITY_PROTOCOL": "SSL"}, "kafka.security_protocol"),
        "the file is not there": ({"SSL_CAFILE": str(tmp_path / "none.pem")}, "kafka.ssl_cafile"),
    }[wrong]
    settings = (over_tls.files[Role.OPS]).read_text()
    if wrong == "no certificate":
        settings = "\n".join(
            line for line in settings.splitlines() if not line.startswith(("ssl_certfile", "ssl_keyfile"))
        )
        changed = {}
    file = tmp_path / "tollgate.toml"
    file.write_text(settings)
    done = subprocess.run(
        [*COMMAND, *command], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env=over_tls.environment(Role.OPS)
        | {"TOLLGATE_CONFIG": str(file)}
        | {f"TOLLGATE_KAFKA__{name}": value for name, value in changed.items()},
    )  # fmt: skip
    assert done.returncode not in {OK, TIMEOUT_S}, done.stdout
    assert done.returncode in {1, 2, NOT_ALLOWED}
    assert named in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
