"""Everything that changes a job, a lease or a leader, as rules that hypothesis plays in any order.

Holders, leaders and looks of earlier steps are kept and used again later, when they are long out of date: that is what
a process does that was paused. Each step is compared with the model, and each sequence ends with the checker.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.domain.job import JobEvent, JobState, LeaseMode, Resources
from orchestrator.domain.lease import Claim, ClaimOutcome, Finish, LeaseGrant, LedgerBatch, LogChunk, ProgressReport
from orchestrator.errors import NotLeading
from orchestrator.ports import LossPolicy
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.rows import load
from orchestrator.testing.history import Expectations, verify
from tests.contract.conftest import Stores, new_job
from tests.contract.interleavings.model import LOST_DELAY, MAX_LOST, Claimed, Model, ModelJob, ModelLease
from tests.support.scripted_clock import START, ScriptedClock

Item = TypeVar("Item")

GPUS = 2  # of each host
TTL = 15.0
GRACE = 5.0
LEADER_TTL = 8.0
SILENT = 30.0
RETENTION = 60.0
POLICY = LossPolicy(MAX_LOST, delay=timedelta(seconds=LOST_DELAY), grace=timedelta(seconds=GRACE))
ENDS = (
    JobEvent.SUCCEED,
    JobEvent.FAIL,
    JobEvent.RETRY,
    JobEvent.LOSE,
    JobEvent.CANCEL,
    JobEvent.BURY,
    JobEvent.GIVE_BACK,
    JobEvent.REQUEUE,
)
TABLES = (
    "events",
    "logs",
    "attempts",
    "ready",
    "scheduled",
    "lease_gpus",
    "leases",
    "gpus",
    "dead_letters",
    "needs",
    "jobs",
    "nodes",
    "leadership",
    "policy",
)
JOBS = (
    "SELECT seq, state, attempt, lost_count, lease_id, cancel_requested_at IS NOT NULL AS asked, progress"
    " FROM orchestrator_jobs"
)
HOLDERS = "SELECT uuid, exclusive_lease_id FROM orchestrator_gpus WHERE exclusive_lease_id IS NOT NULL"

#: Steps that would undo too much if they were as frequent as the others.
RARE = ("restart", "heartbeat", "heartbeat", "resign", "lose_nodes", "prune")

#: Which of the things that a rule could mean: 0 is the latest.
pick = st.integers(0, 5)
node = st.sampled_from(["a", "b"])
holder = st.sampled_from(["whoever leads", "whoever leads", "x", "y"])


class Interleavings(RuleBasedStateMachine):
    """One installation: two hosts with two GPUs each, two candidates for leadership."""

    def __init__(self, stores: Stores, clock: ScriptedClock) -> None:
        super().__init__()
        self.stores, self.clock, self.model = stores, clock, Model()
        with stores.database.engine.begin() as connection:
            for table in TABLES:
                connection.exec_driver_sql(f"DELETE FROM orchestrator_{table}")
        self.began = (clock.now() - START).total_seconds()
        self.pids = count(1)
        self.chunks = count()
        self.claims: list[Claimed] = []
        self.looks: list[tuple[tuple[int, int], ...]] = []  # what leaders saw of leases, some time ago
        self.terms: dict[str, int] = {}  # what each candidate believes
        for name in ("a", "b"):
            self.restart(name)
        for name in ("x", "y"):
            self.campaign(name)

    # Jobs

    @rule(
        gpus=st.integers(0, 2),
        delay=st.sampled_from([None, None, None, 2.0]),
        deadline=st.sampled_from([None, None, 3.0, 20.0]),
    )
    def submit(self, gpus: int, delay: float | None, deadline: float | None) -> None:
        run_at = None if delay is None else self.model.now + delay
        ends = None if deadline is None else self.model.now + deadline
        job = new_job(
            resources=Resources(gpus), run_at=self._instant(run_at), deadline=self._instant(ends), max_attempts=99
        )
        (told,) = self.stores.jobs.submit([job]).jobs
        state = self.model.admitted_at_submit() if run_at is None else JobState.SCHEDULED
        self.model.jobs[told.seq] = ModelJob(told.seq, told.id, gpus, state, run_at, ends)
        assert told.state is state

    @rule(which=pick, state=st.sampled_from([None, JobState.RUNNING, JobState.RUNNING]))
    def cancel(self, which: int, state: JobState | None) -> None:
        if job := self._job(which, state):
            self.stores.jobs.request_cancel(job.id, by="me", reason="x")
            self.model.cancel(job)

    @rule(which=pick, host=node)
    def admit_for_a_host(self, which: int, host: str) -> None:
        if job := self._job(which, JobState.PENDING):
            self._admitted(job, host, self.stores.ledger.admit([(job.seq, host)]))

    @rule(which=pick, host=node)
    def withdraw(self, which: int, host: str) -> None:
        if job := self._job(which, JobState.QUEUED):
            self.stores.commit(host, withdrawals=(job.seq,))
            if job.state is JobState.QUEUED and job.node in (None, host):
                job.state, job.node = JobState.PENDING, None

    # Hosts

    @rule(gpus=st.integers(0, 2), host=node, first=st.integers(0, 1))
    def submit_and_claim(self, gpus: int, host: str, first: int) -> None:
        """What happens when nothing is in the way."""
        self.submit(gpus, None, None)
        job = self._job(0)
        assert job is not None
        if job.state is JobState.PENDING:
            self._admitted(job, host, self.stores.ledger.admit([(job.seq, host)]))
        self._claim_of(job, host, first)

    @rule(which=pick, host=node, first=st.integers(0, 1))
    def claim(self, which: int, host: str, first: int) -> None:
        """Claim on GPUs that may be taken, a job that may be another host's, cancelled, late or running."""
        if job := self._job(which, JobState.QUEUED):
            self._claim_of(job, host, first)

    def _claim_of(self, job: ModelJob, host: str, first: int) -> None:
        gpus = tuple(f"{host}-{(first + number) % GPUS}" for number in range(job.gpus))
        granted = LeaseGrant(gpus, LeaseMode.EXCLUSIVE, None)
        outcome = self._claim(host, Claim(1, (job.seq,), Resources(job.gpus), grant=granted))
        free = not self.model.held().keys() & set(gpus)
        assert bool(outcome.granted) == (free and self.model.may_claim(job, host))
        if outcome.granted:
            assert outcome.lease_id is not None
            lease = ModelLease(outcome.lease_id, host, gpus, self.model.now + TTL)
            self.claims.append(self.model.claim(job, lease))

    @rule(which=pick, line=pick, host=node)
    def claim_onto_a_line(self, which: int, line: int, host: str) -> None:
        """Claim under a lease that may have ended, or be another host's."""
        lease = _pick([one for one in self.model.leases.values() if len(one.gpus) == 1], line)
        job = self._job(which, JobState.QUEUED, gpus=1)
        if lease is None or job is None:
            return
        outcome = self._claim(host, Claim(1, (job.seq,), Resources(1), lease_id=lease.id))
        assert bool(outcome.granted) == (self.model.is_live(lease.id, host) and self.model.may_claim(job, host))
        if outcome.granted:
            self.claims.append(self.model.claim(job, lease))

    @rule(which=pick, event=st.sampled_from(ENDS), delay=st.sampled_from([0.0, 3.0]), release=st.booleans())
    def finish(self, which: int, event: JobEvent, delay: float, release: bool) -> None:
        """Report the end of an attempt that runs."""
        claimed = _pick([one for one in self.claims if self.model.owns(one)], which)
        if claimed is not None:
            self._finish(claimed, claimed.node, event, delay)
            if release:
                self._release(claimed.lease, claimed.node)

    @rule(which=pick, event=st.sampled_from(ENDS))
    def finish_late(self, which: int, event: JobEvent) -> None:
        """Report the end of an attempt that may be over, and another one's turn; perhaps for the second time."""
        claimed = _pick(self.claims, which)
        if claimed is not None:
            self._finish(claimed, claimed.node, event, 0.0)

    @rule(which=pick, host=node)
    def finish_from_any_host(self, which: int, host: str) -> None:
        claimed = _pick(self.claims, which)
        if claimed is not None:
            self._finish(claimed, host, JobEvent.SUCCEED, 0.0)

    @rule(which=pick)
    def report(self, which: int) -> None:
        """Send output and progress of an attempt that may be over."""
        claimed = _pick(self.claims, which)
        if claimed is None:
            return
        number, said = next(self.chunks), (claimed.seq, claimed.attempt, claimed.lease)
        progress = ProgressReport(*said, {"done": number})
        self.stores.commit(claimed.node, logs=(LogChunk(*said, number, "x"),), progress=(progress,))
        if self.model.owns(claimed):
            self.model.jobs[claimed.seq].progress = number

    @rule(host=node)
    def renew(self, host: str) -> None:
        """Renew all that the host ever held: it may have been paused since."""
        leases = [lease for lease in self.model.leases.values() if lease.node == host]
        live = {lease.id for lease in leases if self.model.is_live(lease.id, host)}
        renewal = self.stores.ledger.renew(host, [lease.id for lease in leases], ttl=timedelta(seconds=TTL))
        assert renewal.live == live
        asked = {
            job.seq for job in self.model.jobs.values() if job.asked and job.lease in {lease.id for lease in leases}
        }
        assert set(renewal.cancel_requested) == asked
        for lease in leases:
            if lease.id in live:
                lease.expires_at, lease.renewals = self.model.now + TTL, lease.renewals + 1

    @rule(which=pick, host=node)
    def release(self, which: int, host: str) -> None:
        """Give a lease back, or try to give back another host's."""
        lease = _pick(list(self.model.leases.values()), which)
        if lease is not None:
            self._release(lease.id, host)

    def restart(self, host: str) -> None:
        """The host's worker died, and its next life registers."""
        self.stores.register(host, GPUS, pid=next(self.pids))
        self.model.end_leases([lease for lease in self.model.leases.values() if lease.node == host], 0.0)
        self.model.heartbeats[host] = self.model.now
        self.model.lost_nodes.discard(host)

    def heartbeat(self, host: str) -> None:
        self.stores.cluster.heartbeat(host, [], look_ahead=0)
        self.model.heartbeats[host] = self.model.now
        self.model.lost_nodes.discard(host)

    # Leaders

    @rule(name=st.sampled_from(["x", "y"]))
    def campaign(self, name: str) -> None:
        term = self.stores.leadership.campaign(name, ttl=timedelta(seconds=LEADER_TTL))
        assert (term.holder, term.epoch, term.mine) == self.model.campaign(name, LEADER_TTL)
        if term.mine:
            self.terms[name] = term.epoch

    def resign(self, name: str) -> None:
        epoch = self.terms.get(name, 0)
        self.stores.leadership.resign(name, epoch)
        if (self.model.leader, self.model.epoch) == (name, epoch):
            self.model.term_ends = self.model.now

    @rule(name=holder)
    def look(self, name: str) -> None:
        """A leader notes which leases are silent; it may act much later."""
        del name
        overdue = timedelta(seconds=-TTL / 2)
        self.looks.append(tuple(self.stores.admission.expired_leases(limit=99, grace=overdue)))

    @precondition(lambda self: any(self.looks))
    @rule(name=holder, which=pick)
    def expire(self, name: str, which: int) -> None:
        seen = _pick([look for look in self.looks if look], which) or ()
        self._sweep(
            name,
            lambda epoch: self.stores.admission.expire_leases(seen, policy=POLICY, epoch=epoch),
            lambda: self.model.expire(seen, GRACE),
        )

    @rule(host=node)
    def renew_behind_a_leaders_back(self, host: str) -> None:
        """A leader looks and is paused; the holder renews; the leader acts on what it saw."""
        self.wait(10.0)
        self.look("x")
        self.renew(host)
        self.wait(1.0)
        if self.looks[-1]:
            self.expire("whoever leads", 0)

    @rule(host=node)
    def lose_a_worker(self, host: str) -> None:
        """One host goes on renewing; the other's worker is dead for TTL and grace, and a leader sees it."""
        for _ in range(3):
            self.wait(8.0)
            self.renew(host)
        self.look("x")
        if self.looks[-1]:
            self.expire("whoever leads", 0)

    @rule(name=holder)
    def release_due(self, name: str) -> None:
        self._sweep(
            name,
            lambda epoch: self.stores.admission.release_due(limit=99, epoch=epoch),
            self.model.release_due,
        )

    def lose_nodes(self, name: str) -> None:
        self._sweep(
            name,
            lambda epoch: set(self.stores.admission.lose_nodes(silent_for=timedelta(seconds=SILENT), epoch=epoch)),
            lambda: self.model.lose_nodes(SILENT),
        )

    @rule(name=holder, which=pick, host=st.sampled_from([None, "a", "b"]))
    def admit(self, name: str, which: int, host: str | None) -> None:
        job = self._job(which, JobState.PENDING)
        name = self._candidate(name)
        if job is None or name not in self.terms:
            return
        with suppress(NotLeading):
            entries = self.stores.admission.admit([(job.seq, host)], epoch=self.terms[name])
            assert self.terms[name] == self.model.epoch
            self._admitted(job, host, entries)
            return
        assert self.terms[name] != self.model.epoch

    def prune(self, name: str) -> None:
        self.wait(RETENTION + 1)
        age = timedelta(seconds=RETENTION)
        self._sweep(
            name,
            lambda epoch: self.stores.admission.prune(older_than=age, limit=99, epoch=epoch) * 0,
            lambda: self.model.prune(RETENTION) * 0,  # it counts leases as well, which the model keeps
        )

    # Everything else

    @rule(name=st.sampled_from(["x", "y"]), host=node, what=st.sampled_from(RARE))
    def do_what_is_rare(self, name: str, host: str, what: str) -> None:
        getattr(self, what)(host if what in ("restart", "heartbeat") else self._candidate(name))

    # Time

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.0, 4.0, 4.0, 9.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))
        self.model.now += seconds

    # What must hold

    @invariant()
    def the_rows_say_what_the_model_says(self) -> None:
        with self.stores.database.engine.connect() as connection:
            rows = connection.exec_driver_sql(JOBS).all()
            held = {row.uuid: row.exclusive_lease_id for row in connection.exec_driver_sql(HOLDERS)}
        told = {
            row.seq: (
                row.state, row.attempt, row.lost_count, row.lease_id, bool(row.asked),
                load(row.progress)["done"] if row.progress else None,
            )
            for row in rows
        }  # fmt: skip
        assert told == self.model.job_states()
        assert held == self.model.held()

    def teardown(self) -> None:
        """Verify what was recorded of all this."""
        acknowledged = [job.id for job in self.model.jobs.values()]
        expected = Expectations(acknowledged=acknowledged)
        report = SqlHistory(self.stores.database).read(lambda view: verify(view, expected))
        assert report.is_clean, str(report)

    # Helpers

    def _job(self, which: int, state: JobState | None = None, gpus: int | None = None) -> ModelJob | None:
        """Return a job, rather one that is in this state than any."""
        fitting = [job for job in self.model.jobs.values() if gpus is None or job.gpus == gpus]
        wanted = [job for job in fitting if state is None or job.state is state]
        return _pick(wanted if wanted and which < 5 else fitting, which)

    def _instant(self, at: float | None) -> datetime | None:
        return None if at is None else (START + timedelta(seconds=self.began + at)).astimezone(UTC)

    def _claim(self, host: str, claim: Claim) -> ClaimOutcome:
        return self.stores.ledger.commit(host, LedgerBatch(claims=(claim,)), ttl=timedelta(seconds=TTL)).claims[0]

    def _finish(self, claimed: Claimed, host: str, event: JobEvent, delay: float) -> None:
        finish = Finish(claimed.seq, claimed.attempt, claimed.lease, event, delay_seconds=delay)
        outcome = self.stores.commit(host, finishes=(finish,))
        assert bool(outcome.stale) == self.model.finish(claimed, host, event, delay)

    def _release(self, lease_id: int, host: str) -> None:
        self.stores.commit(host, releases=(lease_id,))
        lease = self.model.leases[lease_id]
        if lease.node == host:
            self.model.end_leases([lease], LOST_DELAY, none_ran=True)

    def _admitted(self, job: ModelJob, host: str | None, entries: Sequence[Any]) -> None:
        assert [entry.seq for entry in entries] == ([job.seq] if job.state is JobState.PENDING else [])
        if job.state is JobState.PENDING:
            job.state, job.node = JobState.QUEUED, host

    def _candidate(self, name: str) -> str:
        """Return a candidate by name; whoever leads has just renewed the term, or begun one."""
        if name != "whoever leads":
            return name
        lives = self.model.term_ends > self.model.now
        leader = self.model.leader if lives and self.model.leader else "x"
        self.campaign(leader)
        return leader

    def _sweep(self, name: str, real: Callable[[int], Any], modelled: Callable[[], Any]) -> None:
        """Sweep under the epoch that a candidate believes in; nothing must change when it is not the current one."""
        epoch = self.terms.get(self._candidate(name))
        if epoch is None:
            return
        try:
            told = real(epoch)
        except NotLeading:
            assert epoch != self.model.epoch
        else:
            assert epoch == self.model.epoch
            assert told == modelled()


def _pick(items: Sequence[Item], which: int) -> Item | None:
    return items[-1 - which % len(items)] if items else None
