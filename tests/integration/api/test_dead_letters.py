"""What the API tells of dead letters, and what it does with them."""

from typing import Any

from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.runtime import Runtime
from tests.integration.api.conftest import LOCAL


def bury(api: TestClient, runtime: Runtime, queue: str = "gpu") -> str:
    answer = api.post("/jobs/submit", json={"argv": ["true"], "queue": queue})
    assert answer.status_code == 201, answer.text
    job = str(answer.json()["id"])
    assert runtime.letters.bury(job, by="alpha", reason="the worker's app has no task 'x'")
    return job


def ids(api: TestClient, **filters: Any) -> list[str]:
    answer = api.get("/dlq", params=filters)
    assert answer.status_code == 200, answer.text
    return [letter["id"] for letter in answer.json()["dead_letters"]]


def test_dead_letters_are_listed_in_pages_by_what_is_asked(api: TestClient, runtime: Runtime) -> None:
    first, other, last = bury(api, runtime), bury(api, runtime, "preloads"), bury(api, runtime)
    page = api.get("/dlq", params={"limit": 2}).json()

    assert [letter["id"] for letter in page["dead_letters"]] == [last, other]
    assert ids(api, cursor=page["next"]) == ids(api, before=page["next"]) == [first]
    assert ids(api, queue="preloads") == [other]
    assert ids(api, failure_class="poison") == [last, other, first]
    assert ids(api, failure_class="lost") == []
    shown = api.get(f"/dlq/{first}").json()
    assert shown == {
        "id": first,
        "queue": "gpu",
        "failure_class": "poison",
        "reason": "the worker's app has no task 'x'",
        "at": shown["at"],
    }


def test_a_retry_makes_the_job_wait_again_once(api: TestClient, runtime: Runtime) -> None:
    job = bury(api, runtime)

    assert api.post(f"/dlq/{job}/retry").json() == {"id": job, "retried": True}
    assert api.post(f"/dlq/{job}/retry").json() == {"id": job, "retried": False}
    assert api.get(f"/jobs/{job}").json()["state"] == "pending"
    assert [event["kind"] for event in api.get(f"/jobs/{job}/events").json()["events"]][-2:] == ["bury", "revive"]


def test_all_of_a_queue_are_retried_and_no_other(api: TestClient, runtime: Runtime) -> None:
    jobs, other = [bury(api, runtime) for _ in range(2)], bury(api, runtime, "preloads")
    answer = api.post("/dlq/retry", json={"queue": "gpu"}).json()

    assert answer == {"retried": jobs[::-1], "more": False}
    assert ids(api) == [other]


def test_all_of_a_queue_are_dismissed_at_once_and_no_other(api: TestClient, runtime: Runtime) -> None:
    """Each with a line in its job's history, which is kept."""
    jobs, other = [bury(api, runtime) for _ in range(2)], bury(api, runtime, "preloads")
    assert api.post("/dlq/purge", json={"queue": "gpu"}).json() == {"purged": jobs[::-1], "more": False}
    assert ids(api) == [other]
    assert api.post("/dlq/purge", json={"queue": "gpu"}).json() == {"purged": [], "more": False}
    assert api.get(f"/jobs/{jobs[0]}").json()["state"] == "dead_letter"
    assert [event["kind"] for event in api.get(f"/jobs/{jobs[0]}/events").json()["events"]][-2:] == ["bury", "purge"]


def test_a_purged_dead_letter_is_unknown_and_its_job_is_kept(api: TestClient, runtime: Runtime) -> None:
    job = bury(api, runtime)

    assert api.delete(f"/dlq/{job}").json() == {"id": job, "purged": True}
    assert api.get(f"/jobs/{job}").json()["state"] == "dead_letter"
    for method, path in (("GET", ""), ("POST", "/retry"), ("DELETE", "")):
        answer = api.request(method, f"/dlq/{job}{path}")
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-dead-letter")


def test_dead_letters_are_guarded_by_the_token(runtime: Runtime) -> None:
    with TestClient(create_app(runtime, token="s3cret"), LOCAL) as client:
        for method, path in (
            ("GET", "/dlq"),
            ("GET", "/dlq/x"),
            ("POST", "/dlq/x/retry"),
            ("POST", "/dlq/retry"),
            ("POST", "/dlq/purge"),
            ("DELETE", "/dlq/x"),
        ):
            assert client.request(method, path).status_code == 401
