"""Verify a history: every invariant of the design, over what the database, runners and guardians recorded.

``verify`` reads a ``HistoryView`` in one pass and bounded memory, so it is also the user's tool (``orch admin verify``)
for a live installation; a ``History`` is the view over rows that a test made up. Nothing here writes, and nothing
relies on what the checked code concluded: the rules are read from the transition table and from the rows alone.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from orchestrator.domain.entry import JobEntry
from orchestrator.domain.history import (
    Event,
    GpuRow,
    HistoryView,
    Hold,
    JobHistory,
    JobRow,
    LeaseRow,
    RunnerSpan,
)
from orchestrator.domain.job import TERMINAL_STATES, JobState
from orchestrator.testing.invariants import INVARIANTS, Violation
from orchestrator.testing.job_invariants import check_job
from orchestrator.testing.lease_invariants import check_gpu, check_leaders, check_lease
from orchestrator.testing.runner_spans import check_overlaps, check_tokens

__all__ = ["INVARIANTS", "Expectations", "History", "Report", "Violation", "verify"]

Item = TypeVar("Item")

#: Violations of one invariant that a report keeps; the rest are only counted.
MOST_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class History:
    """A history in memory; what is left out is empty."""

    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    of_jobs: Sequence[JobHistory] = ()
    of_leases: Sequence[LeaseRow] = ()
    of_gpus: Sequence[GpuRow] = ()
    of_holds: Mapping[str, Sequence[Hold]] = field(default_factory=dict)
    of_leaders: Sequence[Event] = ()
    of_strays: Sequence[tuple[str, int]] = ()

    def now(self) -> datetime:
        """Return the instant of the view."""
        return self.at

    def jobs(self) -> Iterator[JobHistory]:
        """Yield every job."""
        return iter(self.of_jobs)

    def leases(self) -> Iterator[LeaseRow]:
        """Yield every lease."""
        return iter(self.of_leases)

    def gpus(self) -> Sequence[GpuRow]:
        """Return every GPU."""
        return self.of_gpus

    def holds(self, gpu_uuid: str) -> Iterator[Hold]:
        """Yield who held a GPU."""
        return iter(self.of_holds.get(gpu_uuid, ()))

    def leader_events(self) -> Iterator[Event]:
        """Yield what leaders wrote."""
        return iter(self.of_leaders)

    def strays(self) -> Iterator[tuple[str, int]]:
        """Yield rows of jobs that do not exist."""
        return iter(self.of_strays)


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the caller knows beyond the database, and what it asks of the installation now."""

    spans: Sequence[RunnerSpan] = ()
    #: Most by which the clocks of the runners' hosts and the database's differ. None: what runners tell is not compared
    #: with the instants of leases, as when a guardian was stopped: its device lock still holds, but its kills are late.
    skew: timedelta | None = timedelta(seconds=1)
    acknowledged: Collection[str] = ()  # ids that submits were told; none of them old enough to be pruned
    settled: bool = False  # all work should have ended
    overdue: timedelta | None = None  # a leader is at work, and acts within this bound
    exist: Callable[[Sequence[tuple[JobEntry, str]]], Sequence[bool]] | None = None  # StreamPublisher.exist


@dataclass(slots=True)
class Report:
    """What was checked and what does not hold."""

    checked: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)  # violations by invariant
    violations: list[Violation] = field(default_factory=list)  # the first of each invariant

    @property
    def is_clean(self) -> bool:
        """Every invariant holds."""
        return not self.counts

    def add(self, *violations: Violation) -> None:
        """Take in what was found."""
        for violation in violations:
            self.counts[violation.invariant] += 1
            if self.counts[violation.invariant] <= MOST_KEPT:
                self.violations.append(violation)

    def __str__(self) -> str:
        return "\n".join(map(str, self.violations)) or "clean"


def verify(view: HistoryView, expected: Expectations | None = None) -> Report:
    """Check every invariant that the view and the caller's knowledge allow to check, and report."""
    expected = expected or Expectations()
    report = Report()
    claimed = _verify_jobs(view, expected, report)
    leases = _verify_leases(view, expected, report)
    for gpu in view.gpus():
        report.checked["gpus"] += 1
        report.add(*check_gpu(gpu, view.holds(gpu.uuid)))
    report.add(*check_leaders(_counted(view.leader_events(), "leader_events", report)))
    for table, seq in view.strays():
        report.add(Violation("acknowledged-job-exists", f"job seq {seq}", f"is gone, and {table} still has rows of it"))
    report.checked["runners"] += len(expected.spans)
    report.add(*check_overlaps(expected.spans, leases))
    report.add(*check_tokens(expected.spans, leases, claimed, skew=expected.skew))
    return report


def _verify_jobs(view: HistoryView, expected: Expectations, report: Report) -> dict[tuple[str, int], int]:
    """Check job by job; return the lease of each attempt that the runners' spans name."""
    named = {(span.job_id, span.attempt) for span in expected.spans}
    missing = set(expected.acknowledged)
    claimed: dict[tuple[str, int], int] = {}
    unclaimed: list[JobRow] = []
    for history in view.jobs():
        job = history.job
        report.checked["jobs"] += 1
        report.checked["events"] += len(history.events)
        report.checked["attempts"] += len(history.attempts)
        missing.discard(job.id)
        report.add(*check_job(history))
        report.add(*_check_rest(job, view.now(), expected))
        claimed |= {(job.id, a.number): a.lease_id for a in history.attempts if (job.id, a.number) in named}
        if expected.exist is not None and job.state is JobState.QUEUED:
            unclaimed.append(job)
    for job_id in sorted(missing):
        report.add(Violation("acknowledged-job-exists", f"job {job_id}", "was acknowledged and is not there"))
    report.add(*_check_entries(unclaimed, view.now(), expected))
    return claimed


def _verify_leases(view: HistoryView, expected: Expectations, report: Report) -> dict[int, LeaseRow]:
    """Check lease by lease; return those that the runners' spans name."""
    tokens = {span.token for span in expected.spans}
    named: dict[int, LeaseRow] = {}
    for lease in _counted(view.leases(), "leases", report):
        report.add(*check_lease(lease))
        if expected.overdue is not None and lease.state == "active":
            report.add(*_overdue(f"lease {lease.id}", "its end", lease.expires_at, view.now(), expected.overdue))
        if lease.id in tokens:
            named[lease.id] = lease
    return named


def _check_rest(job: JobRow, now: datetime, expected: Expectations) -> Iterator[Violation]:
    subject = f"job {job.id}"
    if expected.settled and job.state not in TERMINAL_STATES:
        yield Violation("settled", subject, f"is {job.state.value}")
    if expected.overdue is None:
        return
    if job.ready is not None:
        yield from _overdue(subject, "its entry's look-up", job.ready.publish_at, now, expected.overdue)
        yield from _overdue(subject, "its deadline", job.deadline, now, expected.overdue)
    yield from _overdue(subject, "its release", job.scheduled_at, now, expected.overdue)


def _overdue(subject: str, what: str, due: datetime | None, now: datetime, bound: timedelta) -> Iterator[Violation]:
    if due is not None and due + bound < now:
        yield Violation("no-overdue", subject, f"{what} was due at {due.isoformat()}, it is {now.isoformat()}")


def _check_entries(jobs: Sequence[JobRow], now: datetime, expected: Expectations) -> Iterator[Violation]:
    """Check that jobs whose entry is only looked for later have one now."""
    if expected.exist is None:
        return
    known = [
        (job, job.ready.entry_id, job.ready.node)
        for job in jobs
        if job.ready and job.ready.entry_id and job.ready.publish_at and job.ready.publish_at > now
    ]
    entries = [(JobEntry(job.id, job.seq, "", job.queue, node, {}), entry_id) for job, entry_id, node in known]
    for (job, entry_id, _), there in zip(known, expected.exist(entries), strict=True):
        if not there:
            yield Violation("entry-reachable", f"job {job.id}", f"is queued, and its entry {entry_id} is gone")


def _counted(items: Iterator[Item], what: str, report: Report) -> Iterator[Item]:
    for item in items:
        report.checked[what] += 1
        yield item
