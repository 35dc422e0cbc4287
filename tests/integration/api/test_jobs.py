"""What is told of jobs: lists and their pages, output as it comes, reasons, history, cancelling."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.domain.job import JobEvent
from orchestrator.runtime import Runtime

JOB = "01890000-0000-7000-8000-000000000000"
LATER = "2099-01-01T00:00:00Z"


def submit(api: TestClient, **options: Any) -> str:
    answer = api.post("/jobs/submit", json={"argv": ["true"]} | options)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def listed(api: TestClient, **filters: Any) -> list[str]:
    answer = api.get("/jobs", params=filters)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/logs"), ("GET", "/why"), ("GET", "/events")],
)
@pytest.mark.parametrize("job_id", [JOB, "x", "%00", "ü", "-1"])
def test_an_unknown_job_is_a_problem(api: TestClient, method: str, path: str, job_id: str) -> None:
    answer = api.request(method, f"/jobs/{job_id}{path}")

    assert answer.status_code == 404, answer.text
    assert answer.json()["type"] == "urn:gpu-orchestrator:problem:unknown-job"


def test_an_unknown_path_and_a_wrong_method_are_problems(api: TestClient) -> None:
    for answer, status, code in (
        (api.get("/nothing"), 404, "no-such-path"),
        (api.delete("/jobs/submit"), 405, "method-not-allowed"),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"urn:gpu-orchestrator:problem:{code}"


def test_a_parameter_is_given_once(api: TestClient) -> None:
    """But for a list: a proxy that reads the first one and an api that reads the last one would not mean the same."""
    answer = api.get("/jobs?limit=1&state=queued&limit=2&state=running&name=a&name=a")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "malformed-request")
    assert answer.json()["faults"] == ["limit: given more than once", "name: given more than once"]


def test_jobs_are_listed_newest_first_by_what_is_asked(api: TestClient) -> None:
    first, other, late = submit(api, name="one"), submit(api, queue="preloads"), submit(api, run_at=LATER)

    assert listed(api) == [late, other, first]
    assert listed(api, queue="preloads") == [other]
    assert listed(api, name="one") == [first]
    assert listed(api, state="scheduled") == [late]
    assert set(listed(api, state=["scheduled", "queued", "pending"])) == {first, other, late}
    assert listed(api, state="failed") == []
    assert listed(api, queue="nowhere") == []


@pytest.mark.parametrize(
    "filters",
    [{"state": "odd"}, {"limit": 0}, {"limit": 501}, {"limit": "x"}, {"cursor": 0}, {"cursor": 10**30}, {"cursor": -1}],
)
def test_a_filter_that_makes_no_sense_is_malformed(api: TestClient, filters: dict[str, Any]) -> None:
    answer = api.get("/jobs", params=filters)

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:gpu-orchestrator:problem:malformed-request"
    assert answer.json()["faults"][0].startswith(next(iter(filters)))


def test_pages_tell_every_job_once_while_others_arrive(api: TestClient) -> None:
    known = [submit(api) for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = api.get("/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        submit(api)
        if cursor is None:
            break

    assert seen == known[::-1]


def test_a_job_is_cancelled_once_and_stays_so(api: TestClient) -> None:
    job = submit(api)

    first, second = api.post(f"/jobs/{job}/cancel"), api.post(f"/jobs/{job}/cancel")

    assert (first.status_code, second.status_code) == (200, 200)
    assert (first.json()["cancelled"], first.json()["state"]) == (True, "cancelled")
    assert second.json()["state"] == "cancelled"
    assert second.json()["stopping"] is False
    cancellations = [one for one in api.get(f"/jobs/{job}/events").json()["events"] if "cancel" in one["kind"]]
    assert len(cancellations) == 1


def test_a_running_job_is_asked_to_end(api: TestClient, start: Callable[[str], Any]) -> None:
    job = submit(api)
    start(job)

    answer = api.post(f"/jobs/{job}/cancel").json()

    assert (answer["state"], answer["cancelled"], answer["stopping"]) == ("running", False, True)


def test_output_is_told_page_by_page(api: TestClient, start: Callable[[str], Any]) -> None:
    job = submit(api)
    running = start(job)
    running.print("one\n")
    first = api.get(f"/jobs/{job}/logs").json()
    running.print("two\n")
    running.end()
    second = api.get(f"/jobs/{job}/logs", params={"after": first["next"]}).json()

    assert [chunk["text"] for chunk in first["chunks"]] == ["one\n"]
    assert first["ended"] is False
    assert [chunk["text"] for chunk in second["chunks"]] == ["two\n"]
    assert api.get(f"/jobs/{job}/logs", params={"after": second["next"]}).json()["ended"] is True


def test_the_last_lines_are_told_and_what_follows_them(api: TestClient, start: Callable[[str], Any]) -> None:
    """Of however many chunks; the next page begins where they end, so that a follower misses and repeats nothing."""
    job = submit(api)
    running = start(job)
    for number in range(120):
        running.print(f"{number}\nhalf of ")
    page = api.get(f"/jobs/{job}/logs", params={"tail": 100}).json()
    text = "".join(chunk["text"] for chunk in page["chunks"])
    assert text.splitlines() == [*(f"half of {number}" for number in range(21, 120)), "half of "]
    assert page["ended"] is False

    running.print("line 120\n")
    running.end()
    following = api.get(f"/jobs/{job}/logs", params={"after": page["next"]}).json()
    assert [chunk["text"] for chunk in following["chunks"]] == ["line 120\n"]
    assert following["ended"] is True
    last = api.get(f"/jobs/{job}/logs", params={"tail": 1}).json()["chunks"]
    assert [chunk["text"] for chunk in last] == ["half of ", "line 120\n"]
    pages = [api.get(f"/jobs/{job}/logs", params={"limit": 2, "after": f"1:{after}"}).json() for after in (0, 118, 119)]
    assert [(len(one["chunks"]), one["ended"]) for one in pages] == [(2, False), (2, False), (1, True)]


def test_a_tail_of_nothing_waits_for_what_comes(api: TestClient, start: Callable[[str], Any]) -> None:
    job = submit(api)
    running = start(job)
    assert api.get(f"/jobs/{job}/logs", params={"tail": 0}).json() == {"chunks": [], "next": None, "ended": False}
    running.print("before\n")
    place = api.get(f"/jobs/{job}/logs", params={"tail": 0}).json()
    assert place["chunks"] == [{"attempt": 1, "number": 0, "text": ""}]
    running.print("after\n")
    following = api.get(f"/jobs/{job}/logs", params={"after": place["next"]}).json()
    assert [chunk["text"] for chunk in following["chunks"]] == ["after\n"]


@pytest.mark.parametrize("what", ["print", "end"])
def test_a_long_poll_answers_as_soon_as_something_is_there(
    api: TestClient, start: Callable[[str], Any], what: str
) -> None:
    """Output ends the wait, and so does the end of the job."""
    job = submit(api)
    running = start(job)
    begun = time.monotonic()
    action = (lambda: running.print("hello")) if what == "print" else running.end
    timer = threading.Timer(0.5, action)
    timer.start()

    page = api.get(f"/jobs/{job}/logs", params={"wait": 20}).json()

    timer.join()
    assert 0.3 < time.monotonic() - begun < 10
    assert (len(page["chunks"]), page["ended"]) == ((1, False) if what == "print" else (0, True))


def test_a_long_poll_ends_without_output(api: TestClient) -> None:
    job = submit(api)

    page = api.get(f"/jobs/{job}/logs", params={"wait": 0.3}).json()

    assert page == {"chunks": [], "next": None, "ended": False}


@pytest.mark.parametrize(
    "query",
    [
        *({"after": "x"}, {"after": "1"}, {"wait": 21}, {"wait": -1}, {"wait": "nan"}),
        *({"limit": 0}, {"limit": 1001}, {"tail": -1}, {"tail": 10_001}, {"attempt": 0}, {"attempt": 1 << 31}),
    ],
)
def test_a_wrong_cursor_or_wait_is_malformed(api: TestClient, query: dict[str, Any]) -> None:
    answer = api.get(f"/jobs/{submit(api)}/logs", params=query)

    assert answer.status_code == 422, answer.text
    assert answer.json()["faults"][0].startswith(next(iter(query)))
    both = api.get(f"/jobs/{submit(api)}/logs", params={"after": "1:1", "tail": 1})
    assert (both.status_code, both.json()["type"].rpartition(":")[2]) == (422, "invalid-request")


def test_why_gives_codes_and_words(api: TestClient) -> None:
    late, queued = submit(api, run_at=LATER), submit(api)

    scheduled = api.get(f"/jobs/{late}/why").json()
    waiting = api.get(f"/jobs/{queued}/why").json()

    assert set(scheduled) == {"id", "state", "reasons"}
    assert [reason["code"] for reason in scheduled["reasons"]] == ["scheduled", "no_leader"]
    assert "2099-01-01" in scheduled["reasons"][0]["words"]
    assert waiting["reasons"][0]["code"] == "no_consumer"


def test_the_history_is_told_in_order(api: TestClient, start: Callable[[str], Any]) -> None:
    job = submit(api)
    start(job).end()

    events = api.get(f"/jobs/{job}/events").json()["events"]

    assert events
    assert set(events[0]) == {"seq", "at", "kind", "node", "lease", "data"}
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def test_how_a_job_ended_is_shown(api: TestClient, start: Callable[[str], Any]) -> None:
    job = submit(api)
    start(job).end(JobEvent.FAIL, exit_code=7, error="no luck")

    shown = api.get(f"/jobs/{job}").json()

    assert (shown["state"], shown["exit_code"], shown["error"]) == ("failed", 7, "no luck")
    assert (shown["attempts"][0]["node"], shown["attempts"][0]["exit_code"]) == ("alpha", 7)


def test_a_result_that_json_cannot_hold_does_not_hide_the_job(
    api: TestClient, start: Callable[[str], Any], runtime: Runtime
) -> None:
    """A loss that became NaN is a result; JSON has no word for it, and it is told as null."""
    job = submit(api)
    start(job).end(result={"loss": [float("nan"), 1.5]})

    assert api.get(f"/jobs/{job}").json()["result"] == {"loss": [None, 1.5]}
    assert listed(api) == [job]
