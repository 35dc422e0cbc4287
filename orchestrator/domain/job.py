"""Jobs: their states, the one table of legal transitions, and what a request must satisfy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeAlias

from orchestrator.domain.wants import Wants
from orchestrator.errors import IllegalTransition

Document: TypeAlias = Mapping[str, Any]


class JobState(StrEnum):
    """Where a job is; exactly one at a time."""

    BLOCKED = "blocked"  # its canvas has not come to it: it waits for the tasks before it
    SCHEDULED = "scheduled"  # waits for ``run_at``: a start time or a retry delay
    PENDING = "pending"  # ready, in the database only
    QUEUED = "queued"  # admitted: an entry is, or is about to be, in a stream
    RUNNING = "running"  # claimed under a lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # its own code failed and no attempt is left
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"  # could not be processed; kept for a person


class JobEvent(StrEnum):
    """What can happen to a job; each is appended to ``orchestrator_events`` with the change it causes."""

    RELEASE = "release"  # what it waited for in its canvas has come to it, or its ``run_at`` has come
    DEFER = "defer"  # what it waited for in its canvas has come to it, but its ``run_at`` has not
    ADMIT = "admit"  # it may start about now
    WITHDRAW = "withdraw"  # its admission is taken back; the entry becomes stale
    CLAIM = "claim"  # a worker took it under a lease
    GIVE_BACK = "give_back"  # claimed ahead, not started: returned without using an attempt
    REQUEUE = "requeue"  # its worker stops before it has ended: it runs again without having used an attempt
    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"  # failed, another attempt follows after a delay
    LOSE = "lose"  # its lease ended with its worker; another attempt follows after a delay
    CANCEL = "cancel"
    BURY = "bury"  # it cannot be processed
    REVIVE = "revive"  # a person has a job that did not end well tried again, with all its attempts


INITIAL_STATES: Final = frozenset({JobState.BLOCKED, JobState.SCHEDULED, JobState.PENDING})
TERMINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD_LETTER})

#: The only legal ways from one state to another; docs/state-machine.md draws it and the database repeats it.
TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = {
    (JobState.BLOCKED, JobEvent.RELEASE): JobState.PENDING,
    (JobState.BLOCKED, JobEvent.DEFER): JobState.SCHEDULED,
    (JobState.BLOCKED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.SCHEDULED, JobEvent.RELEASE): JobState.PENDING,
    (JobState.SCHEDULED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.PENDING, JobEvent.ADMIT): JobState.QUEUED,
    (JobState.PENDING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.PENDING, JobEvent.BURY): JobState.DEAD_LETTER,
    (JobState.QUEUED, JobEvent.WITHDRAW): JobState.PENDING,
    (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.QUEUED, JobEvent.BURY): JobState.DEAD_LETTER,
    (JobState.RUNNING, JobEvent.GIVE_BACK): JobState.PENDING,
    (JobState.RUNNING, JobEvent.REQUEUE): JobState.PENDING,
    (JobState.RUNNING, JobEvent.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.RETRY): JobState.SCHEDULED,
    (JobState.RUNNING, JobEvent.LOSE): JobState.SCHEDULED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.BURY): JobState.DEAD_LETTER,
    (JobState.FAILED, JobEvent.REVIVE): JobState.PENDING,
    (JobState.CANCELLED, JobEvent.REVIVE): JobState.PENDING,
    (JobState.DEAD_LETTER, JobEvent.REVIVE): JobState.PENDING,
}


class FailureClass(StrEnum):
    """Why an attempt did not succeed; retry rules are per class."""

    EXIT = "exit"  # a command ended with a code other than 0
    EXCEPTION = "exception"  # a task raised
    TIMEOUT = "timeout"
    OOM = "oom"
    LOST = "lost"  # the worker or the runner died
    LEASE_EXPIRED = "lease_expired"
    VRAM_EXCEEDED = "vram_exceeded"
    IDLE = "idle"  # its GPUs did nothing for longer than the operator allows
    POISON = "poison"  # it cannot be decoded or started


class JobKind(StrEnum):
    """How a job's payload is run."""

    COMMAND = "command"  # payload: argv, env, cwd
    TASK = "task"  # payload: a Celery task's args, kwargs, embed and headers


class LeaseMode(StrEnum):
    """What a lease grants on each of its GPUs."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"  # a VRAM reservation on one GPU


def next_state(state: JobState, event: JobEvent) -> JobState:
    """Return where ``event`` takes a job that is in ``state``.

    Raises:
        IllegalTransition: If the table has no such edge.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(state.value, event.value) from None


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job needs of one host, all or nothing.

    ``gpu_memory_mib`` is None for whole GPUs; a number asks for that share of one GPU's memory, so ``gpus`` is then 1.
    """

    gpus: int = 0
    gpu_memory_mib: int | None = None
    wants: Wants | None = None  # conditions on GPUs and host

    @property
    def options(self) -> tuple["Resources", ...]:
        """What would do, in order of preference; each without further alternatives."""
        return (self,) if self.wants is None or not self.wants.alternatives else _options(self)

    def choice(self, cards: Sequence[tuple[str, int, str | None]], gpu_memory_mib: int | None) -> int | None:
        """Return which of its options a job with several has got; the first is 1.

        Options are tried in order, so the first that its GPUs meet is the one that they were taken for.

        Args:
            cards: Model, memory and MIG profile of each GPU of its lease.
            gpu_memory_mib: The share that the lease has of its GPU; None for whole ones.
        """
        if len(self.options) == 1:
            return None
        for number, option in enumerate(self.options, 1):
            wants = option.wants or Wants()
            is_as_much = (option.gpus, option.gpu_memory_mib) == (len(cards), gpu_memory_mib)
            if is_as_much and all(wants.accepts_gpu(*card) for card in cards):
                return number
        return None

    @property
    def mode(self) -> LeaseMode:
        """Whole GPUs are exclusive; a memory reservation shares its GPU."""
        return LeaseMode.EXCLUSIVE if self.gpu_memory_mib is None else LeaseMode.SHARED


@lru_cache(maxsize=1024)
def _options(resources: Resources) -> tuple[Resources, ...]:
    wants = resources.wants
    assert wants is not None
    first = replace(wants, alternatives=())
    others = [Resources(a.gpus, a.gpu_memory_mib, wants.for_alternative(a)) for a in wants.alternatives]
    return (replace(resources, wants=first), *others)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request, ready to be stored; ``id`` is a UUIDv7 string and also the Celery task id."""

    id: str
    name: str  # shown to people: the task's name, or the command's program unless --name was given
    task: str  # the Celery task that carries it
    kind: JobKind
    queue: str
    payload: Document
    # what the stream entry shows: redacted argument representations, root and parent ids, time limits
    headers: Document
    resources: Resources
    tenant: str
    submitted_by: str
    priority: int
    digest: str  # of what runs; equal digests share run-time history
    time_limit_seconds: float | None
    soft_time_limit_seconds: float | None
    grace_seconds: float
    max_attempts: int
    run_at: datetime | None  # None: as soon as possible
    deadline: datetime | None  # not started by then: cancelled as expired
    idempotency_key: str | None
    root_id: str | None = None  # of the canvas that it belongs to; None: it stands alone
    parent_id: str | None = None  # the task that called it, or the first that it waits for
    group_id: str | None = None  # the innermost group that it belongs to
    needs: tuple[str, ...] = ()  # ids of tasks and jobs before it in its canvas; with any it is blocked at first
    traceparent: str | None = None  # the trace that it was submitted in
    retry_on: Mapping[FailureClass, int] | None = None  # see domain.retry


@dataclass(frozen=True, slots=True)
class Job:
    """A job as stored, without its payload."""

    seq: int
    id: str
    name: str
    task: str
    kind: JobKind
    queue: str
    tenant: str
    submitted_by: str
    priority: int
    state: JobState
    reason: str | None  # why it waits or how it ended, in words
    resources: Resources
    time_limit_seconds: float | None
    max_attempts: int
    attempt: int
    lost_count: int
    run_at: datetime | None
    deadline: datetime | None
    node: str | None
    lease_id: int | None
    result: Any
    error: str | None
    exit_code: int | None
    failure_class: FailureClass | None
    progress: Document | None
    cancel_requested_at: datetime | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    held_by: str | None = None  # who keeps it from being admitted
    checkpoint: str | None = None  # from where a further attempt can go on
    retry_on: Mapping[FailureClass, int] | None = None
