"""A job tells from where it can go on; the next attempt is told, however this one ended."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from orchestrator.domain.job import Job, JobState
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

#: Tells where it is, then waits to be killed; a second attempt tells what it was told.
PROGRAM = """
import os, sys, time, orchestrator
job = orchestrator.current()
print("from", job.last_checkpoint, os.environ.get("ORCHESTRATOR_CHECKPOINT"), flush=True)
if job.attempt == 1:
    job.checkpoint("/data/step-1")
    job.checkpoint("/data/step-2")
    time.sleep(600)
"""


def told(cluster: Cluster, job_id: str, where: str) -> Job:
    """Wait until the database knows a checkpoint."""

    def known() -> Job | None:
        job = cluster.job(job_id)
        return job if job.checkpoint == where else None

    found = wait_for(known, within_seconds=30, describe=cluster.logs)
    assert found is not None
    return found


def test_a_command_whose_worker_is_killed_goes_on_from_its_checkpoint(cluster: Cluster) -> None:
    """It was stored while it ran; nothing of it is left on the host."""
    worker = cluster.worker("a")
    cluster.beat()
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    job_id = cluster.command(sys.executable, "-c", PROGRAM, gpus=1, environment=environment)
    told(cluster, job_id, "/data/step-2")
    worker.stop(signal.SIGKILL)
    cluster.worker("a")
    job = cluster.wait_for_state(job_id, JobState.SUCCEEDED, within_seconds=60)

    assert (job.attempt, job.checkpoint) == (2, "/data/step-2")
    assert cluster.output(job_id).splitlines() == ["from None None", "from /data/step-2 /data/step-2"]
    assert list((cluster.home / "checkpoints").glob(f"{job_id}-2*")) == []


def test_a_command_without_our_library_writes_a_file(cluster: Cluster) -> None:
    """And is warned before its time limit, by a signal, so that it can."""
    cluster.worker("a")
    cluster.beat()
    script = (
        'echo "from $ORCHESTRATOR_CHECKPOINT"; trap "echo last > $ORCHESTRATOR_CHECKPOINT_FILE; exit 7" USR1;'
        " [ $ORCHESTRATOR_ATTEMPT = 2 ] || while :; do sleep 0.1; done"
    )
    limits = {"time_limit_seconds": 60.0, "soft_time_limit_seconds": 1.0}
    job_id = cluster.command("sh", "-c", script, max_attempts=2, **limits)
    job = cluster.wait_for_state(job_id, JobState.SUCCEEDED)

    assert (job.attempt, job.checkpoint) == (2, "last")
    assert cluster.output(job_id).splitlines() == ["from ", "from last"]


def test_a_task_goes_on_from_its_checkpoint(app: Any, cluster: Cluster) -> None:
    """In the same process even, when it is a warm one: what belongs to a job is not left to the next."""
    cluster.worker("a", gpus=1, app="tasks_app", path=Path(__file__).parent)
    cluster.beat()
    steps = app.tasks["t.steps"].delay(3)
    assert steps.get(timeout=30) == [None, "step 0", "step 1"]
    assert cluster.job(steps.id).checkpoint == "step 2"
    assert app.tasks["t.steps"].delay(1).get(timeout=30) == [None]
