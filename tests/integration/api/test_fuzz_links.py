"""Made-up sequences of requests: what an answer names is asked for next, by the links of the API's description."""

import collections
import os
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings

from orchestrator.domain.access import Role
from tests.integration.api.test_fuzz import CHECKS, DOCUMENT, HIDDEN, TENANTS, app, schema

__all__ = ["app", "schema"]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
STEPS = 8
LINKED = {
    link["operationId"]
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
    for answer in operation["responses"].values()
    for link in answer.get("links", {}).values()
}


def test_everything_that_can_be_named_is_linked() -> None:
    """Each operation on one thing is led to from an answer that names such things."""
    assert {
        operation["operationId"]
        for path, methods in DOCUMENT["paths"].items()
        for operation in methods.values()
        if "}" in path
    } == LINKED


@pytest.mark.parametrize("role", list(Role))
def test_sequences_are_answered_as_described(app: FastAPI, schema: Any, role: Role) -> None:
    """No defect, no surprise and no hole, whatever came before."""
    headers = {"Authorization": f"Bearer {app.state.secrets[role]}"}
    answered: collections.Counter[tuple[str, int]] = collections.Counter()

    class Sequences(schema.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            app.state.begin_again()  # a sequence that is tried again must find what it found before

        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"headers": headers}

        def validate_response(self, response: Any, case: schemathesis.Case, **_: Any) -> None:
            answered[case.operation.path, response.status_code] += 1
            case.validate_response(response, checks=_checks_of(case.operation.path))
            if role in TENANTS:
                assert HIDDEN not in response.text, "another tenant's job"

    Sequences.run(
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="FUZZ_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
    )
    if role is Role.ADMIN:
        assert any("}" in path and status < 300 for path, status in answered), "no link led to something that exists"


def _checks_of(path: str) -> list[Any]:
    return [check for check in CHECKS if path != "/readyz" or check.__name__ != "not_a_server_error"]
