"""What should be admitted now, where, and why everything else waits.

The first form of the policy. Jobs are looked at by priority, then arrival. Each goes where it fits best: whole GPUs of
the host that it leaves the fewest free, a share on the fullest GPU that has room, all GPUs of a gang on one host. Where
hosts tell how near their GPUs are to each other, a gang goes to the closest ones that are free anywhere, and how well
it fits decides among those alike. When nothing is free, a host that ends its jobs fast takes a few ahead.

The first GPU job of a queue that fits nowhere has GPUs kept for it on one host, so that smaller jobs behind it cannot
keep a gang waiting for ever: they pass on other hosts, or beside what is kept. Which host that is follows from the job
and the names of the hosts that could ever take it, so the leader and every worker that refills its own host agree on it
without talking. If another host has room first, the job starts there. Jobs without GPUs are never held up by jobs with
GPUs.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias

from orchestrator.domain.job import Resources
from orchestrator.domain.wants import describe_wants
from orchestrator.scheduling.hosts import Host
from orchestrator.scheduling.models import Models
from orchestrator.scheduling.ordering import in_order
from orchestrator.scheduling.placement import Capacity
from orchestrator.scheduling.snapshot import Candidate, HostView, Snapshot


class WaitReason(StrEnum):
    """Why a job was not admitted."""

    SAFE_MODE = "safe_mode"
    QUEUE_PAUSED = "queue_paused"
    QUEUE_FULL = "queue_full"  # as many of its jobs run, or are about to, as may
    NO_CONSUMER = "no_consumer"  # no host takes jobs of the queue
    HOSTS_AWAY = "hosts_away"  # those that do are draining or not heard of
    TOO_LARGE = "too_large"  # for every host that takes jobs of the queue, as it is now
    GPUS_BUSY = "gpus_busy"
    CPUS_BUSY = "cpus_busy"
    MODEL_BUSY = "model_busy"  # the runners with its model are, and will be free sooner than another has loaded it
    BEHIND = "behind"  # another job waits ahead for the same
    LATER = "later"  # the pass has admitted as much as it may


@dataclass(frozen=True, slots=True)
class Admission:
    """A job that may start about now on a host, and the GPUs counted on; none when it waits behind running jobs."""

    seq: int
    node: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A job that waits, and why."""

    seq: int
    reason: WaitReason
    words: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass decided about every candidate, in the order in which they were looked at."""

    admissions: tuple[Admission, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a pass may do."""

    most_admissions: int = 1000
    peers: tuple[HostView, ...] = ()  # hosts outside the snapshot that take jobs too; GPUs are kept on one host only


def plan(snapshot: Snapshot, now: datetime, policy: Policy) -> Plan:
    """Decide about every candidate of the snapshot; the same snapshot gives the same plan, whatever its order.

    Args:
        snapshot: Hosts, what is on its way to them, and the first candidates of each queue.
        now: The instant of the snapshot; waiting does not raise a job's priority yet.
        policy: Bounds of this pass.
    """
    return _Pass(snapshot, policy).run()


_Alike: TypeAlias = tuple[str, Resources, str | None]
#: Of a job for which no runner has the model that it wants, or that wants none.
_NO_RUNNER: Final = (WaitReason.LATER, "")


@dataclass(slots=True)
class _Miss:
    """The first job of a queue and size that was not admitted; later ones fail alike."""

    seq: int
    reason: WaitReason
    words: str


class _Pass:
    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot, self._policy = snapshot, policy
        self._paused = {queue.name for queue in snapshot.queues if queue.paused}
        self._most = {queue.name: queue.most_running for queue in snapshot.queues}
        self._room = {queue.name: queue.room for queue in snapshot.queues if queue.room is not None}
        self._capacity = Capacity(snapshot.hosts)
        accepting = (host.node for host in snapshot.hosts if host.accepts)
        self._models = Models(snapshot.models, snapshot.admitted, accepting)
        self._capacity.settle(jobs for jobs in snapshot.admitted if not self._models.settles(jobs))
        self._misses: dict[_Alike, _Miss] = {}
        self._heads: dict[str, int] = {}  # queue -> seq of the job that GPUs are kept for
        self._admissions: list[Admission] = []
        self._refusals: list[Refusal] = []

    def run(self) -> Plan:
        for candidate in in_order(self._snapshot.candidates):
            self._decide(candidate)
        return Plan(tuple(self._admissions), tuple(self._refusals))

    def _decide(self, candidate: Candidate) -> None:
        queue, resources, seq = candidate.queue, candidate.resources, candidate.seq
        alike = _alike(candidate)
        miss = self._misses.get(alike)
        if miss is not None and not self._waits_too_long(candidate, miss):
            self._refuse_alike(seq, miss)
            return
        if len(self._admissions) >= self._policy.most_admissions:
            self._refusals.append(Refusal(seq, WaitReason.LATER, "the next scheduling pass looks at it again"))
            return
        obstacle = self._standing_orders(queue) or self._with_model(candidate)
        if obstacle is None:
            return
        if obstacle is _NO_RUNNER:
            obstacle = self._obstacle(queue, resources)
            if obstacle is None:
                placed = self._capacity.place(queue, resources) or self._capacity.place_ahead(queue, resources)
                if placed is not None:
                    self._admit(queue, Admission(seq, placed.node, placed.gpus))
                    return
                obstacle = self._busy(queue, resources)
                if resources.gpus and queue not in self._heads:
                    self._keep_for_head(candidate)
        self._misses[alike] = _Miss(seq, *obstacle)
        self._refusals.append(Refusal(seq, *obstacle))

    def _admit(self, queue: str, admission: Admission) -> None:
        self._admissions.append(admission)
        if queue in self._room:
            self._room[queue] -= 1

    def _waits_too_long(self, candidate: Candidate, miss: _Miss) -> bool:
        """Tell whether runners with its model have so much to do that a job had better load it, unlike those before."""
        if miss.reason is not WaitReason.MODEL_BUSY:
            return False
        wants = candidate.resources.wants
        assert wants is not None
        assert wants.model is not None
        asked = wants.model, candidate.tenant, candidate.queue
        if self._models.sleep(*asked) or self._models.wait_is_shorter(*asked) is not None:
            self._models.wait(*asked)
            return False
        return True

    def _with_model(self, candidate: Candidate) -> tuple[WaitReason, str] | None:
        """Admit a job where its model is loaded, or say that it waits for that; ``_NO_RUNNER`` if it does neither."""
        wants = candidate.resources.wants
        if wants is None or wants.model is None:
            return _NO_RUNNER
        node = self._models.place(wants.model, candidate.tenant, candidate.queue)
        if node is not None:
            self._admit(candidate.queue, Admission(candidate.seq, node))
            return None
        wait = self._models.wait_is_shorter(wants.model, candidate.tenant, candidate.queue)
        if self._models.sleep(wants.model, candidate.tenant, candidate.queue):
            words = f"the runners with {wants.model} sleep; they wake up as soon as their GPUs have room for them"
            return WaitReason.MODEL_BUSY, words
        if wait is None:
            return _NO_RUNNER
        self._models.wait(wants.model, candidate.tenant, candidate.queue)
        words = f"the runners with {wants.model} are busy for about {wait[0]:.1f} s; a load takes {wait[1]:.1f} s"
        return WaitReason.MODEL_BUSY, words

    def _refuse_alike(self, seq: int, miss: _Miss) -> None:
        if miss.reason in (WaitReason.GPUS_BUSY, WaitReason.CPUS_BUSY, WaitReason.MODEL_BUSY, WaitReason.BEHIND):
            words = f"job number {miss.seq} is ahead and asks for as much: {miss.words}"
            self._refusals.append(Refusal(seq, WaitReason.BEHIND, words))
        else:
            self._refusals.append(Refusal(seq, miss.reason, miss.words))

    def _standing_orders(self, queue: str) -> tuple[WaitReason, str] | None:
        """Return why no job of this queue may start, whatever it asks for."""
        if self._snapshot.safe_mode:
            return WaitReason.SAFE_MODE, "the installation is in safe mode: nothing starts"
        if queue in self._paused:
            return WaitReason.QUEUE_PAUSED, f"queue {queue} is paused"
        if self._room.get(queue, 1) <= 0:
            return WaitReason.QUEUE_FULL, f"queue {queue} runs at most {self._most[queue]} jobs at once"
        return None

    def _obstacle(self, queue: str, resources: Resources) -> tuple[WaitReason, str] | None:
        """Return why no job of this queue and size can start however idle the hosts are."""
        consumers = self._capacity.consumers(queue)
        if not consumers:
            away = sorted(host.node for host in self._snapshot.hosts if queue in host.queues)
            if away:
                return WaitReason.HOSTS_AWAY, f"the hosts of queue {queue} take no jobs now: {_some(away)}"
            return WaitReason.NO_CONSUMER, f"no worker takes jobs of queue {queue}"
        if any(host.could_ever(resources) for host in consumers):
            return None
        return WaitReason.TOO_LARGE, f"{_ask(resources)}; {_largest(consumers, resources)}"

    def _busy(self, queue: str, resources: Resources) -> tuple[WaitReason, str]:
        hosts = [host for host in self._capacity.consumers(queue) if host.could_ever(resources)]
        if not resources.gpus:
            return WaitReason.CPUS_BUSY, f"every CPU slot is taken on {_some([host.node for host in hosts])}"
        head = self._heads.get(queue)
        kept_here = any(_would_fit_if_not_kept(host, resources) for host in hosts)
        if kept_here:
            ahead = f"job number {head}" if head is not None else "larger jobs"
            return WaitReason.BEHIND, f"{_ask(resources)}; enough is free, but kept for {ahead}, which came first"
        return WaitReason.GPUS_BUSY, f"{_ask(resources)}; {_free(hosts, resources)}"

    def _keep_for_head(self, candidate: Candidate) -> None:
        queue, resources = candidate.queue, candidate.resources
        self._heads[queue] = candidate.seq
        names = [host.node for host in self._capacity.consumers(queue) if host.could_ever(resources)]
        peers = (peer for peer in self._policy.peers if queue in peer.queues)
        names += [peer.node for peer in peers if Host(peer, 0).could_ever(resources)]
        host = self._capacity.host(keeper(candidate.seq, names))
        if host is not None:
            self._capacity.keep(host, resources)
            self._capacity.close_ahead(host)


def _alike(candidate: Candidate) -> _Alike:
    """Return what decides where a job can go; a pool may serve one tenant alone."""
    wants = candidate.resources.wants
    tenant = candidate.tenant if wants is not None and wants.model is not None else None
    return candidate.queue, candidate.resources, tenant


def keeper(seq: int, nodes: Iterable[str]) -> str:
    """Return the host that keeps GPUs for a job: the same one wherever it is asked, as evenly spread as a hash is.

    Source: rendezvous hashing, Thaler and Ravishankar 1996.
    """
    return max(nodes, key=lambda node: (zlib.crc32(f"{seq}/{node}".encode()), node))


def _would_fit_if_not_kept(host: Host, resources: Resources) -> bool:
    return any(host.take(option, kept_too=True) is not None for option in resources.options)


def _ask(resources: Resources) -> str:
    return "it asks for " + ", or ".join(_ask_one(option) for option in resources.options)


def _ask_one(resources: Resources) -> str:
    if resources.gpu_memory_mib is not None:
        what = f"{resources.gpu_memory_mib} MiB of a GPU"
    elif not resources.gpus:
        what = "a CPU slot"
    else:
        what = "a GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs on one host"
    return what + describe_wants(resources.wants)


def _largest(hosts: list[Host], resources: Resources) -> str:
    if resources.wants is not None:
        return f"no host that takes jobs of the queue has that now: {_some([host.node for host in hosts])}"
    if resources.gpu_memory_mib is not None:
        host = max(hosts, key=lambda host: (host.largest_mib, host.node))
        return f"the largest healthy GPU, on {host.node}, has {host.largest_mib} MiB"
    if not resources.gpus:
        return "no host has CPU slots"
    host = max(hosts, key=lambda host: (len(host.slots), host.node))
    return f"{host.node} has the most healthy ones, {len(host.slots)}"


def _free(hosts: list[Host], resources: Resources) -> str:
    cramped = [host for host in hosts if not host.has_room(resources.wants)]
    if resources.wants is not None and len(cramped) == len(hosts):
        left = [f"{host.cpus_free} CPUs and {host.memory_free_mib} MiB on {host.node}" for host in hosts[:3]]
        return f"free: {', '.join(left)}"
    if resources.gpu_memory_mib is not None:
        best = max(((slot.free_mib, host.node) for host in hosts for slot in host.slots), default=(0, "nowhere"))
        foreign = max((slot.foreign_mib for host in hosts for slot in host.slots), default=0)
        used = f"; up to {foreign} MiB of one are in use without a lease" if foreign else ""
        return f"at most {best[0]} MiB of one are free, on {best[1]}{used}"
    free = {host: sum(slot.whole for slot in host.suiting(resources.wants)) for host in hosts}
    best_hosts = sorted(hosts, key=lambda host: (-free[host], host.node))[:3]
    shown = [f"{free[host]} of {len(host.suiting(resources.wants))} on {host.node}" for host in best_hosts]
    dirty = {host: sum(not (slot.clean or slot.taken) for slot in host.suiting(resources.wants)) for host in best_hosts}
    strangers = [f"{count} on {host.node}" for host, count in dirty.items() if count]
    used = f"; in use without a lease: {', '.join(strangers)}" if strangers else ""
    return f"free: {', '.join(shown)}{used}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
