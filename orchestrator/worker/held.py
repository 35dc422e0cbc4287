"""The delivered jobs of a worker that have not ended there, and the entries that they are acknowledged with."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock
from orchestrator.domain.job import JobEvent
from orchestrator.domain.lease import Finish
from orchestrator.observe.logs import about
from orchestrator.worker.host import WaitingJob

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Held:
    request: Any
    waiting: WaitingJob
    since: float


class HeldJobs:
    """Jobs by their seqs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[int, _Held] = {}

    def __contains__(self, seq: int) -> bool:
        return seq in self._held

    def add(self, request: Any, waiting: WaitingJob) -> None:
        """Keep a delivered job's request."""
        self._held[waiting.seq] = _Held(request, waiting, self._clock.monotonic())

    def request(self, seq: int) -> Any:
        """Return Celery's request of a job."""
        return self._held[seq].request

    def named(self, job_id: str) -> WaitingJob | None:
        """Return the job of this id."""
        return next((held.waiting for held in self._held.values() if held.waiting.id == job_id), None)

    def ids(self, seqs: Iterable[int]) -> list[str]:
        """Return the ids of those of these jobs that are here."""
        return [self._held[seq].waiting.id for seq in seqs if seq in self._held]

    def late(self, jobs: Iterable[WaitingJob], longest_seconds: float) -> set[int]:
        """Return which of these jobs have been here for longer."""
        now = self._clock.monotonic()
        return {job.seq for job in jobs if now - self._held[job.seq].since > longest_seconds}

    def settle(self, seq: int, tell: Callable[[Any], None]) -> None:
        """Let go of a job, if it is here; ``tell`` says what became of it, and acknowledges its entry."""
        held = self._held.pop(seq, None)
        if held is not None:
            tell(held.request)

    def give_back_unknown(self, attempts: Iterable[tuple[int, int, int]]) -> list[Finish]:
        """Return the finishes of attempts (job seq, number, lease) that stand under our leases and never came here."""
        lost = [attempt for attempt in attempts if attempt[0] not in self._held]
        for seq, number, lease_id in lost:
            words = "job %d, granted to lease %d at its submit, has not come; it is given back"
            logger.info(words, seq, lease_id, extra=about(attempt=number, token=lease_id))
        return [Finish(seq, number, lease_id, JobEvent.GIVE_BACK) for seq, number, lease_id in lost]
