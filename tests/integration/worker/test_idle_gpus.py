"""Jobs that hold GPUs and leave them idle."""

import sys
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
NAP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")


def cards(cluster: Cluster, *utilization: int | None, tell: bool = False) -> Path:
    """Write a host's GPUs with these readings, and whether they tell of every process."""
    path = cluster.home / "a.toml"
    gpus = make_gpus(len(utilization), owner=f"{cluster.home.name}-a")
    loads = zip(gpus, utilization, strict=True)
    write_gpus(path, [replace(gpu, utilization_percent=load, tells_processes=tell) for gpu, load in loads])
    return path


def test_an_idle_job_is_warned_in_its_output_and_then_ended(cluster: Cluster) -> None:
    """Its neighbour, which works, is left alone; so is one whose GPU does not tell."""
    cards(cluster, 90, 90, 90)
    cluster.worker("a", gpus=3, slots=1, idle_gpu_warn=2, idle_gpu_end=6)
    jobs = [cluster.command(*NAP, gpus=1, max_attempts=3) for _ in range(3)]
    for job in jobs:
        cluster.wait_for_state(job, JobState.RUNNING)
        wait_for(lambda job=job: cluster.output(job), within_seconds=20, describe=cluster.logs)  # type: ignore[misc]
    gpu_of = {job: cluster.runtime.jobs.attempts(job)[0].gpus[0] for job in jobs}
    order = [gpu.gpu.uuid for gpu in make_gpus(3, owner=f"{cluster.home.name}-a")]
    idle, busy, silent = (next(job for job in jobs if gpu_of[job] == uuid) for uuid in order)
    cards(cluster, 0, 50, None)

    ended = cluster.wait_for_state(idle, JobState.FAILED)

    assert ended.failure_class is FailureClass.IDLE
    assert ended.attempt == 1, "it would only be idle again"
    assert ended.reason is not None
    assert "have done nothing for" in ended.reason
    assert "; it is ended after 6 s" in cluster.output(idle)
    assert "; the job is ended" in cluster.output(idle)
    assert {cluster.job(job).state for job in (busy, silent)} == {JobState.RUNNING}


def test_what_a_task_says_it_needs_to_load_does_not_count(cluster: Cluster) -> None:
    """Its GPU does nothing all the time; it is warned only once it is ready."""
    cards(cluster, 0)
    cluster.worker("a", gpus=1, app="tasks_app", path=HERE, idle_gpu_warn=1)
    job = cluster.task("t.get_ready", 4.0, gpus=1)
    wait_for(lambda: "have done nothing for" in cluster.output(job), within_seconds=30, describe=cluster.logs)
    output = cluster.output(job)
    assert output.index("ready") < output.index("have done nothing for")


def test_who_has_no_process_on_its_gpus_is_idle_beside_a_busy_neighbour_too(cluster: Cluster) -> None:
    """F45: so is one that holds an instance, of which no load is told; whose process is there goes on."""
    path = cards(cluster, 90, None, tell=True)
    cluster.worker("a", gpus=2, idle_gpu_warn=1, idle_gpu_end=3)
    use = (sys.executable, "-m", "orchestrator.gpus.simulated_use", str(path), "300:60")
    works = [cluster.command(*use, gpu_memory_mib=1024)]
    cluster.wait_for_state(works[0], JobState.RUNNING)
    wait_for(lambda: "uses 300 MiB" in cluster.output(works[0]), within_seconds=20, describe=cluster.logs)
    share, whole = cluster.command(*NAP, gpu_memory_mib=1024), cluster.command(*NAP, gpus=1)

    ended = cluster.wait_for_end([share, whole])

    assert {job.failure_class for job in ended} == {FailureClass.IDLE}
    held = [cluster.runtime.jobs.attempts(job)[0].gpus for job in (works[0], share, whole)]
    assert held[0] == held[1] != held[2]
    assert cluster.job(works[0]).state is JobState.RUNNING
    assert "have done nothing for" not in cluster.output(works[0])
