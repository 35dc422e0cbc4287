"""Leases and what a worker's ledger commits under them.

A lease's id is its fencing token: it grows with every grant, and each later write names it. One lease covers one
runner and, one after another, every job that the runner starts while it holds the lease.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.domain.job import Document, FailureClass, JobEvent, JobKind, LeaseMode, Resources
from orchestrator.domain.pool import Leave
from orchestrator.domain.retry import RetryOn


class Refusal(StrEnum):
    """Why a claim was not granted; the entry is acknowledged and dropped, except on the last two."""

    UNKNOWN = "unknown"  # no job row: forged, or pruned long ago
    ENDED = "ended"
    CANCELLED = "cancelled"
    RUNNING = "running"  # a duplicate entry
    SUPERSEDED = "superseded"  # not queued any more, or queued for another node
    EXPIRED = "expired"  # its deadline passed before it started
    GPUS_TAKEN = "gpus_taken"  # the job stays queued; the entry is kept and tried again
    DRAINING = "draining"  # the host is to take nothing new, and gives what it has not started back


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A lease to take with a claim: every GPU or none."""

    gpus: tuple[str, ...]  # uuids; empty for a CPU-only job
    mode: LeaseMode
    memory_mib: int | None  # per GPU, for shared leases
    cpus: int = 0  # of the host, counted against what it offers
    host_memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """Jobs to move to ``running`` under one lease: a new one (``grant``) or the runner's own (``lease_id``)."""

    key: int  # the caller's, to match the outcome; unique within a batch
    job_seqs: tuple[int, ...]
    resources: Resources  # what each of the jobs was taken for; one that asked for something else is refused
    grant: LeaseGrant | None = None
    lease_id: int | None = None
    repeated: bool = False  # it was sent before, and whether it was granted is not known
    seated: bool = False  # its job was granted to this lease by its own submit: does that still stand?


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker may run, with everything that running it needs."""

    seq: int
    id: str
    name: str
    task: str
    kind: JobKind
    queue: str
    tenant: str
    attempt: int
    payload: Document
    resources: Resources
    digest: str
    time_limit_seconds: float | None
    soft_time_limit_seconds: float | None
    grace_seconds: float
    max_attempts: int
    lost_count: int = 0
    forgiven: int = 0  # attempts that do not count: those before a person had it tried again
    max_lost: int = 3
    retry_on: RetryOn | None = None
    checkpoint: str | None = None  # from where an earlier attempt said that this one can go on
    traceparent: str | None = None  # the trace that it was submitted in
    ready_at: datetime | None = None  # since when it could have started
    model: str | None = None  # that it wants; of a pool, what that has loaded


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """What became of a claim; ``lease_id`` is None when nothing was granted."""

    key: int
    lease_id: int | None
    granted: tuple[ClaimedJob, ...]
    refused: tuple[tuple[int, Refusal], ...]  # (job seq, why)


@dataclass(frozen=True, slots=True)
class Finish:
    """How one attempt ended. Guarded: it counts only while the job runs under ``lease_id`` with this attempt number."""

    job_seq: int
    attempt: int
    lease_id: int
    event: JobEvent  # SUCCEED, FAIL, RETRY, LOSE, CANCEL, BURY or GIVE_BACK
    started_at: datetime | None = None  # None when it never started
    ended_at: datetime | None = None
    pid: int | None = None
    isolation: str | None = None  # what stood around its process
    result: Any = None  # JSON-able
    error: str | None = None
    failure_class: FailureClass | None = None
    exit_code: int | None = None
    peak_memory_mib: int | None = None
    peak_gpu_memory_mib: int | None = None  # of all its GPUs together, by samples; None: never seen on one
    delay_seconds: float = 0.0  # for RETRY and LOSE
    payload: Document | None = None  # a retry's changed arguments
    gpu_seconds: float = 0.0
    gpu_busy_seconds: float | None = None  # by sampled utilization; None: the driver does not tell
    forgiven: bool = False  # of LOSE: the job stood in line behind another one, so its worker was not lost for it


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """The latest progress of a running attempt; guarded like a finish."""

    job_seq: int
    attempt: int
    lease_id: int
    progress: Document | None  # None: as it was
    checkpoint: str | None = None  # likewise


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a running attempt so far: all of it each time, so that a repeat changes nothing.

    Guarded like a finish. It stands if the attempt's worker is lost before it can tell how the attempt ended.
    """

    job_seq: int
    attempt: int
    lease_id: int
    gpu_busy_seconds: float | None
    peak_gpu_memory_mib: int | None


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of an attempt's output; ``number`` counts from 0 within the attempt. Guarded like a finish."""

    job_seq: int
    attempt: int
    lease_id: int
    number: int
    data: str


@dataclass(frozen=True, slots=True)
class JobNote:
    """Something that happened to a running attempt, for the history. Guarded like a finish."""

    job_seq: int
    attempt: int
    lease_id: int
    kind: str  # at most 16 characters
    data: Document


@dataclass(frozen=True, slots=True)
class PoolJoin:
    """A lease whose runner has loaded a model for a pool: it outlives the job that did it."""

    lease_id: int
    pool: str
    generation: int
    job_id: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A lease that is a pool's."""

    lease_id: int
    pool: str
    model: str
    tenant: str | None  # whose jobs run under it; None: everybody's
    load_seconds: float | None  # what loading the model took


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What a runner of a pool has done: all of it each time, so that a repeat changes nothing."""

    lease_id: int
    jobs_done: int
    run_seconds: float | None  # what its latest jobs took, on average


@dataclass(frozen=True, slots=True)
class PoolResize:
    """A runner of a pool that goes to sleep or wakes up: it is to have another lease on its GPU, of this size."""

    lease_id: int  # that it has
    grant: LeaseGrant
    asleep: bool  # from then on


@dataclass(frozen=True, slots=True)
class LedgerBatch:
    """Everything that a worker commits at once: one transaction, in the order of the fields."""

    logs: tuple[LogChunk, ...] = ()
    progress: tuple[ProgressReport, ...] = ()
    notes: tuple[JobNote, ...] = ()
    finishes: tuple[Finish, ...] = ()
    releases: tuple[int, ...] = ()  # lease ids
    withdrawals: tuple[int, ...] = ()  # seqs of queued jobs that this host hands back: pending again
    joins: tuple[PoolJoin, ...] = ()
    resizes: tuple[PoolResize, ...] = ()
    claims: tuple[Claim, ...] = ()
    uses: tuple[PoolUse, ...] = ()


@dataclass(frozen=True, slots=True)
class LedgerOutcome:
    """What the database made of a batch."""

    claims: tuple[ClaimOutcome, ...] = ()
    stale: tuple[Finish, ...] = ()  # finishes refused: the token was no longer the job's
    members: tuple[PoolMember, ...] = ()  # of the joins, those that took effect
    resized: tuple[tuple[int, int | None], ...] = ()  # old and new lease; None: the old one stays


@dataclass(frozen=True, slots=True)
class Renewal:
    """Which leases are still held, and which running jobs somebody asked to cancel."""

    live: frozenset[int] = field(default_factory=frozenset)
    cancel_requested: tuple[int, ...] = ()  # job seqs
    leaving: tuple[tuple[int, Leave], ...] = ()  # leases whose runners are to leave their pools
    asleep: frozenset[int] = frozenset()  # leases whose pools are asleep, or to be
    open: tuple[tuple[int, int, int], ...] = ()  # attempts under pools' leases, of some age: (job seq, number, lease)
