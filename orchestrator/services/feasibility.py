"""Whether any host could ever grant a request, asked before the job is stored."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.cluster import GpuHealth
from orchestrator.domain.job import Resources
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
    if not resources.gpus or not nodes:
        return
    if resources.gpu_memory_mib is not None:
        best = max(nodes, key=lambda node: (max(_memories(node), default=0), node.name))
        largest = max(_memories(best), default=0)
        if largest < resources.gpu_memory_mib:
            raise UnsatisfiableRequest(
                f"{resources.gpu_memory_mib} MiB of one GPU are asked for; "
                f"the largest GPU, on host {best.name}, has {largest} MiB"
            )
        return
    best = max(nodes, key=lambda node: (len(_memories(node)), node.name))
    most = len(_memories(best))
    if most < resources.gpus:
        raise UnsatisfiableRequest(
            f"{resources.gpus} GPUs of one host are asked for; the largest host, {best.name}, has {most}"
        )


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
        if not resources.gpus:
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


def _memories(node: NodeRecord) -> list[int]:
    return [record.gpu.memory_mib for record in node.gpus if record.health is not GpuHealth.LOST]
