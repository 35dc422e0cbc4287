"""A job whose processes do not die of KILL: it ends for everybody, and its GPU is nobody's until they are gone."""

import signal
from collections.abc import Iterator

import pytest

from orchestrator.domain.cluster import GpuHealth, GpuStanding
from orchestrator.domain.job import FailureClass, JobState
from orchestrator.services.cancel import CancelService
from tests.support.cluster import Cluster
from tests.support.freezer import Freezer
from tests.support.guardian import lives
from tests.support.waiting import wait_for


@pytest.fixture
def freezer(cluster: Cluster) -> Iterator[Freezer]:
    """Thawed before the cluster ends."""
    with Freezer() as made:
        yield made


def start(cluster: Cluster, freezer: Freezer) -> tuple[str, str, int]:
    """Start a job that cannot be ended; return its id, its GPU and its process."""
    job_id = cluster.command("sh", "-c", "echo $$; exec sleep 600", gpus=1, grace_seconds=0.1)
    wait_for(lambda: cluster.output(job_id), within_seconds=30, describe=cluster.logs)
    (attempt,) = cluster.runtime.jobs.attempts(job_id)
    pid = int(cluster.output(job_id))
    freezer.freeze([pid])
    return job_id, attempt.gpus[0], pid


def standing(cluster: Cluster, gpu: str) -> GpuStanding:
    return cluster.runtime.cluster.gpu_standings("a")[gpu]


def test_a_job_that_cannot_be_ended_is_cancelled_and_costs_its_gpu_only(cluster: Cluster, freezer: Freezer) -> None:
    """The other GPU serves on, also after the worker was killed and started again; the first one comes back by itself.

    The quarantine names the process and its job.
    """
    options = {"kill_wait": 0.5, "gpu_quarantine": 1, "lost_delay": 0.1}
    worker = cluster.worker("a", **options)
    cluster.beat()
    job_id, gpu, pid = start(cluster, freezer)
    CancelService(cluster.runtime).cancel(job_id, by="test")

    cluster.wait_for_state(job_id, JobState.CANCELLED)
    reason = f"KILL does not end pid {pid} of job {job_id}"
    wait_for(lambda: standing(cluster, gpu).reason == reason, within_seconds=20, describe=cluster.logs)
    assert standing(cluster, gpu).health is GpuHealth.QUARANTINED
    other = cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)
    assert cluster.runtime.jobs.attempts(other.id)[0].gpus != (gpu,)

    worker.stop(signal.SIGKILL)
    cluster.worker("a", **options)
    again = cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)
    assert cluster.runtime.jobs.attempts(again.id)[0].gpus != (gpu,)
    assert (standing(cluster, gpu).health, standing(cluster, gpu).strikes) == (GpuHealth.QUARANTINED, 1)
    assert lives(pid)
    both = cluster.command("true", gpus=2)

    freezer.thaw()
    cluster.wait_for_state(both, JobState.SUCCEEDED, within_seconds=60)
    assert not lives(pid)


def test_a_job_past_its_time_limit_fails_although_it_cannot_be_ended(cluster: Cluster, freezer: Freezer) -> None:
    """And a worker that is told to stop ends all the same; its guardian stays for the process."""
    worker = cluster.worker("a", gpus=1, kill_wait=0.5)
    job_id = cluster.command("sh", "-c", "echo $$; exec sleep 600", gpus=1, grace_seconds=0.1, time_limit_seconds=2)
    wait_for(lambda: cluster.output(job_id), within_seconds=30, describe=cluster.logs)
    freezer.freeze([int(cluster.output(job_id))])

    job = cluster.wait_for_state(job_id, JobState.FAILED)

    assert (job.failure_class, job.exit_code) == (FailureClass.TIMEOUT, 124)
    assert worker.stop() == 0
