"""A job that does not want to end: what a cancel leaves of it, and how long its grace lets it."""

from pathlib import Path

import pytest

from orchestrator.domain.job import JobState
from orchestrator.services.cancel import CancelService
from tests.support.cluster import Cluster
from tests.support.guardian import STUBBORN, lives, python
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
#: The worker's own grace, for jobs that bring none: far beyond a test.
LONG = 600


@pytest.mark.parametrize("kind", ["command", "task"])
def test_nothing_of_a_stubborn_tree_outlives_its_cancel_and_its_grace(cluster: Cluster, kind: str) -> None:
    """It ignores TERM, and its children left session, parent and environment; the GPU is leased again afterwards.

    The job's own grace counts, and not what the worker's setting says for others.
    """
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE, default_grace=LONG)
    if kind == "command":
        job_id = cluster.command(*python(STUBBORN), gpus=1, grace_seconds=0.5)
    else:
        job_id = cluster.task("t.run", *python(STUBBORN), gpus=1, grace_seconds=0.5)
    printed = lambda: [line for line in cluster.output(job_id).split("\n")[:-1] if line]  # noqa: E731
    wait_for(lambda: len(printed()) == 4, within_seconds=30, describe=cluster.logs)
    pids = [int(pid) for pid in printed()]
    assert all(map(lives, pids))

    CancelService(cluster.runtime).cancel(job_id, by="test")

    cluster.wait_for_state(job_id, JobState.CANCELLED)
    assert [pid for pid in pids if lives(pid)] == []
    cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)


def test_a_time_limit_keeps_the_jobs_own_grace_too(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1, default_grace=LONG)
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    job_id = cluster.command("sh", "-c", stubborn, gpus=1, grace_seconds=0.2, time_limit_seconds=1)

    assert cluster.wait_for_state(job_id, JobState.FAILED).exit_code == 124
