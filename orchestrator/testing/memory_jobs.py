"""Jobs in memory: a ``JobStore`` that keeps the rules that services rely on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.domain.canvas import CanvasCancelled
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import TERMINAL_STATES, Job, JobState, NewJob
from orchestrator.errors import IdempotencyConflict, StoreUnavailable, UnknownJob, UnknownQueue
from orchestrator.ports import CancelOutcome, SubmitOutcome, Submitted
from orchestrator.testing.clock import FakeClock


class MemoryJobs:
    """``JobStore``: jobs by id, admitted as long as ``window`` allows."""

    def __init__(self, clock: FakeClock, *, queues: Sequence[str] = ("gpu",), window: int = 1000) -> None:
        self._clock = clock
        self.queue_names = set(queues)
        self.window = window
        self.jobs: dict[str, Job] = {}
        self.new: dict[str, NewJob] = {}
        self.down = False

    def submit(self, jobs: Sequence[NewJob]) -> SubmitOutcome:
        """Store all or none."""
        self._answer()
        for job in jobs:
            if job.queue not in self.queue_names:
                raise UnknownQueue(job.queue, sorted(self.queue_names))
        submitted = [self._existing(job) or self._insert(job) for job in jobs]
        entries = [
            JobEntry(job.id, item.seq, job.task, job.queue, None, job.headers)
            for job, item in zip(jobs, submitted, strict=True)
            if item.created and item.state is JobState.QUEUED
        ]
        return SubmitOutcome(tuple(submitted), tuple(entries))

    def get(self, job_id: str) -> Job | None:
        """Return a job."""
        self._answer()
        return self.jobs.get(job_id)

    def request_cancel(self, job_id: str, *, by: str, reason: str) -> CancelOutcome:
        """Cancel, or mark a running one."""
        self._answer()
        job = self.jobs.get(job_id)
        if job is None:
            raise UnknownJob(job_id)
        if job.state in TERMINAL_STATES:
            return CancelOutcome(job, cancelled=job.state is JobState.CANCELLED, stopping=False)
        running = job.state is JobState.RUNNING
        words = f"cancelled by {by}: {reason}"
        job = (
            replace(job, cancel_requested_at=self._clock.now())
            if running
            else replace(job, state=JobState.CANCELLED, reason=words)
        )
        self.jobs[job_id] = job
        return CancelOutcome(job, cancelled=not running, stopping=running)

    def cancel_canvas(self, canvas_id: str, *, whole: bool, by: str, reason: str) -> CanvasCancelled:
        """Cancel the members one by one."""
        self._answer()
        members = [
            job for job in self.jobs.values() if canvas_id in ((job.id, job.root_id) if whole else (job.group_id,))
        ]
        if not members:
            raise UnknownJob(canvas_id)
        outcomes = [self.request_cancel(job.id, by=by, reason=reason) for job in members]
        cancelled = tuple(outcome.job.id for outcome in outcomes if outcome.cancelled)
        return CanvasCancelled(canvas_id, cancelled, tuple(o.job.id for o in outcomes if o.stopping))

    def change(self, job_id: str, **changes: Any) -> None:
        """Put a job into another condition, as a worker or a sweep would."""
        self.jobs[job_id] = replace(self.jobs[job_id], **changes)

    def _existing(self, job: NewJob) -> Submitted | None:
        for known in self.new.values():
            same_key = job.idempotency_key and (known.tenant, known.idempotency_key) == (
                job.tenant,
                job.idempotency_key,
            )
            if known.id == job.id or same_key:
                if known.id != job.id and known.payload != job.payload:
                    raise IdempotencyConflict(job.idempotency_key or "", known.id)
                stored = self.jobs[known.id]
                return Submitted(stored.id, stored.seq, created=False, state=stored.state)
        return None

    def _insert(self, job: NewJob) -> Submitted:
        admitted = sum(stored.state is JobState.QUEUED for stored in self.jobs.values())
        state = JobState.QUEUED if admitted < self.window else JobState.PENDING
        if job.run_at is not None:
            state = JobState.SCHEDULED
        self.new[job.id] = job
        self.jobs[job.id] = stored = _stored(job, len(self.jobs) + 1, state, self._clock)
        return Submitted(stored.id, stored.seq, created=True, state=state)

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


def _stored(job: NewJob, seq: int, state: JobState, clock: FakeClock) -> Job:
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "reason", "node", "lease_id", "result", "error", "exit_code", "failure_class", "progress",
            "cancel_requested_at", "queued_at", "started_at", "finished_at",
        )
    )  # fmt: skip
    return Job(
        seq=seq,
        id=job.id,
        name=job.name,
        task=job.task,
        kind=job.kind,
        queue=job.queue,
        tenant=job.tenant,
        submitted_by=job.submitted_by,
        priority=job.priority,
        state=state,
        resources=job.resources,
        time_limit_seconds=job.time_limit_seconds,
        max_attempts=job.max_attempts,
        attempt=0,
        lost_count=0,
        run_at=job.run_at,
        deadline=job.deadline,
        created_at=clock.now(),
        root_id=job.root_id,
        parent_id=job.parent_id,
        group_id=job.group_id,
        **nothing,
    )
