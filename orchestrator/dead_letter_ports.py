"""What services need of the store of dead letters; ``storage`` implements it, under the rules that ``ports`` tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.domain.job import FailureClass


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that could not be processed and that nobody has tried again or dismissed yet."""

    seq: int  # the job's
    job_id: str
    queue: str
    failure_class: FailureClass
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters to list, newest job first; None means any."""

    queue: str | None = None
    failure_class: FailureClass | None = None
    before_seq: int | None = None  # keyset cursor
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Revived:
    """What became of a request to try again; ``changed`` is False when somebody had done it before."""

    job_id: str
    changed: bool


class DeadLetterStore(Protocol):
    """Dead letters; the database is the truth, the dead-letter stream only a bounded copy."""

    def get(self, job_id: str) -> DeadLetter:
        """Return one; raises ``UnknownDeadLetter``."""
        ...

    def list_letters(self, wanted: DeadLetterFilter) -> Sequence[DeadLetter]: ...

    def revive(self, job_id: str, *, by: str) -> Revived:
        """Make the job pending again with all its attempts, and record who did it.

        One that was revived before is left as it is. Raises ``UnknownDeadLetter`` if it never was a dead letter, or was
        purged.
        """
        ...

    def purge(self, job_id: str, *, by: str) -> None:
        """Dismiss one: its job stays a dead letter until it is pruned. Raises ``UnknownDeadLetter``."""
        ...

    def purge_all(self, wanted: DeadLetterFilter, *, by: str) -> Sequence[str]:
        """Dismiss those that the filter lets through, in one transaction, and return their jobs' ids."""
        ...

    def bury(self, job_id: str, *, by: str, reason: str) -> bool:
        """Make a job that is queued a dead letter; False if it is not queued (any more)."""
        ...

    def uncopied(self, *, limit: int) -> Sequence[DeadLetter]:
        """Return those whose copy is not in the dead-letter stream yet."""
        ...

    def note_copied(self, seqs: Sequence[int], *, epoch: int) -> None:
        """Record that the dead-letter stream has had these; fenced by the leader's epoch."""
        ...
