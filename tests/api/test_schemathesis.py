"""Requests made up from the OpenAPI document, good and bad: none makes the door fail, each answer is as described."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import openapi
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Deployment

pytestmark = pytest.mark.broker
EXAMPLES = 40  # of each operation, good and bad ones each
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip
ENDLESS = "/v1/receipts/stream"


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("signed", [True, False])
def test_no_request_makes_the_door_fail(deployment: Deployment, mode: GenerationMode, signed: bool) -> None:
    schema = openapi.from_url(f"{deployment.doors[0].url}/openapi.json")
    headers = {"authorization": f"Bearer {deployment.issuer.token()}"} if signed else {}
    tried: Counter[int] = Counter()
    for operation in (each.ok() for each in schema.get_all_operations()):
        if operation.path != ENDLESS or not signed:
            _try(operation, mode, headers, tried)
    assert sum(tried.values()) > 100
    assert not [event for event in deployment.doors[0].events() if event["event"] == "serve_error"]


def _try(operation: Any, mode: GenerationMode, headers: dict[str, str], tried: Counter[int]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        answer = case.call(headers=headers, timeout=40)
        tried[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing of it can be wrong
        run()
