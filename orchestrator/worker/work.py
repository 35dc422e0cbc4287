"""One thing for a runner to do: a plain Celery task, or a claimed job."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.domain.job import FailureClass
from orchestrator.domain.lease import ClaimedJob
from orchestrator.observe import logs
from orchestrator.worker.checkpoints import CheckpointFile
from orchestrator.worker.frames import Message
from orchestrator.worker.host import Line
from orchestrator.worker.output import OutputCapture
from orchestrator.worker.tracing import AttemptTrace


@dataclass(eq=False, slots=True)
class Callbacks:
    """What Celery's request wants to hear; None where it does not care."""

    accepted: Callable[..., None] | None
    done: Callable[..., None] | None
    failed: Callable[..., None] | None
    timed_out: Callable[..., None] | None
    revoked: Callable[[], bool] | None = None  # whether it must not start: revoked or expired while it waited


@dataclass(eq=False, slots=True)
class JobWork:
    """What a job adds to a piece of work."""

    line: Line
    claimed: ClaimedJob
    lease_id: int
    output: OutputCapture


@dataclass(eq=False, slots=True)
class Work:
    """One task or command, from the moment the pool takes it until its end was told."""

    id: str
    task: str
    message: Message | None  # None for a command: it is in the runner's argv
    callbacks: Callbacks
    time_limit: float | None  # seconds, hard
    soft_time_limit: float | None  # seconds
    job: JobWork | None = None
    sent: bool = False
    begun_at: float | None = None  # monotonic; None while it waits in a line
    began_at: datetime | None = None  # the same in wall time
    pid: int | None = None
    isolation: str | None = None  # what stands around the process in which it runs
    busy_seconds: float | None = None  # of its GPUs so far, by samples; None: the driver does not tell
    peak_gpu_mib: int | None = None  # most that its processes used of its GPUs' memory, by samples; None: never seen
    told: tuple[float | None, int | None] = (None, None)  # of these two, what the database has been told
    soft_signalled: bool = False
    timed_out: bool = False
    loading: bool = False  # it says that it is getting ready: its GPUs need not work
    cancelled: bool = False  # somebody asked to end it
    stopped: bool = False  # the worker stops and ends it: it is to run again
    checkpoints: CheckpointFile | None = None  # of a command
    trace: AttemptTrace | None = None  # if it was submitted in one
    condemned: tuple[FailureClass, str] | None = None  # the worker ends it: why, in a class and in words


def about(work: Work | None) -> dict[str, Any]:
    """Return the ``extra`` of a log call about this work."""
    if work is None:
        return {}
    if work.job is None:
        return logs.about(job_id=work.id)
    return logs.about(job_id=work.id, attempt=work.job.claimed.attempt, token=work.job.lease_id)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a runner's process ended."""

    exit_code: int | None
    signal: int | None
    cause: str  # exit, killed, deadline, worker_lost; start: it never started; stuck: something of it outlives KILL
    reason: str = ""
    peak_rss_mib: int | None = None
    memory_kills: int = 0  # of its processes that the kernel ended, because they used more memory than they may
    unclean: tuple[str, ...] = ()  # the GPUs that did not come clean for it, if it did not start for that
