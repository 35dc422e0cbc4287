"""Runners that stay warm from job to job: what they keep, and when they are replaced."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.domain.request import TaskRequest
from tests.support.cluster import Cluster
from tests.support.guardian import lives
from tests.support.waiting import wait_for

HERE = Path(__file__).parent


def run(cluster: Cluster, jobs: int, **options: Any) -> list[dict[str, Any]]:
    """Run so many jobs and return what each saw, in the order of their starts."""
    ids = cluster.submit(*(TaskRequest(task="t.warm", **({"gpus": 1} | options)) for _ in range(jobs)))
    ended = cluster.wait_for_end(ids)
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert all(job.attempt == 1 for job in ended), "a job that was given back is not an attempt spent"
    return [dict(job.result) for job in sorted(ended, key=lambda job: job.seq) if isinstance(job.result, dict)]


def test_a_model_stays_loaded_from_job_to_job(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE)

    seen = run(cluster, 6) + run(cluster, 6)

    assert len({one["pid"] for one in seen}) == 1
    assert sorted(one["uses"] for one in seen) == list(range(1, 13))
    assert {one["memory_mib"] for one in seen} == {81920}


def test_a_share_of_a_gpu_holds_models_of_its_own_size(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE)

    small = run(cluster, 1, gpus=1, gpu_memory_mib=2000)
    large = run(cluster, 1, gpus=1, gpu_memory_mib=4000)

    assert [one["memory_mib"] for one in (*small, *large)] == [2000, 4000]
    assert small[0]["pid"] != large[0]["pid"]


@pytest.mark.parametrize(("setting", "most"), [("runner_max_jobs", 4), ("runner_max_memory_mib", 1)])
def test_a_runner_that_is_spent_is_replaced(cluster: Cluster, setting: str, most: int) -> None:
    """No job is lost on the way, though many were claimed ahead; each new runner loads the model anew."""
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE, **{setting: most})

    seen = run(cluster, 2) + run(cluster, 20)

    jobs_of = Counter(one["pid"] for one in seen)
    # A runner may have begun its next job before it is told.
    assert max(jobs_of.values()) <= most + 2
    assert len(jobs_of) >= len(seen) / (most + 2)
    assert sum(one["uses"] == 1 for one in seen) == len(jobs_of)


def test_a_runner_that_cannot_start_is_not_started_for_ever(cluster: Cluster) -> None:
    """Each attempt is lost, with a pause behind it, and the job ends as a dead letter."""
    worker = cluster.worker("a", gpus=1, app="broken_app", path=HERE, max_lost=2, lost_delay=0.2)
    cluster.beat()

    job_id = cluster.task("t.never", gpus=1)
    job = cluster.wait_for_state(job_id, JobState.DEAD_LETTER)

    attempts = cluster.runtime.jobs.attempts(job_id)
    assert [attempt.failure_class for attempt in attempts] == [FailureClass.LOST] * 2
    assert job.reason is not None
    assert "no licence for this host" in worker.log.read_text()
    assert worker.log.read_text().count("printed before it ended") == 2


def test_a_runner_without_a_job_for_long_ends(cluster: Cluster) -> None:
    """Its memory is the host's again; the next job has another one, which loads the model anew."""
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE, runner_idle=0.5)

    (first,) = run(cluster, 1)
    wait_for(lambda: not lives(first["pid"]), within_seconds=15, describe=cluster.logs)
    (second,) = run(cluster, 1)

    assert second["uses"] == 1
    assert second["pid"] != first["pid"]


def test_a_runner_serves_one_tenant(cluster: Cluster) -> None:
    """What a tenant's jobs left in its memory is nobody else's: it ends before another tenant has its GPU."""
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE)

    mine = run(cluster, 2, tenant="red")
    theirs = run(cluster, 2, tenant="blue")

    assert len({one["pid"] for one in mine}) == len({one["pid"] for one in theirs}) == 1
    assert sorted(one["uses"] for one in theirs) == [1, 2], "they find no model of the other tenant"
    assert not lives(mine[0]["pid"])
