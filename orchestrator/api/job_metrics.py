"""How long jobs waited and ran, as histograms of this process: it follows the jobs that end while it lives."""

import threading
from collections import OrderedDict
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from orchestrator.domain.job import JobState
from orchestrator.domain.run_times import expected_seconds
from orchestrator.metric_ports import EndedJob, JobTimes, Mark

#: Jobs read at once; a scrape goes on until it has read all.
BATCH: Final = 5000
_WAIT_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
_ERROR_BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
#: Tasks whose run times are remembered.
_MOST_TASKS: Final = 10_000
_RUN_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400, 604_800)


class EndedJobs:
    """Counts each job that ended once, some seconds after its end; safe to share between threads."""

    def __init__(self, times: JobTimes) -> None:
        self.registry = CollectorRegistry()
        self._times = times
        self._lock = threading.Lock()
        self._mark: Mark | None = None
        prefix = "gpu_orchestrator_job"
        self._ended = Counter(
            f"{prefix}s_ended", "Jobs that ended since this process began", ["queue", "state"], registry=self.registry
        )
        self._waited = Histogram(
            f"{prefix}_wait_seconds",
            "From when a job could start to its last start",
            ["queue", "size"],
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        self._ran = Histogram(
            f"{prefix}_run_seconds",
            "From a job's last start to its end",
            ["queue"],
            buckets=_RUN_BUCKETS,
            registry=self.registry,
        )
        self._error = Histogram(
            f"{prefix}_run_estimate_error_ratio",
            "How far a successful run was from what the runs of its task before it let expect, of the longer of both",
            ["queue"],
            buckets=_ERROR_BUCKETS,
            registry=self.registry,
        )
        self._expected: OrderedDict[str, float] = OrderedDict()  # seconds by task, seen least lately first

    def catch_up(self) -> None:
        """Count what ended since the last call; the first one begins.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        with self._lock:
            if self._mark is None:
                self._mark = self._times.mark()
            while True:
                ended, self._mark = self._times.ended(self._mark, limit=BATCH)
                for job in ended:
                    self._ended.labels(job.queue, job.state.value).inc()
                    if job.waited_seconds is not None and job.ran_seconds is not None:
                        self._waited.labels(job.queue, job.size.value).observe(job.waited_seconds)
                        self._ran.labels(job.queue).observe(job.ran_seconds)
                        if job.state is JobState.SUCCEEDED:
                            self._judge_estimate(job, job.ran_seconds)
                if len(ended) < BATCH:
                    return

    def _judge_estimate(self, job: EndedJob, ran_seconds: float) -> None:
        """Compare a run with what was expected of it, as workers expect it, and expect the next one."""
        expected = self._expected.pop(job.task, None)
        if expected is not None:
            longer = max(expected, ran_seconds)
            self._error.labels(job.queue).observe(abs(expected - ran_seconds) / longer if longer > 0 else 0.0)
        self._expected[job.task] = expected_seconds(expected, ran_seconds)
        if len(self._expected) > _MOST_TASKS:
            self._expected.popitem(last=False)
