"""HTTP doors as an operator would start them, and clients of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.gates import GateProcess

READY_TIMEOUT_S = 60
WAIT = {"prefer": "wait=25"}
# Nothing here is TLS; by default every client and every single request reads all the authorities of the world first.
PLAIN: dict[str, Any] = {"verify": False}


class DoorProcess(GateProcess):
    """One `tollgate serve`, on free ports unless the environment says others."""

    words = ("serve",)

    def __init__(self, name: str, directory: Path, env: dict[str, str]) -> None:
        free = {"TOLLGATE_SERVE__PORT": "0", "TOLLGATE_SERVE__INTERNAL_PORT": "0"}
        super().__init__(name, directory, free | env)

    def _address(self, which: str) -> str:
        told = [event for event in self.events() if event["event"] == "serve_started"]
        return f"http://{told[self.starts - 1][which]}"

    @property
    def url(self) -> str:
        return self._address("public")

    @property
    def internal_url(self) -> str:
        return self._address("internal")

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            assert self.alive, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.internal_url}/readyz", **PLAIN).status_code == 200
        except (IndexError, httpx.TransportError):
            return False


class Emitter:
    """A client of a door with a token of its own."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=40, **PLAIN)

    def trigger(self, job: str | None, params: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        path = "/v1/triggers" if job is None else f"/v1/triggers/{job}"
        return self._client.post(path, json=params or {}, headers=named)

    def decided(self, job: str | None, params: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """The receipt, whether it is the answer or stands in a problem."""
        answer = self.trigger(job, params, **(headers | WAIT))
        body: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json"
            receipt: dict[str, Any] = body["receipt"]
            assert (body["reason"], body["status"]) == (receipt["reason"], answer.status_code)
            assert body.get("detail") == receipt["detail"]
            return receipt
        return body

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self._client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._client.post(path, **options)

    def receipt(self, trigger_id: str, timeout_s: float = 30) -> dict[str, Any]:
        """Asked for until it is there."""
        deadline = time.monotonic() + timeout_s
        while (answer := self.get(f"/v1/receipts/{trigger_id}")).status_code != 200:
            assert answer.json()["reason"] == "receipt_unknown"
            assert time.monotonic() < deadline, trigger_id
            time.sleep(0.05)
        body: dict[str, Any] = answer.json()
        return body

    def close(self) -> None:
        self._client.close()
