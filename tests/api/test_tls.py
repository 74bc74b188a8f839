"""The door with TLS of its own: a client that checks certificates gets in, nothing goes in clear, old versions do not."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import Deployment
from tests.cli.program import tollgate
from tests.support.certificates import certificates
from tests.support.doors import DoorProcess
from tests.support.issuer import JOB

pytestmark = [pytest.mark.broker, pytest.mark.filterwarnings("ignore:ssl.TLSVersion")]


@pytest.fixture
def secured(deployment: Deployment, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Host and port of a door with TLS, and the authority to check it by."""
    authority, chain = certificates(tmp_path)
    door = DoorProcess("secured", tmp_path, deployment.settings_for(serve__tls_certfile=str(chain)))
    door.start()
    try:
        door.wait_ready()
        yield door.url.removeprefix("http://"), authority
    finally:
        assert door.stop() == 0


def test_a_door_with_a_certificate_takes_triggers_over_tls_alone(
    deployment: Deployment, secured: tuple[str, Path]
) -> None:
    address, authority = secured
    bearer = {"authorization": f"Bearer {deployment.issuer.token()}"}
    trusting = ssl.create_default_context(cafile=str(authority))
    with httpx.Client(base_url=f"https://{address}", verify=trusting, headers=bearer, timeout=40) as client:
        answer = client.post(f"/v1/triggers/{JOB}", json={}, headers={"prefer": "wait=25"})
        assert (answer.status_code, answer.json()["outcome"]) == (200, "accepted")
        assert client.get("/.well-known/jwks.json").json()["keys"]
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{address}/v1/triggers/{JOB}", json={}, headers=bearer)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{address}/.well-known/jwks.json")
    trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{address}/.well-known/jwks.json", verify=trusting)


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "of something else"])
def test_a_certificate_that_cannot_be_loaded_is_told_by_its_setting(
    deployment: Deployment, tmp_path: Path, content: str | None
) -> None:
    chain = tmp_path / "chain.pem"
    if content is not None:
        chain.write_text(content)
    said = tollgate(deployment.settings_for(serve__tls_certfile=str(chain), serve__port="0"), "serve")
    assert said.code == 2
    assert "serve.tls_certfile" in said.err
    assert "Traceback" not in said.err
