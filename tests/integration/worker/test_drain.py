"""Draining a host that runs jobs."""

import sys

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import JobState
from orchestrator.services.drain import set_drain
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

WAITS = "import pathlib,time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"


def state(cluster: Cluster, node: str = "a") -> NodeState:
    return next(record.state for record in cluster.runtime.cluster.nodes() if record.name == node)


def test_a_drained_host_ends_what_runs_and_takes_nothing_until_it_is_taken_back(cluster: Cluster) -> None:
    """What runs there ends well; the rest waits, over a restart of the worker, and runs once the drain is over."""
    worker = cluster.worker("a", gpus=2, slots=1)
    running = [cluster.command(sys.executable, "-c", WAITS, gpus=1) for _ in range(2)]
    for job in running:
        cluster.wait_for_state(job, JobState.RUNNING)
    waiting = cluster.submit(*[cluster.dump_job(cluster.home / "dump.jsonl", 0.1, gpus=1) for _ in range(3)])

    assert set_drain(cluster.runtime, "a", drain=True, by="test").state is NodeState.DRAINING
    (cluster.home / "go").touch()
    ended = cluster.wait_for_end(running)
    wait_for(lambda: state(cluster) is NodeState.DRAINED, within_seconds=30, describe=cluster.logs)

    assert [(job.state, job.attempt) for job in ended] == [(JobState.SUCCEEDED, 1)] * 2
    assert [cluster.job(job).attempt for job in waiting] == [0] * 3
    worker.stop()
    assert state(cluster) is NodeState.LOST
    cluster.worker("a", gpus=2, slots=1)
    wait_for(lambda: state(cluster) is NodeState.DRAINED, within_seconds=30, describe=cluster.logs)
    assert [cluster.job(job).attempt for job in waiting] == [0] * 3

    set_drain(cluster.runtime, "a", drain=False, by="test")
    assert [job.state for job in cluster.wait_for_end(waiting)] == [JobState.SUCCEEDED] * 3
    assert state(cluster) is NodeState.UP
