"""Metrics of the installation and of the requests to this process.

Those of the installation are read from the database when they are asked for, so every api process tells the same.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.api.leader_metrics import leader_families
from orchestrator.domain.job import JobState
from orchestrator.runtime import Runtime

_WAITING = (JobState.BLOCKED, JobState.SCHEDULED, JobState.PENDING, JobState.QUEUED)


#: Others are counted as one: who sends requests must not choose how many time series there are.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Requests:
    """Counts the requests to one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count = Counter(
            "gpu_orchestrator_api_requests",
            "Requests to this process, by method, route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "gpu_orchestrator_api_request_seconds",
            "How long they took, by route; those for output wait for it",
            ["route"],
            registry=self.registry,
        )

        self._in_progress = Gauge(
            "gpu_orchestrator_api_requests_in_progress",
            "Requests that are being answered, or wait for output",
            registry=self.registry,
        )

    def begin(self) -> None:
        """Note a request."""
        self._in_progress.inc()

    def end(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note that it has been answered."""
        self._in_progress.dec()
        self._count.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


def exposition(runtime: Runtime, requests: Requests) -> bytes:
    """Return the metrics as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(_State(runtime))
    return generate_latest(registry) + generate_latest(requests.registry)


class _State(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        depth = GaugeMetricFamily(
            "gpu_orchestrator_job_queue_depth", "Jobs that wait, by queue and state", labels=["queue", "state"]
        )
        jobs = GaugeMetricFamily("gpu_orchestrator_jobs", "Jobs by state", labels=["state"])
        for queue in self._runtime.cluster.queues():
            counts = self._runtime.jobs.count_by_state(queue)
            for state in _WAITING:
                depth.add_metric([queue, state.value], counts[state])
        for state, count in self._runtime.jobs.count_by_state().items():
            jobs.add_metric([state.value], count)
        yield depth
        yield jobs
        nodes = self._runtime.cluster.nodes()
        hosts = GaugeMetricFamily("gpu_orchestrator_nodes", "Hosts by state and liveness", labels=["state", "live"])
        gpus = GaugeMetricFamily(
            "gpu_orchestrator_gpus", "GPUs by host, health and use", labels=["node", "health", "use"]
        )
        seen: dict[tuple[str, str], int] = {}
        for node in nodes:
            key = (node.state.value, str(node.live).lower())
            seen[key] = seen.get(key, 0) + 1
            cards: dict[tuple[str, str], int] = {}
            for card in node.gpus:
                use = "exclusive" if card.exclusive_lease_id else "shared" if card.reserved_mib else "free"
                cards[card.health.value, use] = cards.get((card.health.value, use), 0) + 1
            for (health, use), count in cards.items():
                gpus.add_metric([node.name, health, use], count)
        for (condition, live), count in seen.items():
            hosts.add_metric([condition, live], count)
        yield hosts
        yield gpus
        expired = self._runtime.cluster.count_events("lease_expired")
        yield CounterMetricFamily("gpu_orchestrator_lease_expired", "Leases that ended by expiry", value=expired)
        yield from leader_families(self._runtime)
