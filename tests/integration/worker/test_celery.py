"""What Celery's users rely on: results, canvases, retries, limits, remote control, Flower."""

import time
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.testing.runner_dump import VARIABLE
from tests.support.cluster import Cluster, Process
from tests.support.flower import Flower
from tests.support.waiting import wait_for

from .conftest import HERE

#: The app is imported anew for each cluster, as it would be in a new process.
pytestmark = pytest.mark.filterwarnings("ignore:Task name:UserWarning")


@pytest.fixture
def worker(cluster: Cluster, app: Any) -> Process:
    """A worker of the user's app, started by Celery's own command, with two GPUs."""
    return cluster.worker("a", gpus=2, app="tasks_app", queues="gpu,default", path=HERE)


def test_results_canvases_and_plain_tasks(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    assert t.echo.delay({"a": [1, None, "ü"]}).get(timeout=20) == {"a": [1, None, "ü"]}
    assert chain(t.add.s(1, 2), t.add.s(3))().get(timeout=20) == 6
    assert group(t.add.s(n, n) for n in range(4))().get(timeout=20) == [0, 2, 4, 6]
    assert chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s())().get(timeout=20) == 6
    assert app.send_task("t.echo", ["by name"]).get(timeout=20) == "by name"
    assert t.plain.delay("plain").get(timeout=20) == "plain"
    job = cluster.wait_for_state(t.echo.apply_async(["x"], priority=9).id, JobState.SUCCEEDED)
    assert (job.priority, job.result, job.task) == (9, "x", "t.echo")


def test_a_task_knows_its_lease_and_its_runner_stays_warm(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    first = t.seen.delay()
    seen = first.get(timeout=20)
    (attempt,) = cluster.runtime.jobs.attempts(first.id)
    again = t.seen.delay().get(timeout=20)

    assert set(seen["gpus"]) == set(seen["visible"].split(",")) == set(attempt.gpus)
    assert seen["token"] == attempt.lease_id
    assert again["pid"] == seen["pid"]
    assert again["token"] > seen["token"]
    assert cluster.job(first.id).progress == {"done": 1, "total": 2, "message": "half way"}


def test_what_warm_runners_tell_of_themselves_agrees_with_the_history(
    cluster: Cluster, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, several leases: each task runs under the token of its own claim."""
    import tasks_app as t

    dumps = tmp_path / "dumps.jsonl"
    monkeypatch.setenv(VARIABLE, str(dumps))
    cluster.worker("a", gpus=2, app="tasks_app", queues="gpu", path=HERE)
    results = [t.dumped.delay(seconds) for seconds in (0.05, 0.3, 0.05, 0.0, 0.1, 0.0)]
    for result in results:
        result.get(timeout=30)
    report = cluster.verify(dumps, acknowledged=[result.id for result in results])

    assert report.is_clean, str(report)
    assert report.checked["runners"] >= len(results)


def test_failures_reach_the_caller_and_the_row(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    result = t.fail.delay("no luck")
    with pytest.raises(ValueError, match="no luck"):
        result.get(timeout=20)
    job = cluster.wait_for_state(result.id, JobState.FAILED)

    assert job.failure_class is FailureClass.EXCEPTION
    assert (job.error or "").startswith("ValueError: no luck")


def test_celerys_retry_is_a_further_attempt_of_the_same_job(
    cluster: Cluster, worker: Process, app: Any, tmp_path: Path
) -> None:
    import tasks_app as t

    cluster.beat()
    result = t.flaky.delay(str(tmp_path / "tries"))

    assert result.get(timeout=30) == "3 tries, retries 2, attempt 3"
    outcomes = [attempt.outcome for attempt in cluster.runtime.jobs.attempts(result.id)]
    assert outcomes == ["retry", "retry", "succeed"]


def test_a_countdown_waits_in_the_database(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    cluster.beat()
    asked_at = time.monotonic()
    result = t.echo.apply_async(["later"], countdown=1.5)
    assert cluster.job(result.id).state is JobState.SCHEDULED

    assert result.get(timeout=20) == "later"
    assert time.monotonic() - asked_at >= 1.5


def test_soft_and_hard_time_limits(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    assert t.polite.delay().get(timeout=20) == "stopped when asked"
    rude = t.rude.delay()
    job = cluster.wait_for_state(rude.id, JobState.FAILED, within_seconds=30)
    assert job.failure_class is FailureClass.TIMEOUT
    with pytest.raises((TimeLimitExceeded, Exception), match="time limit"):
        rude.get(timeout=20)


def test_a_task_that_kills_its_runner_is_lost_and_ends_as_a_dead_letter(
    cluster: Cluster, worker: Process, app: Any
) -> None:
    import tasks_app as t

    cluster.beat()
    result = t.die.delay()
    job = cluster.wait_for_state(result.id, JobState.DEAD_LETTER, within_seconds=40)

    assert (job.attempt, job.lost_count) == (3, 3)
    assert t.echo.delay("still here").get(timeout=20) == "still here"


def test_inspect_shows_what_runs_and_revoke_ends_it(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    napping = [t.nap.delay(60) for _ in range(2)]
    for result in napping:
        cluster.wait_for_state(result.id, JobState.RUNNING)
    held = t.nap.delay(60)
    inspect = app.control.inspect(["orchestrator@a"], timeout=3, limit=1)
    wait_for(
        lambda: held.id in {task["id"] for tasks in (inspect.reserved() or {}).values() for task in tasks},
        within_seconds=5,
        describe=cluster.logs,
    )

    def active() -> set[str]:
        replies = inspect.active() or {}
        return {task["id"] for tasks in replies.values() for task in tasks}

    wait_for(lambda: active() == {result.id for result in napping}, within_seconds=15, describe=cluster.logs)
    # To Celery a task is active once its runner lives; one revoked before its first line has no exit code.
    wait_for(lambda: "napping" in cluster.output(napping[0].id), within_seconds=15, describe=cluster.logs)
    (stats,) = (inspect.stats() or {}).values()
    assert stats["pool"]["implementation"].endswith("RunnerPool")
    assert len(stats["orchestrator"]["leases"]) == 2
    app.control.revoke(napping[0].id, terminate=True)

    job = cluster.wait_for_state(napping[0].id, JobState.CANCELLED)
    assert job.exit_code is not None
    with pytest.raises(TaskRevokedError):
        napping[0].get(timeout=20)
    cluster.wait_for_state(held.id, JobState.RUNNING)
    app.control.revoke(held.id, terminate=True)
    app.control.revoke(napping[1].id, terminate=True)
    cluster.wait_for_end([held.id, napping[1].id])


def test_a_revoked_job_that_waits_never_starts(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    napping = [t.nap.delay(60) for _ in range(2)]
    for result in napping:
        cluster.wait_for_state(result.id, JobState.RUNNING)
    held = t.nap.delay(60)
    app.control.revoke(held.id)
    for result in napping:
        app.control.revoke(result.id, terminate=True)

    job = cluster.wait_for_state(held.id, JobState.CANCELLED)
    assert job.exit_code is None
    cluster.wait_for_end([result.id for result in napping])


def test_flower_shows_the_worker_and_its_tasks_and_can_end_one(cluster: Cluster, worker: Process, app: Any) -> None:
    import tasks_app as t

    flower = Flower(cluster)
    done = t.echo.delay("seen by flower")
    done.get(timeout=20)
    nap = t.nap.delay(60)
    cluster.wait_for_state(nap.id, JobState.RUNNING)

    def tasks() -> dict[str, Any]:
        return dict(flower.get("/api/tasks"))

    wait_for(lambda: {done.id, nap.id} <= tasks().keys(), within_seconds=30, describe=flower.process.tail)
    listed = tasks()
    assert (listed[done.id]["name"], listed[done.id]["state"]) == ("t.echo", "SUCCESS")
    wait_for(lambda: tasks()[nap.id]["state"] == "STARTED", within_seconds=10, describe=flower.process.tail)
    workers = flower.get("/api/workers?refresh=1")
    (shown,) = workers.values()
    assert shown["stats"]["pool"]["implementation"].endswith("RunnerPool")
    assert "orchestrator@a" in flower.page("/workers")
    flower.post(f"/api/task/revoke/{nap.id}", terminate="true")

    cluster.wait_for_state(nap.id, JobState.CANCELLED)
    wait_for(lambda: tasks()[nap.id]["state"] == "REVOKED", within_seconds=15, describe=flower.process.tail)
