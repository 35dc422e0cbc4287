"""Whether any host could ever grant a request, asked before the job is stored."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.cluster import GpuHealth
from orchestrator.domain.job import Resources
from orchestrator.domain.wants import NODE_LABEL, Wants, describe_wants
from orchestrator.errors import UnknownTask, UnsatisfiableRequest
from orchestrator.ports import NodeRecord

#: Hosts come and go slowly; a request that a new host could grant is refused for at most so many seconds.
REFRESH_SECONDS: Final = 3.0


def require_satisfiable(resources: Resources, nodes: Sequence[NodeRecord]) -> None:
    """Refuse what no registered host could grant even when idle.

    Lost and drained hosts count: they may come back. GPUs that have left their host do not. While no host is
    registered, everything is accepted, because nothing is known yet.

    Raises:
        UnsatisfiableRequest: Naming the host that comes closest.
    """
    if _asks_for_nothing(resources) or not nodes:
        return
    lacks = [(_lacks(option, node), node.name) for option in resources.options for node in nodes]
    if all(lack for lack, _name in lacks):
        closest, name = min(lacks, key=lambda found: (sum(missing for missing, _ in found[0]), found[1]))
        words = " and ".join(words for _missing, words in closest)
        asked = ", or ".join(_asked(option) for option in resources.options)
        raise UnsatisfiableRequest(f"no host has {asked}; the closest, {name}, {words}")


def _asks_for_nothing(resources: Resources) -> bool:
    return not resources.gpus and resources.wants is None


def _asked(resources: Resources) -> str:
    if resources.gpu_memory_mib is not None:
        what = f"{resources.gpu_memory_mib} MiB of one GPU"
    elif not resources.gpus:
        what = "room for a job"
    else:
        what = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs"
    return what + describe_wants(resources.wants)


def _lacks(resources: Resources, node: NodeRecord) -> list[tuple[float, str]]:
    """Return what a host, even when idle, lacks for one option: how much of it, and in words."""
    wants = resources.wants or Wants()
    labels = dict(node.labels) | {NODE_LABEL: node.name}
    found = [(1.0, f"is not labelled {name}={value}") for name, value in wants.labels if labels.get(name) != value]
    if wants.cpus > node.cpus:
        found.append((1 - node.cpus / wants.cpus, f"offers {node.cpus} CPUs"))
    if wants.host_memory_mib > node.memory_mib:
        found.append((1 - node.memory_mib / wants.host_memory_mib, f"offers {node.memory_mib} MiB of memory"))
    such = [
        record.gpu.memory_mib - record.headroom_mib
        for record in node.gpus
        if record.health is not GpuHealth.LOST
        and wants.accepts_gpu(record.gpu.model, record.gpu.memory_mib, record.gpu.mig_profile)
    ]
    kind = "" if resources.wants is None else " such"
    if resources.gpu_memory_mib is not None:
        largest = max(such, default=0)
        if largest < resources.gpu_memory_mib:
            words = f"has {largest} MiB on the largest{kind} GPU" if such else f"has no{kind} GPU"
            found.append((1 - largest / resources.gpu_memory_mib, words))
    elif len(such) < resources.gpus:
        found.append((1 - len(such) / resources.gpus, f"has {len(such)}" if such else f"has no{kind} GPU"))
    return found


class KnownHosts:
    """The registered hosts, read at most every few seconds; safe to share between threads."""

    def __init__(self, read: Callable[[], Sequence[NodeRecord]], clock: Clock) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._nodes: Sequence[NodeRecord] = ()
        self._read_at: float | None = None

    def nodes(self) -> Sequence[NodeRecord]:
        """Return the registered hosts as they were a few seconds ago at most."""
        self._refresh(force=False)
        return self._nodes

    def require_satisfiable(self, resources: Resources) -> None:
        """Refuse what no host could grant; a refusal is never given from an old reading.

        Raises:
            UnsatisfiableRequest: Naming the host that comes closest.
        """
        if _asks_for_nothing(resources):
            return
        fresh = self._refresh(force=False)
        try:
            require_satisfiable(resources, self._nodes)
        except UnsatisfiableRequest:
            if fresh:
                raise
            self._refresh(force=True)
            require_satisfiable(resources, self._nodes)

    def require_known(self, task: str) -> None:
        """Refuse a task that no registered host's app knows; with no host registered nothing is known yet.

        Raises:
            UnknownTask: If it is nobody's.
        """
        fresh = self._refresh(force=False)
        if not self._is_known(task) and not fresh:
            self._refresh(force=True)
        if not self._is_known(task):
            raise UnknownTask(task)

    def _is_known(self, task: str) -> bool:
        told = [node.tasks for node in self._nodes if node.tasks]
        return not told or any(task in tasks for tasks in told)

    def _refresh(self, *, force: bool) -> bool:
        with self._lock:
            now = self._clock.monotonic()
            if not force and self._read_at is not None and now - self._read_at < REFRESH_SECONDS:
                return False
            self._nodes, self._read_at = self._read(), now
            return True
