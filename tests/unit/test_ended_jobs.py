"""Histograms of jobs that ended: what ends while the process lives is counted once."""

from datetime import timedelta

from prometheus_client import generate_latest

from orchestrator.api import job_metrics
from orchestrator.api.job_metrics import EndedJobs
from orchestrator.domain.job import JobState
from orchestrator.metric_ports import EndedJob, JobSize, Mark
from orchestrator.testing.fakes import MemoryJobTimes, memory_world

DONE = EndedJob("gpu", "train", JobState.SUCCEEDED, 2.0, 40.0, JobSize.ONE)


def test_jobs_are_counted_once_from_the_first_scrape_on() -> None:
    """Those that ended before belong to no rate that somebody would ask for."""
    clock = memory_world().clock
    times = MemoryJobTimes(clock)
    ended = EndedJobs(times)
    times.jobs = [(Mark(clock.now() - timedelta(hours=1), 1), DONE)]
    ended.catch_up()
    assert ended.registry.get_sample_value("gpu_orchestrator_job_run_seconds_count", {"queue": "gpu"}) is None

    later = clock.now() + timedelta(seconds=1)
    count = job_metrics.BATCH + 1
    times.jobs += [(Mark(later, number), DONE) for number in range(count)]
    times.jobs.append((Mark(later, count), EndedJob("gpu", "train", JobState.CANCELLED, None, None, JobSize.ONE)))
    for _ in range(2):
        ended.catch_up()
        values = {"job_wait_seconds_count": {"queue": "gpu", "size": "one"}, "job_run_seconds_count": {"queue": "gpu"}}
        for name, labels in values.items():
            assert ended.registry.get_sample_value(f"gpu_orchestrator_{name}", labels) == count
    text = generate_latest(ended.registry).decode()
    assert 'gpu_orchestrator_jobs_ended_total{queue="gpu",state="cancelled"} 1.0' in text
    assert 'gpu_orchestrator_job_wait_seconds_bucket{le="1.0",queue="gpu",size="one"} 0.0' in text
    assert f'gpu_orchestrator_job_run_seconds_bucket{{le="60.0",queue="gpu"}} {float(count)}' in text


def test_a_run_is_compared_with_what_the_runs_before_it_let_expect() -> None:
    """By task; the first one is no error, and one that failed says nothing."""
    clock = memory_world().clock
    times = MemoryJobTimes(clock)
    ended = EndedJobs(times)
    ended.catch_up()
    later = clock.now() + timedelta(seconds=1)
    runs = [("a", "succeeded", 10.0), ("b", "succeeded", 99.0), ("a", "failed", 1.0), ("a", "succeeded", 20.0)]
    runs.append(("a", "succeeded", 12.0))  # after 10 and 20, exactly what is expected
    times.jobs = [
        (Mark(later, number), EndedJob("gpu", task, JobState(state), 0.0, seconds, JobSize.NONE))
        for number, (task, state, seconds) in enumerate(runs)
    ]
    ended.catch_up()

    name = "gpu_orchestrator_job_run_estimate_error_ratio"
    assert ended.registry.get_sample_value(f"{name}_count", {"queue": "gpu"}) == 2
    assert ended.registry.get_sample_value(f"{name}_sum", {"queue": "gpu"}) == 0.5
