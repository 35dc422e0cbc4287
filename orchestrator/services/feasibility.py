"""Whether any host could ever grant a request, asked before the job is stored."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.cluster import GpuHealth
from orchestrator.domain.job import Resources
from orchestrator.domain.wants import describe_wants
from orchestrator.errors import UnknownTask, UnsatisfiableRequest
from orchestrator.ports import NodeRecord
from orchestrator.scheduling.hosts import Host
from orchestrator.services.host_views import host_view

#: Hosts come and go slowly; a request that a new host could grant is refused for at most so many seconds.
REFRESH_SECONDS: Final = 3.0


def require_satisfiable(resources: Resources, nodes: Sequence[NodeRecord]) -> None:
    """Refuse what no registered host could grant even when idle.

    Lost and drained hosts count: they may come back. GPUs that have left their host do not. While no host is
    registered, everything is accepted, because nothing is known yet.

    Raises:
        UnsatisfiableRequest: Naming the host that comes closest.
    """
    if not _asks_for_nothing(resources):
        _require(resources, _at_best(nodes))


def _at_best(nodes: Sequence[NodeRecord]) -> list[Host]:
    """Return hosts as they may become: idle, and with every GPU healthy that they have not lost."""
    found = []
    for number, node in enumerate(nodes):
        view = host_view(node, idle=True)
        lost = {record.gpu.uuid for record in node.gpus if record.health is GpuHealth.LOST}
        gpus = tuple(replace(gpu, healthy=gpu.uuid not in lost) for gpu in view.gpus)
        found.append(Host(replace(view, gpus=gpus), number))
    return found


def _require(resources: Resources, hosts: Sequence[Host]) -> None:
    if not hosts or any(host.could_ever(resources) for host in hosts):
        return
    lacks = [(list(host.lacking(option)), host.node) for option in resources.options for host in hosts]
    closest, name = min(lacks, key=lambda found: (sum(lack.part for lack in found[0]), found[1]))
    words = " and ".join(lack.words for lack in closest)
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


class KnownHosts:
    """The registered hosts, read at most every few seconds; safe to share between threads."""

    def __init__(self, read: Callable[[], Sequence[NodeRecord]], clock: Clock) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._nodes: Sequence[NodeRecord] = ()
        self._hosts: list[Host] | None = None  # the same as they may become; None: nobody has asked yet
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
            _require(resources, self._at_best())
        except UnsatisfiableRequest:
            if fresh:
                raise
            self._refresh(force=True)
            _require(resources, self._at_best())

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

    def _at_best(self) -> list[Host]:
        with self._lock:
            if self._hosts is None:
                self._hosts = _at_best(self._nodes)
            return self._hosts

    def _is_known(self, task: str) -> bool:
        told = [node.tasks for node in self._nodes if node.tasks]
        return not told or any(task in tasks for tasks in told)

    def _refresh(self, *, force: bool) -> bool:
        with self._lock:
            now = self._clock.monotonic()
            if not force and self._read_at is not None and now - self._read_at < REFRESH_SECONDS:
                return False
            self._nodes, self._hosts, self._read_at = self._read(), None, now
            return True
