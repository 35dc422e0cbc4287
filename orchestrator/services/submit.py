"""Take requests in: validate, store, and put into the streams what may start at once.

A job is acknowledged when it is committed. Everything after that is a short cut: an entry that could not be published
is published by the leader, and a wake-up that is lost costs at most one sweep interval.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from orchestrator.config import Settings
from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import JobState, NewJob
from orchestrator.domain.request import COMMAND_TASK, Limits, Request, new_job
from orchestrator.errors import StreamUnavailable, UnknownQueue, UnknownTask
from orchestrator.ports import SubmitOutcome, Submitted
from orchestrator.runtime import Runtime
from orchestrator.services.feasibility import KnownHosts
from orchestrator.services.publish import publish_admitted

logger = logging.getLogger(__name__)

#: Submits that leave jobs waiting wake the leader at most so often; its own sweeps find the rest.
WAKE_SECONDS: Final = 0.1


class SubmitService:
    """Takes requests in; keep one a process, safe to share between threads."""

    def __init__(
        self, runtime: Runtime, *, known_tasks: Collection[str] | None = None, ask_hosts: bool = False
    ) -> None:
        """Make it.

        Args:
            runtime: The outside world.
            known_tasks: Names of the tasks that workers run; None when this process cannot know them.
            ask_hosts: Refuse tasks that no registered host's app knows.
        """
        self._runtime = runtime
        self._limits = limits_of(runtime.settings)
        self._known_tasks = frozenset(known_tasks) if known_tasks is not None else None
        self._ask_hosts = ask_hosts
        self._hosts = KnownHosts(runtime.cluster.nodes, runtime.clock)
        self._woke_at = -WAKE_SECONDS
        self.unpublished = 0  # entries left to the leader

    def submit(self, requests: Sequence[Request]) -> tuple[Submitted, ...]:
        """Store every request as a job, or none, and return them in order.

        An id or key that was used before, with the same request, names the job that exists already.

        Raises:
            InvalidRequest: Of the kind that says what to change: ``InvalidJob``, ``PayloadTooLarge``, ``UnknownTask``,
                ``UnknownQueue``, ``UnsatisfiableRequest``.
            IdempotencyConflict: If a key was used with another request.
            StoreUnavailable: If the database does not answer; submit again with the same key or id.
        """
        jobs = [self._accept(request) for request in requests]
        outcome = self._store(jobs)
        published = publish_admitted(self._runtime.publisher, outcome.entries)
        self.unpublished += len(outcome.entries) - published
        if any(job.created and job.state is JobState.PENDING for job in outcome.jobs):
            self._wake()
        return outcome.jobs

    def _accept(self, request: Request) -> NewJob:
        now = self._runtime.clock.now()
        job = new_job(request, id=uuid7(now), limits=self._limits)
        if self._known_tasks is not None and job.task != COMMAND_TASK and job.task not in self._known_tasks:
            raise UnknownTask(job.task)
        if self._ask_hosts and job.task != COMMAND_TASK:
            self._hosts.require_known(job.task)
        self._hosts.require_satisfiable(job.resources)
        return replace(job, run_at=None) if job.run_at is not None and job.run_at <= now else job

    def _store(self, jobs: Sequence[NewJob]) -> SubmitOutcome:
        try:
            return self._runtime.jobs.submit(jobs)
        except UnknownQueue as error:
            # The settings' queues exist from the start, even in a database that no worker has seen yet.
            if error.name not in self._runtime.settings.queues:
                raise
            self._runtime.cluster.ensure_queues(self._runtime.settings.queues)
            return self._runtime.jobs.submit(jobs)

    def _wake(self) -> None:
        now = self._runtime.clock.monotonic()
        if now - self._woke_at < WAKE_SECONDS:
            return
        self._woke_at = now
        try:
            self._runtime.wake.publish("place")
        except StreamUnavailable as error:
            logger.info("the leader was not woken and places the job on its next sweep: %s", error)


def limits_of(settings: Settings) -> Limits:
    """Return what the settings allow a request to ask for."""
    return Limits(
        max_payload_bytes=settings.max_payload_bytes,
        max_priority=settings.max_priority,
        default_queue=settings.default_queue,
        default_grace_seconds=settings.default_grace,
        allowed_cwd=tuple(str(path) for path in settings.allowed_cwd),
    )
