"""What services need of the outside world, as protocols; ``storage``, ``streams`` and ``gpus`` implement them.

Every store method is one transaction. It raises ``StoreUnavailable`` when the database does not answer or gave the
transaction up after bounded retries; then nothing of it took effect, except where a lost reply leaves that unknown, and
every method is safe to repeat. Streams raise ``StreamUnavailable``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from orchestrator.domain.canvas import CanvasCancelled, Need
from orchestrator.domain.cluster import (
    DrainOutcome,
    GpuAction,
    GpuHolder,
    GpuOrder,
    GpuRecord,
    GpuSample,
    GpuStanding,
    NodeState,
)
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import Document, Job, JobState, NewJob
from orchestrator.domain.lease import LedgerBatch, LedgerOutcome, Measured, Renewal
from orchestrator.domain.usage import LeaseUse
from orchestrator.scheduling.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of one new job."""

    id: str
    seq: int
    created: bool  # False: the id or the idempotency key already existed, and this is the job it names
    state: JobState


@dataclass(frozen=True, slots=True)
class SubmitOutcome:
    """Every job in the order given, and the entries that the caller must now put into the streams."""

    jobs: tuple[Submitted, ...]
    entries: tuple[JobEntry, ...]


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list, newest first; None means any."""

    states: frozenset[JobState] | None = None
    queue: str | None = None
    tenant: str | None = None
    name: str | None = None
    before_seq: int | None = None  # keyset cursor
    root_id: str | None = None  # of a canvas; a job alone is the root of its own
    group_id: str | None = None
    ids: frozenset[str] | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """``cancelled``: it will not start, or has ended; ``stopping``: it runs, and its worker was asked to end it."""

    job: Job
    cancelled: bool
    stopping: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job."""

    number: int
    node: str
    lease_id: int
    gpus: tuple[str, ...]
    pid: int | None
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str | None  # the JobEvent that ended it
    failure_class: str | None
    exit_code: int | None
    error: str | None
    peak_memory_mib: int | None
    gpu_seconds: float
    gpu_busy_seconds: float | None = None  # by sampled utilization; None: the driver does not tell
    peak_gpu_memory_mib: int | None = None  # likewise
    isolation: str | None = None  # "process", or the control groups around it
    choice: int | None = None  # which of what the job asks for it has got, from 1; None: there are no alternatives


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One line of the append-only history."""

    seq: int
    at: datetime
    kind: str  # a JobEvent, or a word of the node, lease or GPU life cycle
    job_id: str | None
    node: str | None
    lease_id: int | None
    data: Document


@dataclass(frozen=True, slots=True)
class LogPage:
    """Output of a job: chunks after a cursor, and whether more can come."""

    chunks: tuple[tuple[int, int, str], ...]  # (attempt, number, text)
    ended: bool


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A registered host."""

    name: str
    boot_id: str
    worker: str  # the Celery worker's node name
    pid: int
    state: NodeState
    queues: tuple[str, ...]
    cpu_slots: int
    look_ahead: int
    heartbeat_at: datetime
    live: bool  # the heartbeat is fresh, by the database's clock
    gpus: tuple[GpuRecord, ...]
    tasks: tuple[str, ...] = ()  # that its worker's app knows
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 0  # that jobs may ask for
    memory_mib: int = 0  # likewise
    drain: bool = False  # an operator wants it to take nothing new
    degraded: bool = False  # the database has lately not taken what its worker wrote


class JobStore(Protocol):
    """Jobs as producers and people see them."""

    def submit(self, jobs: Sequence[NewJob]) -> SubmitOutcome:
        """Store every job, or none; admit those that may start at once.

        A job is admitted here only when its queue is not paused, nothing waits ahead of it in the queue, and fewer
        admitted jobs than the queue's window are unclaimed. ``IdempotencyConflict`` if a key names another request.
        ``UnknownQueue`` if a queue has no row.

        One that needs others is blocked until it is submitted once more, by what it waited for, without needs. A job
        whose canvas was cancelled is stored cancelled.
        """
        ...

    def get(self, job_id: str) -> Job | None: ...

    def get_payload(self, job_id: str) -> Document | None: ...

    def list_jobs(self, wanted: JobFilter) -> Sequence[Job]: ...

    def count_by_state(self, queue: str | None = None, *, tenant: str | None = None) -> Mapping[JobState, int]: ...

    def count_by_tenant(self, *, tenant: str | None = None) -> Mapping[str, Mapping[JobState, int]]:
        """Count the jobs of every tenant that has any, or of one, by state; states without jobs are left out."""
        ...

    def attempts(self, job_id: str) -> Sequence[Attempt]: ...

    def history(self, job_id: str) -> Sequence[HistoryEvent]: ...

    def logs(self, job_id: str, *, after: tuple[int, int] | None, limit: int, attempt: int | None) -> LogPage: ...

    def log_tail(self, job_id: str, *, lines: int, limit: int, attempt: int | None = None) -> LogPage: ...

    def request_cancel(self, job_id: str, *, by: str, reason: str) -> CancelOutcome:
        """Cancel a job that has not started; mark one that runs; repeating it changes nothing.

        What waits for a cancelled job in its canvas is cancelled with it.
        """
        ...

    def cancel_canvas(self, canvas_id: str, *, whole: bool, by: str, reason: str) -> CanvasCancelled:
        """Cancel every job of a canvas (``whole``), or of one group and what waits for it, as ``request_cancel`` does.

        What they would still submit is stored cancelled. A canvas is named by its root or any job of it, or by a group.
        ``UnknownJob`` if no job has such an id, root or group.
        """
        ...

    def end_dependents(self, task_ids: Sequence[str], words: str) -> int:
        """Cancel the blocked jobs that wait for tasks that did not end well; ``words`` say how those ended."""
        ...

    def needs(self, job_ids: Sequence[str]) -> Mapping[str, Sequence[Need]]:
        """Return what the blocked ones among these jobs wait for."""
        ...


class LedgerStore(Protocol):
    """What a worker commits about the jobs of its host."""

    def commit(self, node: str, batch: LedgerBatch, *, ttl: timedelta) -> LedgerOutcome:
        """Apply the batch in one transaction; each part is guarded and refused on its own."""
        ...

    def renew(
        self, node: str, lease_ids: Sequence[int], *, ttl: timedelta, measured: Sequence[Measured] = ()
    ) -> Renewal:
        """Extend the live ones among this node's leases by ``ttl`` from now, in one statement.

        What was ``measured`` of attempts is written along.
        """
        ...

    def host_snapshot(self, node: str, *, limit: int) -> Snapshot:
        """Return what a plan for this host needs: the host, what is on its way to it, the first candidates."""
        ...

    def admit(self, placements: Sequence[tuple[int, str]]) -> tuple[JobEntry, ...]:
        """Admit waiting jobs, given as (job seq, node); those no longer pending are left out of the answer."""
        ...


class ClusterStore(Protocol):
    """Hosts and GPUs."""

    def register_node(self, record: NodeRecord) -> Sequence[int]:
        """Insert or replace the host's row; give back at once the leases that an earlier boot or pid of it still holds.

        Its GPUs are synchronised: new ones inserted, absent ones marked lost. Returns the lease ids given back.
        """
        ...

    def heartbeat(
        self,
        node: str,
        samples: Sequence[GpuSample],
        *,
        look_ahead: int,
        settled: bool = False,
        trouble_seconds: float | None = None,
    ) -> NodeState:
        """Refresh the host's row; ``settled``: it drains and works on nothing. Return what it may be given.

        ``trouble_seconds``: so long ago the database did not take what it wrote; None: never, or that has been told.
        """
        ...

    def set_drain(self, node: str, *, drain: bool, by: str) -> DrainOutcome:
        """Have a host take nothing new, whatever becomes of its worker, or take jobs again; or ``UnknownNode``."""
        ...

    def deregister_node(self, node: str, pid: int) -> None: ...

    def nodes(self) -> Sequence[NodeRecord]: ...

    def gpu_holders(self) -> Mapping[str, Sequence[GpuHolder]]:
        """Return who has GPUs now, by uuid."""
        ...

    def gpu_standings(self, node: str) -> Mapping[str, GpuStanding]:
        """Return what is remembered of a host's GPUs, by uuid."""
        ...

    def note_gpu_standings(self, node: str, standings: Mapping[str, GpuStanding]) -> Mapping[str, GpuOrder]:
        """Remember what changed, each change of health with an event; return what operators want, by uuid."""
        ...

    def order_gpu(self, uuid: str, action: GpuAction, *, by: str) -> None:
        """Record what an operator wants of a GPU.

        Raises:
            UnknownGpu: If no host ever told of it.
        """
        ...

    def ensure_queues(self, names: Sequence[str]) -> None: ...

    def queues(self) -> Mapping[str, bool]:
        """Name and whether it is paused."""
        ...


class UsageStore(Protocol):
    """What accounting reads."""

    def now(self) -> datetime:
        """Return the database's clock."""
        ...

    def leases(self, *, since: datetime, until: datetime) -> Iterator[LeaseUse]:
        """Yield the leases of GPUs that overlap the window, with what ran under them."""
        ...


class AdmissionStore(Protocol):
    """What the leader's sweeps read and write; each write is fenced by the leader's epoch."""

    def snapshot(self, *, limit: int) -> Snapshot: ...

    def admit(self, placements: Sequence[tuple[int, str | None]], *, epoch: int) -> tuple[JobEntry, ...]: ...

    def set_windows(self, windows: Mapping[str, int], *, epoch: int) -> None:
        """Set how many unclaimed jobs a submit may leave in each queue's stream."""
        ...

    def due_entries(self, *, limit: int, epoch: int) -> Sequence["DueEntry"]:
        """Admitted jobs whose entry is to be published, or looked for, now."""
        ...

    def note_entries(self, published: Sequence[tuple[int, str]], *, epoch: int) -> None:
        """Record (job seq, entry id) of entries that are in their stream; look again after the recheck interval."""
        ...

    def make_entries_due(self, *, epoch: int) -> int:
        """Forget every known entry, for when a stream or its group has vanished."""
        ...

    def release_due(self, *, limit: int, epoch: int) -> int:
        """Move scheduled jobs whose time has come to pending; cancel waiting jobs past their deadline."""
        ...

    def expire_leases(self, candidates: Sequence[tuple[int, int]], *, policy: "LossPolicy", epoch: int) -> int:
        """End the leases given as (id, renewals) that are still past their expiry and grace with the same renewals.

        Their running jobs are lost: scheduled again with a delay, or dead letters after ``max_lost``.
        """
        ...

    def expired_leases(self, *, limit: int, grace: timedelta) -> Sequence[tuple[int, int]]: ...

    def end_forgotten(self, *, limit: int, epoch: int) -> int:
        """End blocked jobs that wait for what ended otherwise than well, whoever failed to tell them."""
        ...

    def lose_nodes(self, *, silent_for: timedelta, epoch: int) -> Sequence[str]:
        """Mark hosts whose heartbeat stopped as lost, and withdraw what was admitted for them."""
        ...

    def heal(self, *, policy: "LossPolicy", limit: int, epoch: int) -> int:
        """Bring rows back into line that disagree: jobs that run under no lease, GPUs held by none."""
        ...

    def prune(self, *, older_than: timedelta, limit: int, epoch: int) -> int: ...

    def prune_audit(self, *, older_than: timedelta, limit: int, epoch: int) -> int:
        """Delete lines of the audit that are old enough, the oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class DueEntry:
    """An admitted job that waits unclaimed: ``entry_id`` is where its entry should be, None if none is known."""

    entry: JobEntry
    entry_id: str | None


@dataclass(frozen=True, slots=True)
class LossPolicy:
    """What happens to a job whose lease ended with its worker."""

    max_lost: int
    delay: timedelta
    grace: timedelta


class GpuDriver(Protocol):
    """Where samples of this host's GPUs come from."""

    def sample(self) -> tuple[GpuSample, ...]:
        """Return every GPU of the host; raises ``GpusUnavailable``."""
        ...

    def close(self) -> None: ...
