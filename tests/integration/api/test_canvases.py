"""Canvases over HTTP: shown with what they wait for, cancelled as a whole."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.domain.ids import uuid7
from orchestrator.domain.request import TaskRequest
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService

GROUP = "33333333-3333-4333-8333-333333333333"


@pytest.fixture
def canvas(runtime: Runtime) -> list[str]:
    """A job, a group of two behind it, and one that waits for both; by id."""
    ids = [uuid7(runtime.clock.now()) for _ in range(4)]
    root = {"root_id": ids[0], "gpus": 0}
    SubmitService(runtime).submit(
        [
            TaskRequest(task="a", id=ids[0], **root),
            *(
                TaskRequest(task="b", id=one, parent_id=ids[0], group_id=GROUP, needs=(ids[0],), **root)
                for one in ids[1:3]
            ),
            TaskRequest(task="c", id=ids[3], parent_id=ids[1], needs=(ids[1], ids[2]), **root),
        ]
    )
    return ids


def listed(api: TestClient, **filters: Any) -> list[str]:
    return [job["id"] for job in api.get("/jobs", params=filters).json()["jobs"]]


def test_a_canvas_is_listed_by_its_root_and_a_group_by_its_id(api: TestClient, canvas: list[str]) -> None:
    job = api.get(f"/jobs/{canvas[3]}").json()

    assert listed(api, root=canvas[0]) == canvas[::-1]
    assert listed(api, group=GROUP) == [canvas[2], canvas[1]]
    assert listed(api, root="nobody") == []
    assert (job["root"], job["parent"], job["group"], job["state"]) == (canvas[0], canvas[1], None, "blocked")
    assert job["needs"] == [{"id": one, "state": "blocked"} for one in sorted(canvas[1:3])]
    why = api.get(f"/jobs/{canvas[1]}/why").json()
    assert why["reasons"][0] == {"code": "blocked", "words": f"it waits for {canvas[0]}, which is queued"}


def test_a_canvas_is_cancelled_by_any_of_its_jobs(
    api: TestClient, canvas: list[str], start: Callable[[str], Any]
) -> None:
    start(canvas[0])
    answer = api.post("/jobs/cancel", json={"tree": canvas[3], "reason": "no more"}).json()
    again = api.post("/jobs/cancel", json={"tree": canvas[0]}).json()

    assert (answer["tree"], answer["stopping"]) == (canvas[0], [canvas[0]])
    assert sorted(answer["cancelled"]) == sorted(canvas[1:])
    assert (again["cancelled"], again["stopping"]) == ([], [])
    assert "no more" in api.get(f"/jobs/{canvas[3]}").json()["reason"]


def test_a_group_is_cancelled_with_what_waits_for_it(api: TestClient, canvas: list[str]) -> None:
    answer = api.post("/jobs/cancel", json={"group": GROUP}).json()

    assert (answer["group"], sorted(answer["cancelled"])) == (GROUP, sorted(canvas[1:3]))
    states = {job["id"]: job["state"] for job in api.get("/jobs").json()["jobs"]}
    assert [states[one] for one in canvas] == ["queued", "cancelled", "cancelled", "cancelled"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"tree": "a", "group": "b"}, 422),
        ({"tree": ""}, 422),
        ({"tree": "nobody"}, 404),
        ({"all": 1}, 422),
        ({"tree": "nobody", "reason": "a\u202eb"}, 422),
    ],
)
def test_a_cancel_that_names_no_canvas_is_refused(api: TestClient, body: dict[str, Any], status: int) -> None:
    answer = api.post("/jobs/cancel", json=body)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
