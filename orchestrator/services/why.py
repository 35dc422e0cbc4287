"""Why a job is where it is, in words: ``orch why JOB``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.domain.canvas import Need
from orchestrator.domain.job import TERMINAL_STATES, Job, JobState
from orchestrator.errors import UnknownJob
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.scheduling.plan import Policy, plan

#: Waiting jobs of each queue that are looked at.
LOOKED_AT: Final = 1000
#: What a blocked job waits for that is told one by one.
MOST_NEEDS: Final = 10


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: a stable code for programs, words for people."""

    code: str
    words: str


def explain(runtime: Runtime, job_id: str) -> tuple[Reason, ...]:
    """Return why the job is in its state, the strongest reason first; for a waiting one, what it waits for now.

    Raises:
        UnknownJob: If there is no such job.
        StoreUnavailable: If the database does not answer.
    """
    job = runtime.jobs.get(job_id)
    if job is None:
        raise UnknownJob(job_id)
    if job.state in TERMINAL_STATES:
        return (Reason(job.state.value, job.reason or job.error or f"it has ended: {job.state.value}"),)
    if job.state is JobState.RUNNING:
        asked = " and was asked to end" if job.cancel_requested_at else ""
        return (Reason("running", f"it runs on {job.node}, attempt {job.attempt}{asked}"),)
    reasons: Mapping[JobState, Callable[[], tuple[Reason, ...]]] = {
        JobState.BLOCKED: lambda: _blocked(runtime, job),
        JobState.SCHEDULED: lambda: (_scheduled(job),),
        JobState.PENDING: lambda: (_pending(runtime, job),),
        JobState.QUEUED: lambda: (_queued(runtime, job),),
    }
    return reasons[job.state]() + _without_leader(runtime, job)


def _blocked(runtime: Runtime, job: Job) -> tuple[Reason, ...]:
    needs = runtime.jobs.needs([job.id]).get(job.id, ())
    told = [f"it waits for {need.id}, " + _told(need) for need in needs[:MOST_NEEDS]]
    if len(needs) > MOST_NEEDS:
        told.append(f"and for {len(needs) - MOST_NEEDS} more")
    return tuple(Reason("blocked", words) for words in told or ["it waits for other tasks"])


def _told(need: Need) -> str:
    if need.state is None:
        return "a plain task"
    return "which succeeded" if need.state is JobState.SUCCEEDED else f"which is {need.state.value}"


def _scheduled(job: Job) -> Reason:
    if job.held_by is not None:
        return Reason("held", f"held by {job.held_by}; orch release lets it go")
    words = "it starts" if job.attempt == 0 else "its next attempt follows"
    at = f" at {job.run_at.isoformat(timespec='seconds')}" if job.run_at else " soon"
    return Reason("scheduled", words + at + (f"; {job.reason}" if job.reason else ""))


def _pending(runtime: Runtime, job: Job) -> Reason:
    """Make the plan that the next pass would make, and read off what it says of this job."""
    if job.held_by is not None:
        return Reason("held", f"held by {job.held_by}; orch release lets it go")
    snapshot = runtime.admission.snapshot(limit=LOOKED_AT)
    made = plan(snapshot, runtime.clock.now(), Policy(most_admissions=len(snapshot.candidates)))
    for refusal in made.refusals:
        if refusal.seq == job.seq:
            return Reason(refusal.reason.value, refusal.words)
    for admission in made.admissions:
        if admission.seq == job.seq:
            return Reason("next", f"the next scheduling pass gives it to {admission.node}")
    return Reason("behind", f"at least {LOOKED_AT} jobs of queue {job.queue} are ahead")


def _queued(runtime: Runtime, job: Job) -> Reason:
    nodes = runtime.cluster.nodes()
    if job.node is not None:
        placed = next((node for node in nodes if node.name == job.node), None)
        if placed is None or not placed.live:
            return Reason("host_silent", f"it was given to {job.node}, which is not heard of; it is taken back soon")
        return Reason("admitted", f"it was given to {job.node} and starts when the jobs before it end")
    if not any(_consumes(node, job.queue) for node in nodes):
        return Reason("no_consumer", f"no live worker takes jobs of queue {job.queue}")
    return Reason("admitted", f"it is in the stream of queue {job.queue}; the first worker with room takes it")


def _consumes(node: NodeRecord, queue: str) -> bool:
    return node.live and queue in node.queues


def _without_leader(runtime: Runtime, job: Job) -> tuple[Reason, ...]:
    if runtime.leadership.current() is not None:
        return ()
    if job.state is JobState.SCHEDULED:
        words = "no leader is there to start it on time: run orch beat"
    else:
        words = "no leader places jobs, only hosts that end jobs take more: run orch beat"
    return (Reason("no_leader", words),)
