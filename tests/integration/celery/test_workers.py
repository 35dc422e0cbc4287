"""What people rely on in plain Celery workers, on this transport; Celery's own suite covers canvas and tasks."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from tests.support.waiting import wait_for

from .conftest import Plain

AppOf = Callable[[Plain], Any]
PATIENCE = 40


def active(app: Any, node: str) -> list[str]:
    """Return the ids of what a worker runs now."""
    answer = app.control.inspect(destination=[node], timeout=2).active() or {}
    return [task["id"] for task in answer.get(node, [])]


def test_a_worker_without_prefetch_takes_only_what_it_can_run(plain: Plain, app_of: AppOf) -> None:
    """``worker_disable_prefetch``: what one process cannot start at once stays for another worker."""
    first = plain.worker("first", "-c", "1", "--disable-prefetch")
    tasks = app_of(plain)
    long = tasks.nap.delay(60)
    wait_for(lambda: active(tasks.app, "first@plain"), within_seconds=PATIENCE, describe="the first runs")
    waiting = [tasks.where.delay() for _ in range(3)]
    plain.worker("second", "-c", "1", "--disable-prefetch")
    assert [result.get(timeout=PATIENCE) for result in waiting] == ["second@plain"] * 3
    long.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        long.get(timeout=PATIENCE)
    assert plain.stop(first) == 0


def test_a_revocation_outlives_its_worker_with_a_state_file(plain: Plain, app_of: AppOf, tmp_path: Path) -> None:
    state = str(tmp_path / "worker.state")
    worker = plain.worker("kept", "-c", "1", "--statedb", state)
    tasks = app_of(plain)
    later = tasks.add.apply_async((1, 1), queue="later")
    tasks.app.control.revoke(later.id)
    wait_for(
        lambda: later.id in (tasks.app.control.inspect(timeout=2).revoked() or {}).get("kept@plain", []),
        within_seconds=PATIENCE,
        describe="the worker knows of the revocation",
    )
    assert plain.stop(worker) == 0
    plain.worker("again", "-c", "1", "--statedb", state, "-Q", "later")
    with pytest.raises(TaskRevokedError):
        later.get(timeout=PATIENCE)


def test_rate_limits_time_limits_and_countdowns(plain: Plain, app_of: AppOf) -> None:
    plain.worker("limits", "-c", "2")
    tasks = app_of(plain)
    # A broadcast that is sent before the worker listens is lost, as with any transport.
    limit = lambda: tasks.app.control.rate_limit("plain_app.add", "2/s", reply=True, timeout=5)  # noqa: E731
    answers = wait_for(limit, within_seconds=PATIENCE, describe="the worker answers")
    assert answers == [{"limits@plain": {"ok": "new rate limit set successfully"}}]
    began = time.monotonic()
    results = [tasks.add.delay(n, n) for n in range(4)]
    assert [result.get(timeout=PATIENCE) for result in results] == [0, 2, 4, 6]
    assert time.monotonic() - began >= 1.0  # a lower bound: four at two a second
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.nap.apply_async((60,), soft_time_limit=1).get(timeout=PATIENCE)
    with pytest.raises(TimeLimitExceeded):
        tasks.nap.apply_async((60,), time_limit=1).get(timeout=PATIENCE)
    later = tasks.add.apply_async((5, 5), countdown=1)
    assert later.get(timeout=PATIENCE) == 10


def test_autoscaling_follows_the_load(plain: Plain, app_of: AppOf) -> None:
    plain.worker("scaled", "--autoscale", "4,1")
    tasks = app_of(plain)
    results = [tasks.nap.delay(2) for _ in range(6)]

    def processes() -> int:
        stats = tasks.app.control.inspect(destination=["scaled@plain"], timeout=2).stats() or {}
        return len(stats.get("scaled@plain", {}).get("pool", {}).get("processes", []))

    wait_for(lambda: processes() == 4, within_seconds=PATIENCE, describe="four processes")
    assert [result.get(timeout=PATIENCE) for result in results] == [2] * 6


def test_a_soft_shutdown_hands_back_what_did_not_end_in_time(plain: Plain, app_of: AppOf) -> None:
    plain.conf |= {"worker_soft_shutdown_timeout": 1.0, "task_acks_late": True}
    worker = plain.worker("soft", "-c", "1")
    tasks = app_of(plain)
    result = tasks.tell.delay(8)
    wait_for(lambda: active(tasks.app, "soft@plain"), within_seconds=PATIENCE, describe="the task runs")
    plain.stop(worker, signal.SIGQUIT)
    assert not result.ready()
    plain.worker("heir", "-c", "1")
    assert result.get(timeout=PATIENCE) is True


def test_early_acknowledgement_means_at_most_once(plain: Plain, app_of: AppOf) -> None:
    plain.conf |= {"task_acks_late": False, "broker_transport_options": {"visibility": 1}}
    worker = plain.worker("early", "-c", "1")
    tasks = app_of(plain)
    result = tasks.nap.delay(60)
    wait_for(lambda: active(tasks.app, "early@plain"), within_seconds=PATIENCE, describe="the task runs")
    with plain.server.client() as client:
        stream = "stream:orchestrator:celery"
        wait_for(lambda: client.xlen(stream) == 0, within_seconds=PATIENCE, describe="the entry is acknowledged")
    worker.kill()
    worker.wait(20)
    assert result.state == "PENDING"


def test_workers_know_each_other_and_events_are_heard(plain: Plain, app_of: AppOf) -> None:
    """Mingle, gossip, heartbeats and ``celery events``."""
    plain.worker("one", "-c", "1", "-E")
    dump = plain.spawn("dump", "events", "--dump")
    plain.worker("two", "-c", "1", "-E")
    assert "mingle: sync with 1 nodes" in plain.log("two")

    def heard(*words: str) -> None:
        wait_for(
            lambda: all(word in plain.log("dump") for word in words),
            within_seconds=PATIENCE,
            describe=lambda: plain.log("dump"),
        )

    heard("one@plain", "two@plain")
    assert app_of(plain).add.delay(2, 2).get(timeout=PATIENCE) == 4
    heard("task succeeded: plain_app.add")
    plain.stop(dump, signal.SIGKILL)


def test_celery_multi_starts_and_stops_workers(plain: Plain, app_of: AppOf, tmp_path: Path) -> None:
    files = [f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log"]
    names = ["m1", "m2"]
    started = plain.celery("multi", "start", *names, "-A", "plain_app", "-c", "1", *files)
    assert started.returncode == 0, started.stderr
    try:
        tasks = app_of(plain)
        wait_for(
            lambda: len(tasks.app.control.ping(timeout=2, limit=2)) == 2,
            within_seconds=PATIENCE,
            describe=lambda: "".join(path.read_text() for path in tmp_path.glob("m*.log")),
        )
        assert tasks.add.delay(1, 2).get(timeout=PATIENCE) == 3
    finally:
        stopped = plain.celery("multi", "stopwait", *names, *files, seconds=PATIENCE)
    assert stopped.returncode == 0, stopped.stdout
    assert not list(tmp_path.glob("*.pid"))


def test_results_in_a_database_and_eager_tasks(plain: Plain, app_of: AppOf, tmp_path: Path) -> None:
    plain.backend = f"db+sqlite:///{tmp_path / 'results.db'}"
    plain.worker("database", "-c", "1")
    tasks = app_of(plain)
    result = tasks.add.delay(20, 1)
    assert (result.get(timeout=PATIENCE, interval=0.1), result.state) == (21, "SUCCESS")
    tasks.app.conf.task_always_eager = True
    assert tasks.add.delay(20, 2).get() == 22
