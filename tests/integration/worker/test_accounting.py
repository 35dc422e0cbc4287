"""What is accounted for GPUs that were used under real workers, whatever happens to these."""

import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.domain.job import JobState
from orchestrator.domain.usage import LeaseUse, Usage, UsageKey, fold_usage
from orchestrator.gpus.simulated import make_gpus, write_gpus
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

HALF = 40960
WAIT = "import time, pathlib, sys\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"


def account(cluster: Cluster, by: UsageKey) -> tuple[list[LeaseUse], dict[str, Usage], Usage]:
    """Return every lease, and their sums by a key; nothing is held any more."""
    until = cluster.runtime.usage.now()
    leases = list(cluster.runtime.usage.leases(since=until - timedelta(hours=1), until=until))
    assert all(lease.ended_at is not None for lease in leases)
    rows, total = fold_usage(leases, by=by, since=until - timedelta(hours=1), until=until)
    return leases, {row.key: row for row in rows}, total


def begin(cluster: Cluster, done: Path) -> tuple[str, list[str]]:
    """Start a job that has a GPU and two that share one, on GPUs of which each is 80 % busy."""
    gpus = make_gpus(2, owner=f"{cluster.home.name}-a")
    write_gpus(cluster.home / "a.toml", [replace(gpu, utilization_percent=80) for gpu in gpus])
    cluster.worker("a", lease_ttl=6, lost_delay=0.1)
    cluster.beat()
    run = (sys.executable, "-c", WAIT, str(done))
    whole = cluster.command(*run, gpus=1)
    halves = [cluster.command(*run, gpu_memory_mib=HALF) for _ in range(2)]
    for job in (whole, *halves):
        cluster.wait_for_state(job, JobState.RUNNING)
    return whole, halves


def busy(cluster: Cluster, job: str) -> float:
    """Return what was told of a job's first attempt."""
    return cluster.runtime.jobs.attempts(job)[0].gpu_busy_seconds or 0.0


def test_a_killed_worker_loses_no_second_of_anybody(cluster: Cluster) -> None:
    """F43: over jobs and over GPUs the sums are what the leases held, and its attempts keep how busy they were."""
    done = cluster.home / "done"
    whole, halves = begin(cluster, done)
    wait_for(lambda: all(busy(cluster, job) > 0 for job in (whole, *halves)), within_seconds=30, describe=cluster.logs)
    cluster.processes[0].stop(signal.SIGKILL)
    measured = {job: busy(cluster, job) for job in (whole, *halves)}
    cluster.worker("a", lease_ttl=6, lost_delay=0.1)
    wait_for(
        lambda: all(cluster.job(job).attempt == 2 for job in (whole, *halves)),
        within_seconds=30,
        describe=cluster.logs,
    )
    done.touch()
    assert {job.state for job in cluster.wait_for_end([whole, *halves])} == {JobState.SUCCEEDED}
    wait_for(
        lambda: not any(gpu.reserved_mib or gpu.exclusive_lease_id for gpu in cluster.runtime.cluster.nodes()[0].gpus),
        within_seconds=30,
        describe=cluster.logs,
    )

    leases, by_job, total = account(cluster, UsageKey.JOB)
    _leases, by_gpu, _total = account(cluster, UsageKey.GPU)
    held = sum(
        ((lease.ended_at or lease.granted_at) - lease.granted_at).total_seconds() * share
        for lease in leases
        for _gpu, share in lease.shares
    )
    assert total.leased == pytest.approx(held, rel=1e-12)
    assert sum(row.leased for row in by_job.values()) == pytest.approx(held, rel=1e-12)
    assert sum(row.leased for row in by_gpu.values()) == pytest.approx(held, rel=1e-12)
    assert sorted(by_job) == sorted((whole, *halves))
    for job in (whole, *halves):
        first, second = cluster.runtime.jobs.attempts(job)
        assert (first.outcome, second.outcome) == ("lose", "succeed")
        assert first.gpu_busy_seconds == measured[job] > 0
        assert 0 < by_job[job].busy <= by_job[job].leased
        assert 0 < by_job[job].wasted < by_job[job].leased
    assert measured[halves[0]] < measured[whole]
