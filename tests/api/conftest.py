"""One deployment with a running gate and two doors side by side, for all tests of the door."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.issuer.keystore import Keystore
from app.local.ports import free_ports
from tests.cli import program
from tests.support.canaries import Canaries
from tests.support.doors import DoorProcess, Emitter
from tests.support.founding import found
from tests.support.gates import GateProcess, environment
from tests.support.issuer import JOB, OtherIssuer

LANES = 3
STRICT = "reports/strict"
JOBS = f"""
[jobs."{JOB}"]
[jobs."reports/other"]
[jobs."reports/off"]
enabled = false
[jobs."{STRICT}"]
defaults = {{ format = "pdf", internal = "nobody's business" }}
[jobs."{STRICT}".params_schema]
type = "object"
required = ["region"]
properties = {{ region = {{ enum = ["eu", "us"] }} }}
"""


class Deployment:
    """Where everything is."""

    def __init__(self, bootstrap: str, prefix: str, directory: Path) -> None:
        self.bootstrap, self.prefix, self.directory = bootstrap, prefix, directory
        self.issuer = OtherIssuer(prefix)
        jwks = directory / "published.json"
        Keystore(directory / "keys", jwks).generate("ES256", 1_700_000_000)
        self.env = environment(bootstrap, prefix, issuer__jwks_file=str(jwks), issuer__keys_dir=str(directory / "keys"))
        (port,) = free_ports(1, random.SystemRandom())
        self.gate_metrics = f"http://127.0.0.1:{port}/metrics"
        self.gate = GateProcess("gate", directory, self.settings_for(telemetry__port=str(port)))
        self.doors = [DoorProcess(name, directory, self.env) for name in ("one", "two")]

    def settings_for(self, **settings: str) -> dict[str, str]:
        return self.env | {f"TOLLGATE_{name.upper()}": value for name, value in settings.items()}


@pytest.fixture(scope="session")
def canaries() -> Iterator[Canaries]:
    """Every token, handle and secret that these tests show a door, get of one, or are printed by a command."""
    kept = Canaries()
    send, tollgate, token = httpx.Client.send, program.subprocess.run, OtherIssuer.token

    def sending(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = send(client, request, **options)
        kept.note(*(content for _, content in request.headers.raw))
        kept.note(getattr(request, "_content", None))
        if answer.is_closed:  # else it is a stream
            kept.note(answer.content)
        return answer

    def running(*arguments: Any, **options: Any) -> Any:
        done = tollgate(*arguments, **options)
        kept.note(*(each for each in (done.stdout, options.get("input")) if isinstance(each, str)))
        return done

    def issuing(issuer: OtherIssuer, *arguments: Any, **claims: Any) -> str:
        made = token(issuer, *arguments, **claims)
        kept.note(made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", sending)
        patch.setattr(program.subprocess, "run", running)
        patch.setattr(OtherIssuer, "token", issuing)
        yield kept


@pytest.fixture(scope="session")
def deployment(broker: str, tmp_path_factory: pytest.TempPathFactory, canaries: Canaries) -> Iterator[Deployment]:
    made = Deployment(broker, f"api{os.getpid()}.", tmp_path_factory.mktemp("api"))
    found(broker, made.prefix, LANES, made.issuer, made.directory)
    (made.directory / "jobs.toml").write_text(JOBS)
    from tests.cli.program import tollgate

    assert tollgate(made.env, "jobs", "apply", str(made.directory / "jobs.toml")).code == 0
    processes = [made.gate, *made.doors]
    try:
        for process in processes:
            process.start()
        for door in made.doors:
            door.wait_ready()
        yield made
    finally:
        codes = [process.stop() for process in processes if process.alive]
    assert set(codes) == {0}


@pytest.fixture
def emitter(deployment: Deployment) -> Iterator[Callable[..., Emitter]]:
    """Makes clients of a door: of the first, with a webhook token, unless told otherwise."""
    made: list[Emitter] = []

    def make(token: str | None = None, door: int = 0) -> Emitter:
        made.append(Emitter(deployment.doors[door].url, token or deployment.issuer.token()))
        return made[-1]

    yield make
    for each in made:
        each.close()
