"""From a delivered job to its acknowledgement: holds, claims, starts, finishes, releases.

Everything here runs in the worker's event loop and decides nothing that the database does not confirm: a job starts
when its claim came back granted, and its entry is acknowledged when its finish came back committed.
"""

import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from celery.exceptions import WorkerTerminate
from celery.worker import state as worker_state

from orchestrator import failpoints
from orchestrator.domain.cluster import GpuOrder, NodeState
from orchestrator.domain.job import JobEvent
from orchestrator.domain.lease import (
    Claim,
    ClaimedJob,
    ClaimOutcome,
    Finish,
    LedgerBatch,
    LedgerOutcome,
    Refusal,
    Renewal,
)
from orchestrator.errors import InvalidEntry
from orchestrator.guardian.messages import GpuNews
from orchestrator.runtime import Runtime
from orchestrator.worker import requests
from orchestrator.worker.appetite import Appetite
from orchestrator.worker.duty import Duty
from orchestrator.worker.frames import Message
from orchestrator.worker.gpu_care import GpuCare
from orchestrator.worker.held import HeldJobs
from orchestrator.worker.host import Line, WaitingJob
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.lines import Lines
from orchestrator.worker.outcomes import abandoned, finish_of_end, finish_of_report, give_back
from orchestrator.worker.pace import Pace
from orchestrator.worker.pool import RunnerPool
from orchestrator.worker.pool_keeper import PoolKeeper
from orchestrator.worker.processes import RunnerProcess
from orchestrator.worker.refiller import Refiller
from orchestrator.worker.reports import Reports
from orchestrator.worker.results import ResultWriter
from orchestrator.worker.sleeper import Sleeper
from orchestrator.worker.untold import Untold
from orchestrator.worker.work import Callbacks, Ended, Work, about

logger = logging.getLogger(__name__)

#: A delivered job that could not be claimed is handed back after so many seconds: the scheduler places it anew, and
#: keeps GPUs for it if it is a gang.
LONGEST_HOLD: Final = 5.0
_DONE: Final = {"runtime": 0.0}


class Dispatcher:
    """The jobs of one worker."""

    def __init__(
        self, pool: RunnerPool, runtime: Runtime, *, results: ResultWriter, execute: Callable[[Any], None]
    ) -> None:
        """Make it.

        Args:
            pool: Where runners are.
            runtime: The outside world.
            results: Writes captured results after the commit.
            execute: Celery's own ``on_task_request``: has a request ask the pool to run it.
        """
        self._pool, self._runtime, self._results, self._execute = pool, runtime, results, execute
        self._settings, self._host = runtime.settings, pool.host
        self._held = HeldJobs(runtime.clock)
        self._settling: dict[tuple[int, int], tuple[Work, Message]] = {}  # finishes on their way to the database
        self._claims: dict[int, tuple[Line, list[WaitingJob]]] = {}
        self._keys = itertools.count(1)
        self._dirty = False
        self._reports = Reports()
        self.duty = Duty()
        self.care = GpuCare(pool, self._settings, runtime.clock)
        self.pace = Pace(runtime.clock, most=self._settings.max_look_ahead_jobs)
        self.lines = Lines(pool, self._settings)
        self.keeper, self.sleeper = PoolKeeper(pool.host, self.lines), Sleeper(pool.host, self.lines)
        self.appetite = Appetite(pool.host, self.pace, self.duty)
        self.ledger: Ledger  # set by the lease step, which knows the event loop
        self.refiller: Refiller
        self.untold: Untold
        self.on_new_gpus: Callable[[], None]  # set by the lease step: the host is to be registered, again if need be

    @property
    def accepting(self) -> bool:
        """New jobs may be claimed here."""
        return self.duty.accepting

    # What Celery delivers

    def offer(self, request: Any) -> None:
        """Take a delivered request of a GPU task."""
        failpoints.reach("delivery.received")
        try:
            waiting = requests.waiting_job(request, next(self._keys))
        except InvalidEntry as error:
            logger.error("%s", error)
            requests.bury(request, str(error), self._runtime.publisher)
            return
        if waiting.seq in self._held:
            requests.drop_second(request)
            return
        self._held.add(request, waiting)
        self._dirty = True
        if waiting.token is None:
            self._host.add_waiting(waiting)
        else:
            self._take_seat(waiting)

    def _take_seat(self, job: WaitingJob) -> None:
        """Have a job confirmed that its submit has granted to a lease of this host."""
        line = self._host.seat(job)
        if line is None:
            self._held.settle(job.seq, partial(requests.drop_unseated, token=job.token))
            return
        key = next(self._keys)
        self._claims[key] = (line, [job])
        claim = Claim(key, (job.seq,), job.shape.resources, lease_id=job.token, seated=True)
        self.ledger.add(claims=[claim])

    def tick(self) -> None:
        """Put waiting jobs into lines and release empty lines; called before the event loop waits."""
        if not self._dirty:
            return
        self._dirty = False
        if self.accepting:
            self._claim()
        closed = self.lines.close_empty(keep_pools=self.accepting)
        if closed:
            self.ledger.add(releases=[line.lease_id for line in closed if line.lease_id is not None])
            if self.accepting:
                self._claim()
            self._refill()
            self._pool.run_plain()

    def _refill(self) -> None:
        if self.appetite.asks_now():
            self.refiller.ask(self.appetite.wanted())

    def cancel(self, job_id: str) -> None:
        """Somebody asked to end this job; the database has refused or marked it already."""
        if self._pool.cancel(job_id):
            return
        held = self._held.named(job_id)
        if held is not None:
            self._host.remove_waiting({held.seq})
            self._held.settle(held.seq, requests.tell_cancelled)

    def _claim(self) -> None:
        claims = []
        chosen = self._host.choose()
        for line, jobs in chosen:
            line.claiming = line.lease_id is None
            for resources, alike in requests.by_resources(jobs).items():
                key = next(self._keys)
                grant = line.grant if line.lease_id is None else None
                claims.append(Claim(key, tuple(job.seq for job in alike), resources, grant, line.lease_id))
                self._claims[key] = (line, alike)
        if claims:
            self.ledger.add(claims=claims)

    # What the ledger says

    def on_committed(self, asked_at: float, batch: LedgerBatch, outcome: LedgerOutcome) -> None:
        """Start what was granted, acknowledge what was finished."""
        stale = {(finish.job_seq, finish.attempt) for finish in outcome.stale}
        for finish in batch.finishes:
            self._finished(finish, stale=(finish.job_seq, finish.attempt) in stale)
        for seq in batch.withdrawals:
            self._held.settle(seq, requests.drop)
        if batch.joins:
            self.keeper.on_joined(batch.joins, outcome.members)
        self.sleeper.on_resized(asked_at, batch.resizes, outcome.resized)
        for claim in outcome.claims:
            self._claimed(asked_at, claim)
        if batch.finishes:
            self.pace.note(len(batch.finishes))
            self._refill()
        self._dirty = True

    def on_registered(self) -> None:
        """From now on jobs may be claimed here."""
        self.duty.registered = self._dirty = True

    def on_renewed(self, asked_at: float, asked: Sequence[int], renewal: Renewal) -> None:
        """Trust the live leases for another while; end what runs under the others."""
        self.lines.extend_trust(asked_at, renewal.live)
        for lease_id in set(asked) - renewal.live:
            self.lines.lose(lease_id)
        self.keeper.on_leaving(renewal.leaving)
        self.sleeper.heed(renewal)
        if renewal.open:
            self.ledger.add(finishes=self._held.give_back_unknown(renewal.open))
        self._dirty = self._dirty or bool(renewal.leaving)
        for job_id in self._held.ids(renewal.cancel_requested):
            self.cancel(job_id)

    def on_node_state(self, state: NodeState) -> None:
        """An operator may have told the host to drain, or to take jobs again."""
        if self.duty.heed(state):
            self._dirty = True
            if self.duty.draining:
                self.hand_back_waiting()
                self.lines.stall_all()

    def on_degraded(self, degraded: bool) -> None:
        """The ledger has logged it; claims wait in it meanwhile."""
        self._dirty = not degraded

    def on_broken(self, error: Exception) -> None:
        """End the worker: its supervisor starts it again."""
        raise WorkerTerminate(1) from error

    def _claimed(self, asked_at: float, claim: ClaimOutcome) -> None:
        line, jobs = self._claims.pop(claim.key)
        line.claiming = False
        if claim.lease_id is not None:
            self.lines.begin_lease(line, claim.lease_id, asked_at)
        by_seq = {job.seq: job for job in jobs}
        for seq, refusal in claim.refused:
            self._host.take_out(line, seq)
            if refusal in (Refusal.GPUS_TAKEN, Refusal.DRAINING):
                self._host.add_waiting(by_seq[seq])
            else:
                self._held.settle(seq, partial(requests.refuse, refusal=refusal))
        if any(refusal is Refusal.DRAINING for _, refusal in claim.refused):
            self.on_node_state(NodeState.DRAINING)  # before the wake-up or the heartbeat that says so
        for claimed in claim.granted:
            self._start(line, claimed)

    def _finished(self, finish: Finish, *, stale: bool) -> None:
        settling = self._settling.pop((finish.job_seq, finish.attempt), None)
        if settling is None:
            return  # it never came here
        work, report = settling
        if not stale:
            self._held.settle(finish.job_seq, lambda request: requests.tell_finish(request, work, finish, report))
            self.untold.tell(work, finish, report)
            return
        words = "job %s: its attempt %d is no longer ours; nothing was recorded"
        logger.warning(words, work.id, finish.attempt, extra=about(work))
        self.lines.lose(finish.lease_id)
        self._held.settle(finish.job_seq, requests.drop)

    # Starting

    def _start(self, line: Line, claimed: ClaimedJob) -> None:
        failpoints.reach("start.before")
        request = self._held.request(claimed.seq)
        self._pool.granted[claimed.id] = partial(self.accept, line, claimed)
        self._execute(request)
        if self._pool.granted.pop(claimed.id, None) is not None:
            # Celery refused to run it: it was revoked between its delivery and its claim.
            work = self.lines.make_work(line, claimed, request.request_dict, Callbacks(None, None, None, None))
            work.cancelled = True
            self._finish(work, give_back(work), _DONE)

    def accept(self, line: Line, claimed: ClaimedJob, request: dict[str, Any], callbacks: Callbacks) -> Work:
        """Give a claimed job to its line's runner; the pool calls this when Celery asks it to run the request."""
        work = self.lines.make_work(line, claimed, request, callbacks)
        self.lines.give(line, work)
        return work

    # What runners say

    def on_begun(self, runner: RunnerProcess, work: Work) -> None:
        """Remember who uses the GPUs; the database learns of the start with the finish."""
        self.care.note_user(runner.key.gpus, f"job {work.id} (pid {work.pid})")

    def on_report(self, runner: RunnerProcess, work: Work, report: Message) -> None:
        """A task job ended."""
        finish = finish_of_report(work, report, now=self._runtime.clock.now(), draw=random.random())  # noqa: S311
        if report.get("meta") and finish.event in (JobEvent.SUCCEED, JobEvent.FAIL):
            self._results.hold(finish.job_seq, finish.attempt, job_id=work.id, meta=report["meta"])
        self._finish(work, finish, report)

    def on_ended(self, runner: RunnerProcess, work: Work, ended: Ended) -> None:
        """A job's process is gone: a command ended, or a task lost its runner."""
        now = self._runtime.clock.now()
        finish = finish_of_end(work, ended, began_at=work.began_at, now=now, draw=random.random())  # noqa: S311
        seconds = (now - work.began_at).total_seconds() if work.began_at else 0.0
        report: Message = {"runtime": seconds, "repr": f"exit code {finish.exit_code}"}
        if work.message is None or finish.event in (JobEvent.FAIL, JobEvent.BURY):
            meta = self._results.meta_of(work.id, finish)
            if meta is not None:
                self._results.hold(finish.job_seq, finish.attempt, job_id=work.id, meta=meta)
        self._finish(work, finish, report)

    def on_unstarted(self, runner: RunnerProcess, works: list[Work]) -> None:
        """Give jobs back that were claimed ahead: another host, or a later claim, runs them."""
        for work in works:
            self._finish(work, give_back(work), _DONE)

    def on_retiring(self, runner: RunnerProcess) -> None:
        """A warm runner is to be replaced."""
        self.lines.retire(runner)

    def on_free(self, runner: RunnerProcess) -> None:
        """A line ran empty."""
        self._dirty = True

    def on_progress(self, work: Work, progress: dict[str, Any]) -> None:
        """Keep the latest report until the next flush."""
        self._reports.note_progress(work, progress)

    def on_output(self, work: Work) -> None:
        """Have the output flushed."""
        self._reports.note_output(work)

    def on_gpus(self, news: GpuNews) -> None:
        """Follow the host's GPUs."""
        for work in self.care.on_news(news):
            self.on_output(work)
        self.sleeper.look(self.care.samples)
        self._dirty = True
        if self.care.take_news():
            self.on_new_gpus()

    def on_turned(self, runner: RunnerProcess, message: Message) -> None:
        """A runner's models sleep, or are awake."""
        self.sleeper.on_turned(runner.id, message)
        self._dirty = True

    def on_gpu_orders(self, orders: Mapping[str, GpuOrder]) -> None:
        """Operators may want something of this host's GPUs."""
        self.care.obey(orders)
        self._dirty = True

    def on_unclean(self, gpus: tuple[str, ...], reason: str) -> None:
        """A runner's GPUs did not come clean: others are used."""
        self.care.on_unclean(gpus, reason)

    def on_start_tried(self, gpus: tuple[str, ...], *, started: bool) -> None:
        """GPUs on which nothing starts are used no more."""
        self.care.on_start_tried(gpus, started=started)

    def _finish(self, work: Work, finish: Finish, report: Message) -> None:
        assert work.job is not None
        self._reports.flush_last(self.ledger, work)
        self._settling[finish.job_seq, finish.attempt] = (work, report)
        self._host.take_out(work.job.line, finish.job_seq)
        self.ledger.add(finishes=[finish])
        self.keeper.note_finish(work, finish, self.ledger)
        self._dirty = True

    # On timers

    def flush(self) -> None:
        """Hand over output and progress, and what runners of pools do."""
        self._reports.flush(self.ledger, self.lines.works())
        uses = self.keeper.news(self._host.lines.values())
        if uses:
            self.ledger.add(uses=uses)

    def look_after(self) -> None:
        """Take back what stalls in lines; hand back what waits too long; ask for more when idle."""
        self.lines.stall_slow()
        longest = LONGEST_HOLD if self.accepting else 0.0
        self._withdraw(self._host.remove_waiting(self._held.late(self._host.waiting_jobs(), longest)))
        wanted = self.appetite.wanted()
        if wanted:
            self.refiller.ask(wanted)

    def hand_back_waiting(self) -> None:
        """Hand back every job that waits here unclaimed."""
        self._withdraw(self._host.remove_waiting({job.seq for job in list(self._host.waiting_jobs())}))

    def _withdraw(self, jobs: Sequence[WaitingJob]) -> None:
        if jobs:
            self.ledger.add(withdrawals=[job.seq for job in jobs])

    # Ending

    def begin_warm_shutdown(self, hub: Any) -> None:
        """Take nothing more, give back what has not started, and let the rest end."""
        self.duty.ending = self._dirty = True
        self.hand_back_waiting()
        self.lines.stall_all()

    def unsettled(self) -> bool:
        """Something is still on its way to the database."""
        return bool(self._settling or self._claims or self._host.lines)

    def abandon(self) -> None:
        """Cold shutdown, every runner is dead: the jobs that ran run again, at once and not after an expiry."""
        for runner in list(self.lines.works()):
            self._finish(runner, abandoned(runner), _DONE)
        self.ledger.add(releases=[line.lease_id for line in self._host.lines.values() if line.lease_id is not None])
        worker_state.reserved_requests.clear()
