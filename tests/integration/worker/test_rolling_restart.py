"""Every process is restarted in turn while jobs flow."""

import signal
from collections.abc import Callable

import pytest

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import JobState
from tests.support.cluster import Cluster, Process
from tests.support.servers import free_port
from tests.support.waiting import wait_for

JOBS = 100


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(mariadb_cluster: Cluster) -> None:
    """Two workers, two beats and the api, each stopped and started again: every job has one attempt, which succeeds."""
    cluster = mariadb_cluster
    dumps = cluster.home / "dumps.jsonl"
    port = free_port()
    start: dict[str, Callable[[], Process]] = {
        "beat-1": lambda: cluster.beat("beat-1"),
        "beat-2": lambda: cluster.beat("beat-2"),
        "api": lambda: cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)]),
        "a": lambda: cluster.worker("a", gpus=2, slots=2),
        "b": lambda: cluster.worker("b", gpus=2, slots=2),
    }
    running = {name: begin() for name, begin in start.items()}
    ids: list[str] = []

    for name, begin in start.items():
        batch = [cluster.dump_job(dumps, 0.1, gpus=number % 2 + 1) for number in range(JOBS // len(start))]
        ids += cluster.submit(*batch)
        ended = cluster.runtime.jobs.count_by_state()[JobState.SUCCEEDED]
        # Uvicorn ends in order and then by the signal itself.
        assert running[name].stop(signal.SIGTERM) in (0, -signal.SIGTERM), running[name].tail()
        running[name] = begin()
        wait_for(
            lambda ended=ended: cluster.runtime.jobs.count_by_state()[JobState.SUCCEEDED] > ended,  # type: ignore[misc]
            within_seconds=60,
            describe=cluster.logs,
        )
    jobs = cluster.wait_for_end(ids, within_seconds=120)

    assert len(jobs) == JOBS
    assert {(job.state, job.attempt, job.lost_count) for job in jobs} == {(JobState.SUCCEEDED, 1, 0)}, cluster.logs()
    report = cluster.verify(dumps, acknowledged=ids)
    assert report.is_clean, report
    assert {record.state for record in cluster.runtime.cluster.nodes()} == {NodeState.UP}
    term = cluster.runtime.leadership.current()
    assert term is not None
    assert term.epoch > 1, "leadership went over at least once"
