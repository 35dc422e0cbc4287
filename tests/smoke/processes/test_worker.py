"""What Celery's own smoke tests look at: signals, control, restarts, lost processes, canvas; on both pools."""

from collections.abc import Callable

import pytest
from celery import chord, group
from celery.exceptions import WorkerLostError
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup
from pytest_celery.vendors.worker.tasks import add, add_replaced, identity, sleep, xsum

from tests.smoke.pools import on
from tests.support.waiting import wait_for

PATIENCE = 40


def ended(celery_setup: CeleryTestSetup) -> Callable[[], bool]:
    return lambda: bool(celery_setup.worker.container.status == "exited")


def wait_for_end(celery_setup: CeleryTestSetup) -> int:
    """Wait until the worker's process has ended and return its exit code."""
    wait_for(ended(celery_setup), within_seconds=PATIENCE, describe=celery_setup.worker.logs)
    return int(celery_setup.worker.container.attrs["State"]["ExitCode"])


def wait_until_active(celery_setup: CeleryTestSetup, task_id: str) -> None:
    """Wait until the worker runs a task."""

    def runs() -> bool:
        answers = celery_setup.app.control.inspect(timeout=2).active() or {}
        return any(task["id"] == task_id for tasks in answers.values() for task in tasks)

    wait_for(runs, within_seconds=PATIENCE, describe=celery_setup.worker.logs)


@on("prefork", "runners")
def test_canvas_and_replaced_tasks(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(ping=True, control=True)
    queue = celery_setup.worker.worker_queue
    assert add_replaced.s(3, 4, queue=queue).apply_async(queue=queue).get(timeout=RESULT_TIMEOUT) == 7
    header = group(identity.si(number).set(queue=queue) for number in range(1, 6))
    total = chord(header)(xsum.s().set(queue=queue))
    assert total.get(timeout=RESULT_TIMEOUT) == 15
    hostname = celery_setup.worker.hostname()
    assert celery_setup.app.control.ping(timeout=5, limit=1) == [{hostname: {"ok": "pong"}}]


@on("runners")
def test_sigterm_lets_the_running_task_end(celery_setup: CeleryTestSetup) -> None:
    result = sleep.s(3).apply_async(queue=celery_setup.worker.worker_queue)
    wait_until_active(celery_setup, result.id)
    celery_setup.worker.kill("SIGTERM")
    celery_setup.worker.assert_log_exists("worker: Warm shutdown")
    assert wait_for_end(celery_setup) == 0
    assert result.get(timeout=RESULT_TIMEOUT) is True


@on()
def test_control_shuts_down_and_the_node_starts_again(celery_setup: CeleryTestSetup) -> None:
    celery_setup.app.control.shutdown(destination=[celery_setup.worker.hostname()])
    assert wait_for_end(celery_setup) == 0
    result = add.s(1, 2).apply_async(queue=celery_setup.worker.worker_queue)
    celery_setup.worker.restart()
    assert result.get(timeout=RESULT_TIMEOUT) == 3


@on("prefork")
def test_sigkill_loses_nothing_that_waits(celery_setup: CeleryTestSetup) -> None:
    queue = celery_setup.worker.worker_queue
    assert celery_setup.ready(ping=True)
    celery_setup.worker.kill()
    assert celery_setup.worker.container.status == "exited"
    results = [add.s(number, 1).apply_async(queue=queue) for number in range(20)]
    celery_setup.worker.restart()
    assert [result.get(timeout=RESULT_TIMEOUT) for result in results] == [number + 1 for number in range(20)]


@on("prefork")
def test_the_worker_outlives_a_killed_broker(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(ping=True)
    celery_setup.broker.kill()
    celery_setup.worker.assert_log_exists("Trying again in", timeout=PATIENCE)
    celery_setup.broker.restart()
    result = add.s(20, 1).apply_async(queue=celery_setup.worker.worker_queue)
    assert result.get(timeout=RESULT_TIMEOUT) == 21
    assert celery_setup.worker.container.status == "running"


@on()
def test_sighup_starts_the_worker_again_in_its_process(celery_setup: CeleryTestSetup) -> None:
    worker = celery_setup.worker
    pid = worker.container.attrs["State"]["Pid"]
    worker.kill("SIGHUP")
    worker.assert_log_exists("Restarting celery worker", timeout=PATIENCE)
    wait_for(lambda: worker.logs().count(" ready.") == 2, within_seconds=PATIENCE, describe=worker.logs)
    assert worker.container.attrs["State"]["Pid"] == pid
    assert add.s(2, 2).apply_async(queue=worker.worker_queue).get(timeout=RESULT_TIMEOUT) == 4


@on("runners")
def test_a_killed_child_is_told_of_and_replaced(celery_setup: CeleryTestSetup) -> None:
    queue = celery_setup.worker.worker_queue
    before = {process["pid"] for process in celery_setup.worker.get_running_processes_info(["pid"])}
    result = identity.s(1).apply_async(queue=queue)
    assert result.get(timeout=RESULT_TIMEOUT) == 1
    assert celery_setup.worker.container._container.pid in before
    running = sleep.s(120).apply_async(queue=queue)
    wait_until_active(celery_setup, running.id)
    (pid,) = {
        task["worker_pid"]
        for tasks in celery_setup.app.control.inspect(timeout=2).active().values()
        for task in tasks
        if task["id"] == running.id
    }
    code, output = celery_setup.worker.container.exec_run(f"kill -KILL {pid}")
    assert code == 0, output
    with pytest.raises(WorkerLostError):
        running.get(timeout=RESULT_TIMEOUT)
    assert add.s(1, 1).apply_async(queue=queue).get(timeout=RESULT_TIMEOUT) == 2
    assert pid not in {process["pid"] for process in celery_setup.worker.get_running_processes_info(["pid"])}
