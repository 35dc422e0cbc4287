"""Worker pools as Prometheus reads them."""

from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily

from orchestrator.domain.pool import PoolStanding


def pool_families(standings: Sequence[PoolStanding]) -> Iterable[GaugeMetricFamily]:
    """Return what pools have and want; their names are the operators'."""
    runners = GaugeMetricFamily(
        "gpu_orchestrator_worker_pool_runners", "Runners of worker pools", labels=["pool", "state"]
    )
    jobs = GaugeMetricFamily(
        "gpu_orchestrator_worker_pool_jobs", "Jobs in the runners of worker pools", labels=["pool"]
    )
    failures = GaugeMetricFamily(
        "gpu_orchestrator_worker_pool_failures", "Failures in a row to have a runner ready", labels=["pool"]
    )
    for standing in standings:
        name, there = standing.pool.name, [one for one in standing.runners if one.ended_at is None]
        leaving = sum(one.leave is not None for one in there)
        asleep = sum(one.asleep and one.leave is None for one in there)
        ready = len(there) - leaving - asleep
        counts = {"wanted": standing.pool.wanted, "ready": ready, "asleep": asleep, "leaving": leaving}
        for state, count in (counts | {"loading": len(standing.loads)}).items():
            runners.add_metric([name, state], count)
        jobs.add_metric([name], sum(one.running for one in there))
        failures.add_metric([name], standing.pool.failures)
    return runners, jobs, failures
