"""The OpenAPI document and the page made of it: about every route, whole, and fetched from nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx
import pytest

from app.api.forms import ErrorCode
from app.api.problems import FAULTS
from app.authority.decide import DENIALS
from app.gate.reasons import REASONS
from tests.api.closed import Closed, closed_door

ROUTES = {
    ("post", "/v1/triggers"), ("post", "/v1/triggers/{job}"), ("get", "/v1/receipts/{trigger_id}"),
    ("get", "/v1/receipts/stream"), ("post", "/v1/explain"), ("get", "/.well-known/jwks.json"),
    ("get", "/openapi.json"), ("get", "/docs"), ("post", "/oauth/token"), ("post", "/oauth/introspect"),
    ("post", "/oauth/revoke"), ("get", "/.well-known/oauth-authorization-server"), ("post", "/v1/tokens"),
    ("get", "/v1/tokens"), ("post", "/v1/revocations"), ("get", "/v1/me"), ("get", "/v1/host"),
}  # fmt: skip


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    with closed_door(tmp_path_factory.mktemp("door")) as door:
        yield door


def test_every_route_is_described(door: Closed) -> None:
    document = httpx.get(f"{door.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == ROUTES
    ids = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(set(ids)) == len(ids)


def test_every_reference_of_the_document_leads_somewhere(door: Closed) -> None:
    answer = httpx.get(f"{door.url}/openapi.json")
    named = answer.json()["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"([^"]+)"', answer.text))
    assert references
    assert references <= {f"#/components/schemas/{name}" for name in named}


def test_the_document_is_one_by_the_specification(door: Closed, tmp_path: Path) -> None:
    from schemathesis import openapi

    schema = openapi.from_url(f"{door.url}/openapi.json")
    schema.validate()


def test_the_page_shows_every_route_and_reason_and_fetches_nothing(door: Closed) -> None:
    answer = httpx.get(f"{door.url}/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for _, path in ROUTES:
        assert f"<code>{path}</code>" in answer.text
    for code in (*(each.code for each in (*REASONS, *FAULTS, *DENIALS)), *get_args(ErrorCode)):
        assert f"<td>{code}<" in answer.text
    for name, what in (
        ("authorization_details", "JSON: one object of type job_trigger"), ("uses", "once or many; left out: once"),
    ):  # fmt: skip
        assert f"<tr><td>{name}<td><td>{what}<" in answer.text, "the members of forms"
    assert not re.search(
        r"<(script|link|img|iframe)\b|\bsrc=|url\(|@import|https?://", answer.text.replace("http://", "")
    )
    assert answer.text.count("<a ") == 1


def test_each_path_says_what_it_takes_and_refuses_the_rest(door: Closed) -> None:
    named = httpx.get(f"{door.url}/openapi.json").json()["components"]["responses"]["MethodNotAllowed"]
    assert named["headers"]["Allow"]["required"] is True
    with httpx.Client(base_url=door.url) as client:
        for path in {path for _, path in ROUTES}:
            takes = {method.upper() for method, at in ROUTES if at == path}
            allow = ", ".join(sorted(takes | {"OPTIONS"} | ({"HEAD"} if "GET" in takes else set())))
            concrete = path.replace("{job}", "reports/nightly").replace("{trigger_id}", "0-1")
            options = client.options(concrete)
            assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allow), path
            for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - set(
                allow.split(", ")
            ):
                refused = client.request(method, concrete)
                assert (refused.status_code, refused.headers["allow"]) == (405, allow), (method, path)
                assert refused.headers["content-type"] == "application/problem+json"
                assert method == "HEAD" or refused.json()["reason"] == "method_not_allowed"


def test_head_is_answered_as_get_without_its_body(door: Closed) -> None:
    door.jwks_file.write_text('{"keys": []}')
    with httpx.Client(base_url=door.url) as client:
        for path in sorted(path.replace("{trigger_id}", "0-1") for method, path in ROUTES if method == "get"):
            get, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert get.content
            assert told(head) == told(get), path
        assert client.head("/nothing").status_code == 404
    assert httpx.head(f"{door.internal_url}/livez").status_code == 200


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}
