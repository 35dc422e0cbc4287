"""What a plan is made from: an immutable picture of hosts, waiting jobs and queues at one instant."""

from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.domain.job import Resources


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU as admission sees it."""

    uuid: str
    index: int
    model: str
    memory_mib: int
    reserved_mib: int  # by shared leases
    exclusive: bool  # held by an exclusive lease
    healthy: bool
    mig_profile: str | None = None  # of an instance
    foreign_mib: int = 0  # in use without a lease
    clean: bool = True  # so little of that that it can be granted as a whole
    headroom_mib: int = 0  # that is not lent out in shares
    numa: int | None = None
    links: tuple[str, ...] = ()  # uuids


@dataclass(frozen=True, slots=True)
class HostView:
    """One host: its GPUs, and the admitted jobs that are on their way to it."""

    node: str
    accepts: bool  # up, and not draining
    gpus: tuple[GpuView, ...]
    queues: frozenset[str]  # that its worker consumes
    cpu_slots: int  # CPU-only jobs that it runs at once
    cpu_jobs: int  # CPU-only jobs that run now
    look_ahead: int  # jobs beyond its capacity that it finishes in the look-ahead window, from the run times it saw
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0  # that jobs may ask for
    cpus_taken: int = 0
    memory_mib: int = 0  # likewise
    memory_taken_mib: int = 0

    @property
    def idle(self) -> int:
        """How many jobs it could start at once, each on one GPU or CPU slot."""
        gpus = sum(gpu.healthy and gpu.clean and not gpu.exclusive and not gpu.reserved_mib for gpu in self.gpus)
        return gpus + max(0, self.cpu_slots - self.cpu_jobs)


@dataclass(frozen=True, slots=True)
class AdmittedView:
    """Jobs alike that were admitted and not yet claimed; ``node`` is None when any host may take them."""

    seq: int  # of the oldest of them
    queue: str
    resources: Resources
    node: str | None
    count: int = 1


class Candidate(NamedTuple):
    """A waiting job; a tuple, because a pass reads many."""

    seq: int
    queue: str
    tenant: str
    priority: int
    resources: Resources


@dataclass(frozen=True, slots=True)
class QueueView:
    """A queue's standing orders."""

    name: str
    paused: bool
    most_running: int | None = None  # jobs at once
    room: int | None = None  # how many more may be admitted now; None: as many as fit


@dataclass(frozen=True, slots=True)
class ModelView:
    """The runners of one worker pool that have its model loaded, on one host that takes jobs."""

    node: str
    pool: str
    model: str
    tenant: str | None  # whose jobs they run; None: everybody's
    runners: int  # that are awake
    running: int  # jobs in their lines
    load_seconds: float | None  # what loading the model took
    run_seconds: float | None  # what their latest jobs took, on average
    queues: frozenset[str]  # that their host's worker consumes
    asleep: int = 0  # runners that jobs which wait will wake
    most: int = 0  # runners that the pool may have on all hosts: below that, jobs that wait make it grow

    def serves(self, model: str, tenant: str, queue: str) -> bool:
        """Tell whether a job of the tenant that wants this model, and waits in the queue, can run there."""
        return model in (self.pool, self.model) and self.tenant in (None, tenant) and queue in self.queues


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a plan may look at; ``candidates`` come in the order of ``ordering_key``."""

    hosts: tuple[HostView, ...]
    admitted: tuple[AdmittedView, ...]
    candidates: tuple[Candidate, ...]
    queues: tuple[QueueView, ...]
    safe_mode: bool = False  # nothing starts
    models: tuple[ModelView, ...] = ()  # on all hosts, also of a snapshot for one
