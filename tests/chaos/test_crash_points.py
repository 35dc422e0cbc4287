"""A process is killed at each step of a job's way; every acknowledged job ends, and runs as often as it has to."""

import signal

import pytest

from orchestrator.domain.job import JobState
from tests.chaos.support import FaultCluster

MATRIX = pytest.mark.matrix

#: Where a worker dies, and how many attempts the job that was on its way there takes in all.
WORKER_POINTS = [
    ("delivery.received", 1),
    ("claim.in_transaction", 1),
    ("claim.committed", 2),
    ("start.before", 2),
    ("renew.before", 2),
    ("renew.committed", 2),
    ("finish.before", 2),
    ("finish.committed", 1),
]
#: In every run of the suite; the rest of the product of points and stacks is the matrix.
STRONGEST = {
    ("delivery.received", "mariadb"),
    ("claim.in_transaction", "mariadb"),
    ("claim.committed", "embedded"),
    ("finish.before", "mariadb"),
    ("finish.committed", "embedded"),
}


def cases() -> list[object]:
    """Return every point on every stack."""
    return [
        pytest.param(
            point,
            attempts,
            stack,
            id=f"{point}-{stack}",
            marks=[] if (point, stack) in STRONGEST else [MATRIX],
        )
        for point, attempts in WORKER_POINTS
        for stack in ("mariadb", "embedded")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "attempts", "stack"), cases())
def test_a_worker_killed_at_a_step_loses_no_job(cluster: FaultCluster, point: str, attempts: int, stack: str) -> None:
    """The worker that starts again on the host takes up what its predecessor left."""
    cluster.arm("a", point, "kill")
    first = cluster.worker("a", gpus=2)
    cluster.beat()
    job_id = cluster.load(seconds=3 if point.startswith("renew") else 0.1)[0]
    cluster.await_death(first)
    if point.startswith("finish"):
        assert cluster.lines("end"), "the job itself had ended"
    cluster.load(2, gpus=2)
    cluster.worker("a")
    jobs = cluster.finish()

    assert jobs[0].attempt == attempts
    assert jobs[0].lost_count == attempts - 1
    assert [job.attempt for job in jobs[1:]] == [1, 1]
    history = [one.outcome for one in cluster.runtime.jobs.attempts(job_id)]
    assert history == ["lose"] * (attempts - 1) + ["succeed"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["claim.committed", "finish.committed"])
def test_an_answer_of_the_database_that_is_lost_costs_nothing(cluster: FaultCluster, point: str) -> None:
    """What was committed is found when it is asked again: no second finish, and no job that nobody runs."""
    mark = cluster.arm("a", point, "fail")
    cluster.worker("a", gpus=1)
    cluster.beat()
    cluster.load(3)
    cluster.await_mark(mark)
    jobs = cluster.finish()

    assert [job.attempt for job in jobs] == [1, 1, 1]
    assert len(cluster.lines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["mariadb", pytest.param("embedded", marks=MATRIX)])
@pytest.mark.parametrize("point", ["publish.before", pytest.param("publish.after", marks=MATRIX)])
def test_a_leader_killed_around_a_publish_is_made_up_for(cluster: FaultCluster, point: str, stack: str) -> None:
    """The entry is published by the next leader, or twice; either way the job runs once."""
    cluster.arm("one", point, "kill")
    cluster.worker("a", gpus=1)
    leader = cluster.beat("one")
    cluster.load(8, seconds=0.3)
    # Not every pass of the leader admits something: the worker refills itself. A job for a host's return must.
    cluster.ids += cluster.submit(*[cluster.dump_job(cluster.dumps, 0.1, gpus=1)] * 4)
    if leader.popen.poll() is None and all(cluster.job(job).state is JobState.SUCCEEDED for job in cluster.ids):
        leader.stop(signal.SIGKILL)
    cluster.beat("two")
    jobs = cluster.finish()

    assert {job.attempt for job in jobs} == {1}
    assert len(cluster.lines()) == len(cluster.ids)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["mariadb", pytest.param("embedded", marks=MATRIX)])
def test_a_leader_killed_in_a_sweep_is_replaced_and_the_sweep_repeated(cluster: FaultCluster, stack: str) -> None:
    cluster.arm("one", "sweep.in_transaction", "kill")
    cluster.worker("a", gpus=1)
    leader = cluster.spawn("one", ["orchestrator_cli", "beat", "-s", str(cluster.home / "one.schedule")])
    cluster.load(4)
    cluster.await_death(leader)
    cluster.beat("two")
    jobs = cluster.finish()

    assert {job.attempt for job in jobs} == {1}
