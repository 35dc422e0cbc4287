"""Made-up sequences of requests: what an answer names is asked for next, by the links of the API's description."""

import collections
import json
import os
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings

from orchestrator.domain.access import Role
from tests.integration.api.test_fuzz import DOCUMENT, HIDDEN, TENANTS, app, checks_of, schema

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


@pytest.fixture(scope="module")
def shared(app: FastAPI, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The description for the tokens of two tenants, of which neither may be given what the other made."""
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {app.state.secrets[key]}"}]}
        for name, key in (("blue", Role.SUBMITTER), ("red", "red"))
    ]
    path = tmp_path_factory.mktemp("tenants") / "tenants.json"
    path.write_text(json.dumps({"auth": users}))
    config = schemathesis.Config.from_dict(
        {"auth": {"wfc": {"path": str(path), "user": "blue", "peers": ["blue", "red"]}}}
    )
    headers = {"Authorization": f"Bearer {app.state.secrets[Role.ADMIN]}"}
    made = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=headers)
    return made.include(path_regex=r"^/jobs(/submit|/\{job_id\}(/why|/logs|/events)?)?$")


def test_no_tenant_is_given_what_another_made(app: FastAPI, shared: Any) -> None:
    """What one tenant's token made or listed is asked for with the other's as well."""
    own: collections.Counter[str] = collections.Counter()

    class Sequences(shared.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            app.state.begin_again()

        def validate_response(self, response: Any, case: schemathesis.Case, **_: Any) -> None:
            case.validate_response(response, checks=checks_of(case.operation.path), recorder=self.recorder)
            if case.method == "GET" and response.status_code == 200:
                own[case.operation.path] += 1

    _run(Sequences, examples=max(EXAMPLES, 25))
    assert own["/jobs/{job_id}"] > 0, "no job of its own was read"


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
            case.validate_response(
                response, checks=checks_of(case.operation.path), headers=headers, recorder=self.recorder
            )
            if role in TENANTS:
                assert HIDDEN not in response.text, "another tenant's job"

    _run(Sequences)
    if role is Role.ADMIN:
        assert any("}" in path and status < 300 for path, status in answered), "no link led to something that exists"


def _run(sequences: Any, *, examples: int = EXAMPLES) -> None:
    sequences.run(
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="FUZZ_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
    )
