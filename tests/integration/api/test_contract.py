"""The API's contract: its description is the one that was agreed on, and answers are as it says."""

import difflib
import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

from orchestrator.api import problems
from orchestrator.api.schemas import plain
from orchestrator.domain.job import JobEvent
from orchestrator.errors import OrchestratorError
from orchestrator.runtime import Runtime
from tests.support import reference
from tests.support.openapi import PATH, openapi_text
from tests.support.running import Running, register


def test_the_description_is_the_one_that_was_agreed_on() -> None:
    """A change of the API is a change of docs/openapi.json: `make openapi`, and say so in docs/api.md."""
    kept, made = PATH.read_text().splitlines(), openapi_text().splitlines()

    assert list(difflib.unified_diff(kept, made, "docs/openapi.json", "the API", lineterm="", n=1)) == []


def test_the_reference_is_that_of_the_description() -> None:
    """`make openapi` writes both."""
    kept, made = reference.PATH.read_text(), reference.reference_text(json.loads(openapi_text()))

    assert list(difflib.unified_diff(kept.splitlines(), made.splitlines(), lineterm="", n=1)) == []


def test_the_reference_has_every_operation_with_its_role_and_fields() -> None:
    text = reference.PATH.read_text()
    sections = {part.split("`")[1]: part for part in text.split("\n### ")[1:]}
    document = json.loads(PATH.read_text())
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            section = sections.pop(f"{method.upper()} {path}")
            assert f"Role: {operation.get('x-role', 'none')}." in section
            assert [one["name"] for one in operation.get("parameters", ()) if f"`{one['name']}`" not in section] == []
    assert sections == {}
    assert "| `most_running` | integer, 0 to " in text


def test_every_operation_says_who_may_call_it() -> None:
    document = json.loads(PATH.read_text())
    assert document["openapi"].startswith("3.1")
    operations = {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }

    without = {path for (path, _method), operation in operations.items() if not operation.get("security")}
    assert without == {"/healthz", "/readyz"}
    assert {
        key for key, operation in operations.items() if operation.get("security") and not operation["x-role"]
    } == set()


def test_a_version_is_stale_only_where_one_can_be_named() -> None:
    """412 is described of what takes If-Match, and of nothing else."""
    takes, answers = set(), set()
    for path, methods in json.loads(PATH.read_text())["paths"].items():
        for method, operation in methods.items():
            if any(each["name"] == "if-match" for each in operation.get("parameters", ())):
                takes.add((method, path))
            if "412" in operation["responses"]:
                answers.add((method, path))

    assert takes == answers
    assert ("patch", "/policy") in takes


@pytest.fixture
def busy(api: TestClient, runtime: Runtime) -> str:
    """An installation with something of everything: a job that ended, with an attempt, output, a result."""
    register(runtime, "alpha", 2)
    job = str(api.post("/jobs/submit", json={"argv": ["true"], "gpus": 1}).json()["id"])
    running = Running(runtime, job, gpus=("alpha-0",))
    running.print("hello\n")
    running.end(JobEvent.SUCCEED)
    api.post("/jobs/submit", json={"argv": ["true"], "gpus": 2, "gpu_type": "Sim"})
    api.post(f"/jobs/{api.post('/jobs/submit', json={'argv': ['true']}).json()['id']}/cancel")
    return job


def test_every_answer_is_as_described(api: TestClient, busy: str) -> None:
    """All fields that are described are there, and none that is not described."""
    document = json.loads(openapi_text())
    for schema in document["components"]["schemas"].values():
        if "properties" in schema and schema.get("description") != "RFC 9457":
            schema.setdefault("unevaluatedProperties", False)
    checked = 0
    for path, methods in document["paths"].items():
        if "get" not in methods:
            continue
        answer = api.get(path.replace("{job_id}", busy))
        content = methods["get"]["responses"][str(answer.status_code)].get("content", {}).get("application/json")
        if content and content["schema"]:
            jsonschema_rs.validator_for(content["schema"] | {"components": document["components"]}).validate(
                answer.json()
            )
            checked += 1
    assert checked >= 14


def test_a_problem_has_a_code_of_its_own() -> None:
    """Programs tell problems apart by their type alone."""
    kinds: list[type[OrchestratorError]] = [OrchestratorError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    ours = [kind for kind in kinds if kind.__module__.startswith("orchestrator.") and "code" in vars(kind)]
    codes = [kind.code for kind in ours]

    assert len(codes) == len(set(codes))
    text = (PATH.parent / "api.md").read_text()
    assert [code for code in codes if f"`{code}`" not in text] == []
    assert problems.TYPE in text


def test_a_job_that_did_not_change_is_not_sent_again(api: TestClient) -> None:
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]
    first = api.get(f"/jobs/{job}")

    same = api.get(f"/jobs/{job}", headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    api.post(f"/jobs/{job}/cancel")
    changed = api.get(f"/jobs/{job}", headers={"If-None-Match": first.headers["etag"]})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (changed.status_code, changed.json()["state"]) == (200, "cancelled")
    assert changed.headers["etag"] != first.headers["etag"]


def test_what_json_cannot_hold_becomes_null() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    assert plain({"loss": float("nan"), "all": [1.5, float("-inf"), "x", None]}) == {
        "loss": None,
        "all": [1.5, None, "x", None],
    }
    json.dumps(plain(deep), allow_nan=False)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/pools", "GET, POST"), ("/queues/gpu", "GET, PATCH"), ("/jobs/cancel", "POST"), ("/healthz", "GET")],
)
def test_a_method_that_is_not_there_is_answered_with_those_that_are(api: TestClient, path: str, allowed: str) -> None:
    answer = api.put(path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["type"] == f"{problems.TYPE}method-not-allowed"


@pytest.mark.parametrize("instant", ["0", "1767225600", "1767225600000.5", "2026-01-31", "noon"])
def test_an_instant_is_written_in_full(api: TestClient, instant: str) -> None:
    """Not as a number, of which nobody knows whether it counts seconds or milliseconds."""
    window = api.get("/usage", params={"since": instant})
    job = api.post("/jobs/submit", json={"argv": ["true"], "run_at": instant})

    assert (window.status_code, job.status_code) == (422, 422)
    assert api.post("/jobs/submit", json={"argv": ["true"], "deadline": 1767225600}).status_code == 422
    assert api.get("/usage", params={"since": "2001-01-31T12:00:00Z"}).status_code == 200
    assert api.post("/jobs/submit", json={"argv": ["true"], "run_at": "2026-01-31 12:00:00+01:00"}).status_code == 201


def test_a_truth_value_is_no_priority(api: TestClient) -> None:
    answer = api.post("/jobs/orders", json={"order": "priority", "ids": ["a"], "priority": False})

    assert answer.status_code == 422
