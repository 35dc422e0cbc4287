"""What the history checker reads: rows of the database and lines that runners wrote, as they are, nothing derived.

Instants are the database's, except those of a ``RunnerSpan``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from orchestrator.domain.job import Document, JobState, LeaseMode, Resources

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Event:
    """A row of ``orchestrator_events``; within one job, and within the terms of leaders, ``seq`` is the order."""

    seq: int
    at: datetime
    kind: str
    job_seq: int | None = None
    node: str | None = None
    lease_id: int | None = None
    epoch: int | None = None
    data: Document | None = None


@dataclass(frozen=True, slots=True)
class ReadyPlace:
    """A job's row in ``orchestrator_ready``."""

    publish_at: datetime | None
    entry_id: str | None
    node: str | None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row of ``orchestrator_jobs`` and the job's places in the tables of what waits."""

    seq: int
    id: str
    queue: str
    state: JobState
    resources: Resources
    max_attempts: int
    attempt: int
    lost_count: int
    lease_id: int | None
    run_at: datetime | None
    deadline: datetime | None
    ready: ReadyPlace | None = None
    scheduled_at: datetime | None = None
    forgiven: int = 0
    needs: int = 0  # how much it waits for in its canvas
    failed_need: str | None = None  # one of these that ended otherwise than well


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """A row of ``orchestrator_attempts``, and when the attempt's last output was written."""

    number: int
    lease_id: int
    node: str
    ended: bool
    outcome: str | None
    failure_class: str | None
    last_output_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A row of ``orchestrator_leases`` and the GPUs it named."""

    id: int
    node: str
    mode: LeaseMode
    memory_mib: int | None
    state: str
    granted_at: datetime
    heartbeat_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobHistory:
    """Everything about one job; ``leases`` are those that its attempts and claims name and that still exist."""

    job: JobRow
    events: tuple[Event, ...]
    attempts: tuple[AttemptRow, ...] = ()
    leases: Mapping[int, LeaseRow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A row of ``orchestrator_gpus``."""

    uuid: str
    node: str
    memory_mib: int
    reserved_mib: int
    exclusive_lease_id: int | None
    last_lease_id: int
    turn: int


@dataclass(frozen=True, slots=True)
class Hold:
    """One lease's hold of one GPU: from one turn of the GPU up to, not including, another; None: still held."""

    lease_id: int
    mode: LeaseMode
    memory_mib: int | None
    lease_state: str
    taken_turn: int
    freed_turn: int | None
    is_marked: bool  # as the live exclusive holder


@dataclass(frozen=True, slots=True)
class RunnerSpan:
    """A process that saw GPUs, as told by itself or by its guardian; instants are CLOCK_BOOTTIME of ``boot``.

    ``end`` is None when nobody saw its end: it was killed, or is still alive. ``beside`` names processes that it found
    alive on one of its GPUs when it started.
    """

    source: str  # file and line
    boot: str
    pid: int
    token: int
    gpus: tuple[str, ...]
    start: float
    end: float | None
    start_wall: datetime | None = None
    end_wall: datetime | None = None
    job_id: str | None = None
    attempt: int | None = None
    is_exclusive: bool = True
    beside: tuple[int, ...] = ()


class HistoryView(Protocol):
    """The whole history at one instant, in bounded pieces; exhaust one iterator before the next is begun."""

    def now(self) -> datetime:
        """Return the database's clock when the view was opened."""
        ...

    def jobs(self) -> Iterator[JobHistory]:
        """Yield every job, oldest first."""
        ...

    def leases(self) -> Iterator[LeaseRow]:
        """Yield every lease by its id."""
        ...

    def gpus(self) -> Sequence[GpuRow]:
        """Return every GPU."""
        ...

    def holds(self, gpu_uuid: str) -> Iterator[Hold]:
        """Yield who held a GPU, by turn and lease."""
        ...

    def leader_events(self) -> Iterator[Event]:
        """Yield the begin of each leader's term and what leaders wrote, in the order of writing."""
        ...

    def strays(self) -> Iterator[tuple[str, int]]:
        """Yield (table, job seq) of rows that name a job which does not exist."""
        ...


class HistoryStore(Protocol):
    """Where the history is."""

    def read(self, visit: Callable[[HistoryView], Result]) -> Result:
        """Run ``visit`` on one consistent view and return what it returns; raises ``StoreUnavailable``."""
        ...
