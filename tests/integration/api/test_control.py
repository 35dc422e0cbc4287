"""Sweeps by hand, another leader, purges, draining, and what the metrics tell of leadership."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from orchestrator.errors import NotLeading
from orchestrator.runtime import Runtime
from orchestrator.services import hand_sweeps
from orchestrator.services.lead import Leader
from tests.support.aging import end_earlier
from tests.support.running import Running


def test_a_sweep_runs_once_without_a_leader(api: TestClient, runtime: Runtime) -> None:
    answer = api.post("/control/sweeps/prune")

    assert answer.status_code == 200
    assert answer.json() == answer.json() | {"name": "prune", "did": 0, "more": False, "epoch": 1}
    assert runtime.leadership.current() is None


def test_reclaim_runs_beside_the_leader(api: TestClient, runtime: Runtime) -> None:
    """The leader stays, and what was lost is given back."""
    runtime.leadership.campaign("one", ttl=timedelta(seconds=30))

    answer = api.post("/control/reclaim").json()

    assert answer["reclaimed"] is True
    assert {one["epoch"] for one in answer["sweeps"]} == {1}
    assert "expire_leases" in {one["name"] for one in answer["sweeps"]}
    term = runtime.leadership.current()
    assert term is not None
    assert (term.holder, term.epoch) == ("one", 1)


def test_sweeps_are_listed_with_what_they_did(api: TestClient, runtime: Runtime) -> None:
    leader = Leader(runtime, "host:77:ab")
    leader.step()

    listed = {one["name"]: one for one in api.get("/control/sweeps").json()["sweeps"]}
    metrics = api.get("/metrics").text
    cluster = api.get("/cluster").json()
    leader.resign()

    assert (listed["admit"]["passes"], listed["admit"]["last_error"], listed["admit"]["epoch"]) == (1, None, 1)
    assert 'gpu_orchestrator_sweep_passes_total{sweep="expire_leases"} 1.0' in metrics
    assert "gpu_orchestrator_leader_epoch 1.0" in metrics
    assert (cluster["leader_host"], cluster["leader_pid"], cluster["epoch"]) == ("host", 77, 1)
    assert cluster["leader_since"] is not None
    assert "gpu_orchestrator_leader 0.0" in api.get("/metrics").text


def test_an_unknown_sweep_names_those_that_there_are(api: TestClient) -> None:
    answer = api.post("/control/sweeps/nonsense")

    assert answer.status_code == 404
    assert "expire_leases" in answer.json()["detail"]


def test_a_host_is_drained_and_taken_back(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 1)

    drained = api.post("/nodes/alpha/drain").json()
    again = api.post("/nodes/alpha/drain").json()
    shown = api.get("/nodes").json()["nodes"][0]

    assert (drained["state"], drained["changed"], again["changed"]) == ("draining", True, False)
    assert (shown["state"], shown["drain"]) == ("draining", True)
    assert api.post("/nodes/alpha/undrain").json()["state"] == "up"
    assert api.post("/nodes/beta/drain").status_code == 404
    assert api.post("/nodes/a%2Fb/drain").status_code == 404


def test_orders_about_a_waiting_job_show_in_the_job_and_its_history(api: TestClient) -> None:
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]

    held = api.post(f"/jobs/{job}/hold").json()
    assert (held["state"], held["held_by"], held["changed"]) == ("pending", "admin", True)
    (reason,) = (one for one in api.get(f"/jobs/{job}/why").json()["reasons"] if one["code"] == "held")
    assert reason["words"].startswith("held by admin")
    assert api.post(f"/jobs/{job}/priority", json={"priority": 8}).json()["priority"] == 8
    assert api.post(f"/jobs/{job}/release").json()["held_by"] is None
    assert api.post(f"/jobs/{job}/retry").json()["type"].endswith(":illegal-transition")
    api.post(f"/jobs/{job}/cancel")
    assert api.post(f"/jobs/{job}/retry").json()["state"] == "pending"
    events = api.get(f"/jobs/{job}/events").json()["events"]
    assert [event["kind"] for event in events if event["data"].get("by") == "admin"] == [
        *("hold", "set_priority", "unhold", "cancel", "revive")
    ]


def test_one_order_for_many_jobs_tells_of_each(api: TestClient) -> None:
    jobs = [api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"] for _ in range(2)]
    api.post(f"/jobs/{jobs[0]}/cancel")
    answer = api.post("/jobs/orders", json={"order": "hold", "ids": [*jobs, "nobody"]}).json()["results"]

    assert [(one["id"], one["changed"], one["problem"]) for one in answer] == [
        (jobs[0], False, "illegal-transition"),
        (jobs[1], True, None),
        ("nobody", False, "unknown-job"),
    ]
    assert api.post("/jobs/orders", json={"order": "hold", "ids": jobs, "priority": 1}).status_code == 422
    assert api.post("/jobs/orders", json={"order": "priority", "ids": jobs}).status_code == 422


def test_a_queue_is_paused_limited_and_resumed(api: TestClient) -> None:
    api.post("/jobs/submit", json={"argv": ["true"]})
    paused = api.post("/queues/gpu/pause").json()
    assert (paused["paused"], paused["paused_by"], paused["withdrawn"]) == (True, "admin", 1)
    waiting = api.post("/jobs/submit", json={"argv": ["true"]}).json()
    assert waiting["state"] == "pending"
    assert api.get(f"/jobs/{waiting['id']}/why").json()["reasons"][0]["code"] == "queue_paused"
    assert api.post("/queues/gpu/resume").json()["paused"] is False

    shown = api.get("/queues/gpu")
    tag = shown.headers["ETag"]
    changed = api.patch("/queues/gpu", json={"most_running": 1, "time_limit": 60}, headers={"If-Match": tag})
    assert (changed.status_code, changed.json()["most_running"], changed.json()["time_limit"]) == (200, 1, 60.0)
    assert api.patch("/queues/gpu", json={"most_running": 2}, headers={"If-Match": tag}).status_code == 412
    assert api.patch("/queues/gpu", json={"most_running": 2}, headers={"If-Match": "new"}).status_code == 422
    assert api.patch("/queues/gpu", json={"most_running": None}).json()["most_running"] is None
    assert api.get("/queues/none").status_code == 404


def test_safe_mode_is_switched_by_the_policy(api: TestClient) -> None:
    assert api.get("/policy").json()["version"] == 0
    safe = api.patch("/policy", json={"safe_mode": True}, headers={"If-Match": '"0"'})
    assert (safe.json()["safe_mode"], safe.headers["ETag"]) == (True, '"1"')
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()
    assert api.get(f"/jobs/{job['id']}/why").json()["reasons"][0]["code"] == "safe_mode"
    assert api.patch("/policy", json={"safe_mode": False}, headers={"If-Match": '"0"'}).status_code == 412
    assert api.patch("/policy", json={"safe_mode": False}).json()["version"] == 2
    assert api.patch("/policy", json={"color": 1}).status_code == 422


def test_a_post_changes_the_policy_as_a_patch_does(api: TestClient) -> None:
    """What is left out stays."""
    api.patch("/policy", json={"pool_idle_seconds": 60})
    changed = api.post("/policy", json={"max_gpu_memory_fraction": 0.5}, headers={"If-Match": '"1"'})

    assert changed.json() == changed.json() | {"pool_idle_seconds": 60, "max_gpu_memory_fraction": 0.5, "version": 2}
    assert changed.headers["etag"] == '"2"'
    assert api.post("/policy", json={}, headers={"If-Match": '"1"'}).status_code == 412
    assert api.post("/policy", json={"max_gpu_memory_fraction": 0}).status_code == 422


@pytest.mark.parametrize("path", ["/control/reclaim", "/control/sweeps/prune"])
def test_a_sweep_between_leaders_is_a_conflict(
    api: TestClient, runtime: Runtime, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took over in each of two tries: ask again."""

    def lose(*_: object) -> None:
        raise NotLeading(1)

    monkeypatch.setattr(hand_sweeps, "_run", lose)
    answer = api.post(path)

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:gpu-orchestrator:problem:not-leading")
    template = path.replace("prune", "{name}")
    assert "409" in api.get("/openapi.json").json()["paths"][template]["post"]["responses"]


def test_old_jobs_are_counted_then_deleted(api: TestClient, runtime: Runtime, start: Callable[[str], Running]) -> None:
    """And not those that somebody may still look for: an hour is the least."""
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]
    start(job).end()
    assert api.post("/control/purge", json={"older_than_seconds": 3600}).json() == {
        "jobs": 0,
        "more": False,
        "dry_run": False,
    }
    end_earlier(runtime, job, timedelta(hours=2))

    counted = api.post("/control/purge", json={"older_than_seconds": 3600, "dry_run": True}).json()
    assert counted == {"jobs": 1, "more": False, "dry_run": True}
    assert api.get(f"/jobs/{job}").status_code == 200
    assert api.post("/control/purge", json={"older_than_seconds": 3600}).json()["jobs"] == 1
    assert api.get(f"/jobs/{job}").status_code == 404
    (event,) = (one for one in api.get("/events").json()["events"] if one["kind"] == "jobs_purge")
    assert event["data"] == {"by": "admin", "jobs": 1, "older_than_seconds": 3600.0}
    for faulty in ({}, {"older_than_seconds": 3599}, {"older_than_seconds": "7d"}, {"older_than_seconds": 1e300}):
        assert api.post("/control/purge", json=faulty).status_code == 422


def test_a_leader_that_hangs_is_deposed(api: TestClient, runtime: Runtime) -> None:
    """Another may lead at once, under another epoch, and what the old one still writes is refused."""
    nobody = api.post("/control/depose")
    assert (nobody.status_code, nobody.json()["detail"]) == (409, "nobody leads")
    hung = runtime.leadership.campaign("host:1:a", ttl=timedelta(hours=1))
    assert not runtime.leadership.campaign("host:2:b", ttl=timedelta(hours=1)).mine

    assert api.post("/control/depose").json() == {"leader": "host:1:a", "epoch": hung.epoch}
    assert api.get("/cluster").json()["leader"] is None
    after = runtime.leadership.campaign("host:2:b", ttl=timedelta(hours=1))
    assert (after.mine, after.epoch) == (True, hung.epoch + 1)
    with pytest.raises(NotLeading):
        runtime.admission.release_due(limit=1, epoch=hung.epoch)
