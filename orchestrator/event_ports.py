"""What who follows the history needs of the store; ``storage`` implements it, under the rules that ``ports`` tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from orchestrator.domain.job import Document, JobState


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One line of the history, with the job that it is about."""

    seq: int
    at: datetime
    kind: str
    job_seq: int | None
    job_id: str | None
    tenant: str | None
    state: JobState | None  # of the job when this was read
    node: str | None
    lease_id: int | None
    data: Document


class Cursor(NamedTuple):
    """A place in a job's output."""

    attempt: int = 0
    number: int = -1


class Chunk(NamedTuple):
    """A piece of a job's output."""

    job_seq: int
    cursor: Cursor
    text: str


class EventStore(Protocol):
    """The history as it grows. A transaction that began earlier may commit later: numbers can come out of order."""

    def newest(self) -> int:
        """Return the number of the latest event, 0 if there is none."""
        ...

    def after(self, seq: int, *, missing: Sequence[int] = (), limit: int) -> Sequence[FeedEvent]:
        """Return events in order: those behind a number, and of the missing ones those that are there by now."""
        ...

    def page(
        self, *, after: int, upto: int | None, job_seq: int | None, tenant: str | None, limit: int
    ) -> Sequence[FeedEvent]:
        """Return events in order, of one job or tenant where one is given."""
        ...

    def output(self, cursors: Mapping[int, Cursor], *, limit: int) -> Sequence[Chunk]:
        """Return output of jobs, given with where each was read to, in the order of each."""
        ...

    def progress(self, job_seqs: Sequence[int]) -> Mapping[int, Document | None]: ...
