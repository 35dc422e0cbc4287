"""How soon the installation is as before, with default settings; each test prints what it measured."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos.support import FaultCluster
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STREAMS = "stream:orchestrator:inference_jobs*"
#: Bounds that are promised, in seconds.
WORKER_BOUND, LEADER_BOUND, DELIVERY_BOUND = 30.0, 10.0, 10.0


@pytest.fixture
def defaults(tmp_path: Path, mariadb_url: str, redis_url: str) -> Iterator[FaultCluster]:
    """A cluster with default settings on MariaDB and Debian's Redis."""
    with FaultCluster(tmp_path, mariadb_url, redis_url) as made:
        yield made


def measure(what: str, bound: float, condition: Callable[[], bool], cluster: FaultCluster, began: float) -> None:
    """Wait until something holds, at most for its bound, and print after how long it did."""
    left = began + bound - time.monotonic()
    wait_for(condition, within_seconds=left, describe=lambda: f"{what}\n{cluster.logs()}")
    print(f"{what}: {time.monotonic() - began:.1f} s (bound: {bound:.0f} s)")


def leader_pid(cluster: FaultCluster) -> int | None:
    """Return the process that leads."""
    term = cluster.runtime.leadership.current()
    return None if term is None else int(term.holder.split(":")[1])


def test_a_killed_workers_job_runs_again_and_a_new_leader_leads_in_time(defaults: FaultCluster) -> None:
    """At once: the worker of one host and the leader are killed, a standby and another host take over."""
    cluster = defaults
    leader, standby = cluster.beat("one"), cluster.spawn("two", ["orchestrator_cli", "beat", "-s", "two.schedule"])
    wait_for(lambda: "beat: Starting" in standby.tail(), within_seconds=40, describe=cluster.logs)
    workers = {node: cluster.worker(node, gpus=1) for node in ("a", "b")}
    job_id = cluster.load(seconds=15)[0]
    cluster.wait_for_start()
    began = time.monotonic()
    for process in (leader, workers[str(cluster.job(job_id).node)]):
        process.stop(signal.SIGKILL)
    measure("a new leader leads", LEADER_BOUND, lambda: leader_pid(cluster) == standby.pid, cluster, began)
    measure("a killed worker's job runs again", WORKER_BOUND, lambda: cluster.job(job_id).attempt == 2, cluster, began)
    jobs = cluster.finish()

    assert {job.id: job.attempt for job in jobs}[job_id] == 2


@pytest.mark.parametrize(
    "fault", ["flushed", *(pytest.param(one, marks=pytest.mark.matrix) for one in ("trimmed", "restarted"))]
)
def test_waiting_jobs_are_delivered_again_after_redis_lost_them(
    defaults: FaultCluster, redis_server: RedisServer, fault: str
) -> None:
    """Emptied by a command, trimmed by somebody, or killed and started without data: the database knows them."""
    cluster = defaults
    cluster.beat()
    worker = cluster.worker("a", gpus=1)
    os.kill(worker.pid, signal.SIGSTOP)  # it holds nothing in its memory: only the streams say what waits
    waiting = len(cluster.load(3))
    with redis.Redis.from_url(cluster.redis_url, decode_responses=True) as client:
        entries: Callable[[], int] = lambda: sum(  # noqa: E731
            int(client.xlen(key)) for key in client.scan_iter(STREAMS) if client.type(key) == "stream"
        )
        wait_for(lambda: entries() >= 1, within_seconds=30, describe=cluster.logs)
        held = min(entries(), waiting)
        began = time.monotonic()
        if fault == "flushed":
            client.flushall()
        elif fault == "trimmed":
            for key in list(client.scan_iter(STREAMS)):
                client.xtrim(key, maxlen=0, approximate=False)
        else:
            redis_server.kill()
            redis_server.start()
            client.flushall()
        measure(f"delivered after Redis was {fault}", DELIVERY_BOUND, lambda: entries() >= held, cluster, began)
    os.kill(worker.pid, signal.SIGCONT)
    jobs = cluster.finish()

    assert {job.attempt for job in jobs} == {1}
    assert len(cluster.lines()) == len(jobs)
