"""What this worker's host can take: its GPUs, the lines of jobs on them, and which waiting jobs fit now.

A *line* is one runner's share of the host under one lease: a set of GPUs (or none) and the jobs that were claimed for
it, run one after another. Nothing here does I/O; the database has the last word on every choice made here.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from orchestrator.domain.cluster import GpuHealth, GpuOrder, GpuSample
from orchestrator.domain.job import JobKind, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant, PoolMember
from orchestrator.domain.pool import Leave
from orchestrator.domain.wants import Wants
from orchestrator.scheduling.topology import Place, choose
from orchestrator.worker.run_times import RunTimes

_NO_ORDER: Final = GpuOrder()


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides where a job can go; jobs of equal shape start in the order in which they came."""

    resources: Resources
    tenant: str
    kind: JobKind
    task: str
    priority: int


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A delivered job that has not been claimed; ``arrival`` makes the order total."""

    seq: int
    id: str
    shape: Shape
    arrival: int
    token: int | None = None  # the lease under which its submit has it run already


@dataclass(eq=False, slots=True)
class PoolPlace:
    """What a line has to do with a worker pool: its runner is loading the pool's model, or has it."""

    member: PoolMember | None = None  # None while it loads, and until the database has confirmed that it is one
    leave: Leave | None = None  # it takes no further job
    jobs_done: int = 0
    run_seconds: float | None = None  # moving average
    tasks: dict[int, str] = field(default_factory=dict)  # of the jobs in the line, by seq
    joining: bool = False  # the model is loaded, and the database has not yet said whether it is a member
    asleep: bool = False
    turning: bool = False  # it is falling asleep, or waking up
    awake_mib: int = 0  # of its GPU, while it sleeps

    @property
    def stays(self) -> bool:
        """Its lease is kept without a job."""
        return self.joining or (self.member is not None and self.leave is None)


@dataclass(eq=False, slots=True)
class Line:
    """One runner's GPUs and the jobs claimed, or being claimed, for it."""

    key: int
    grant: LeaseGrant
    shape: Shape
    asked_at: float = 0.0  # when its latest claim was sent, monotonic
    lease_id: int | None = None  # None while the claim is on its way
    jobs: deque[int] = field(default_factory=deque)  # seqs; the first one runs
    ahead_seconds: float = 0.0  # expected work of the jobs in the line
    claiming: bool = False  # its first claim is on its way
    closed: bool = False  # takes no further job
    retiring: bool = False  # its runner is to be replaced: takes no further job either
    trusted_until: float = 0.0  # monotonic
    pool: PoolPlace | None = None

    @property
    def is_open(self) -> bool:
        """It may be given another job."""
        absent = self.pool is not None and (self.pool.asleep or self.pool.turning)
        return not (self.closed or self.retiring or self.claiming or absent)

    def serves(self, shape: Shape) -> bool:
        """Its runner has the model that jobs of this shape want, and may run them."""
        member = self.pool.member if self.pool is not None and self.pool.leave is None else None
        wants = shape.resources.wants
        return (
            member is not None
            and wants is not None
            and wants.model in (member.pool, member.model)
            and member.tenant in (None, shape.tenant)
            and shape.kind is JobKind.TASK
        )


_NOWHERE: Final = Place("")


@dataclass(slots=True)
class _GpuUse:
    memory_mib: int
    index: int
    usable: bool
    model: str = ""
    mig_profile: str | None = None
    exclusive: bool = False
    reserved_mib: int = 0
    lent: bool = False  # to somebody without a job
    lent_mib: int = 0
    headroom_mib: int = 0  # not lent out in shares
    foreign_mib: int = 0  # in use without a lease
    place: Place = _NOWHERE
    clean: bool = True  # so little of that that it can be granted as a whole

    @property
    def idle(self) -> bool:
        """Nobody has any of it."""
        return self.clean and not (self.exclusive or self.lent or self.reserved_mib or self.lent_mib)

    @property
    def free_mib(self) -> int:
        """What nobody has of its memory."""
        return self.memory_mib - self.reserved_mib - self.lent_mib - self.foreign_mib


class Host:
    """Accounts for GPUs and lines; every method leaves the sums consistent."""

    def __init__(
        self, *, cpu_slots: int, run_times: RunTimes, cpus: int = 0, memory_mib: int = 0, headroom_mib: int = 0
    ) -> None:
        """Make it.

        Args:
            cpu_slots: CPU-only jobs that run at once.
            run_times: What is known of how long tasks take.
            cpus: CPUs of the host that jobs may ask for.
            memory_mib: Memory of the host that jobs may ask for.
            headroom_mib: Memory of each GPU that is not lent out in shares.
        """
        self._headroom_mib = headroom_mib
        self._gpus: dict[str, _GpuUse] = {}
        self._lines: dict[int, Line] = {}
        self._keys = itertools.count(1)
        self._waiting: dict[Shape, deque[WaitingJob]] = {}
        self._waiting_count = 0
        self._cpu_slots = cpu_slots
        self._cpus, self._memory_mib = cpus, memory_mib  # that jobs have not taken
        self._run_times = run_times
        self._plain_running = 0  # plain Celery tasks in CPU runners

    @property
    def lines(self) -> Mapping[int, Line]:
        """Every open line by its key."""
        return self._lines

    @property
    def waiting_count(self) -> int:
        """Delivered jobs that wait here."""
        return self._waiting_count

    @property
    def claimed_count(self) -> int:
        """Jobs in lines."""
        return sum(len(line.jobs) for line in self._lines.values())

    def update_gpus(self, samples: Iterable[GpuSample]) -> None:
        """Follow what the driver reports; a GPU that is gone or unhealthy is not granted again."""
        seen = {sample.gpu.uuid: sample for sample in samples}
        for uuid, sample in seen.items():
            fresh = _GpuUse(sample.gpu.memory_mib, sample.gpu.index, usable=False, headroom_mib=self._headroom_mib)
            use = self._gpus.setdefault(uuid, fresh)
            use.memory_mib, use.index = sample.gpu.memory_mib, sample.gpu.index
            use.model, use.mig_profile = sample.gpu.model, sample.gpu.mig_profile
            use.place = Place(uuid, sample.gpu.numa, frozenset(sample.gpu.links))
            use.usable = sample.health is GpuHealth.HEALTHY
            use.foreign_mib, use.clean = sample.foreign.used_mib, sample.foreign.clean
        for uuid in self._gpus.keys() - seen.keys():
            self._gpus[uuid].usable = False

    def set_lent(self, orders: Mapping[str, GpuOrder]) -> None:
        """Leave alone what is leased to somebody without a job."""
        for uuid, use in self._gpus.items():
            order = orders.get(uuid, _NO_ORDER)
            use.lent, use.lent_mib = order.lent, order.lent_mib
            use.headroom_mib = max(self._headroom_mib, order.headroom_mib)

    def memory_of(self, gpus: Iterable[str]) -> int | None:
        """Return the memory of these GPUs in MiB, all together; None for no GPU."""
        sizes = [self._gpus[uuid].memory_mib for uuid in gpus]
        return sum(sizes) if sizes else None

    def free_gpus(self) -> int:
        """Count the GPUs that an exclusive lease could take now."""
        return sum(1 for use in self._gpus.values() if use.usable and use.idle)

    def free_pool_lines(self) -> int:
        """Count the runners of pools that have nothing to do."""
        pools = [line for line in self._lines.values() if line.pool and line.pool.member and not line.pool.leave]
        return sum(not line.jobs and line.is_open for line in pools)

    def free_cpu_slots(self) -> int:
        """Count the CPU-only jobs that could start now."""
        cpu_lines = sum(1 for line in self._lines.values() if not line.grant.gpus)
        return max(0, self._cpu_slots - cpu_lines - self._plain_running)

    def add_waiting(self, job: WaitingJob) -> None:
        """A job was delivered."""
        self._waiting.setdefault(job.shape, deque()).append(job)
        self._waiting_count += 1

    def remove_waiting(self, seqs: set[int]) -> list[WaitingJob]:
        """Take jobs out that will not be claimed here."""
        removed = []
        for shape, jobs in list(self._waiting.items()):
            gone = [job for job in jobs if job.seq in seqs]
            if gone:
                removed += gone
                self._keep(shape, deque(job for job in jobs if job.seq not in seqs))
        self._waiting_count -= len(removed)
        return removed

    def waiting_jobs(self) -> Iterable[WaitingJob]:
        """Every waiting job, in no particular order."""
        return itertools.chain.from_iterable(self._waiting.values())

    def choose(self) -> list[tuple[Line, list[WaitingJob]]]:
        """Put waiting jobs into lines, most urgent first, and return the additions of each line.

        A job that does not fit lets smaller ones pass onto free GPUs, but no later job may queue up behind a running
        one while it waits: that would keep the GPUs it needs from ever becoming free.
        """
        additions: dict[int, list[WaitingJob]] = {}
        heads = [(-shape.priority, jobs[0].arrival, shape) for shape, jobs in self._waiting.items()]
        order = [(priority, arrival, number, shape) for number, (priority, arrival, shape) in enumerate(heads)]
        heapq.heapify(order)
        may_extend = True
        while order:
            _priority, _arrival, number, shape = heapq.heappop(order)
            loaded = [line for line in self._lines.values() if line.serves(shape)] if _wants_model(shape) else []
            line = self._with_model(shape, loaded) if loaded else None
            if line is None and (not loaded or self._costs_more_than_load(shape, loaded)):
                line = self._open(shape) or (self._extendable(shape) if may_extend else None)
                may_extend = may_extend and (line is not None or not shape.resources.gpus)
            if line is None:
                continue
            jobs = self._waiting[shape]
            job = jobs.popleft()
            self._waiting_count -= 1
            self._keep(shape, jobs)
            self._append(line, job)
            additions.setdefault(line.key, []).append(job)
            if jobs:
                heapq.heappush(order, (-shape.priority, jobs[0].arrival, number, shape))
        return [(self._lines[key], jobs) for key, jobs in additions.items()]

    def seat(self, job: WaitingJob) -> Line | None:
        """Put a job into the line of the lease that it was granted to; None if there is no such line any more."""
        line = next((line for line in self._lines.values() if line.lease_id == job.token and not line.closed), None)
        if line is not None:
            self._append(line, job)
        return line

    def resize(self, line: Line, memory_mib: int) -> None:
        """A line has another share of its GPU."""
        for uuid in line.grant.gpus:
            self._gpus[uuid].reserved_mib += memory_mib - (line.grant.memory_mib or 0)
        line.grant = replace(line.grant, memory_mib=memory_mib)

    def take_out(self, line: Line, seq: int) -> None:
        """A job of the line ended, was refused, or was given back."""
        line.jobs.remove(seq)
        task = line.shape.task if line.pool is None else line.pool.tasks.pop(seq, line.shape.task)
        line.ahead_seconds = max(0.0, line.ahead_seconds - self._run_times.mean(task)) if line.jobs else 0.0

    def close(self, line: Line) -> None:
        """The line's lease is released: its GPUs are free again."""
        if self._lines.pop(line.key, None) is None:
            return
        line.closed = True
        self._cpus += line.grant.cpus
        self._memory_mib += line.grant.host_memory_mib
        for uuid in line.grant.gpus:
            use = self._gpus[uuid]
            if line.grant.mode is LeaseMode.EXCLUSIVE:
                use.exclusive = False
            else:
                use.reserved_mib -= line.grant.memory_mib or 0

    def take_cpu_slot(self) -> bool:
        """Take a slot for a plain task; False when all are taken."""
        if not self.free_cpu_slots():
            return False
        self._plain_running += 1
        return True

    def give_back_cpu_slot(self) -> None:
        """A plain task ended."""
        self._plain_running -= 1

    def _append(self, line: Line, job: WaitingJob) -> None:
        line.jobs.append(job.seq)
        line.ahead_seconds += self._run_times.mean(job.shape.task)
        if line.pool is not None:
            line.pool.tasks[job.seq] = job.shape.task

    def _keep(self, shape: Shape, jobs: deque[WaitingJob]) -> None:
        if jobs:
            self._waiting[shape] = jobs
        else:
            self._waiting.pop(shape, None)

    def _open(self, shape: Shape) -> Line | None:
        grant = next(filter(None, map(self._find, shape.resources.options)), None)
        if grant is None:
            return None
        self._cpus -= grant.cpus
        self._memory_mib -= grant.host_memory_mib
        for uuid in grant.gpus:
            use = self._gpus[uuid]
            if grant.mode is LeaseMode.EXCLUSIVE:
                use.exclusive = True
            else:
                use.reserved_mib += grant.memory_mib or 0
        line = Line(next(self._keys), grant, shape)
        if shape.resources.wants is not None and shape.resources.wants.pool is not None:
            line.pool = PoolPlace()
        self._lines[line.key] = line
        return line

    def _find(self, resources: Resources) -> LeaseGrant | None:
        """Return what one option of a job would take now; None when it does not fit."""
        wants = resources.wants or Wants()
        if wants.cpus > self._cpus or wants.host_memory_mib > self._memory_mib:
            return None
        gpus = self._find_gpus(resources, wants)
        if gpus is None:
            return None
        return LeaseGrant(gpus, resources.mode, resources.gpu_memory_mib, wants.cpus, wants.host_memory_mib)

    def _find_gpus(self, resources: Resources, wants: Wants) -> tuple[str, ...] | None:
        if resources.gpus == 0:
            return () if self.free_cpu_slots() else None
        usable = [
            (uuid, use)
            for uuid, use in self._gpus.items()
            if use.usable
            and not (use.exclusive or use.lent)
            and wants.accepts_gpu(use.model, use.memory_mib, use.mig_profile)
        ]
        if resources.gpu_memory_mib is not None:
            need = resources.gpu_memory_mib
            fits = [(use.free_mib, uuid) for uuid, use in usable if use.free_mib >= need + use.headroom_mib]
            return (min(fits)[1],) if fits else None  # the fullest that fits keeps the others whole
        whole = sorted((use.index, uuid) for uuid, use in usable if use.idle)
        if len(whole) < resources.gpus:
            return None
        return choose([self._gpus[uuid].place for _index, uuid in whole], resources.gpus)

    def _extendable(self, shape: Shape) -> Line | None:
        lines = (
            line
            for line in self._lines.values()
            if line.pool is None
            and line.shape.resources == shape.resources
            and line.shape.tenant == shape.tenant
            and line.shape.kind is JobKind.TASK
        )
        return self._shortest(shape, lines) if shape.kind is JobKind.TASK else None

    def _shortest(self, shape: Shape, lines: Iterable[Line]) -> Line | None:
        """Return the line that one more job waits in the least; None if it would wait for too long in any."""
        ahead, limit = self._run_times.jobs_ahead(shape.task), self._run_times.look_ahead_seconds
        found = [
            line for line in lines if ahead and line.is_open and len(line.jobs) <= ahead and line.ahead_seconds <= limit
        ]
        return min(found, key=lambda line: (len(line.jobs), line.key), default=None)

    def _with_model(self, shape: Shape, loaded: list[Line]) -> Line | None:
        """Return a line whose runner has the model and can take the job now; an idle one if there is one."""
        idle = next((line for line in loaded if not line.jobs and line.is_open), None)
        return idle or self._shortest(shape, loaded)

    def _costs_more_than_load(self, shape: Shape, loaded: list[Line]) -> bool:
        """Tell whether waiting for runners that have the model takes longer than to have another load it."""
        loads = [line.pool.member.load_seconds or 0.0 for line in loaded if line.pool and line.pool.member]
        queued = len(self._waiting[shape]) * self._run_times.mean(shape.task)
        return (sum(line.ahead_seconds for line in loaded) + queued) / len(loaded) > max(loads)


def _wants_model(shape: Shape) -> bool:
    return shape.resources.wants is not None and shape.resources.wants.model is not None
