"""What metrics need of the outside world beyond ``ports``; ``storage`` and ``streams`` implement them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from orchestrator.domain.job import JobState


class Mark(NamedTuple):
    """A place in the order in which jobs ended."""

    at: datetime
    seq: int


@dataclass(frozen=True, slots=True)
class EndedJob:
    """How long a job took; ``waited_seconds`` is None if it never started."""

    queue: str
    task: str
    state: JobState
    waited_seconds: float | None  # from when it could start to its last start
    ran_seconds: float | None  # from its last start to its end


class JobTimes(Protocol):
    """The times of jobs that ended."""

    def mark(self) -> Mark:
        """Return the present place: no job that ends from now on stands before it."""
        ...

    def ended(self, after: Mark, *, limit: int) -> tuple[Sequence[EndedJob], Mark]:
        """Return jobs that ended after a place, in order, and the place of the last one.

        The last seconds are left out: an end is dated when it is written and seen when it is committed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is in the streams of a queue."""

    waiting: int  # delivered to nobody
    pending: int  # delivered and not acknowledged


class StreamGauge(Protocol):
    """How full streams are; raises ``StreamUnavailable``."""

    def backlogs(self, queues: Sequence[str], nodes: Sequence[str]) -> Mapping[str, Backlog]:
        """Return for each queue what its own stream and those of these hosts hold."""
        ...
