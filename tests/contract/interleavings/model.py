"""What the stores should have come to: the rules of jobs, leases and leaders in dictionaries, without a database.

Instants are seconds on the scripted clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.job import TERMINAL_STATES, JobEvent, JobState, next_state

WINDOW = 16  # of a queue that nobody set
MAX_LOST = 3
LOST_DELAY = 1.0
WAITING = frozenset({JobState.PENDING, JobState.QUEUED})


@dataclass
class ModelJob:
    """One job."""

    seq: int
    id: str
    gpus: int
    state: JobState
    run_at: float | None = None
    deadline: float | None = None
    node: str | None = None
    attempt: int = 0
    lost: int = 0
    claimed_at: float = 0.0
    lease: int | None = None
    asked: bool = False
    progress: int | None = None
    finished_at: float | None = None
    ended: dict[int, tuple[int, JobEvent]] = field(default_factory=dict)  # attempt -> lease and how it ended


@dataclass
class ModelLease:
    """One lease."""

    id: int
    node: str
    gpus: tuple[str, ...]
    expires_at: float
    renewals: int = 0
    is_active: bool = True


@dataclass(frozen=True)
class Claimed:
    """What a worker believes that it holds, whether it still does or not."""

    seq: int
    attempt: int
    lease: int
    node: str


@dataclass
class Model:
    """The whole installation."""

    now: float = 0.0
    jobs: dict[int, ModelJob] = field(default_factory=dict)
    leases: dict[int, ModelLease] = field(default_factory=dict)
    heartbeats: dict[str, float] = field(default_factory=dict)
    lost_nodes: set[str] = field(default_factory=set)
    leader: str | None = None
    epoch: int = 0
    term_ends: float = 0.0

    def job_states(self) -> dict[int, tuple[str, int, int, int | None, bool, int | None]]:
        """Return what the jobs' rows should say."""
        return {
            job.seq: (job.state.value, job.attempt, job.lost, job.lease, job.asked, job.progress)
            for job in self.jobs.values()
        }

    def held(self) -> dict[str, int]:
        """Return the exclusive holder of each GPU that has one."""
        return {gpu: lease.id for lease in self.leases.values() if lease.is_active for gpu in lease.gpus}

    def is_live(self, lease_id: int, node: str) -> bool:
        """The database would take the lease for live, for this host."""
        lease = self.leases.get(lease_id)
        return lease is not None and lease.is_active and lease.node == node and lease.expires_at > self.now

    def admitted_at_submit(self) -> JobState:
        """Return where a job goes that may start at once."""
        states = [job.state for job in self.jobs.values()]
        crowded = JobState.PENDING in states or states.count(JobState.QUEUED) >= WINDOW
        return JobState.PENDING if crowded else JobState.QUEUED

    def may_claim(self, job: ModelJob, node: str) -> bool:
        """The job waits for this host, and may still start."""
        in_time = job.deadline is None or job.deadline > self.now
        return job.state is JobState.QUEUED and job.node in (None, node) and in_time

    def claim(self, job: ModelJob, lease: ModelLease) -> Claimed:
        """Start a job under a lease."""
        self.leases[lease.id] = lease
        job.state, job.node, job.lease = JobState.RUNNING, lease.node, lease.id
        job.attempt += 1
        job.claimed_at = self.now
        return Claimed(job.seq, job.attempt, lease.id, lease.node)

    def owns(self, claimed: Claimed) -> bool:
        """The attempt is the one that runs."""
        job = self.jobs.get(claimed.seq)
        return (
            job is not None
            and job.state is JobState.RUNNING
            and (job.attempt, job.lease)
            == (
                claimed.attempt,
                claimed.lease,
            )
        )

    def finish(self, claimed: Claimed, node: str, event: JobEvent, delay: float) -> bool:
        """End an attempt if it may be ended; return whether the report counts as stale."""
        if self.owns(claimed) and self.is_live(claimed.lease, node):
            self.end(self.jobs[claimed.seq], event, delay)
            return False
        job = self.jobs.get(claimed.seq)
        recorded = job.ended.get(claimed.attempt) if job is not None else None
        return not (recorded == (claimed.lease, event) and node == claimed.node)

    def end(self, job: ModelJob, event: JobEvent, delay: float, *, forgiven: bool = False) -> None:
        """Close the running attempt; ``forgiven``: its worker was not lost for it."""
        if job.asked and event in (JobEvent.RETRY, JobEvent.LOSE, JobEvent.GIVE_BACK, JobEvent.REQUEUE):
            event = JobEvent.CANCEL
        assert job.lease is not None
        if event is JobEvent.GIVE_BACK:
            job.attempt -= 1
        else:
            job.ended[job.attempt] = (job.lease, event)
        job.lost += event in (JobEvent.LOSE, JobEvent.BURY) and not forgiven
        job.state, job.lease = next_state(JobState.RUNNING, event), None
        if job.state is JobState.SCHEDULED:
            job.run_at = self.now + delay
        if job.state in TERMINAL_STATES:
            job.finished_at = self.now
        else:
            job.node = None

    def end_leases(self, leases: Iterable[ModelLease], delay: float, *, none_ran: bool = False) -> int:
        """End active leases, and lose what ran under them, charging the first of each line; return how many."""
        ended = [lease for lease in leases if lease.is_active]
        for lease in ended:
            lease.is_active = False
            line = [job for job in self.jobs.values() if job.state is JobState.RUNNING and job.lease == lease.id]
            for place, job in enumerate(sorted(line, key=lambda job: (job.claimed_at, job.seq))):
                forgiven = none_ran or place > 0
                last = not forgiven and job.lost + 1 >= MAX_LOST
                self.end(job, JobEvent.BURY if last else JobEvent.LOSE, delay, forgiven=forgiven)
        return len(ended)

    def cancel(self, job: ModelJob) -> None:
        """Cancel a job, or ask its worker to end it."""
        if job.state in TERMINAL_STATES:
            return
        job.asked = True
        if job.state is not JobState.RUNNING:
            job.state, job.finished_at = JobState.CANCELLED, self.now

    def release_due(self) -> int:
        """Release what is due and give up what is late; return how many."""
        due = [job for job in self.jobs.values() if job.state is JobState.SCHEDULED and (job.run_at or 0) <= self.now]
        for job in due:
            job.state = JobState.PENDING
        waiting = [job for job in self.jobs.values() if job.state in WAITING]
        late = [job for job in waiting if job.deadline is not None and job.deadline <= self.now]
        for job in late:
            job.state, job.finished_at = JobState.CANCELLED, self.now
        return len(due) + len(late)

    def expire(self, candidates: Sequence[tuple[int, int]], grace: float) -> int:
        """End the candidates that are past their end and were not renewed since they were seen."""
        dead = [self.leases[lease_id] for lease_id, renewals in candidates if self._is_dead(lease_id, renewals, grace)]
        return self.end_leases(dead, LOST_DELAY)

    def _is_dead(self, lease_id: int, renewals: int, grace: float) -> bool:
        lease = self.leases.get(lease_id)
        return lease is not None and lease.renewals == renewals and lease.expires_at < self.now - grace

    def lose_nodes(self, silent: float) -> set[str]:
        """Mark hosts that are silent; return which; what is on its way to one that is lost waits again."""
        lost = {
            node for node, beat in self.heartbeats.items() if beat < self.now - silent and node not in self.lost_nodes
        }
        self.lost_nodes |= lost
        for job in self.jobs.values():
            if job.state is JobState.QUEUED and job.node in self.lost_nodes:
                job.state, job.node = JobState.PENDING, None
        return lost

    def campaign(self, holder: str, ttl: float) -> tuple[str, int, bool]:
        """Stand for leadership; return the holder, the epoch and whether it is the one who asked."""
        is_live = self.leader is not None and self.term_ends > self.now
        if is_live and self.leader != holder:
            assert self.leader is not None
            return self.leader, self.epoch, False
        if not is_live:
            self.leader, self.epoch = holder, self.epoch + 1
        self.term_ends = self.now + ttl
        return holder, self.epoch, True

    def prune(self, age: float) -> int:
        """Delete what ended long ago; return how many jobs."""
        old = [job for job in self.jobs.values() if job.finished_at is not None and job.finished_at < self.now - age]
        for job in old:
            del self.jobs[job.seq]
        return len(old)
