"""Metrics of the installation and of the requests to this process.

Those of the installation are read from the database when they are asked for, so every api process tells the same.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.api.count_metrics import count_families
from orchestrator.api.health_metrics import Family, memory_families, server_families, stream_families, timed
from orchestrator.api.job_metrics import EndedJobs
from orchestrator.api.leader_metrics import leader_families
from orchestrator.api.lease_metrics import LeaseRequests
from orchestrator.api.pool_metrics import pool_families
from orchestrator.domain.job import JobState
from orchestrator.errors import StoreUnavailable
from orchestrator.ports import NodeRecord
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


def exposition(runtime: Runtime, requests: Requests, ended: EndedJobs, leases: LeaseRequests) -> bytes:
    """Return the metrics as Prometheus reads them, without those of a server that does not answer."""
    registry = CollectorRegistry()
    registry.register(_Families(_collect(runtime, ended)))
    return b"".join(generate_latest(one) for one in (registry, ended.registry, leases.registry, requests.registry))


def _collect(runtime: Runtime, ended: EndedJobs) -> list[Family]:
    found: list[Family] = []
    nodes: Sequence[NodeRecord] = ()
    queues: Collection[str] = runtime.settings.queues
    database = timed(runtime.times.mark)
    if database.answered:
        with suppress(StoreUnavailable):  # it went away in between: the next scrape says so
            ended.catch_up()
            nodes, queues = runtime.cluster.nodes(), runtime.cluster.queues()
            found += _state_families(runtime, nodes, queues)
    redis = timed(lambda: runtime.streams.backlogs(sorted(queues), [node.name for node in nodes]))
    found += stream_families(redis.answer or {})
    return [*found, *memory_families(nodes), *server_families({"database": database, "redis": redis})]


class _Families(Collector):
    """What was collected before."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _state_families(runtime: Runtime, nodes: Sequence[NodeRecord], queues: Iterable[str]) -> Iterable[Family]:
    depth = GaugeMetricFamily(
        "gpu_orchestrator_job_queue_depth", "Jobs that wait, by queue and state", labels=["queue", "state"]
    )
    jobs = GaugeMetricFamily("gpu_orchestrator_jobs", "Jobs by state", labels=["state"])
    for queue in queues:
        counts = runtime.jobs.count_by_state(queue)
        for state in _WAITING:
            depth.add_metric([queue, state.value], counts[state])
    for state, count in runtime.jobs.count_by_state().items():
        jobs.add_metric([state.value], count)
    yield depth
    yield jobs
    yield from _node_families(nodes)
    pools = runtime.pools.standings()[1]
    yield from count_families(runtime, queues, [node.name for node in nodes], [one.pool.name for one in pools])
    yield from leader_families(runtime)
    yield from pool_families(pools)


def _node_families(nodes: Sequence[NodeRecord]) -> Iterable[Family]:
    hosts = GaugeMetricFamily("gpu_orchestrator_nodes", "Hosts by state and liveness", labels=["state", "live"])
    gpus = GaugeMetricFamily("gpu_orchestrator_gpus", "GPUs by host, health and use", labels=["node", "health", "use"])
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
    degraded = sum(node.degraded for node in nodes)
    yield GaugeMetricFamily(
        "gpu_orchestrator_nodes_degraded", "Live hosts whose writes the database did not take lately", value=degraded
    )
    yield gpus
