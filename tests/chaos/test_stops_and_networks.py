"""Hosts that stop and wake up late, clocks that jump, networks that break and heal."""

import os
import signal
from datetime import timedelta

import psutil
import pytest
from sqlalchemy import make_url

from tests.chaos.support import LONG_SECONDS, PATIENT, FaultCluster, stop_tree
from tests.support.cluster import Process, family
from tests.support.proxy import Proxy
from tests.support.servers import MariaDBServer
from tests.support.waiting import wait_for

MATRIX = pytest.mark.matrix
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BOTH_STACKS = pytest.mark.parametrize("stack", ["mariadb", pytest.param("embedded", marks=MATRIX)])


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody has waited for has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def guardian_of(worker: Process) -> int:
    """Return the process id of a worker's guardian."""
    for pid in family(worker.pid):
        if "orchestrator.guardian" in " ".join(psutil.Process(pid).cmdline()):
            return pid
    raise AssertionError(worker.tail())


@BOTH_STACKS
@pytest.mark.parametrize("whole", [True, False], ids=["host", "worker"])
@MATRIX
def test_what_was_stopped_past_its_lease_kills_its_runner_when_it_wakes_up(
    cluster: FaultCluster, stack: str, whole: bool
) -> None:
    """A suspended host is taken for lost, its job runs elsewhere, and nothing that it does afterwards counts."""
    cluster.beat()
    workers = {node: cluster.worker(node, gpus=1) for node in ("a", "b")}
    job_id = cluster.load(seconds=12)[0]
    cluster.wait_for_start()
    node = cluster.job(job_id).node
    first, runner = workers[str(node)], cluster.lines()[0]["pid"]
    stopped = stop_tree(first.pid) if whole else [first.pid]
    if not whole:
        os.kill(first.pid, signal.SIGSTOP)
    wait_for(lambda: cluster.job(job_id).node not in {None, node}, within_seconds=LONG_SECONDS, describe=cluster.logs)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: is_gone(runner), within_seconds=10, describe=lambda: f"the runner lives\n{cluster.logs()}")
    cluster.load(2)
    jobs = cluster.finish(skew=None)

    assert [job.attempt for job in jobs] == [2, 1, 1]
    assert [one.outcome for one in cluster.runtime.jobs.attempts(job_id)] == ["lose", "succeed"]
    assert first.popen.poll() is None, "the worker goes on"


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("stack", ["mariadb", pytest.param("embedded", marks=MATRIX)])
@MATRIX
def test_a_wall_clock_that_jumps_changes_nothing(cluster: FaultCluster, hours: int, stack: str) -> None:
    """A worker's and a leader's clock jump while a job runs that is longer than its lease."""
    marks = [cluster.shift_clock(name, timedelta(hours=hours)) for name in ("a", "beat")]
    cluster.worker("a", gpus=1)
    cluster.beat()
    epoch = cluster.runtime.leadership.current()
    cluster.load(seconds=8)
    cluster.load(2)
    cluster.wait_for_start()
    for mark in marks:
        mark.touch()
    jobs = cluster.finish()

    assert [job.attempt for job in jobs] == [1, 1, 1]
    assert len(cluster.lines()) == 3
    term = cluster.runtime.leadership.current()
    assert epoch is not None
    assert term is not None
    assert term.epoch == epoch.epoch


@BOTH_STACKS
def test_a_job_longer_than_every_timeout_is_delivered_once(cluster: FaultCluster, stack: str) -> None:
    """Longer than the lease, the leader's term, the recheck of entries and their visibility."""
    cluster.beat()
    cluster.worker("a", gpus=1)
    cluster.worker("b", gpus=1)
    cluster.load(seconds=16)
    jobs = cluster.finish()

    assert [job.attempt for job in jobs] == [1]
    assert len(cluster.lines()) == 1


@pytest.mark.parametrize("times", [PATIENT], ids=["patient"])
@pytest.mark.parametrize("fault", ["cut", pytest.param("slow", marks=MATRIX), pytest.param("refused", marks=MATRIX)])
def test_a_short_trouble_of_the_network_costs_no_attempt(
    cluster: FaultCluster, mariadb_server: MariaDBServer, fault: str
) -> None:
    """Connections to the database and Redis end, are refused for a second, or are slow: work goes on."""
    database, redis = make_url(cluster.database_url), make_url(cluster.redis_url)
    assert database.port is not None
    assert redis.port is not None
    with Proxy(database.port) as to_database, Proxy(redis.port) as to_redis:
        cluster.beat()
        cluster.worker(
            "a",
            gpus=1,
            database_url=database.set(port=to_database.port).render_as_string(hide_password=False),
            redis_url=redis.set(port=to_redis.port).render_as_string(hide_password=False),
        )
        cluster.load(seconds=6)
        cluster.load(5)
        cluster.wait_for_start()
        before = to_database.accepted
        for proxy in (to_database, to_redis):
            if fault == "slow":
                proxy.delay(0.1)
            elif fault == "cut":
                proxy.cut()
            else:
                proxy.refuse()
        if fault == "refused":
            renewed = len(cluster.processes[-1].log.read_bytes())
            wait_for(
                lambda: len(cluster.processes[-1].log.read_bytes()) > renewed, within_seconds=20, describe=cluster.logs
            )
            to_database.heal()
            to_redis.heal()
        cluster.load(3)
        jobs = cluster.finish()
        assert fault == "slow" or to_database.accepted > before, "the worker has connected again"

    assert {job.attempt for job in jobs} == {1}
    assert len(cluster.lines()) == len(jobs)


@MATRIX
def test_a_worker_cut_off_from_the_database_ends_its_runner_in_time(
    cluster: FaultCluster, mariadb_server: MariaDBServer
) -> None:
    """It can prove its lease no longer and stops before another host may begin; healed, it serves again."""
    database = make_url(cluster.database_url)
    assert database.port is not None
    with Proxy(database.port) as proxy:
        cluster.beat()
        through = database.set(port=proxy.port).render_as_string(hide_password=False)
        cluster.worker("a", gpus=1, database_url=through)
        job_id = cluster.load(seconds=40)[0]
        cluster.wait_for_start()
        cluster.worker("b", gpus=1)
        proxy.black_hole()
        wait_for(lambda: cluster.job(job_id).node == "b", within_seconds=LONG_SECONDS, describe=cluster.logs)
        assert is_gone(cluster.lines()[0]["pid"]), "two run at once"
        proxy.heal()
        cluster.load(4)
        jobs = cluster.finish()

    assert [job.attempt for job in jobs] == [2, 1, 1, 1, 1]


@BOTH_STACKS
@MATRIX
def test_a_killed_guardian_costs_one_attempt(cluster: FaultCluster, stack: str) -> None:
    """Its runners end with it; the worker that missed it, or its successor, runs the job again."""
    cluster.beat()
    first = cluster.worker("a", gpus=1)
    job_id = cluster.load(seconds=5)[0]
    cluster.wait_for_start()
    runner = cluster.lines()[0]["pid"]
    os.kill(guardian_of(first), signal.SIGKILL)
    wait_for(lambda: is_gone(runner), within_seconds=10, describe=lambda: f"the runner lives\n{cluster.logs()}")
    wait_for(
        lambda: first.popen.poll() is not None or cluster.job(job_id).attempt == 2,
        within_seconds=LONG_SECONDS,
        describe=cluster.logs,
    )
    if first.popen.poll() is not None:
        cluster.worker("a")
    jobs = cluster.finish(skew=None)

    assert jobs[0].attempt == 2


@pytest.mark.parametrize("times", [PATIENT], ids=["patient"])
@MATRIX
def test_a_restart_of_the_database_takes_no_job_from_its_runner(
    cluster: FaultCluster, mariadb_server: MariaDBServer
) -> None:
    """Killed and started again with its data: the running job goes on, and every job runs once."""
    cluster.beat()
    cluster.worker("a", gpus=1)
    cluster.load(seconds=3)
    cluster.load(6)
    cluster.wait_for_start()
    mariadb_server.kill()
    mariadb_server.start()
    jobs = cluster.finish()

    assert {job.attempt for job in jobs} == {1}
    assert len(cluster.lines()) == len(jobs)
