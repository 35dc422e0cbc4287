"""``POST /jobs/submit``: one job, several, the same one again, and everything that is wrong with a request."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from orchestrator.runtime import Runtime
from tests.support.running import register as register_host

LIMIT = (64 << 10) + (64 << 10)
TRUE = {"argv": ["true"]}


def assert_problem(answer: Response, status: int, code: str) -> dict[str, Any]:
    """The answer is a problem document of this status and type."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == f"urn:gpu-orchestrator:problem:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return dict(document)


def test_a_job_is_created_and_shown(api: TestClient) -> None:
    answer = api.post("/jobs/submit", json=TRUE)

    assert answer.status_code == 201
    assert set(answer.json()) == {"id", "state", "created"}
    assert answer.json()["created"] is True
    shown = api.get(f"/jobs/{answer.json()['id']}").json()
    assert (shown["name"], shown["queue"], shown["attempts"]) == ("true", "gpu", [])


def test_several_jobs_are_created_in_order(api: TestClient) -> None:
    answer = api.post("/jobs/submit", json=[TRUE | {"name": f"job-{number}"} for number in range(5)])

    assert answer.status_code == 201
    names = [api.get(f"/jobs/{one['id']}").json()["name"] for one in answer.json()]
    assert names == [f"job-{number}" for number in range(5)]


def test_of_several_jobs_with_one_fault_none_is_created(api: TestClient) -> None:
    assert_problem(api.post("/jobs/submit", json=[TRUE, TRUE | {"gpus": -1}]), 422, "invalid-job")

    assert api.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize("place", ["header", "body"])
def test_the_same_key_names_the_same_job(api: TestClient, place: str) -> None:
    """The first submit creates (201), a repetition finds (200)."""
    body, headers = (TRUE, {"Idempotency-Key": "k1"}) if place == "header" else (TRUE | {"key": "k1"}, {})

    first = api.post("/jobs/submit", json=body, headers=headers)
    second = api.post("/jobs/submit", json=body, headers=headers)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert second.json()["created"] is False


@pytest.mark.parametrize("place", ["header", "body"])
def test_a_key_is_not_used_for_another_request(api: TestClient, place: str) -> None:
    headers = {"Idempotency-Key": "k1"} if place == "header" else {}
    key = {} if headers else {"key": "k1"}
    assert api.post("/jobs/submit", json=TRUE | key, headers=headers).status_code == 201

    answer = api.post("/jobs/submit", json={"argv": ["false"]} | key, headers=headers)

    assert_problem(answer, 409, "idempotency-conflict")


def test_the_header_key_is_refused_for_several_jobs(api: TestClient) -> None:
    answer = api.post("/jobs/submit", json=[TRUE], headers={"Idempotency-Key": "k1"})

    assert_problem(answer, 422, "invalid-request")


def test_two_different_keys_for_one_job_are_refused(api: TestClient) -> None:
    """Neither is quietly forgotten; the same key twice is no contradiction."""
    answer = api.post("/jobs/submit", json=TRUE | {"key": "k1"}, headers={"Idempotency-Key": "k2"})
    same = api.post("/jobs/submit", json=TRUE | {"key": "k1"}, headers={"Idempotency-Key": "k1"})

    assert_problem(answer, 422, "invalid-request")
    assert same.status_code == 201


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (TRUE | {"task": "examples.add"}, "argv or task"),
        (TRUE | {"args": [1]}, "args: only of a task"),
        (TRUE | {"args": [], "kwargs": {}}, "args, kwargs: only of a task"),
        ({"task": "examples.add", "env": {"A": "b"}}, "env: only of a command"),
        ({"task": "examples.add", "cwd": "/"}, "cwd: only of a command"),
    ],
)
def test_a_job_of_two_kinds_is_refused(api: TestClient, body: dict[str, Any], words: str) -> None:
    """What does not fit the kind of job is not quietly left out."""
    one = assert_problem(api.post("/jobs/submit", json=body), 422, "malformed-request")
    many = assert_problem(api.post("/jobs/submit", json=[TRUE, body]), 422, "malformed-request")

    assert words in one["faults"][0]
    assert words in many["faults"][0]
    assert "1" in many["faults"][0].split(":")[0]
    assert api.get("/jobs").json()["jobs"] == []


def test_no_jobs_at_all_are_refused(api: TestClient) -> None:
    assert_problem(api.post("/jobs/submit", json=[]), 422, "invalid-request")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        (TRUE | {"gpus": -1}, "gpus"),
        (TRUE | {"gpus": 2, "gpu_memory": "1GiB"}, "gpu_memory_mib"),
        (TRUE | {"priority": -1}, "priority"),
        (TRUE | {"priority": 10}, "priority"),
        (TRUE | {"max_attempts": 0}, "max_attempts"),
        (TRUE | {"time_limit": -1.0}, "time_limit_seconds"),
        (TRUE | {"time_limit": 0.0}, "time_limit_seconds"),
        (TRUE | {"grace": -0.5}, "grace_seconds"),
        (TRUE | {"soft_time_limit": 5.0, "time_limit": 5.0}, "soft_time_limit_seconds"),
        (TRUE | {"cwd": "relative"}, "cwd"),
        (TRUE | {"env": {"A=B": "c"}}, "environment"),
        (TRUE | {"queue": "no such queue"}, "queue"),
        (TRUE | {"key": ""}, "key"),
        (TRUE | {"run_at": "2030-01-02T00:00:00Z", "deadline": "2030-01-01T00:00:00Z"}, "deadline"),
        (TRUE | {"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"task": "a\nb"}, "task"),
    ],
)
def test_a_wrong_value_is_a_fault_that_names_its_field(api: TestClient, body: dict[str, Any], field: str) -> None:
    document = assert_problem(_post_ascii(api, body), 422, "invalid-job")

    assert any(fault.startswith(field) for fault in document["faults"]), document["faults"]


def test_every_fault_is_reported_together(api: TestClient) -> None:
    document = assert_problem(api.post("/jobs/submit", json={"gpus": -1, "priority": 99}), 422, "invalid-job")

    assert len(document["faults"]) == 3


@pytest.mark.parametrize(
    "body",
    [
        TRUE | {"colour": "red"},
        TRUE | {"gpus": "1"},
        TRUE | {"gpus": 1.5},
        TRUE | {"gpus": True},
        TRUE | {"name": 7},
        TRUE | {"env": {"A": 1}},
        TRUE | {"run_at": "tomorrow"},
        TRUE | {"name": "x" * 5000},
        TRUE | {"gpu_memory": "9" * 33},
        TRUE | {"constraints": {"room": "x" * 64}},
        TRUE | {"\ud800": 1},
        TRUE | {"name": "\ud800"},
        {"argv": "true"},
        "true",
        7,
        None,
        [[TRUE]],
    ],
)
def test_a_body_of_another_shape_is_malformed(api: TestClient, body: Any) -> None:
    """Unknown fields and wrong types are told before the request is looked at."""
    document = assert_problem(_post_ascii(api, body), 422, "malformed-request")

    assert document["faults"]


@pytest.mark.parametrize("size", ["huge", "-1GiB", "0", "1XiB", "", "1e3GiB"])
def test_a_wrong_size_of_memory_is_refused(api: TestClient, size: str) -> None:
    assert_problem(api.post("/jobs/submit", json=TRUE | {"gpu_memory": size}), 422, "invalid-request")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"argv": ["true"]',
        b'{"argv": ["\xff\xfe"]}',
        b'{"argv": ["true"], "gpus": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "open", "cut", "not UTF-8", "a huge number"],
)
def test_what_is_not_json_is_a_malformed_request(api: TestClient, content: bytes) -> None:
    answer = api.post("/jobs/submit", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code, "malformed-request")


@pytest.mark.parametrize(
    "content",
    [
        b'{"argv": ["true"], "time_limit": NaN}',
        b'{"argv": ["true"], "time_limit": Infinity}',
        b'{"argv": ["true"], "grace": 1e999}',
        b'{"task": "t", "args": ["\\ud800"]}',
    ],
    ids=["NaN", "Infinity", "too large for a float", "half a character"],
)
def test_what_cannot_be_stored_is_refused(api: TestClient, content: bytes) -> None:
    answer = api.post("/jobs/submit", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unknown_queue_is_refused(api: TestClient) -> None:
    assert_problem(api.post("/jobs/submit", json=TRUE | {"queue": "nowhere"}), 422, "unknown-queue")


def test_while_no_host_is_registered_any_task_may_come(api: TestClient) -> None:
    assert api.post("/jobs/submit", json={"task": "mine.train"}).status_code == 201


def test_a_task_that_no_host_knows_is_refused(api: TestClient, runtime: Runtime) -> None:
    body = {"task": "mine.train", "gpus": 0}
    register_host(runtime, "alpha", 0, tasks=("mine.train",))

    assert api.post("/jobs/submit", json=body).status_code == 201
    assert_problem(api.post("/jobs/submit", json=body | {"task": "mine.trian"}), 422, "unknown-task")
    assert api.post("/jobs/submit", json=TRUE).status_code == 201, "commands need no task of the app's"


def test_more_gpus_than_any_host_has_are_refused(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 2)

    assert api.post("/jobs/submit", json=TRUE | {"gpus": 2}).status_code == 201
    assert_problem(api.post("/jobs/submit", json=TRUE | {"gpus": 3}), 422, "unsatisfiable-request")


def test_a_payload_over_the_limit_is_refused(api: TestClient, runtime: Runtime) -> None:
    """The payload's limit holds although the body's, which is larger, is kept."""
    body = {"argv": ["x" * (runtime.settings.max_payload_bytes + 1)]}

    assert_problem(api.post("/jobs/submit", json=body), 413, "payload-too-large")


def test_a_body_that_declares_too_much_is_refused_unread(api: TestClient) -> None:
    assert_problem(api.post("/jobs/submit", content=b"x" * (LIMIT + 1)), 413, "payload-too-large")


def test_a_body_that_goes_on_too_long_is_refused(api: TestClient) -> None:
    """A chunked body declares no length; it is counted."""

    def chunks() -> Iterator[bytes]:
        yield b'{"argv": ["'
        for _ in range(LIMIT // 1024 + 1):
            yield b"x" * 1024

    answer = api.post("/jobs/submit", content=chunks(), headers={"Content-Type": "application/json"})

    assert_problem(answer, 413, "payload-too-large")


def _post_ascii(api: TestClient, body: Any) -> Response:
    """Post JSON that spells what is not ASCII as escapes, which may be halves of characters."""
    return api.post("/jobs/submit", content=json.dumps(body), headers={"Content-Type": "application/json"})
