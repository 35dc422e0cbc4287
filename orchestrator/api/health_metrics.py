"""What stands behind the api: whether it answers and how soon, and what is in the streams."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orchestrator.domain.cluster import GpuRecord
from orchestrator.errors import Unavailable
from orchestrator.metric_ports import Backlog
from orchestrator.ports import NodeRecord

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[_T]):
    """What a server answered, if it did, and how many seconds that took."""

    answer: _T | None
    answered: bool
    seconds: float


def timed(ask: Callable[[], _T]) -> Timed[_T]:
    """Ask a server something."""
    begun = time.monotonic()
    try:
        return Timed(ask(), True, time.monotonic() - begun)
    except Unavailable:
        return Timed(None, False, time.monotonic() - begun)


def server_families(answers: Mapping[str, Timed[Any]]) -> Iterable[GaugeMetricFamily]:
    """Yield whether each server answered and how soon."""
    up = GaugeMetricFamily("gpu_orchestrator_server_up", "1 if the server answered this scrape", labels=["server"])
    seconds = GaugeMetricFamily("gpu_orchestrator_server_seconds", "How long its answer took", labels=["server"])
    for server, answer in answers.items():
        up.add_metric([server], int(answer.answered))
        seconds.add_metric([server], answer.seconds)
    yield from (up, seconds)


def stream_families(backlogs: Mapping[str, Backlog]) -> Iterable[GaugeMetricFamily]:
    """Yield what the streams of each queue hold."""
    waiting = GaugeMetricFamily(
        "gpu_orchestrator_stream_waiting", "Entries of a queue that were delivered to nobody", labels=["queue"]
    )
    pending = GaugeMetricFamily(
        "gpu_orchestrator_stream_pending", "Entries that were delivered and not acknowledged", labels=["queue"]
    )
    for queue, backlog in backlogs.items():
        waiting.add_metric([queue], backlog.waiting)
        pending.add_metric([queue], backlog.pending)
    yield from (waiting, pending)


def memory_families(nodes: Iterable[NodeRecord]) -> Iterable[GaugeMetricFamily]:
    """Yield the GPUs' memory by host, as they last reported it, and how busy they are."""
    memory = GaugeMetricFamily(
        "gpu_orchestrator_gpu_memory_mib", "Memory of the GPUs of a host, by what of it", labels=["node", "kind"]
    )
    busy = GaugeMetricFamily(
        "gpu_orchestrator_gpu_utilization_percent", "Utilization, the mean over a host's GPUs", labels=["node"]
    )
    for node in nodes:
        cards = node.gpus
        memory.add_metric([node.name, "total"], sum(card.gpu.memory_mib for card in cards))
        memory.add_metric([node.name, "used"], sum(card.used_mib for card in cards))
        memory.add_metric([node.name, "reserved"], sum(_reserved_mib(card) for card in cards))
        memory.add_metric([node.name, "foreign"], sum(card.foreign.used_mib for card in cards))
        told = [card.utilization_percent for card in cards if card.utilization_percent is not None]
        if told:
            busy.add_metric([node.name], sum(told) / len(told))
    yield from (memory, busy)


def _reserved_mib(card: GpuRecord) -> int:
    return card.gpu.memory_mib if card.exclusive_lease_id is not None else card.reserved_mib
