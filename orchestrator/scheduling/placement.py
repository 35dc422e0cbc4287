"""Where a job fits: an account of hosts' free capacity that a plan draws on, job by job.

Capacity only shrinks while a plan is made, so what did not fit once does not fit later, and stale index entries can be
dropped when they are met. Every choice is best fit with ties broken by name, whatever the order of the input.
"""

import heapq
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from orchestrator.domain.job import Resources
from orchestrator.scheduling.hosts import Host, Slot
from orchestrator.scheduling.snapshot import AdmittedView, HostView
from orchestrator.scheduling.topology import Bond

_Shares: TypeAlias = list[tuple[int, int, int]]  # (free MiB, number of the host, number of the slot)
_CloseKey: TypeAlias = tuple[Bond, int, int]  # what holds its GPUs together, free GPUs, number of the host


class Placement(NamedTuple):
    """Where a job goes, and the GPUs counted on; none when it waits there behind running jobs."""

    node: str
    gpus: tuple[str, ...]


class Capacity:
    """What the hosts have left."""

    def __init__(self, hosts: Iterable[HostView]) -> None:
        views = sorted((view for view in hosts if view.accepts), key=lambda view: view.node)
        self._hosts = [Host(view, number) for number, view in enumerate(views)]
        self._by_node = {host.node: host for host in self._hosts}
        self._consumers: defaultdict[str, list[Host]] = defaultdict(list)
        self._queues: list[list[str]] = []
        self._whole: dict[str, list[list[int]]] = {}  # queue -> free GPUs -> heap of host numbers
        self._shared: dict[tuple[str, bool], _Shares] = {}  # (queue, unused) -> what is free, sorted
        self._cpu: dict[str, list[tuple[int, int]]] = {}  # queue -> heap of (-free slots, host number)
        self._ahead: dict[tuple[str, Resources], list[tuple[bool, int, int]]] = {}
        self._close: defaultdict[str, dict[Resources, list[_CloseKey]]] = defaultdict(dict)  # by queue
        for host, view in zip(self._hosts, views, strict=True):
            self._queues.append(sorted(view.queues))
            for queue in view.queues:
                self._consumers[queue].append(host)
        self._is_mapped = any(gpu.links or gpu.numa is not None for view in views for gpu in view.gpus)
        for queue, consumers in self._consumers.items():
            self._index(queue, consumers)

    def consumers(self, queue: str) -> list[Host]:
        """Return the hosts that take jobs of the queue, by name."""
        return self._consumers.get(queue, [])

    def settle(self, admitted: Iterable[AdmittedView]) -> None:
        """Count the jobs that are on their way: placed ones against their host, others where they fit best.

        What does not fit now was admitted ahead. A placed one keeps its GPUs from later jobs until it starts; of one
        that any host may take, nobody knows which host has it.
        """
        for jobs in sorted(admitted, key=lambda jobs: jobs.seq):
            if jobs.node is None:
                self._settle_anywhere(jobs)
            elif (host := self._by_node.get(jobs.node)) is not None:
                self._settle_on(host, jobs)

    def _settle_anywhere(self, jobs: AdmittedView) -> None:
        for _ in range(jobs.count):
            queue, resources = jobs.queue, jobs.resources
            if self.place(queue, resources) is None and self.place_ahead(queue, resources) is None:
                return  # nor is there room for the others

    def _settle_on(self, host: Host, jobs: AdmittedView) -> None:
        for placed in range(jobs.count):
            if all(self._take(host, option) is None for option in jobs.resources.options):
                host.ahead_left = max(0, host.ahead_left - (jobs.count - placed))
                self.keep(host, jobs.resources)
                return

    def place(self, queue: str, resources: Resources) -> Placement | None:
        """Put a job where it fits now and leaves the least behind; None if it fits nowhere."""
        for option in resources.options:
            placed = self._place(queue, option)
            if placed is not None:
                return placed
        return None

    def place_ahead(self, queue: str, resources: Resources) -> Placement | None:
        """Put a job behind running ones of a host that ends them soon; None if no host has look-ahead left."""
        heap = self._ahead.get((queue, resources))
        if heap is None:
            fitting = (host for host in self.consumers(queue) if host.could_ever(resources))
            heap = self._ahead[queue, resources] = [_ahead_key(host, resources) for host in fitting]
            heapq.heapify(heap)
        while heap:
            host = self._hosts[heap[0][2]]
            if host.ahead_left <= 0 or (resources.gpus and not host.open_ahead):
                heapq.heappop(heap)
            elif heap[0] != _ahead_key(host, resources):
                heapq.heapreplace(heap, _ahead_key(host, resources))
            else:
                host.ahead_left -= 1
                self.keep(host, resources)
                return Placement(host.node, ())
        return None

    def keep(self, host: Host, resources: Resources) -> None:
        """Keep GPUs of the host from later jobs, so that what waits for them can start when the others come free.

        A host keeps as many as the largest of those jobs needs: free ones first, then busy ones, shared ones last. Of
        a job with alternatives, the first that the host could ever grant counts. What is used without a lease is kept
        for nobody: no lease's end gives it back.
        """
        resources = next((option for option in resources.options if host.could_ever(option)), resources)
        suiting = host.suiting(resources.wants)
        fitting = [slot for slot in suiting if slot.may_come_free(resources.gpu_memory_mib)]
        missing = resources.gpus - sum(slot.kept for slot in fitting)
        if missing <= 0:
            return
        for slot in sorted((slot for slot in fitting if not slot.kept), key=_keeping_key)[:missing]:
            slot.kept = True
        self._recount(host)

    def close_ahead(self, host: Host) -> None:
        """Let no further GPU job queue up on the host: it would delay the one that the host is kept for."""
        host.open_ahead = False

    def host(self, node: str) -> Host | None:
        """Return a host that accepts jobs."""
        return self._by_node.get(node)

    def _index(self, queue: str, consumers: list[Host]) -> None:
        most = max((len(host.slots) for host in consumers), default=0)
        buckets: list[list[int]] = [[] for _ in range(most + 1)]
        unused: _Shares = []
        partial: _Shares = []
        for host in consumers:
            buckets[host.free].append(host.number)  # in order of numbers: a heap already
            for number, slot in enumerate(host.slots):
                if not slot.exclusive:
                    (unused if slot.whole else partial).append((slot.free_mib, host.number, number))
        self._whole[queue] = buckets
        self._shared[queue, True], self._shared[queue, False] = sorted(unused), sorted(partial)
        self._cpu[queue] = sorted((-host.cpu_free, host.number) for host in consumers)

    def _find_whole(self, queue: str, gpus: int) -> Host | None:
        for count, bucket in enumerate(self._whole.get(queue, ())):
            if count < gpus:
                continue
            while bucket and self._hosts[bucket[0]].free != count:
                heapq.heappop(bucket)
            if bucket:
                return self._hosts[bucket[0]]
        return None

    def _find_close(self, queue: str, resources: Resources) -> Host | None:
        """Return the host whose GPUs for this job are closest to each other; of those alike, its best fit."""
        heap = self._close[queue].get(resources)
        if heap is None:
            keys = (_close_key(host, resources) for host in self.consumers(queue))
            heap = self._close[queue][resources] = [key for key in keys if key is not None]
            heapq.heapify(heap)
        while heap:
            host = self._hosts[heap[0][2]]
            key = _close_key(host, resources)
            if key == heap[0]:
                return host
            if key is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, key)
        return None

    def _find_cpu(self, queue: str) -> Host | None:
        heap = self._cpu.get(queue)
        while heap:
            negative, number = heap[0]
            host = self._hosts[number]
            if host.cpu_free == 0:
                heapq.heappop(heap)
            elif host.cpu_free != -negative:
                heapq.heapreplace(heap, (-host.cpu_free, number))
            else:
                return host
        return None

    def _place(self, queue: str, resources: Resources) -> Placement | None:
        if self._is_mapped and resources.gpus > 1:
            host = self._find_close(queue, resources)
            return None if host is None else self._take(host, resources)
        if resources.wants is not None:
            return self._place_where_suiting(queue, resources)
        if resources.gpu_memory_mib is not None:
            return self._place_shared(queue, resources.gpu_memory_mib)
        host = self._find_whole(queue, resources.gpus) if resources.gpus else self._find_cpu(queue)
        return None if host is None else self._take(host, resources)

    def _place_where_suiting(self, queue: str, resources: Resources) -> Placement | None:
        """Try every host, those first that the job leaves the least of."""
        for host in sorted(self.consumers(queue), key=lambda host: (host.free, host.number)):
            placed = self._take(host, resources)
            if placed is not None:
                return placed
        return None

    def _take(self, host: Host, resources: Resources) -> Placement | None:
        slots = host.take(resources)
        if slots is None:
            return None
        if resources.gpu_memory_mib is not None:
            self._note_share(host, slots[0])
        self._recount(host)
        return Placement(host.node, tuple(slot.uuid for slot in slots))

    def _place_shared(self, queue: str, need: int) -> Placement | None:
        for unused in (False, True):  # a GPU that is shared already keeps the others whole
            entries = self._shared.get((queue, unused), [])
            position = bisect_left(entries, (need,))
            while position < len(entries):
                free_mib, host_number, slot_number = entries[position]
                slot = self._hosts[host_number].slots[slot_number]
                if not slot.kept and slot.free_mib == free_mib and not slot.exclusive:
                    return self._take_share(self._hosts[host_number], slot_number, need)
                del entries[position]
        return None

    def _take_share(self, host: Host, number: int, need: int) -> Placement:
        slot = host.slots[number]
        slot.take_share(need)
        self._note_share(host, slot)
        self._recount(host)
        return Placement(host.node, (slot.uuid,))

    def _note_share(self, host: Host, slot: Slot) -> None:
        for queue in self._queues[host.number]:
            insort(self._shared[queue, False], (slot.free_mib, host.number, host.slots.index(slot)))

    def _recount(self, host: Host) -> None:
        free = sum(slot.whole for slot in host.slots)
        if free != host.free:
            host.free = free
            for queue in self._queues[host.number]:
                heapq.heappush(self._whole[queue][free], host.number)
                for resources, heap in self._close[queue].items():  # with fewer free it may come before others
                    if (key := _close_key(host, resources)) is not None:
                        heapq.heappush(heap, key)


def _ahead_key(host: Host, resources: Resources) -> tuple[bool, int, int]:
    """Hosts without idle GPUs first, as those would be kept idle; then the one that can take the most."""
    return (bool(resources.gpus) and host.free > 0, -host.ahead_left, host.number)


def _close_key(host: Host, resources: Resources) -> _CloseKey | None:
    """The closest GPUs first, then the host that the job leaves the fewest free; None where it does not fit."""
    bond = host.best_bond(resources)
    return None if bond is None else (bond, host.free, host.number)


def _keeping_key(slot: Slot) -> tuple[bool, bool, int, str]:
    return (not slot.whole, not slot.exclusive, -slot.free_mib, slot.uuid)
