"""``log_format = "json"`` in whole processes: every line that they log is one object."""

import json
import signal
from typing import Any

import httpx

from orchestrator.domain.job import JobState
from tests.support.api_process import start_api
from tests.support.cluster import Cluster, Process
from tests.support.running import Running, register


def logged(process: Process) -> list[dict[str, Any]]:
    """Return what a process logged; what Celery prints before its log is set up is no log, and begins no object."""
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]


def test_the_api_names_the_job_of_a_request(cluster: Cluster) -> None:
    """Here that its worker cannot be told of a cancellation at once, for want of Redis."""
    api, url = start_api(cluster, log_format="json", log_level="INFO", redis_url="redis://127.0.0.1:1/0", node="web")
    register(cluster.runtime, "alpha", 1)
    job_id = cluster.command("true")
    Running(cluster.runtime, job_id)
    answer = httpx.post(f"{url}/jobs/{job_id}/cancel", headers=cluster.authorized, trust_env=False)
    assert answer.json()["stopping"] is True
    api.stop(signal.SIGTERM)

    lines = logged(api)
    assert {(line["host"], line["process"]) for line in lines} == {("web", "api")}
    (told,) = (line for line in lines if "cancellation" in line["message"])
    assert told["job_id"] == job_id
    assert len(lines) == len([line for line in api.log.read_text().splitlines() if line.strip()]), "and nothing else"


def test_worker_and_beat_log_objects_that_name_the_job(cluster: Cluster) -> None:
    """A log store finds what a worker said of a job by its id, and of an attempt by its token."""
    worker = cluster.worker("a", log_format="json")
    beat = cluster.beat(log_format="json")
    job_id = cluster.command("sh", "-c", "exit 3", max_attempts=1)
    cluster.wait_for_state(job_id, JobState.FAILED)
    beat.stop(signal.SIGTERM)
    worker.stop(signal.SIGTERM)

    of_job = [line for line in logged(worker) if line.get("job_id") == job_id]
    ended = [line for line in of_job if "ended" in line["message"]]
    (attempt,) = cluster.runtime.jobs.attempts(job_id)
    assert {line["task"] for line in of_job if "task" in line} == {"orchestrator.command"}
    assert [(line["attempt"], line["token"]) for line in ended] == [(1, attempt.lease_id)]
    assert {(line["host"], line["process"]) for line in logged(worker)} == {("a", "worker")}
    assert {line["process"] for line in logged(beat)} == {"beat"}
    after_banner = worker.log.read_text().partition('{"time"')[2].splitlines()[1:]
    others = [line for line in after_banner if line.strip() and not line.startswith("{")]
    assert others == ["worker: Warm shutdown (MainProcess)"], "Celery prints that"
