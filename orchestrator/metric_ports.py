"""What metrics need of the outside world beyond ``ports``; ``storage`` and ``streams`` implement them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from orchestrator.domain.job import JobState


class Mark(NamedTuple):
    """A place in the order in which jobs ended."""

    at: datetime
    seq: int


class JobSize(StrEnum):
    """What a job asks for, as far as it decides how long it waits."""

    NONE = "none"  # no GPU
    SHARE = "share"
    ONE = "one"
    MANY = "many"


@dataclass(frozen=True, slots=True)
class EndedJob:
    """How long a job took; ``waited_seconds`` is None if it never started."""

    queue: str
    task: str
    state: JobState
    waited_seconds: float | None  # from when it could start to its last start
    ran_seconds: float | None  # from its last start to its end
    size: JobSize


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


class Total(StrEnum):
    """What is counted for ever, in the transaction that does it."""

    LEASES_EXPIRED = "lease_expired"
    ATTEMPTS_LOST = "attempt_lost"  # by host
    ATTEMPTS_RETRIED = "attempt_retried"  # by host
    WRITES_REFUSED = "write_refused"  # by host
    POOL_EVICTIONS = "pool_eviction"  # by pool


@dataclass(frozen=True, slots=True)
class ActiveLeases:
    """The leases of one kind and mode that live now; seconds by the database's clock."""

    kind: str  # job, pool or adhoc
    mode: str  # exclusive, shared, or none: without a GPU
    count: int
    oldest_seconds: float  # since the oldest of them was granted
    silent_seconds: float  # since the renewal of the one that has waited for it longest


class Tallies(Protocol):
    """What is counted in the database."""

    def totals(self) -> Mapping[Total, Mapping[str, int]]:
        """Return every total by label; what never happened is left out."""
        ...

    def active_leases(self) -> Sequence[ActiveLeases]:
        """Return the leases that live, by kind and mode."""
        ...

    def dead_letters(self) -> Mapping[str, int]:
        """Return how many wait for a person, by queue; queues without any are left out."""
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
