"""What the database counts: leases, dead letters, what was lost, tried again, refused or evicted."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orchestrator.metric_ports import ActiveLeases, Total
from orchestrator.runtime import Runtime

_Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily

#: What there may be leases of; those of a pool and without a job have GPUs.
_KINDS: Final = (
    *(("job", mode) for mode in ("exclusive", "shared", "none")),
    *((kind, mode) for kind in ("pool", "adhoc") for mode in ("exclusive", "shared")),
)
#: Those that are told apart by host.
_BY_NODE: Final = {
    Total.ATTEMPTS_LOST: ("gpu_orchestrator_attempts_lost", "Attempts that were lost with their worker or runner"),
    Total.ATTEMPTS_RETRIED: ("gpu_orchestrator_attempts_retried", "Attempts that failed and were followed by another"),
    Total.WRITES_REFUSED: ("gpu_orchestrator_writes_refused", "Ends of attempts that came from a superseded holder"),
}


def count_families(
    runtime: Runtime, queues: Iterable[str], nodes: Iterable[str], pools: Iterable[str]
) -> Iterable[_Family]:
    """Yield what is counted of the installation; what never happened is 0, so that the first time is an increase."""
    yield _policy_family(runtime)
    yield from _lease_families(runtime.tallies.active_leases())
    letters = GaugeMetricFamily(
        "gpu_orchestrator_dead_letters", "Dead letters that wait for a person", labels=["queue"]
    )
    for queue, count in {**dict.fromkeys(queues, 0), **runtime.tallies.dead_letters()}.items():
        letters.add_metric([queue], count)
    yield letters
    totals = runtime.tallies.totals()
    expired = sum(totals.get(Total.LEASES_EXPIRED, {}).values())
    yield CounterMetricFamily("gpu_orchestrator_lease_expired", "Leases that ended by expiry", value=expired)
    for total, (name, words) in _BY_NODE.items():
        yield _counter(name, words, "node", {**dict.fromkeys(nodes, 0), **totals.get(total, {})})
    evicted = {**dict.fromkeys(pools, 0), **totals.get(Total.POOL_EVICTIONS, {})}
    words = "Runners that left their pool without a person's order"
    yield _counter("gpu_orchestrator_worker_pool_evictions", words, "pool", evicted)


def _policy_family(runtime: Runtime) -> GaugeMetricFamily:
    safe = runtime.policy.get().values.safe_mode
    return GaugeMetricFamily("gpu_orchestrator_safe_mode", "1 while nothing new is started anywhere", value=int(safe))


def _lease_families(leases: Iterable[ActiveLeases]) -> Iterable[GaugeMetricFamily]:
    leases = tuple(leases)
    active = GaugeMetricFamily("gpu_orchestrator_leases_active", "Leases that live", labels=["kind", "mode"])
    counts = dict.fromkeys(_KINDS, 0) | {(one.kind, one.mode): one.count for one in leases}
    for labels, count in counts.items():
        active.add_metric(labels, count)
    age = GaugeMetricFamily(
        "gpu_orchestrator_lease_oldest_seconds", "Since the oldest lease was granted", labels=["kind", "mode"]
    )
    silence = GaugeMetricFamily(
        "gpu_orchestrator_lease_silent_seconds",
        "Since the renewal of the lease that waits for one the longest",
        labels=["kind", "mode"],
    )
    for one in leases:
        age.add_metric([one.kind, one.mode], one.oldest_seconds)
        silence.add_metric([one.kind, one.mode], one.silent_seconds)
    yield from (active, age, silence)


def _counter(name: str, words: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, words, labels=[label])
    for one, count in counts.items():
        family.add_metric([one], count)
    return family
