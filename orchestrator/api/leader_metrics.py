"""Metrics of leadership and of the leader's sweeps, as the leader wrote them down."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orchestrator.runtime import Runtime


def leader_families(runtime: Runtime) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
    """Yield who leads, and for each sweep its passes, what it did, its failures and how long it took."""
    term = runtime.leadership.current()
    yield GaugeMetricFamily("gpu_orchestrator_leader", "1 while somebody leads", value=int(term is not None))
    if term is not None:
        yield GaugeMetricFamily("gpu_orchestrator_leader_epoch", "Epoch of the current leader", value=term.epoch)
    prefix, by_sweep = "gpu_orchestrator_sweep", ["sweep"]
    passes = CounterMetricFamily(f"{prefix}_passes", "Passes of each sweep", labels=by_sweep)
    did = CounterMetricFamily(f"{prefix}_items", "What each sweep acted on", labels=by_sweep)
    failures = CounterMetricFamily(f"{prefix}_failures", "Passes that failed", labels=by_sweep)
    seconds = CounterMetricFamily(f"{prefix}_seconds", "How long all passes took together", labels=by_sweep)
    last = GaugeMetricFamily(f"{prefix}_last_seconds", "How long the last pass took", labels=by_sweep)
    last_at = GaugeMetricFamily(f"{prefix}_last_timestamp_seconds", "When passes were noted last", labels=by_sweep)
    for record in runtime.sweep_log.read():
        name = [record.name]
        passes.add_metric(name, record.passes)
        did.add_metric(name, record.did)
        failures.add_metric(name, record.failures)
        seconds.add_metric(name, record.seconds)
        last.add_metric(name, record.last_seconds)
        last_at.add_metric(name, record.last_at.timestamp())
    yield from (passes, did, failures, seconds, last, last_at)
