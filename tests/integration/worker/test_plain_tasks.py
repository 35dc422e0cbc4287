"""Plain tasks on this product's pool: what waits can still expire or be revoked, and what is logged is in the log."""

from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from tests.support.cluster import Cluster, Process
from tests.support.waiting import wait_for

from .conftest import HERE

pytestmark = pytest.mark.filterwarnings("ignore:Task name:UserWarning")


@pytest.fixture
def worker(cluster: Cluster, app: Any) -> Process:
    """A worker that runs one plain task at a time, and logs what Celery's workers log."""
    return cluster.worker("a", slots=1, gpus=1, app="tasks_app", queues="gpu,default", path=HERE)


def test_what_waits_for_a_slot_may_expire_or_be_revoked(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    running = t.plain_nap.delay(3)
    expiring = t.plain.apply_async(("late",), expires=1)
    revoked, last = t.plain.delay("revoked"), t.plain.delay("last")
    app.control.revoke(revoked.id)
    assert running.get(timeout=30) == "rested"
    assert last.get(timeout=30) == "last"
    for result in (expiring, revoked):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=30)


def test_what_a_plain_task_prints_and_logs_is_in_the_workers_log(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    talking = t.talk.delay("plain")
    assert talking.get(timeout=30) == "plain"
    failing = t.plain_fail.delay("no good")
    with pytest.raises(ValueError, match="no good"):
        failing.get(timeout=30)
    expected = (
        "printed plain",
        f"t.talk[{talking.id}]: logged plain",
        f"Task t.talk[{talking.id}] succeeded in",
        f"Task t.plain_fail[{failing.id}] raised unexpected: ValueError('no good')",
        "ValueError: no good",
    )
    wait_for(lambda: all(text in worker.tail() for text in expected), within_seconds=20, describe=worker.tail)


def test_what_a_job_logs_is_in_its_output(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    talking = t.talk_on_gpu.delay("job")
    assert talking.get(timeout=30) == "job"
    wait_for(lambda: "logged job" in cluster.output(talking.id), within_seconds=20, describe=cluster.logs)
    assert "printed job" in cluster.output(talking.id)
    assert "succeeded in" not in cluster.output(talking.id)
