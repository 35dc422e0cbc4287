"""Jobs in canvases, with real workers: jobs on our pool, plain tasks on Celery's own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from orchestrator.domain.job import Job, JobState
from orchestrator.errors import InvalidRequest
from orchestrator.ports import JobFilter
from tests.support.cluster import Cluster, Process
from tests.support.servers import MariaDBServer, RedisServer
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
#: The app is imported anew for each cluster, as it would be in a new process.
pytestmark = pytest.mark.filterwarnings("ignore:Task name:UserWarning")


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, mariadb_server: MariaDBServer, redis_server: RedisServer
) -> Iterator[Cluster]:
    """One cluster for all these tests: starting its workers takes longer than most of them."""
    redis_server.clear()
    name = mariadb_server.create_database()
    with Cluster(tmp_path_factory.mktemp("canvases"), mariadb_server.url(name), redis_server.url) as made:
        yield made
    mariadb_server.drop_database(name)


@pytest.fixture(scope="module")
def tasks(cluster: Cluster) -> Iterator[Any]:
    """The user's module in this process, a producer on the cluster's servers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment(node="producer").items():
            if name.startswith("ORCHESTRATOR_"):
                patch.setenv(name, value)
        patch.syspath_prepend(str(HERE))
        for name in [name for name in sys.modules if name in ("canvas_app", "orchestrator_tasks.command")]:
            del sys.modules[name]
        import canvas_app

        yield canvas_app
        canvas_app.app.close()
        del sys.modules["canvas_app"]


@pytest.fixture(scope="module")
def workers(cluster: Cluster, tasks: Any) -> list[Process]:
    """A worker for jobs, one of Celery's prefork pool for plain tasks, and a leader for further attempts."""
    command = ["celery", "-A", "canvas_app", "worker", "-P", "processes", "-Q", "default", "-c", "2", "-l", "INFO"]
    plain = cluster.spawn("plain", [*command, "-n", "plain@a"], path=HERE, node="plain")
    jobs = cluster.worker("a", gpus=1, slots=2, app="canvas_app", queues="gpu", path=HERE)
    wait_for(lambda: "plain@a ready" in plain.log.read_text(), within_seconds=60, describe=plain.tail)
    return [jobs, plain, cluster.beat()]


def members(cluster: Cluster, root_id: str) -> dict[str, Job]:
    """Return the jobs of a canvas by id."""
    return {job.id: job for job in cluster.runtime.jobs.list_jobs(JobFilter(root_id=root_id, limit=500))}


def all_jobs(cluster: Cluster) -> list[Job]:
    return list(cluster.runtime.jobs.list_jobs(JobFilter(limit=500)))


def root_of(result: Any) -> str:
    """Return the id of the first task of a chain's result."""
    while result.parent is not None:
        result = result.parent
    return str(result.id)


def test_jobs_and_plain_tasks_run_in_canvases_of_every_shape(
    cluster: Cluster, tasks: Any, workers: list[Process], tmp_path: Path
) -> None:
    """Every job that a canvas shows is one that runs: Celery keeps the ids that it chose."""
    t, notes = tasks, tmp_path / "notes"
    others = {job.id for job in all_jobs(cluster)}
    mixed = chain(t.add.s(1, 2), t.plain_add.s(3), t.add.s(4), t.plain_add.s(5), t.add.s(6))()
    results = [
        (mixed, 21),
        (group(t.add.s(n, n) for n in range(3))(), [0, 2, 4]),
        (group(chain(t.add.s(n, n), t.plain_add.s(1), t.add.s(1)) for n in range(2))(), [2, 4]),
        (chord([t.add.s(1, 1), t.plain_add.s(2, 2), t.add.s(3, 3)], t.total.s())(), 12),
        (chain(t.plain_add.s(1, 1), group(t.add.s(1), t.add.s(2)), t.total.s(), t.add.s(10))(), 17),
        (chain(t.add.s(0, 1), group(t.add.s(1), chain(t.add.s(2), t.plain_add.s(1))), t.total.s())(), 6),
        (chord([chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s()), t.add.s(3, 3)], t.total.s())(), 12),
        (t.add.apply_async((1, 1), link=t.note_job.s(str(notes))), 2),
    ]
    for result, expected in results:
        assert result.get(timeout=60) == expected, cluster.logs()
    wait_for(lambda: notes.exists() and notes.read_text() == "job\n", within_seconds=20, describe=cluster.logs)
    jobs = [job for job in all_jobs(cluster) if job.id not in others]
    cluster.wait_for_end([job.id for job in jobs])
    ended = [job for job in all_jobs(cluster) if job.id not in others]

    assert {job.id for job in ended} == {job.id for job in jobs}
    assert {job.state for job in ended} == {JobState.SUCCEEDED}, [job for job in ended if job.state != "succeeded"]
    assert [job.attempt for job in ended] == [1] * len(ended)
    assert len(members(cluster, root_of(mixed))) == 3


def test_a_canvas_is_visible_and_cancelled_as_a_whole_before_most_of_it_was_called(
    cluster: Cluster, tasks: Any, workers: list[Process]
) -> None:
    t = tasks
    result = chain(t.add.s(1, 1), t.nap.s(60), t.plain_add.s(1), group(t.add.s(1), t.add.s(2)), t.total.s())()
    other = chain(t.add.s(1, 1), t.nap.s(0.1))()
    running = wait_for(
        lambda: [job for job in members(cluster, root_of(result)).values() if job.state is JobState.RUNNING],
        within_seconds=40,
        describe=cluster.logs,
    )
    assert running
    found = members(cluster, root_of(result))
    assert sorted(job.task for job in found.values()) == ["c.add", "c.add", "c.add", "c.nap", "c.total"]
    wait_for(
        lambda: (
            sorted(job.state for job in members(cluster, root_of(result)).values())
            == ["blocked", "blocked", "blocked", "running", "succeeded"]
        ),
        within_seconds=20,
        describe=cluster.logs,
    )
    outcome = cluster.runtime.jobs.cancel_canvas(result.id, whole=True, by="test", reason="enough")

    assert len(outcome.cancelled) == 3
    assert len(outcome.stopping) == 1
    cluster.wait_for_end(list(found))
    assert sorted(job.state for job in members(cluster, root_of(result)).values()) == ["cancelled"] * 4 + ["succeeded"]
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    assert other.get(timeout=40) == 0.1


def test_what_stands_behind_a_failed_job_ends_with_its_name_and_its_errbacks_are_called_once(
    cluster: Cluster, tasks: Any, workers: list[Process], tmp_path: Path
) -> None:
    """As in Celery, the chain's result is the failure; a job in it never waits for what will not come."""
    t, notes = tasks, tmp_path / "notes"
    errbacks = [t.mourn.si(str(notes)), t.mourn_job.si(str(notes))]
    result = chain(t.add.s(1, 1), t.fail.s(), t.plain_add.s(1), t.add.s(1)).apply_async(link_error=errbacks)
    with pytest.raises(ValueError, match="no luck"):
        result.get(timeout=60)
    wait_for(
        lambda: notes.exists() and sorted(notes.read_text().split()) == ["job", "plain"],
        within_seconds=20,
        describe=cluster.logs,
    )
    by_task = {job.task: job for job in cluster.wait_for_end(list(members(cluster, root_of(result))))}
    last = cluster.job(result.id)

    assert by_task["c.fail"].state is JobState.FAILED
    assert (last.state, last.attempt) == (JobState.CANCELLED, 0)
    assert last.reason == f"needed {by_task['c.fail'].id}, which failed"
    assert by_task["c.mourn_job"].parent_id == by_task["c.fail"].id


def test_a_job_is_replaced_by_a_task_but_not_by_a_canvas_of_its_own_id(
    cluster: Cluster, tasks: Any, workers: list[Process]
) -> None:
    """What follows it follows the replacement, and the result is the replacement's."""
    t = tasks
    by_job = chain(t.becomes.s("a job"), t.add.s(10))()
    by_task = chain(t.becomes.s("a plain task"), t.add.s(10))()
    by_canvas = chain(t.becomes.s("a canvas"), t.add.s(10))()

    assert by_job.get(timeout=60) == 13
    assert (by_task.get(timeout=60), by_task.parent.get(timeout=60)) == (10.5, 0.5)
    with pytest.raises(Exception, match="a job can be replaced by a task"):
        by_canvas.get(timeout=60)
    assert cluster.wait_for_state(by_canvas.id, JobState.CANCELLED).attempt == 0


def test_a_map_of_a_gpu_task_is_refused_where_it_is_called(tasks: Any, workers: list[Process]) -> None:
    """Celery would run it as a function in one plain task, without a lease."""
    t = tasks
    for canvas in (
        t.add.starmap([(1, 2)]),
        t.total.map([[1]]),
        chain(t.plain_add.s(1, 1), t.add.starmap([(1, 2)])),
        t.add.chunks([(1, 1), (2, 2)], 1).group(),
    ):
        with pytest.raises(InvalidRequest, match="use a group"):
            canvas.apply_async()
    assert t.plain_add.starmap([(1, 2)]).apply_async().get(timeout=40) == [3]


def test_a_failed_attempt_that_is_tried_again_is_no_failure_to_its_canvas(
    cluster: Cluster, tasks: Any, workers: list[Process], tmp_path: Path
) -> None:
    t, notes = tasks, tmp_path / "notes"
    chained = chain(t.second_try.s(str(tmp_path / "a")), t.add.s(1)).apply_async(link_error=t.mourn.si(str(notes)))
    joined = chord([t.second_try.s(str(tmp_path / "b")), t.add.s(1, 1)], t.total.s())()

    assert chained.get(timeout=60) == 6
    assert joined.get(timeout=60) == 7
    assert not notes.exists()


def test_ends_that_no_runner_can_tell_reach_the_canvas(
    cluster: Cluster, tasks: Any, workers: list[Process], tmp_path: Path
) -> None:
    """A hard time limit: errbacks, the chain and the chord hear of it from the worker."""
    t, notes = tasks, tmp_path / "notes"
    chained = chain(t.too_long.s(), t.add.s(1)).apply_async(link_error=t.mourn.si(str(notes)))
    joined = chord([t.too_long.s(), t.add.s(1, 1)], t.total.s())()
    with pytest.raises(Exception, match=r"(?i)time ?limit"):
        chained.get(timeout=60)
    with pytest.raises(Exception, match=r"(?i)time ?limit"):
        joined.get(timeout=60)
    wait_for(notes.exists, within_seconds=20, describe=cluster.logs)

    assert notes.read_text() == "plain\n"
    assert cluster.wait_for_state(chained.id, JobState.CANCELLED).attempt == 0
    assert cluster.wait_for_state(joined.id, JobState.CANCELLED).attempt == 0


def test_a_job_behind_a_plain_task_that_fails_or_is_revoked_ends_with_its_reason(
    cluster: Cluster, tasks: Any, workers: list[Process]
) -> None:
    t = tasks
    failed = chain(t.add.s(1, 1), t.plain_fail.s(), t.add.s(1), t.add.s(2))()
    revoked = chain(t.plain_add.s(1, 1), t.plain_nap.s(60), t.nap.s(1))()
    with pytest.raises(ValueError, match="plain bad luck"):
        failed.get(timeout=60)
    last = cluster.wait_for_end([failed.id, failed.parent.id])[0]
    napping = revoked.parent.id
    wait_for(
        lambda: any(
            task["id"] == napping
            for tasks in (t.app.control.inspect(["plain@a"], timeout=2).active() or {}).values()
            for task in tasks
        ),
        within_seconds=40,
        describe=cluster.logs,
    )
    assert cluster.job(revoked.id).state is JobState.BLOCKED
    t.app.control.revoke(napping, terminate=True)

    assert "which failed: ValueError: plain bad luck" in (last.reason or "")
    ended = cluster.wait_for_state(revoked.id, JobState.CANCELLED)
    assert ended.reason == f"needed {napping}, which was revoked"


def test_what_a_running_member_still_calls_does_not_start_once_its_canvas_is_cancelled(
    cluster: Cluster, tasks: Any, workers: list[Process]
) -> None:
    """The task of a cancelled canvas may call further jobs before it is stopped."""
    t = tasks
    result = chain(t.plain_nap.s(0, 3), t.add.s(1))()
    cluster.runtime.jobs.cancel_canvas(result.id, whole=True, by="test", reason="x")
    late = chain(t.plain_add.s(1, 1), t.add.s(1)).apply_async(root_id=root_of(result), parent_id=root_of(result))

    assert cluster.wait_for_state(late.id, JobState.CANCELLED).attempt == 0
    assert result.parent.get(timeout=40) == 3
    assert cluster.job(result.id).state is JobState.CANCELLED
