"""Worker pools over HTTP."""

from datetime import timedelta
from typing import Any

from fastapi.testclient import TestClient

from orchestrator.runtime import Runtime
from orchestrator.services.pools import PoolSweep
from tests.support.running import register

PROBLEM = "urn:gpu-orchestrator:problem:"


def start(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/pools", json={"name": "chat", **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_a_pool_is_started_changed_swapped_stopped_and_forgotten(api: TestClient, runtime: Runtime) -> None:
    """Each answer is the whole pool, and its ETag the version to name in If-Match."""
    made = start(api, model="llama", max=4, gpu_memory="8GiB", tenant="red", arguments={"bits": 4})
    assert (made["state"], made["min"], made["max"], made["gpus"], made["gpu_memory_mib"]) == (
        "starting",
        1,
        4,
        1,
        8192,
    )
    same = {"name": "chat", "model": "llama", "max": 4, "gpu_memory": "8GiB", "tenant": "red", "arguments": {"bits": 4}}
    again = api.post("/pools", json=same)
    assert (again.status_code, again.json()) == (200, made)
    assert api.get("/pools").json() == {"pools": [made]}

    scaled = api.post("/pools/chat/scale", json={"min": 2, "pinned": True}, headers={"If-Match": '"1"'})
    assert (scaled.json()["min"], scaled.json()["wanted"], scaled.headers["ETag"]) == (2, 2, '"2"')
    assert api.post("/pools/chat/scale", json={"min": 1}, headers={"If-Match": '"1"'}).status_code == 412
    assert api.post("/pools/chat/preload", json={"runners": 3}).json()["wanted"] == 3
    assert api.post("/pools/chat/preload", json={}).json()["wanted"] == 4
    assert api.post("/pools/chat/sleep").json()["asleep"] is True
    assert api.post("/pools/chat/sleep").json()["asleep"] is True
    assert api.post("/pools/chat/wake").json()["asleep"] is False
    swapped = api.post("/pools/chat/swap", json={"model": "llama:2"}).json()
    assert (swapped["model"], swapped["arguments"]) == ("llama:2", {"bits": 4})
    drained = api.post("/pools/chat/drain").json()
    assert (drained["state"], drained["wanted"]) == ("draining", 0)
    assert api.delete("/pools/chat").status_code == 409
    sweep(runtime)
    assert api.get("/pools/chat").json()["state"] == "stopped"
    assert (api.post("/pools", json=same).status_code, api.post("/pools/chat/stop").json()["wanted"]) == (200, 0)
    sweep(runtime)
    assert api.delete("/pools/chat").json() == {"name": "chat"}
    assert api.get("/pools/chat").status_code == 404


def test_what_cannot_be_is_refused_with_every_fault(api: TestClient, runtime: Runtime) -> None:
    """Also when no worker has the loader, or no host could ever hold a runner."""
    bad = api.post("/pools", json={"name": "a b", "min": 3, "max": 2, "priority": 11})
    assert (bad.status_code, bad.json()["type"]) == (422, f"{PROBLEM}invalid-pool")
    assert len(bad.json()["faults"]) == 3
    start(api)
    other = api.post("/pools", json={"name": "chat", "model": "other"})
    assert (other.status_code, other.json()["type"]) == (409, f"{PROBLEM}pool-exists")
    assert "model" in other.json()["detail"]
    register(runtime, "alpha", 1, tasks=("orchestrator.preload",))
    assert api.post("/pools", json={"name": "y", "gpus": 2}).json()["type"] == f"{PROBLEM}unsatisfiable-request"
    unknown = api.post("/pools", json={"name": "x", "task": "no.such"})
    assert (unknown.status_code, unknown.json()["type"]) == (422, f"{PROBLEM}unknown-task")
    missing = api.post("/pools/none/scale", json={"min": 1})
    assert (missing.status_code, missing.json()["type"]) == (404, f"{PROBLEM}unknown-pool")
    assert api.post("/pools/chat/preload", json={"runners": 9}).status_code == 422
    whole = api.post("/pools/chat/sleep")
    assert (whole.status_code, whole.json()["type"]) == (422, f"{PROBLEM}invalid-pool")


def test_a_load_is_a_job_and_another_follows_one_that_was_cancelled(api: TestClient, runtime: Runtime) -> None:
    start(api)
    sweep(runtime)
    found = api.get("/pools/chat").json()
    (load,) = found["loads"]
    assert load["state"] in ("pending", "queued")
    assert runtime.jobs.get(load["job_id"]) is not None
    api.post(f"/jobs/{load['job_id']}/cancel")
    sweep(runtime)
    assert [one["job_id"] for one in api.get("/pools/chat").json()["loads"]] != [load["job_id"]]


def test_one_order_goes_to_every_pool(api: TestClient, runtime: Runtime) -> None:
    """To those that can take it: the answer tells which, and repeating it changes nothing."""
    assert api.post("/pools/orders", json={"order": "stop"}).json() == {"pools": []}
    for name, body in (("whole", {}), ("share", {"gpu_memory": "8GiB"}), ("gone", {})):
        start(api, name=name, **body)
    api.post("/pools/gone/stop")
    sweep(runtime)
    assert api.get("/pools/gone").json()["state"] == "stopped"

    slept = api.post("/pools/orders", json={"order": "sleep"}).json()["pools"]
    assert [(one["name"], one["asleep"]) for one in slept] == [("share", True)]
    stopped = api.post("/pools/orders", json={"order": "stop"}).json()["pools"]
    states = {"gone": "stopped", "share": "draining", "whole": "draining"}
    assert {one["name"]: one["state"] for one in stopped} == states
    assert api.post("/pools/orders", json={"order": "stop"}).json()["pools"] == stopped
    for _ in range(2):  # loads are cancelled by one pass and are seen to have ended by the next
        sweep(runtime)
    assert {one["state"] for one in api.get("/pools").json()["pools"]} == {"stopped"}
    assert api.post("/pools/orders", json={"order": "burn"}).status_code == 422


def sweep(runtime: Runtime) -> None:
    """Look after the pools once, as the leader does."""
    term = runtime.leadership.campaign("test", ttl=timedelta(seconds=60))
    assert term is not None
    PoolSweep(runtime).run(term.epoch)
    runtime.leadership.resign("test", term.epoch)
