"""How requests for leases without a job went, in this process since it began."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from orchestrator.errors import InvalidRequest, NoGpuFree, OrchestratorError

_WAIT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class LeaseRequests:
    """Counts them by what became of them; safe to share between threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count = Counter(
            "gpu_orchestrator_lease_requests",
            "Requests for a lease without a job, by what became of them",
            ["outcome"],
            registry=self.registry,
        )
        self._waited = Histogram(
            "gpu_orchestrator_lease_wait_seconds",
            "From such a request to its lease",
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        for outcome in ("granted", "busy", "impossible", "failed"):
            self._count.labels(outcome)  # the first one is an increase too

    def granted(self, seconds: float) -> None:
        """Note one that was granted."""
        self._count.labels("granted").inc()
        self._waited.observe(seconds)

    def refused(self, error: OrchestratorError) -> None:
        """Note one that was not: no GPU was free in time, it makes no sense here, or nothing answered."""
        if isinstance(error, NoGpuFree):
            outcome = "busy"
        else:
            outcome = "impossible" if isinstance(error, InvalidRequest) else "failed"
        self._count.labels(outcome).inc()
