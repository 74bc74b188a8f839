"""The webhook door: a trigger by HTTP is the same record as by Kafka, and the gate alone decides it.

Refused here is only what can be known without deciding: no bearer token, one that says it is of a class that starts no
jobs or of none at all (which has no business on any topic), a body that is no JSON object, or too large.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import Receive

from app.api import operations as described
from app.api.problems import RETRY_AFTER_S, Problem
from app.api.publisher import Placed
from app.api.receipts import decode
from app.api.requests import Headers, answer, bearer_token, headers_of, object_of, tail_of_path, wait_of
from app.api.service import Service
from app.emission import Emission, Form, Trigger, trigger_of
from app.gate.reasons import BY_CODE
from app.gate.token import class_fault

PATH: Final = "/v1/triggers"
TRACEPARENT_MAX: Final = 55  # characters of version 00 (W3C Trace Context section 3.2)


def routes(service: Service) -> list[HTTPRouteHandler]:
    """POST with and without the job in the path."""

    @post(PATH, opt=described.operation(described.POST_TRIGGER))
    async def trigger(request: Request[Any, Any, Any]) -> ASGIResponse:
        if request.scope["raw_path"] != PATH.encode():  # of a job without a name, which routing takes for none
            raise Problem("not_found")
        return await _trigger(service, request, None)

    @post(PATH + "/{job:path}", opt=described.operation(described.POST_TRIGGER_FOR_JOB))
    async def trigger_for_job(request: Request[Any, Any, Any]) -> ASGIResponse:
        return await _trigger(service, request, tail_of_path(request.scope, PATH + "/"))

    return [trigger, trigger_for_job]


async def _trigger(service: Service, request: Request[Any, Any, Any], job: str | None) -> ASGIResponse:
    headers = headers_of(request.scope)
    token = bearer_token(headers)
    fault = class_fault(token)
    if fault is not None:
        raise Problem(fault)
    with service.bodies.counted(request.receive) as receive:
        # Nothing keeps the parameters while Kafka takes the record, nor the record while the receipt is waited for.
        placed = await service.publisher.publish(await _record(service, headers, receive, job, token))
    correlation_id = headers.get("tollgate-correlation-id")
    wait_s = wait_of(request.scope)
    if wait_s is None:
        return _taken(placed, correlation_id, {})
    wait_s = min(wait_s, service.settings.serve.wait_max_s)
    preference = {"Preference-Applied": f"wait={wait_s}"}
    # With wait=0 the acknowledgement is asked for, however soon the decision came.
    receipt = await service.receipts.wait(placed.trigger_id, wait_s) if wait_s else None
    if receipt is None:
        return _taken(placed, correlation_id, preference)
    return _decided(receipt, placed, preference)


async def _record(service: Service, headers: Headers, receive: Receive, job: str | None, token: str) -> Trigger:
    params = await object_of(headers, receive, service.settings.serve.body_max_bytes)
    traceparent = headers.get("traceparent")
    emission = Emission(
        Form.JSON, job, params, headers.get("idempotency-key"), headers.get("tollgate-correlation-id"), None,
        traceparent if traceparent is not None and len(traceparent) == TRACEPARENT_MAX else None,
    )  # fmt: skip
    if service.stopping.is_set():
        raise Problem("stopping")
    return trigger_of(emission, token)


def _location(placed: Placed) -> dict[str, str]:
    return {"Location": f"/v1/receipts/{placed.trigger_id}"}


def _taken(placed: Placed, correlation_id: str | None, headers: dict[str, str]) -> ASGIResponse:
    body = orjson.dumps(
        {"trigger_id": placed.trigger_id, "appended_at_ms": placed.appended_at_ms, "correlation_id": correlation_id}
    )
    return answer(body, 202, {**_location(placed), "Retry-After": str(RETRY_AFTER_S), **headers})


def _decided(receipt: bytes, placed: Placed, headers: dict[str, str]) -> ASGIResponse:
    """The receipt as it stands on its topic; a refusal is a problem that holds it."""
    read = decode(receipt)
    if read.outcome != "rejected":
        return answer(receipt, 200, {**_location(placed), **headers})
    code = read.reason if read.reason in BY_CODE else "internal_deny"
    raise Problem(
        code, read.detail, headers={**_location(placed), **headers}, trigger_id=placed.trigger_id,
        receipt=orjson.Fragment(receipt),
    )  # fmt: skip
