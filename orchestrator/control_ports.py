"""What operators' and users' orders need of the stores; ``storage`` implements it, under the rules of ``ports``."""

from dataclasses import dataclass
from typing import Protocol

from orchestrator.domain.job import Job


@dataclass(frozen=True, slots=True)
class JobChange:
    """The job after an order; ``changed`` is False when it was so before."""

    job: Job
    changed: bool


class JobControl(Protocol):
    """Orders about single jobs. Each is recorded in the job's history with who gave it.

    All raise ``UnknownJob``, and ``IllegalTransition`` when the job's state does not allow the order. A blocked job
    takes no orders: what calls it in its canvas decides about it.
    """

    def set_priority(self, job_id: str, priority: int, *, by: str) -> JobChange:
        """Give a job that waits another priority, 0 to 9; one that is on its way to a host keeps its place there."""
        ...

    def hold(self, job_id: str, *, by: str) -> JobChange:
        """Keep a job that has not started from starting, from the return on; its admission is taken back."""
        ...

    def unhold(self, job_id: str, *, by: str) -> JobChange:
        """Let a held job take its place among the others."""
        ...

    def retry(self, job_id: str, *, by: str) -> JobChange:
        """Have a job that did not end well tried again, with all its attempts.

        Raises:
            NotRetriable: If it was dismissed, or cancelled before its canvas came to it.
        """
        ...
