"""What ``/metrics`` tells: every metric has its name, and moves when that happens which it is about."""

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.domain.job import FailureClass, JobEvent
from orchestrator.runtime import Runtime
from orchestrator.storage import job_times
from tests.support.eventful import Eventful
from tests.support.exposition import scrape, value
from tests.support.running import Running
from tests.support.waiting import wait_for

#: Told while somebody leads.
EPOCH = "gpu_orchestrator_leader_epoch"
METRICS = {
    "gpu_orchestrator_leader": "gauge",
    "gpu_orchestrator_sweep_passes_total": "counter",
    "gpu_orchestrator_sweep_items_total": "counter",
    "gpu_orchestrator_sweep_failures_total": "counter",
    "gpu_orchestrator_sweep_seconds_total": "counter",
    "gpu_orchestrator_sweep_last_seconds": "gauge",
    "gpu_orchestrator_sweep_last_timestamp_seconds": "gauge",
    "gpu_orchestrator_job_queue_depth": "gauge",
    "gpu_orchestrator_jobs": "gauge",
    "gpu_orchestrator_nodes": "gauge",
    "gpu_orchestrator_gpus": "gauge",
    "gpu_orchestrator_nodes_degraded": "gauge",
    "gpu_orchestrator_safe_mode": "gauge",
    "gpu_orchestrator_dead_letters": "gauge",
    "gpu_orchestrator_leases_active": "gauge",
    "gpu_orchestrator_lease_oldest_seconds": "gauge",
    "gpu_orchestrator_lease_silent_seconds": "gauge",
    "gpu_orchestrator_lease_expired_total": "counter",
    "gpu_orchestrator_lease_requests_total": "counter",
    "gpu_orchestrator_lease_wait_seconds": "histogram",
    "gpu_orchestrator_attempts_lost_total": "counter",
    "gpu_orchestrator_attempts_retried_total": "counter",
    "gpu_orchestrator_writes_refused_total": "counter",
    "gpu_orchestrator_worker_pool_evictions_total": "counter",
    "gpu_orchestrator_worker_pool_runners": "gauge",
    "gpu_orchestrator_worker_pool_jobs": "gauge",
    "gpu_orchestrator_worker_pool_failures": "gauge",
    "gpu_orchestrator_api_requests_total": "counter",
    "gpu_orchestrator_api_requests_in_progress": "gauge",
    "gpu_orchestrator_api_request_seconds": "histogram",
    "gpu_orchestrator_jobs_ended_total": "counter",
    "gpu_orchestrator_job_wait_seconds": "histogram",
    "gpu_orchestrator_job_run_seconds": "histogram",
    "gpu_orchestrator_job_run_estimate_error_ratio": "histogram",
    "gpu_orchestrator_stream_waiting": "gauge",
    "gpu_orchestrator_stream_pending": "gauge",
    "gpu_orchestrator_gpu_memory_mib": "gauge",
    "gpu_orchestrator_gpu_utilization_percent": "gauge",
    "gpu_orchestrator_server_up": "gauge",
    "gpu_orchestrator_server_seconds": "gauge",
}


def test_metrics_have_their_names(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 2)
    answer = api.get("/metrics")

    types = dict(line.split()[2:4] for line in answer.text.splitlines() if line.startswith("# TYPE"))
    assert {name: kind for name, kind in types.items() if not name.endswith("_created")} == METRICS
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'gpu_orchestrator_gpus{health="healthy",node="alpha",use="free"} 2.0' in answer.text


def test_the_documents_name_every_metric() -> None:
    """And no other."""
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    named = set(re.findall(r"^\| `(gpu_orchestrator_[a-z_]+)`", page, re.MULTILINE))

    assert named == METRICS.keys() | {EPOCH}, "the epoch is told while somebody leads"


def test_requests_are_counted_by_their_route(api: TestClient) -> None:
    """Not by their path, their method's spelling or anything else that a client could make up without end."""
    api.get("/jobs/01890000-0000-7000-8000-000000000000")
    api.get("/jobs/01890000-0000-7000-8000-000000000001")
    api.get("/made-up")
    api.request("BREW", "/jobs")

    counts = [line for line in api.get("/metrics").text.splitlines() if "api_requests_total{" in line]
    assert sorted(counts) == [
        'gpu_orchestrator_api_requests_total{method="GET",route="/jobs/{job_id}",status="404"} 2.0',
        'gpu_orchestrator_api_requests_total{method="GET",route="none",status="404"} 1.0',
        'gpu_orchestrator_api_requests_total{method="other",route="/jobs",status="405"} 1.0',
    ]


def test_streams_tell_what_waits_in_them(api: TestClient) -> None:
    api.post("/jobs/submit", json={"argv": ["true"]})

    text = api.get("/metrics").text
    assert 'gpu_orchestrator_stream_waiting{queue="gpu"} 1.0' in text
    assert 'gpu_orchestrator_stream_pending{queue="gpu"} 0.0' in text


#: What is to be seen after ``Eventful.everything``: name, labels, and the value, where it was 0 or nothing before.
AFTERWARDS = [
    ("jobs", {"state": "dead_letter"}, 1),
    ("jobs", {"state": "succeeded"}, 4),
    ("job_queue_depth", {"queue": "gpu", "state": "scheduled"}, 2),
    ("jobs_ended_total", {"queue": "gpu", "state": "succeeded"}, 4),
    ("job_wait_seconds_count", {"queue": "gpu", "size": "one"}, 5),
    ("job_run_seconds_count", {"queue": "gpu"}, 5),
    ("job_run_estimate_error_ratio_count", {"queue": "gpu"}, 3),
    ("nodes", {"state": "up", "live": "true"}, 1),
    ("nodes_degraded", {}, 1),
    ("gpus", {"node": "alpha", "health": "healthy", "use": "exclusive"}, 3),
    ("gpu_memory_mib", {"node": "alpha", "kind": "used"}, 6000),
    ("gpu_memory_mib", {"node": "alpha", "kind": "foreign"}, 300),
    ("gpu_utilization_percent", {"node": "alpha"}, 50),
    ("leases_active", {"kind": "job", "mode": "exclusive"}, 1),
    ("leases_active", {"kind": "pool", "mode": "exclusive"}, 2),
    ("leases_active", {"kind": "adhoc", "mode": "shared"}, 1),
    ("lease_expired_total", {}, 1),
    ("lease_requests_total", {"outcome": "granted"}, 1),
    ("lease_requests_total", {"outcome": "busy"}, 1),
    ("lease_requests_total", {"outcome": "impossible"}, 1),
    ("lease_wait_seconds_count", {}, 1),
    ("attempts_lost_total", {"node": "alpha"}, 2),
    ("attempts_retried_total", {"node": "alpha"}, 1),
    ("writes_refused_total", {"node": "alpha"}, 1),
    ("dead_letters", {"queue": "gpu"}, 1),
    ("worker_pool_runners", {"pool": "chat", "state": "ready"}, 1),
    ("worker_pool_runners", {"pool": "chat", "state": "leaving"}, 1),
    ("worker_pool_jobs", {"pool": "chat"}, 1),
    ("worker_pool_failures", {"pool": "chat"}, 2),
    ("worker_pool_evictions_total", {"pool": "chat"}, 1),
    ("stream_pending", {"queue": "gpu"}, 1),
    ("leader", {}, 1),
    ("leader_epoch", {}, 1),
    ("sweep_failures_total", {"sweep": "admit"}, 1),
    ("sweep_items_total", {"sweep": "admit"}, 3),
    ("sweep_passes_total", {"sweep": "admit"}, 2),
    ("safe_mode", {}, 1),
    ("server_up", {"server": "database"}, 1),
    ("server_up", {"server": "redis"}, 1),
    ("api_requests_total", {"method": "PATCH", "route": "/policy", "status": "200"}, 1),
    ("api_request_seconds_count", {"route": "/policy"}, 1),
]
#: Times, and what depends on how far the leader came: they are there, and not 0.
POSITIVE = {"stream_waiting", "sweep_seconds_total", "sweep_last_seconds", "sweep_last_timestamp_seconds"} | {
    *("server_seconds", "lease_oldest_seconds", "lease_silent_seconds", "api_requests_in_progress")
}


def test_every_metric_moves(api: TestClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that nothing moves is a name."""
    monkeypatch.setattr(job_times, "SETTLE", timedelta(0))
    before = scrape(api)
    Eventful(api, runtime).everything()
    after = scrape(api)

    said = {
        (name, *labels.items()): value(after, f"gpu_orchestrator_{name}", **labels) for name, labels, _ in AFTERWARDS
    }
    assert said == {(name, *labels.items()): expected for name, labels, expected in AFTERWARDS}
    for name, labels, _ in AFTERWARDS:
        if name != "server_up":  # what it says when they are away: test_installation.py
            assert value(before, f"gpu_orchestrator_{name}", **labels) == 0, name
    for name in POSITIVE:
        assert any(one > 0 for one in after[f"gpu_orchestrator_{name}"].values()), name
    moved = {f"gpu_orchestrator_{name.removesuffix('_count')}" for name, _, _ in AFTERWARDS}
    assert moved | {f"gpu_orchestrator_{name}" for name in POSITIVE} == METRICS.keys() | {EPOCH}


def test_a_purge_takes_back_what_dead_letters_raised(api: TestClient, start: Callable[[str], Running]) -> None:
    """An alert about them ends when somebody has looked at them."""
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]
    start(job).end(JobEvent.BURY, error="lost", failure_class=FailureClass.LOST)
    assert value(scrape(api), "gpu_orchestrator_dead_letters", queue="gpu") == 1

    api.post("/dlq/purge", json={})
    after = scrape(api)
    assert value(after, "gpu_orchestrator_dead_letters", queue="gpu") == 0
    assert frozenset({("queue", "gpu")}) in after["gpu_orchestrator_dead_letters"], "0 is told, not nothing"
    assert value(after, "gpu_orchestrator_jobs", state="dead_letter") == 1


def test_expiries_stay_counted_when_the_history_is_pruned(api: TestClient, runtime: Runtime) -> None:
    Eventful(api, runtime).samples()
    Eventful(api, runtime).losses()
    assert value(scrape(api), "gpu_orchestrator_lease_expired_total") == 1

    epoch = runtime.leadership.campaign("test", ttl=timedelta(seconds=60)).epoch
    assert runtime.admission.prune(older_than=timedelta(seconds=-60), limit=100, epoch=epoch)
    assert value(scrape(api), "gpu_orchestrator_lease_expired_total") == 1


def test_a_request_that_waits_is_in_progress(api: TestClient, start: Callable[[str], Running]) -> None:
    job = api.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]
    running = start(job)
    waiting = threading.Thread(target=api.get, args=(f"/jobs/{job}/logs?wait=20",))
    waiting.start()
    try:
        wait_for(
            lambda: value(scrape(api), "gpu_orchestrator_api_requests_in_progress") == 2,
            within_seconds=10,
            describe="both requests to be counted",
        )
    finally:
        running.end()
        waiting.join()
    assert value(scrape(api), "gpu_orchestrator_api_requests_in_progress") == 1
