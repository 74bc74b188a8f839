"""What the door refuses by itself, before Kafka: on its real listeners, with nothing behind them."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from app.api import server
from app.api.problems import FAULTS, OF_CLIENTS, Problem
from app.config import ConfigError
from app.gate.reasons import BY_CODE, REASONS
from tests.api.closed import Closed, closed_door
from tests.support.doors import PLAIN
from tests.support.tokens import public_jwk, token

BODY_MAX, HEADERS_MAX = 4_096, 16_384


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    with closed_door(tmp_path_factory.mktemp("door"), body_max_bytes=BODY_MAX, headers_max_bytes=HEADERS_MAX) as door:
        yield door


@pytest.fixture
def client(door: Closed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url, headers={"authorization": f"Bearer {token()}"}, **PLAIN) as client:
        yield client


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and reason of a problem that is one in every respect."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:tollgate:problem:{body['reason']}"
    assert body["title"]
    assert body["remedy"]
    assert ("retry-after" in answer.headers) >= (answer.status_code == 503)
    return answer.status_code, body["reason"]


def post(client: httpx.Client, content: bytes = b"{}", **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return problem_of(client.post("/v1/triggers/reports/nightly", content=content, headers=named))


def test_without_kafka_a_good_trigger_is_refused_with_the_time_to_come_again(client: httpx.Client) -> None:
    assert post(client) == (503, "kafka_unavailable")


def test_a_trigger_without_a_token_is_refused_before_its_body_is_read(door: Closed) -> None:
    answer = httpx.post(f"{door.url}/v1/triggers/reports/nightly", content=b"not JSON")
    assert problem_of(answer) == (401, "token_missing")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("typ", "told"),
    [
        *((typ, (403, "wrong_client_class")) for typ in ("user+jwt", "host+jwt", "execution+jwt", "task+jwt")),
        *((typ, (401, "token_type_invalid")) for typ in ("at+jwt", "JWT", "trigger", "TRIGGER+JWT", "grant+jwt", "")),
    ],
)
def test_a_token_of_another_class_or_of_none_never_gets_to_kafka(
    client: httpx.Client, typ: str, told: tuple[int, str]
) -> None:
    assert post(client, authorization=f"Bearer {token({'typ': typ})}") == told


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer", "Bearer  a  b", "Bearer a b", "token"])
def test_an_authorization_that_is_no_bearer_token_is_refused(client: httpx.Client, value: str) -> None:
    assert post(client, authorization=value) == (401, "authorization_malformed")


def test_a_token_in_the_query_is_none(door: Closed) -> None:
    answer = httpx.post(f"{door.url}/v1/triggers?access_token={token()}")
    assert problem_of(answer) == (401, "token_missing")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"not JSON", "json_malformed"), (b"[]", "json_malformed"), (b'"text"', "json_malformed"), (b"\xff", "json_malformed"),
        (b'{"n": NaN}', "json_malformed"), (b'{"a": 1, "a": 2}', "json_duplicate_member"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "json_too_deep"), (b'{"n": 12345678901234567}', "json_number_unsafe"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_strict_json_object_is_refused_as_the_gate_would(
    client: httpx.Client, body: bytes, code: str
) -> None:
    assert post(client, body) == (400, code)


def test_a_body_may_be_left_out(client: httpx.Client) -> None:
    assert post(client, b"") == (503, "kafka_unavailable")


def test_a_body_as_large_as_the_limit_is_read_and_a_byte_more_is_not(client: httpx.Client) -> None:
    frame = len(b'{"a":""}')
    assert post(client, b'{"a":"%s"}' % (b"x" * (BODY_MAX - frame))) == (503, "kafka_unavailable")
    assert post(client, b'{"a":"%s"}' % (b"x" * (BODY_MAX - frame + 1))) == (413, "record_too_large")


@pytest.mark.parametrize(
    "target",
    ["/v1/triggers/", "//v1/triggers/reports/nightly", "/v1//triggers/reports/nightly", "/v1%2ftriggers/reports/nightly",
     "/%76%31/triggers/reports/nightly", "/oauth//token", "/v1/triggers//", "/v1/triggers/%2f"],
)  # fmt: skip
def test_a_path_that_is_spelled_otherwise_is_none(door: Closed, target: str) -> None:
    """Who lets some paths through, a proxy, and who routes them must not read them in two ways."""
    host, _, port = door.public_at.partition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as wire:
        # Raw: a client of its own would mend it.
        wire.request("POST", target, b"{}", {"Authorization": "Bearer x.e30.y", "Content-Type": "application/json"})
        answer = wire.getresponse()
        assert (answer.status, json.loads(answer.read())["reason"]) == (404, "not_found")


def test_a_body_without_a_stated_length_has_the_same_limit(client: httpx.Client) -> None:
    answer = client.post("/v1/triggers", content=iter([b"x" * 1_000] * 6))
    assert problem_of(answer) == (413, "record_too_large")


@pytest.mark.parametrize("name", ["authorization", "idempotency-key", "tollgate-correlation-id"])
def test_a_header_that_decides_something_is_given_once(client: httpx.Client, name: str) -> None:
    answer = client.post(
        "/v1/triggers", headers=[(name, "Bearer x"), (name, "Bearer x"), ("authorization", "Bearer x")]
    )
    assert problem_of(answer) == (400, "header_repeated")


def test_a_header_that_is_not_text_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/triggers", headers=[(b"idempotency-key", b"\xff\xfe")])
    assert problem_of(answer) == (400, "headers_malformed")


@pytest.mark.parametrize(
    "headers", [{"content_type": "application/x-www-form-urlencoded"}, {"content_type": "text/json"},
                {"content_encoding": "gzip"}, {"content_type": "application/jsonp"}],
)  # fmt: skip
def test_a_body_that_is_not_plain_json_by_its_headers_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    assert post(client, **headers) == (415, "media_type_unsupported")


@pytest.mark.parametrize("media", ["application/json", "APPLICATION/JSON ; charset=utf-8"])
def test_json_may_be_called_so_in_any_case(client: httpx.Client, media: str) -> None:
    assert post(client, content_type=media) == (503, "kafka_unavailable")


def test_headers_beyond_the_limit_are_refused_whole_or_without_end(door: Closed, client: httpx.Client) -> None:
    assert post(client, x="y" * HEADERS_MAX) == (431, "headers_too_large")
    host, _, port = door.public_at.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(b"POST /v1/triggers HTTP/1.1\r\nx: ")
        time.sleep(0.05)  # what comes with the begin of a head is not counted, and would be waited for
        answer = b""
        try:
            for _ in range(64):
                wire.sendall(b"y" * 1_024)
            answer = wire.recv(65_536)
        except OSError:
            pass  # it has closed
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "said", [b"BREW /coffee HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET http://[ HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_gets_a_problem_too(door: Closed, said: bytes) -> None:
    host, _, port = door.public_at.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(said)
        head, _, body = wire.makefile("rb").read().partition(b"\r\n\r\n")  # and the connection is closed
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["reason"] == "request_malformed"


def test_where_secrets_are_to_be_sent_is_told_to_this_machine_or_as_configured(tmp_path: Path, door: Closed) -> None:
    path, port = "/.well-known/oauth-authorization-server", door.public_at.rpartition(":")[2]
    for host in (door.public_at, f"localhost:{port}"):
        answer = httpx.get(door.url + path, headers={"host": host})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["token_endpoint"] == f"{door.url}/oauth/token"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "tollgate.example"):
        answer = httpx.get(door.url + path, headers={"host": host, "x-forwarded-proto": "https"})
        assert problem_of(answer) == (404, "not_found")
        assert "serve.public_url" in answer.json()["detail"]
    with closed_door(tmp_path, public_url="https://tollgate.example") as configured:
        told = httpx.get(configured.url + path, headers={"host": "evil.example"}).json()
    assert told["token_endpoint"] == "https://tollgate.example/oauth/token"


@pytest.mark.parametrize("apart", [True, False])
def test_the_beginning_of_a_next_request_may_come_with_the_end_of_a_large_body(tmp_path: Path, apart: bool) -> None:
    body, following = b'{"a":"' + b"x" * 20_000 + b'"}', b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        b"POST /v1/triggers/j HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x.e30.y\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    first = [head, body + following[:10]] if apart else [head + body + following[:10]]
    with closed_door(tmp_path, headers_max_bytes=HEADERS_MAX) as door:
        host, _, port = door.public_at.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            for segment in (*first, following[10:]):
                wire.sendall(segment)
                time.sleep(0.1)
            assert wire.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_an_instance_that_is_not_ready_is_given_no_connections_of_the_port_it_shares() -> None:
    with closing(server._bound("serve.port", "127.0.0.1", 0, reuse_port=True)) as ready:
        server._listen("serve.port", ready)
        port = ready.getsockname()[1]
        with closing(server._bound("serve.port", "127.0.0.1", port, reuse_port=True)), ExitStack() as wires:
            for _ in range(50):
                wires.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(50):  # else it would block
                wires.enter_context(closing(ready.accept()[0]))


def test_of_two_that_were_bound_to_one_port_the_later_one_to_listen_is_told() -> None:
    with ExitStack() as bound:
        first = bound.enter_context(closing(server._bound("serve.port", "127.0.0.1", 0)))
        second = bound.enter_context(closing(server._bound("serve.port", "127.0.0.1", first.getsockname()[1])))
        server._listen("serve.port", first)
        with pytest.raises(ConfigError, match=r"serve\.port"):
            server._listen("serve.port", second)


def test_what_is_not_there_is_a_problem_too(client: httpx.Client) -> None:
    assert problem_of(client.get("/v1/nothing")) == (404, "not_found")
    answer = client.delete("/v1/triggers")
    assert problem_of(answer) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_nothing_of_the_internal_listener_is_on_the_public_one(door: Closed, client: httpx.Client) -> None:
    door.jwks_file.write_text(json.dumps({"keys": [public_jwk()]}))
    for path in (
        "/internal/jwks/task",
        "/metrics",
        "/readyz",
        "/livez",
        "//internal/jwks/task",
        "/v1/../internal/jwks/task",
    ):
        assert problem_of(client.get(path)) == (404, "not_found"), path
    for path, status in (("/internal/jwks/task", 200), ("/metrics", 200), ("/livez", 200), ("/readyz", 503)):
        assert httpx.get(door.internal_url + path).status_code == status, path
    assert httpx.post(door.internal_url + "/v1/triggers").status_code == 404


def test_keys_are_served_with_their_public_members_alone_and_a_time_to_keep_them(door: Closed) -> None:
    good = public_jwk()
    bad = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}
    door.jwks_file.write_text(json.dumps({"keys": [good | {"d": "c2VjcmV0"}, bad], "secret": "c2VjcmV0"}))
    for url in (f"{door.url}/.well-known/jwks.json", f"{door.internal_url}/internal/jwks/task"):
        answer = httpx.get(url)
        assert answer.json() == {"keys": [good]}
        assert answer.headers["content-type"] == "application/jwk-set+json"
        assert answer.headers["cache-control"] == "public, max-age=300"


def test_where_no_keys_are_published_there_is_a_problem_and_a_new_set_is_seen_at_once(door: Closed) -> None:
    url = f"{door.url}/.well-known/jwks.json"
    door.jwks_file.unlink(missing_ok=True)
    assert problem_of(httpx.get(url)) == (404, "keys_unpublished")
    door.jwks_file.write_text("[]")
    assert problem_of(httpx.get(url)) == (404, "keys_unpublished")
    for kid in ("one", "two"):
        door.jwks_file.write_text(json.dumps({"keys": [public_jwk(kid)]}))
        assert [key["kid"] for key in httpx.get(url).json()["keys"]] == [kid]


def test_who_reads_while_the_view_is_not_up_to_date_is_told_to_come_again(client: httpx.Client) -> None:
    for answer in (client.get("/v1/receipts/0-1"), client.get("/v1/receipts/stream"), client.post("/v1/explain")):
        assert problem_of(answer) == (503, "not_ready")


def test_no_answer_may_be_taken_for_something_else(client: httpx.Client) -> None:
    for answer in (
        client.get("/docs"),
        client.get("/openapi.json"),
        client.get("/nothing"),
        client.post("/v1/triggers"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_each_reason_and_each_fault_makes_a_problem_and_no_code_is_both() -> None:
    assert not {fault.code for fault in FAULTS} & BY_CODE.keys()
    for told in (*REASONS, *FAULTS):
        problem = Problem(told.code)
        assert 400 <= problem.status < 600
        body = json.loads(problem.body())
        assert (body["reason"], body["title"], body["remedy"]) == (told.code, told.meaning, told.remedy)
        assert ("Retry-After" in problem.headers) == (told.transient or problem.status == 503)
        asked = problem.status in {401, 403} and told.code not in OF_CLIENTS
        assert ("WWW-Authenticate" in problem.headers) == asked


@pytest.mark.parametrize("code", ["issue_denied", "revocation_denied"])
def test_a_client_that_may_not_is_not_asked_for_a_bearer_token(code: str) -> None:
    assert Problem(code).status == 403
    assert "WWW-Authenticate" not in Problem(code).headers
    assert "insufficient_scope" in Problem("job_not_authorized").headers["WWW-Authenticate"]
