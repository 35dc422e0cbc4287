"""Hosts and GPUs: what they are and what a sample of them says."""

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.gpu_memory import NO_FOREIGN_USE, ForeignUse


class NodeState(StrEnum):
    """What a host may be given."""

    UP = "up"
    DRAINING = "draining"  # takes no new job, lets running ones end
    DRAINED = "drained"
    LOST = "lost"  # its heartbeat stopped


@dataclass(frozen=True, slots=True)
class DrainOutcome:
    """``changed``: it was not so before; ``withdrawn``: so many jobs that were placed there wait again."""

    state: NodeState
    changed: bool
    withdrawn: int


class GpuHealth(StrEnum):
    """Whether a GPU may be leased; only a healthy one may."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    LOST = "lost"  # fallen off the bus, or gone from the host


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, or an instance of one; ``uuid`` is its identity, ``index`` only where it stands today."""

    uuid: str
    index: int
    model: str
    memory_mib: int
    driver_version: str
    mig_profile: str | None = None  # of an instance, as 1g.10gb
    parent_uuid: str | None = None  # the card of an instance
    numa: int | None = None  # the NUMA node that it is near to
    links: tuple[str, ...] = ()  # uuids of the GPUs that NVLink joins it to


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU's memory; None where nobody could tell."""

    pid: int
    used_mib: int
    start_ticks: int | None = None  # with the pid, its identity on this boot
    user: str | None = None  # the account it runs under
    runner: str | None = None  # the runner of this host that it belongs to


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU; None where the driver does not tell."""

    gpu: Gpu
    used_mib: int
    health: GpuHealth
    processes: tuple[GpuProcess, ...]
    utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: int | None
    xid: int | None = None  # the latest error that the driver reported
    xid_count: int = 0  # errors that it reported since it is read
    slowed_by: tuple[str, ...] = ()  # what makes it run slower than its load would: "heat", "power"
    ecc_uncorrected: int | None = None  # memory errors since the driver was loaded
    ecc_corrected: int | None = None
    tells_processes: bool = False  # who is not among ``processes`` has none there
    foreign: ForeignUse = NO_FOREIGN_USE  # as its host judges it


@dataclass(frozen=True, slots=True)
class GpuOrder:
    """What operators want of a GPU; the counters only grow."""

    held: bool = False  # kept out until it is released
    releases: int = 0  # how often a quarantine was ended by hand
    resets: int = 0  # how often its strikes were forgotten by hand
    lent: bool = False  # to somebody without a job, as a whole
    lent_mib: int = 0  # likewise in shares
    unready: tuple[int, ...] = ()  # the leases of those who wait for the host's word that nothing else is on it
    headroom_mib: int = 0  # of its memory, that is not lent out in shares by the policy


class GpuAction(StrEnum):
    """What an operator can ask of a GPU."""

    QUARANTINE = "quarantine"  # lease it to nobody; what runs there goes on
    RELEASE = "release"  # end a quarantine, whoever began it
    RESET = "reset"  # likewise, and forget its strikes


@dataclass(frozen=True, slots=True)
class GpuStanding:
    """What is remembered of a GPU across restarts."""

    health: GpuHealth = GpuHealth.HEALTHY
    strikes: int = 0
    reason: str | None = None  # why it is not healthy
    order: GpuOrder = field(default_factory=GpuOrder)
    warning: str | None = None  # what is amiss although it may be leased


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """A registered GPU and who holds it."""

    gpu: Gpu
    node: str
    health: GpuHealth
    used_mib: int
    reserved_mib: int
    exclusive_lease_id: int | None
    utilization_percent: int | None
    temperature_celsius: int | None = None
    power_watts: int | None = None
    health_reason: str | None = None  # why it is not healthy
    strikes: int = 0
    foreign: ForeignUse = NO_FOREIGN_USE
    headroom_mib: int = 0  # that is not lent out in shares
    warning: str | None = None  # what is amiss although it may be leased


@dataclass(frozen=True, slots=True)
class GpuHolder:
    """Who has a GPU, or a share of it, under one lease."""

    lease_id: int
    memory_mib: int | None  # its share; None: all of it
    jobs: tuple[str, ...]  # the one that runs, then those that wait behind it; none under a lease without a job
    tenant: str | None
    holder: str | None = None  # of a lease without a job
