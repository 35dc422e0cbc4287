"""Orders that a real worker heeds: a paused queue, a held job, a queue that runs one job at a time."""

import sys
from pathlib import Path

import pytest

from orchestrator.domain.job import JobState
from orchestrator.services.job_control import JobOrder, Order, give, tell_placers
from tests.support.cluster import Cluster

WAITS = "import pathlib,sys,time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"


def waiting_for(cluster: Cluster, name: str) -> str:
    """Submit a job that ends when a file is there."""
    return cluster.command(sys.executable, "-c", WAITS, str(cluster.home / name), gpus=1)


def go(cluster: Cluster, name: str) -> None:
    Path(cluster.home / name).touch()


@pytest.mark.parametrize("whole", [False, True], ids=["queue", "safe-mode"])
def test_what_must_not_start_starts_when_it_may_and_what_runs_goes_on(cluster: Cluster, whole: bool) -> None:
    """With a leader and a free GPU all the time."""
    runtime = cluster.runtime

    def order(*, on: bool) -> None:
        if whole:
            runtime.policy.change({"safe_mode": on}, by="test", version=None)
        else:
            runtime.queues.set_paused("gpu", paused=on, by="test")
        tell_placers(runtime)

    cluster.worker("a", gpus=2, slots=1)
    cluster.beat()
    running = waiting_for(cluster, "go")
    cluster.wait_for_state(running, JobState.RUNNING)
    order(on=True)
    kept = [cluster.command("true", gpus=1) for _ in range(5)]
    go(cluster, "go")
    (ended,) = cluster.wait_for_end([running])

    assert ended.state is JobState.SUCCEEDED
    assert {(cluster.job(job).state, cluster.job(job).attempt) for job in kept} == {(JobState.PENDING, 0)}
    give(runtime, JobOrder(Order.HOLD), kept[0], by="test")
    order(on=False)
    assert {job.state for job in cluster.wait_for_end(kept[1:])} == {JobState.SUCCEEDED}
    assert cluster.job(kept[0]).state is JobState.PENDING
    give(runtime, JobOrder(Order.RELEASE), kept[0], by="test")
    assert [job.state for job in cluster.wait_for_end([kept[0]])] == [JobState.SUCCEEDED]
    cluster.verify()
