"""A worker that is killed again and again with a line of short jobs behind the one that runs."""

import signal
from pathlib import Path

import pytest

from orchestrator.domain.job import JobState
from orchestrator.domain.request import TaskRequest
from tests.chaos.support import LONG_SECONDS, FaultCluster
from tests.support.waiting import wait_for

TASKS = Path(__file__).parents[1] / "integration" / "worker"
JOBS = 60
KILLS = 5


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_jobs_that_only_stood_in_line_survive_any_number_of_lost_workers(cluster: FaultCluster) -> None:
    """Killed more often than ``max_lost``, each time with jobs claimed ahead: none of them is given up."""
    cluster.beat()
    worker = cluster.worker("a", gpus=1, app="tasks_app", path=TASKS)
    warm = cluster.submit(*[TaskRequest(task="t.nap", args=(0.02,), gpus=1) for _ in range(20)])
    cluster.wait_for_end(warm, within_seconds=LONG_SECONDS)  # from now on it claims short ones ahead
    cluster.ids += warm + cluster.submit(*[TaskRequest(task="t.nap", args=(0.02,), gpus=1) for _ in range(JOBS)])
    ahead = 0
    for _ in range(KILLS):
        wait_for(lambda: _running(cluster) > 1 or _done(cluster), within_seconds=LONG_SECONDS, describe=cluster.logs)
        ahead = max(ahead, _running(cluster))
        worker.stop(signal.SIGKILL)
        worker = cluster.worker("a", gpus=1, app="tasks_app", path=TASKS)
    jobs = cluster.finish()

    assert ahead > 1, "nothing was claimed ahead"
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert sum(job.lost_count for job in jobs) <= KILLS, "one job at most is charged with each loss"


def _running(cluster: FaultCluster) -> int:
    return cluster.runtime.jobs.count_by_state()[JobState.RUNNING]


def _done(cluster: FaultCluster) -> bool:
    counts = cluster.runtime.jobs.count_by_state()
    return counts[JobState.SUCCEEDED] == sum(counts.values())
