"""Workers that are told to stop while jobs run."""

import signal
import sys

import psutil
import pytest

from orchestrator.domain.job import JobState
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

PRINT_PID = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
WAITS = (
    sys.executable,
    "-c",
    "import pathlib,time\nprint('up', flush=True)\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)",
)


def outcomes(cluster: Cluster, job_id: str) -> list[str | None]:
    return [attempt.outcome for attempt in cluster.runtime.jobs.attempts(job_id)]


def test_past_its_bound_a_stopping_worker_requeues_what_still_runs(cluster: Cluster) -> None:
    """A command and a task that have only one attempt and have lost none: they run again, with both intact."""
    worker = cluster.worker("a", gpus=2, shutdown_timeout=1)
    command = cluster.command(*WAITS, gpus=1, max_attempts=1)
    task = cluster.task("examples.where", 60, gpus=1)
    wait_for(lambda: cluster.output(command), within_seconds=20, describe=cluster.logs)
    cluster.wait_for_state(task, JobState.RUNNING)

    assert worker.stop(signal.SIGTERM) == 0

    for job_id in (command, task):
        job = cluster.job(job_id)
        assert job.state in (JobState.PENDING, JobState.QUEUED), cluster.logs()
        assert (job.attempt, job.lost_count, outcomes(cluster, job_id)) == (1, 0, ["requeue"])
    assert all(card.exclusive_lease_id is None for card in cluster.runtime.cluster.nodes()[0].gpus)
    cluster.runtime.jobs.request_cancel(task, by="test", reason="it would take a minute")
    (cluster.home / "go").touch()
    cluster.worker("a", gpus=2)
    cluster.wait_for_state(command, JobState.SUCCEEDED)
    assert outcomes(cluster, command) == ["requeue", "succeed"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGQUIT], ids=lambda signum: signum.name)
def test_a_second_signal_ends_what_runs_at_once(cluster: Cluster, second: signal.Signals) -> None:
    worker = cluster.worker("a", gpus=1)
    job_id = cluster.command(*PRINT_PID, gpus=1)
    wait_for(lambda: cluster.output(job_id), within_seconds=20, describe=cluster.logs)
    pid = int(cluster.output(job_id))
    worker.popen.send_signal(signal.SIGTERM)
    wait_for(lambda: "Warm shutdown" in worker.tail(), within_seconds=20, describe=worker.tail)
    assert psutil.pid_exists(pid)

    worker.stop(second)

    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert cluster.job(job_id).state in (JobState.PENDING, JobState.QUEUED)
    assert (cluster.job(job_id).lost_count, outcomes(cluster, job_id)) == (0, ["requeue"])
    assert all(card.exclusive_lease_id is None for card in cluster.runtime.cluster.nodes()[0].gpus)
