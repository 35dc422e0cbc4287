"""What must hold of one job: its way through the states, its attempts, and the tokens that they were written under."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from orchestrator.domain.history import AttemptRow, Event, JobHistory, LeaseRow
from orchestrator.domain.job import INITIAL_STATES, TERMINAL_STATES, TRANSITIONS, JobEvent, JobState, LeaseMode
from orchestrator.testing.invariants import TRANSACTION_SLACK, Violation

#: Ends that only the worker that ran the attempt can tell of; others also come with the end of the lease.
_WORKERS_OWN: Final = frozenset({JobEvent.SUCCEED, JobEvent.FAIL, JobEvent.RETRY})
_EVENTS: Final = frozenset(event.value for event in JobEvent)
SUBMIT: Final = "submit"
ASK_CANCEL: Final = "ask_cancel"


@dataclass(slots=True)
class _Run:
    """An attempt as the events tell of it."""

    claim: Event
    end: Event | None = None


@dataclass(slots=True)
class _Fold:
    """What the events up to some point say."""

    history: JobHistory
    states: set[JobState] = field(default_factory=set)  # several only before the first move: a submit names no state
    runs: list[_Run] = field(default_factory=list)  # without those that were given back
    is_open: bool = False
    asked_cancel: Event | None = None
    losses: int = 0
    requeues: int = 0
    burials: int = 0
    failures: int = 0
    revivals: int = 0  # times that it left a terminal state, which only a person can make happen
    found: list[Violation] = field(default_factory=list)

    def report(self, invariant: str, seen: str, *events: Event | None) -> None:
        where = " ".join(f"event {event.seq}" for event in events if event is not None)
        self.found.append(Violation(invariant, f"job {self.history.job.id}", seen, where))


def check_job(history: JobHistory) -> Iterator[Violation]:
    """Yield what does not hold of one job."""
    fold = _Fold(history)
    for event in history.events:
        _step(fold, event)
    _check_row(fold)
    _check_places(fold)
    _check_needs(fold)
    _check_attempts(fold)
    _check_times(fold)
    yield from fold.found


def _step(fold: _Fold, event: Event) -> None:
    if not fold.states and event.kind != SUBMIT:
        fold.report("legal-path", f"its first event is {event.kind}, not {SUBMIT}", event)
        fold.states = set(JobState) - TERMINAL_STATES
    if event.kind == SUBMIT:
        if fold.states:
            fold.report("legal-path", "submitted twice", event)
        fold.states = set(INITIAL_STATES)
    elif event.kind == ASK_CANCEL:
        if JobState.RUNNING not in fold.states:
            fold.report("legal-path", f"asked to stop while {_words(fold.states)}", event)
        fold.asked_cancel = event
    elif event.kind in _EVENTS:
        _move(fold, event, JobEvent(event.kind))


def _move(fold: _Fold, event: Event, kind: JobEvent) -> None:
    was_running = JobState.RUNNING in fold.states
    after = {TRANSITIONS[state, kind] for state in fold.states if (state, kind) in TRANSITIONS}
    if not after:
        invariant = "one-end" if fold.states <= TERMINAL_STATES else "legal-path"
        if kind is JobEvent.CLAIM and was_running:
            invariant = "one-attempt"
        fold.report(invariant, f"{kind.value} while {_words(fold.states)}", event)
        after = {to for (_, by), to in TRANSITIONS.items() if by is kind}  # go on as if it had been legal
    elif fold.states <= TERMINAL_STATES:
        fold.revivals, fold.asked_cancel = fold.revivals + 1, None
    fold.states = after
    if kind is JobEvent.CLAIM:
        _claim(fold, event)
    elif was_running and fold.is_open:
        _end(fold, event, kind)


def _claim(fold: _Fold, event: Event) -> None:
    if fold.asked_cancel is not None:
        fold.report("cancel-heeded", "started after it was asked to stop", fold.asked_cancel, event)
    fold.runs.append(_Run(event))
    fold.is_open = True
    lease = fold.history.leases.get(event.lease_id or 0)
    if lease is None:
        return  # pruned; an attempt that is still there names it, and that is checked below
    if lease.node != event.node:
        fold.report("claim-under-live-lease", f"on {event.node} under lease {lease.id} of {lease.node}", event)
    if _is_past(event, lease):
        fold.report("claim-under-live-lease", f"under lease {lease.id}, which {_end_words(lease)}", event)
    wanted = fold.history.job.resources
    if wanted.wants is not None and wanted.wants.model is not None and lease.gpus:
        return  # the runner that has its model has the GPUs that its pool asked for
    alike = [w for w in wanted.options if lease.mode is w.mode and len(lease.gpus) == w.gpus]
    if not alike:
        held = f"{len(lease.gpus)} GPUs, {lease.mode.value}"
        fold.report("gang-whole", f"asked for {wanted.gpus} GPUs, {wanted.mode.value}; lease {lease.id}: {held}", event)
    elif lease.mode is LeaseMode.SHARED and all((lease.memory_mib or 0) < (w.gpu_memory_mib or 0) for w in alike):
        fold.report("gang-whole", f"asked for {wanted.gpu_memory_mib} MiB, got {lease.memory_mib}", event)


def _end(fold: _Fold, event: Event, kind: JobEvent) -> None:
    run = fold.runs[-1]
    fold.is_open, run.end = False, event
    if event.lease_id != run.claim.lease_id:
        seen = f"{kind.value} under lease {event.lease_id}; it ran under lease {run.claim.lease_id}"
        fold.report("fenced-end", seen, run.claim, event)
    lease = fold.history.leases.get(event.lease_id or 0)
    if lease is not None and kind in _WORKERS_OWN and _is_past(event, lease):
        fold.report("live-token", f"{kind.value} under lease {lease.id}, which {_end_words(lease)}", event)
    if kind is JobEvent.GIVE_BACK:
        fold.runs.pop()
    fold.losses += kind is JobEvent.LOSE
    fold.requeues += kind is JobEvent.REQUEUE
    fold.burials += kind is JobEvent.BURY


def _is_past(event: Event, lease: LeaseRow) -> bool:
    """The lease had ended, or could have been expired, before the event's transaction began."""
    if lease.ended_at is not None and event.at > lease.ended_at:
        return True
    return event.at > lease.expires_at + TRANSACTION_SLACK


def _end_words(lease: LeaseRow) -> str:
    return f"was live until {min(filter(None, (lease.expires_at, lease.ended_at))).isoformat()}"


def _check_row(fold: _Fold) -> None:
    job = fold.history.job
    if fold.states and job.state not in fold.states:
        last = fold.history.events[-1]
        fold.report("legal-path", f"its row says {job.state.value}, its events {_words(fold.states)}", last)
    if not fold.states:
        fold.report("legal-path", f"its row says {job.state.value}, and it has no events")
    if job.state is not JobState.RUNNING:
        return
    lease = fold.history.leases.get(job.lease_id or 0)
    if fold.runs and job.lease_id != fold.runs[-1].claim.lease_id:
        claim = fold.runs[-1].claim
        fold.report("running-under-lease", f"under lease {job.lease_id}, claimed under {claim.lease_id}", claim)
    elif lease is None or lease.state != "active":
        fold.report("running-under-lease", f"lease {job.lease_id} is {lease.state if lease else 'not there'}")


def _check_places(fold: _Fold) -> None:
    job = fold.history.job
    places = [name for name, row in (("ready", job.ready), ("scheduled", job.scheduled_at)) if row is not None]
    wanted = {JobState.PENDING: ["ready"], JobState.QUEUED: ["ready"], JobState.SCHEDULED: ["scheduled"]}
    if places != wanted.get(job.state, []):
        fold.report("waits-in-one-place", f"{job.state.value}, and in {' and '.join(places) or 'no table'}")
    if job.ready is not None and (job.ready.publish_at is not None) != (job.state is JobState.QUEUED):
        told = "without an instant at which its entry is looked for"
        fold.report("outbox", f"{job.state.value} {told if job.ready.publish_at is None else 'with an entry due'}")


def _check_needs(fold: _Fold) -> None:
    job = fold.history.job
    if (job.state is JobState.BLOCKED) != (job.needs > 0):
        fold.report("blocked-needs", f"{job.state.value}, and waits for {job.needs} tasks")
    elif job.failed_need is not None:
        fold.report("blocked-needs", f"waits for {job.failed_need}, which ended otherwise than well")


def _check_attempts(fold: _Fold) -> None:
    job, rows = fold.history.job, fold.history.attempts
    numbers = [row.number for row in rows]
    if numbers != list(range(1, len(fold.runs) + 1)) or job.attempt != len(fold.runs):
        fold.report("attempts-counted", f"{len(fold.runs)} claims, attempts {numbers}, its row counts {job.attempt}")
    for row in rows:
        if row.number <= len(fold.runs):
            _check_attempt(fold, row, fold.runs[row.number - 1])
        elif row.last_output_at is not None:
            fold.report("fenced-output", f"attempt {row.number} has output, and was never claimed")
    if fold.revivals:
        return  # a person gave it new attempts
    counted = job.lost_count + job.forgiven
    if not fold.losses + fold.requeues <= counted or job.lost_count > fold.losses + fold.burials:
        seen = f"{fold.losses} losses, {fold.requeues} requeues, {fold.burials} burials"
        fold.report("losses-counted", f"{seen}; its row counts {job.lost_count}, and {job.forgiven} forgiven")
    failures = sum(row.failure_class is not None for row in rows if row.outcome in ("retry", "fail"))
    if failures > job.max_attempts:
        fold.report("attempts-bounded", f"{failures} attempts failed, {job.max_attempts} were allowed")


def _check_attempt(fold: _Fold, row: AttemptRow, run: _Run) -> None:
    claim, end = run.claim, run.end
    if (row.lease_id, row.node) != (claim.lease_id, claim.node):
        seen = f"attempt {row.number} under lease {row.lease_id} on {row.node}, claimed under {claim.lease_id}"
        fold.report("attempts-counted", seen, claim)
    if row.ended != (end is not None) or (end is not None and row.outcome != end.kind):
        seen = f"attempt {row.number} has ended with {row.outcome}; the history has {end.kind if end else 'no end'}"
        fold.report("attempts-counted", seen, end)
    if row.lease_id not in fold.history.leases:
        fold.report("claim-under-live-lease", f"attempt {row.number} names lease {row.lease_id}, which is not there")
    if end is not None and row.last_output_at is not None and row.last_output_at > end.at + TRANSACTION_SLACK:
        fold.report("fenced-output", f"attempt {row.number} has output of {row.last_output_at.isoformat()}", end)
    lease = fold.history.leases.get(row.lease_id)
    if row.failure_class == "lease_expired" and lease is not None and lease.state != "expired":
        fold.report("loss-ends-lease", f"attempt {row.number} was lost with lease {lease.id}: {lease.state}", end)


def _check_times(fold: _Fold) -> None:
    job = fold.history.job
    waits_since: Event | None = None
    released: Event | None = None
    for event in fold.history.events:
        if event.kind in (SUBMIT, JobEvent.DEFER, JobEvent.RETRY, JobEvent.LOSE):
            waits_since, released = event, None
        elif event.kind == JobEvent.RELEASE:
            released = event
        elif event.kind == JobEvent.CLAIM and job.deadline and event.at > job.deadline + TRANSACTION_SLACK:
            fold.report("deadline-kept", f"started after its deadline {job.deadline.isoformat()}", event)
        elif _is_given_up(event) and job.deadline is not None and event.at < job.deadline:
            fold.report("deadline-kept", "given up before its deadline", event)
    # ``run_at`` is that of the latest wait; those before it were overwritten.
    if released is not None and job.run_at is not None and released.at < job.run_at:
        fold.report("not-before-time", f"released before {job.run_at.isoformat()}", waits_since, released)


def _is_given_up(event: Event) -> bool:
    """A leader ended a waiting job and gave no other reason than its deadline."""
    is_leaders = event.epoch is not None and event.lease_id is None
    return event.kind == JobEvent.CANCEL and is_leaders and event.data is None


def _words(states: set[JobState]) -> str:
    return " or ".join(sorted(state.value for state in states)) or "unknown"
