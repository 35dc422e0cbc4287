"""What operators' and users' orders need of the stores; ``storage`` implements it, under the rules of ``ports``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from orchestrator.domain.job import Job
from orchestrator.domain.policy import Limits, Policy


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


class JobPurge(Protocol):
    """Ended jobs that a person has deleted; dead letters and what others wait for are kept, however old."""

    def count_ended(self, older_than: timedelta) -> int:
        """Count the jobs that a purge would delete."""
        ...

    def purge_ended(self, older_than: timedelta, *, limit: int, by: str) -> int:
        """Delete up to ``limit`` jobs that ended longer ago, the oldest first; return how many."""
        ...


@dataclass(frozen=True, slots=True)
class QueueOrders:
    """A queue's standing orders; ``version`` grows with each change of them."""

    name: str
    paused: bool
    paused_by: str | None
    limits: Limits
    version: int


class QueueControl(Protocol):
    """Orders about queues. Each is recorded in the history with who gave it.

    Changes raise ``QueueNotFound``, and ``StaleVersion`` when a version is given that is not the present one.
    """

    def list_queues(self) -> Sequence[QueueOrders]: ...

    def get(self, name: str) -> QueueOrders: ...

    def set_paused(self, name: str, *, paused: bool, by: str) -> tuple[QueueOrders, int]:
        """Have no job of a queue start from the return on, or let them start again.

        Returns the queue, and how many jobs that were on their way were taken back.
        """
        ...

    def set_limits(self, name: str, changes: Mapping[str, object], *, by: str, version: int | None) -> QueueOrders:
        """Change limits, by the names of ``Limits``; what runs already goes on."""
        ...


class PolicyStore(Protocol):
    """What operators change for the whole installation while it runs."""

    def get(self) -> Policy: ...

    def change(self, changes: Mapping[str, object], *, by: str, version: int | None) -> Policy:
        """Change values, by the names of ``Values``; raises ``StaleVersion`` as a queue's changes do.

        With safe mode on, no job starts from the return on, and what was on its way is taken back.
        """
        ...
