"""Seeded bugs: the ways of jobs through submit, admission, sweeps, cancel and pruning."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kombu import Connection as Broker
from sqlalchemy import Connection

from orchestrator.domain.job import FailureClass, JobEvent, NewJob, Resources
from orchestrator.domain.lease import Finish
from orchestrator.ports import SubmitOutcome
from orchestrator.storage import canvases, endings, ledger, statements, sweeps
from orchestrator.storage import jobs as jobs_module
from orchestrator.storage.admission import SqlAdmissionStore
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql
from orchestrator.streams.client import connect
from orchestrator.streams.publisher import RedisStreamPublisher
from orchestrator.transport import register
from orchestrator.transport.channel import Channel
from tests.contract.seeded.bugs_of_leases import FAR
from tests.contract.seeded.world import BOTH, World, bug, replaced, rewritten, together
from tests.integration.transport.inbox import Inbox


@bug(
    "outbox",
    rewritten(statements, "INSERT_ADMITTED", (":publish_at, :node)", "NULLIF(:publish_at, :publish_at), :node)")),
)
def skip_the_outbox(world: World) -> None:
    """A job is admitted and its submitter dies: nobody will ever look for the entry that it did not publish."""
    world.stores.submit()


def _ack_when_delivered(channel: Channel, **arguments: Any) -> Any:
    return Channel.__dict__["_real_consume"](channel, **(arguments | {"no_ack": True}))


def _plant_early_acks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Channel, "_real_consume", Channel.basic_consume, raising=False)
    patch.setattr(Channel, "basic_consume", _ack_when_delivered)


@bug("entry-reachable", _plant_early_acks)
def ack_early(world: World) -> None:
    """A worker acknowledges an entry when it is delivered, and dies before it claims the job."""
    register()
    client = connect(world.redis_url)
    publisher = RedisStreamPublisher(client)
    entries = world.stores.jobs.submit([world.new_job()]).entries
    (entry_id,) = publisher.publish(entries)
    world.stores.admission.note_entries([(entries[0].seq, entry_id)], epoch=world.epoch)
    broker = Broker(world.redis_url.replace("redis", "redis-streams", 1), transport_options={"consumer_name": "w"})
    Inbox(broker, "gpu").drain(1)
    broker.release()
    world.expect(exist=publisher.exist)


@bug("legal-path", rewritten(statements, "PENDING_FOR_UPDATE", (" AND publish_at IS NULL", "")), *BOTH)
def admit_twice(world: World) -> None:
    """The leader plans with a snapshot from before a worker admitted the same job."""
    job = world.stores.submit()
    world.stores.commit(withdrawals=(job.seq,))
    for node in ("a", "b"):
        world.stores.admission.admit([(job.seq, node)], epoch=world.epoch)


@bug("legal-path", rewritten(statements, "PENDING_FOR_UPDATE", (" {for_update}", "")), "mariadb")
def admit_without_a_row_lock(world: World) -> None:
    """A worker and the leader read the same job as pending, at the same time."""
    job = world.stores.submit()
    world.stores.commit(withdrawals=(job.seq,))
    database = world.stores.database
    run, other = database.run, threading.Thread(target=lambda: world.stores.ledger.admit([(job.seq, "b")]))

    def run_beside(connection: Connection, statement: Any, values: Any = ()) -> Any:
        result = run(connection, statement, values)
        if statement is statements.PENDING_FOR_UPDATE and other.ident is None:
            other.start()
            other.join(0.5)  # with the row's lock it waits until this transaction has ended
        return result

    database.run = run_beside  # type: ignore[method-assign]
    world.stores.admission.admit([(job.seq, "a")], epoch=world.epoch)
    other.join(20)
    assert not other.is_alive()


class KilledError(Exception):
    """The process was killed here."""


def _release_in_two_steps(store: SqlAdmissionStore, *, limit: int, epoch: int) -> int:
    run = store._database.run

    def take(connection: Connection) -> Sequence[int]:
        due = run(connection, sweeps.DUE_SCHEDULED, {"limit": limit}).scalars().all()
        run(connection, sweeps.RELEASE_JOBS, {"seqs": due})
        run(connection, statements.DELETE_SCHEDULED, {"seqs": due})
        values = {"seqs": due, "kind": JobEvent.RELEASE.value, "node": None, "epoch": epoch}
        run(connection, statements.JOB_EVENTS, values)
        return due

    store._database.transaction(take)
    raise KilledError


@bug("waits-in-one-place", replaced(SqlAdmissionStore, "release_due", _release_in_two_steps), *BOTH)
def requeue_in_two_steps(world: World) -> None:
    """A leader takes a due job out of one table, and dies before it is put into the other."""
    world.stores.submit(run_at=world.clock.now() + timedelta(seconds=1))
    world.clock.advance(timedelta(seconds=2))
    with contextlib.suppress(KilledError):
        world.stores.admission.release_due(limit=9, epoch=world.epoch)


@bug("not-before-time", rewritten(sweeps, "DUE_SCHEDULED", ("run_at <= {now}", f"run_at <= {FAR}")), *BOTH)
def release_by_the_leaders_own_clock(world: World) -> None:
    """A leader whose host's clock is wrong releases a job that is to wait for an hour."""
    world.stores.submit(run_at=world.clock.now() + timedelta(hours=1))
    world.stores.admission.release_due(limit=9, epoch=world.epoch)


@bug("deadline-kept", rewritten(sweeps, "PAST_DEADLINE", ("deadline <= {now}", f"deadline <= {FAR}")), *BOTH)
def give_up_by_the_leaders_own_clock(world: World) -> None:
    """A leader whose host's clock is wrong gives a job up that has an hour left."""
    world.stores.submit(deadline=world.clock.now() + timedelta(hours=1))
    world.stores.admission.release_due(limit=9, epoch=world.epoch)


@bug("deadline-kept", rewritten(statements, "TAKE_READY", (" AND (deadline IS NULL OR deadline > {now})", "")), *BOTH)
def start_after_the_deadline(world: World) -> None:
    """An entry lay in its stream until the job's deadline had passed, and no sweep has been here yet."""
    job = world.stores.submit(deadline=world.clock.now() + timedelta(seconds=5))
    world.clock.advance(timedelta(minutes=1))
    world.stores.claim(job.seq, "a-0")


@bug(
    "one-attempt",
    together(
        replaced(statements, "TAKE_READY", Sql("SELECT seq FROM orchestrator_jobs WHERE seq IN :seqs", "seqs")),
        rewritten(statements, "START_JOBS", (" AND state = 'queued'", "")),
    ),
)  # fmt: skip
def claim_a_job_that_runs(world: World) -> None:
    """A second delivery of an entry is claimed by another host."""
    job = world.start("a-0")
    world.stores.claim(job.seq, "b-0", node="b")


@bug("cancel-heeded", replaced(ledger, "heed_cancel", lambda finish: finish), *BOTH)
def retry_what_was_cancelled(world: World) -> None:
    """A job fails while it is being cancelled, and has an attempt left."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.stores.jobs.request_cancel(job.id, by="me", reason="x")
    world.finish(job, JobEvent.RETRY, lease=lease)
    world.stores.commit(releases=(lease,))
    with contextlib.suppress(IndexError):  # nothing is there to be claimed
        world.run_again(job, "a-0")


@bug(
    "one-end",
    together(
        replaced(jobs_module, "TERMINAL_STATES", frozenset()),
        rewritten(statements, "CANCEL_WAITING", (" AND state IN ('blocked', 'scheduled', 'pending', 'queued')", "")),
    ),
    *BOTH,
)
def cancel_what_has_ended(world: World) -> None:
    """A cancel comes after the job's end, and takes its result away."""
    job = world.start("a-0")
    world.finish(job, JobEvent.SUCCEED)
    world.stores.jobs.request_cancel(job.id, by="me", reason="x")


@bug(
    "one-end",
    rewritten(
        endings, "OPEN_ATTEMPTS", (" AND j.lease_id = a.lease_id", ""),
        (" AND a.ended_at IS NULL AND j.state = 'running'", ""),
    ),
    *BOTH,
)  # fmt: skip
def lose_what_has_ended(world: World) -> None:
    """A lease is given back after its job has ended, and the job is taken for lost with it."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.finish(job, JobEvent.SUCCEED)
    world.stores.commit(releases=(lease,))


def _canvas(world: World) -> tuple[NewJob, NewJob]:
    first = world.new_job(resources=Resources(1))
    first = replace(first, root_id=first.id)
    behind = replace(world.new_job(), root_id=first.id, parent_id=first.id, needs=(first.id,))
    world.stores.jobs.submit([first, behind])
    return first, behind


@bug("blocked-needs", replaced(endings, "end_dependents", lambda *_arguments, **_more: 0), *BOTH)
def fail_and_tell_nobody(world: World) -> None:
    """A job of a canvas fails, and what stands behind it would wait for ever."""
    first, _ = _canvas(world)
    job = world.claim(world.stores.job(first.id).seq, "a-0")
    lease = world.lease_of(job)
    world.finish(job, JobEvent.FAIL)
    world.stores.commit(releases=(lease,))


@bug("blocked-needs", rewritten(canvases, "DELETE_NEEDS", ("WHERE job_seq IN", "WHERE 0 = 1 AND job_seq IN")), *BOTH)
def release_and_keep_the_needs(world: World) -> None:
    """A job that runs already is ended with one that it no longer waits for."""
    _, behind = _canvas(world)
    world.stores.jobs.submit([replace(behind, needs=())])


def _forget_to_count(finish: Finish) -> Mapping[str, Any]:
    row: dict[str, Any] = endings.__dict__["_real_end_row"](finish)
    return row | {"lost": 0}


def _plant_uncounted_losses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(endings, "_real_end_row", endings._end_row, raising=False)
    patch.setattr(endings, "_end_row", _forget_to_count)


@bug("losses-counted", _plant_uncounted_losses)
def lose_an_attempt_without_counting(world: World) -> None:
    """A job that kills its worker would be given to the next one for ever."""
    job = world.start("a-0")
    world.expire(world.lease_of(job))


@bug("attempts-bounded", replaced(endings, "_RETURNED", {JobEvent.GIVE_BACK: 1, JobEvent.RETRY: 0}))
def retry_for_ever(world: World) -> None:
    """The number of attempts that the owner allowed is not looked at."""
    job = world.start("a-0", max_attempts=1)
    lease = world.lease_of(job)
    failed = Finish(job.seq, job.attempt, lease, JobEvent.RETRY, failure_class=FailureClass.EXIT)
    armed = endings._RETURNED.get(JobEvent.RETRY) == 0
    world.stores.commit(finishes=(failed,) if armed else (), releases=(lease,))
    if armed:
        again = world.run_again(job, "a-0")
        finish = Finish(again.seq, again.attempt, world.lease_of(again), JobEvent.FAIL, failure_class=FailureClass.EXIT)
        world.stores.commit(finishes=(finish,))


@bug("running-under-lease", replaced(ledger, "lose_jobs", lambda *_arguments, **_more: 0), *BOTH)
def release_and_forget_the_job(world: World) -> None:
    """The answer to a claim was lost; its worker gives the lease back, and the job would run for ever."""
    job = world.start("a-0")
    world.stores.commit(releases=(world.lease_of(job),))


def _plant_half_a_prune(patch: pytest.MonkeyPatch) -> None:
    (find, deletions), *others = sweeps._PRUNED
    patch.setattr(sweeps, "_PRUNED", ((find, deletions[-1:]), *others))


@bug("acknowledged-job-exists", _plant_half_a_prune)
def prune_a_job_and_leave_its_attempts(world: World) -> None:
    """A job is deleted without what belongs to it, or disappears in any other way."""
    job = world.start("a-0")
    world.finish(job, JobEvent.SUCCEED)
    world.clock.advance(timedelta(days=40))
    world.epoch = world.stores.lead()
    world.stores.admission.prune(older_than=timedelta(days=30), limit=9, epoch=world.epoch)


def _answer_before_the_commit(store: SqlJobStore, jobs: Sequence[NewJob]) -> SubmitOutcome:
    with store._database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        outcome = store._insert(connection, jobs, [dump(job.payload) for job in jobs])
        connection.rollback()
    return outcome


@bug("acknowledged-job-exists", replaced(SqlJobStore, "submit", _answer_before_the_commit))
def acknowledge_what_is_not_committed(world: World) -> None:
    """A submit is answered before its commit, which then fails."""
    world.expect(acknowledged=[world.stores.submit().id])
