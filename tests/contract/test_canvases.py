"""JobStore and canvases: jobs that wait for the tasks before them, and canvases that end as a whole."""

from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest

from orchestrator.domain.canvas import Need
from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import JobEvent, JobState, NewJob, Resources
from orchestrator.errors import UnknownJob
from orchestrator.ports import JobFilter, LossPolicy
from orchestrator.storage import tables
from orchestrator.storage.history import SqlHistory
from orchestrator.testing.history import Expectations, verify
from tests.contract.conftest import Stores, new_job
from tests.support.waiting import wait_for

ROOT = "11111111-1111-4111-8111-111111111111"
PLAIN = "22222222-2222-4222-8222-222222222222"
GROUP = "33333333-3333-4333-8333-333333333333"


def chain_of(length: int, *, root: str | None = None) -> list[NewJob]:
    """Return jobs of which each needs the one before it; the first is the root."""
    ids = [uuid7(datetime.now(UTC)) for _ in range(length)]
    jobs = [new_job(id=ids[0], root_id=root or ids[0])]
    for before, own in pairwise(ids):
        jobs.append(new_job(id=own, root_id=root or ids[0], parent_id=before, needs=(before,)))
    return jobs


def called(job: NewJob, **fields: object) -> NewJob:
    """Return a blocked job as the task before it calls it."""
    return new_job(**{"id": job.id, "root_id": job.root_id, "parent_id": job.parent_id} | fields)


def states(stores: Stores, jobs: list[NewJob]) -> list[JobState]:
    return [stores.job(job.id).state for job in jobs]


@pytest.fixture(autouse=True)
def _every_history_is_legal(stores: Stores) -> object:
    yield
    report = SqlHistory(stores.database).read(lambda view: verify(view, Expectations(settled=False)))
    assert report.is_clean, str(report)


def test_a_canvas_is_stored_whole_and_only_its_beginning_may_start(stores: Stores) -> None:
    jobs = chain_of(3)
    outcome = stores.jobs.submit(jobs)

    assert [job.state for job in outcome.jobs] == [JobState.QUEUED, JobState.BLOCKED, JobState.BLOCKED]
    assert [entry.job_id for entry in outcome.entries] == [jobs[0].id]
    assert stores.count("ready") == 1
    assert stores.jobs.needs([job.id for job in jobs]) == {
        jobs[1].id: [Need(jobs[0].id, JobState.QUEUED)],
        jobs[2].id: [Need(jobs[1].id, JobState.BLOCKED)],
    }


def test_a_blocked_job_starts_as_it_is_called_then_and_only_once(stores: Stores) -> None:
    """Its arguments are known then; a task that runs again calls what follows it again, which changes nothing."""
    jobs = chain_of(2)
    stores.jobs.submit(jobs)
    call = called(jobs[1], payload={"args": [42]}, resources=Resources(2), priority=9)
    first, again = stores.jobs.submit([call]), stores.jobs.submit([called(jobs[1], payload={"args": [0]})])
    stored = stores.job(jobs[1].id)

    assert (first.jobs[0].created, first.jobs[0].state) == (False, JobState.QUEUED)
    assert [entry.headers["orchestrator"]["gpus"] for entry in first.entries] == [2]
    assert (again.jobs[0].state, again.entries) == (JobState.QUEUED, ())
    assert stores.jobs.get_payload(jobs[1].id) == {"args": [42]}
    assert (stored.priority, stored.resources, stored.root_id, stored.parent_id) == (
        9, Resources(2), jobs[0].id, jobs[0].id,
    )  # fmt: skip
    assert stores.kinds(jobs[1].id) == ["submit", "release", "admit"]
    assert stores.count("needs") == 0


def test_a_blocked_job_that_is_called_with_a_countdown_is_scheduled(stores: Stores) -> None:
    jobs = chain_of(2)
    stores.jobs.submit(jobs)
    later = stores.jobs.submit([called(jobs[1], run_at=datetime.now(UTC) + timedelta(hours=1))])

    assert (later.jobs[0].state, later.entries) == (JobState.SCHEDULED, ())
    assert stores.kinds(jobs[1].id) == ["submit", "defer"]
    assert stores.count("scheduled") == 1


@pytest.mark.parametrize("event", [JobEvent.FAIL, JobEvent.BURY, JobEvent.CANCEL])
def test_all_that_waits_for_a_job_ends_with_it_when_it_does_not_succeed(stores: Stores, event: JobEvent) -> None:
    """And says why."""
    stores.register("a", 1)
    jobs = chain_of(3)
    stores.jobs.submit(jobs)
    outcome = stores.claim(stores.job(jobs[0].id).seq, "a-0")
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, event, error="boom")

    assert states(stores, jobs[1:]) == [JobState.CANCELLED, JobState.CANCELLED]
    reasons = {stores.job(job.id).reason for job in jobs[1:]}
    assert len(reasons) == 1
    assert f"needed {jobs[0].id}, which " in (reasons.pop() or "")
    assert stores.count("needs") == 0
    assert stores.jobs.submit([called(jobs[1])]).jobs[0].state is JobState.CANCELLED


@pytest.mark.parametrize("event", [JobEvent.RETRY, JobEvent.LOSE, JobEvent.SUCCEED])
def test_what_waits_goes_on_waiting_while_the_job_may_still_call_it(stores: Stores, event: JobEvent) -> None:
    stores.register("a", 1)
    jobs = chain_of(2)
    stores.jobs.submit(jobs)
    outcome = stores.claim(stores.job(jobs[0].id).seq, "a-0")
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, event)

    assert states(stores, jobs[1:]) == [JobState.BLOCKED]


def test_a_lost_lease_and_a_missed_deadline_end_what_waits_too(stores: Stores) -> None:
    """These ends are written by the leader."""
    stores.register("a", 1)
    epoch = stores.lead()
    lost, late = chain_of(2), chain_of(2)
    late[0] = new_job(id=late[0].id, root_id=late[0].id, deadline=datetime.now(UTC) - timedelta(seconds=1))
    stores.jobs.submit([*lost, *late])
    claim = stores.claim(stores.job(lost[0].id).seq, "a-0", ttl=timedelta(seconds=0.5))
    assert claim.lease_id is not None
    policy = LossPolicy(max_lost=1, delay=timedelta(), grace=timedelta())
    expire = partial(stores.admission.expire_leases, [(claim.lease_id, 0)], policy=policy, epoch=epoch)
    wait_for(expire, within_seconds=10, describe="the lease to expire")
    stores.admission.release_due(limit=10, epoch=epoch)

    assert states(stores, lost) == [JobState.DEAD_LETTER, JobState.CANCELLED]
    assert states(stores, late) == [JobState.CANCELLED, JobState.CANCELLED]


def test_a_chords_body_waits_for_every_member_and_ends_with_the_first_that_fails(stores: Stores) -> None:
    """Each member of the header tells of the body anew."""
    body = uuid7(datetime.now(UTC))
    members = [new_job(root_id=GROUP, group_id=GROUP) for _ in range(3)]
    for member in members:
        told = new_job(id=body, root_id=GROUP, needs=(member.id,))
        stores.jobs.submit([member, told])
    assert stores.jobs.needs([body])[body] == [
        Need(job_id, JobState.QUEUED) for job_id in sorted(member.id for member in members)
    ]
    stores.jobs.request_cancel(members[1].id, by="me", reason="x")

    assert stores.job(body).state is JobState.CANCELLED
    assert states(stores, [members[0], members[2]]) == [JobState.QUEUED, JobState.QUEUED]
    late = new_job(root_id=GROUP, group_id=GROUP)
    assert stores.jobs.submit([late, new_job(id=body, root_id=GROUP, needs=(late.id,))]).jobs[1].state is (
        JobState.CANCELLED
    )


def test_a_job_that_comes_to_wait_for_one_that_failed_ends_at_once(stores: Stores) -> None:
    first = new_job(root_id=ROOT)
    stores.jobs.submit([first])
    stores.jobs.request_cancel(first.id, by="me", reason="x")
    stores.jobs.submit([waiting := new_job(root_id=ROOT, needs=(first.id,))])

    assert stores.job(waiting.id).state is JobState.CANCELLED


def test_jobs_behind_a_plain_task_end_when_it_is_told_that_it_failed(stores: Stores) -> None:
    first, second = new_job(root_id=ROOT, needs=(PLAIN,)), new_job(root_id=ROOT, needs=("x",))
    third = new_job(root_id=ROOT, needs=(first.id,))
    stores.jobs.submit([first, second, third])

    assert stores.jobs.end_dependents([PLAIN], "failed: ValueError('boom')") == 2
    assert states(stores, [first, second, third]) == [JobState.CANCELLED, JobState.BLOCKED, JobState.CANCELLED]
    assert stores.job(third.id).reason == f"needed {PLAIN}, which failed: ValueError('boom')"
    assert stores.jobs.end_dependents([PLAIN], "failed") == 0


def test_a_canvas_is_cancelled_whole_whichever_of_its_jobs_names_it(stores: Stores) -> None:
    """What waits and what is blocked never starts; what runs is asked to end; what they call later is cancelled."""
    stores.register("a", 1)
    jobs, other = chain_of(4), chain_of(2)
    stores.jobs.submit(jobs)
    stores.jobs.submit(other)
    claim = stores.claim(stores.job(jobs[0].id).seq, "a-0")
    stores.jobs.submit([called(jobs[1])])
    outcome = stores.jobs.cancel_canvas(jobs[2].id, whole=True, by="me", reason="enough")

    assert (outcome.canvas_id, outcome.stopping) == (jobs[0].id, (jobs[0].id,))
    assert set(outcome.cancelled) == {job.id for job in jobs[1:]}
    assert states(stores, jobs) == [JobState.RUNNING, *[JobState.CANCELLED] * 3]
    assert stores.job(jobs[0].id).cancel_requested_at is not None
    assert states(stores, other) == [JobState.QUEUED, JobState.BLOCKED]
    again = stores.jobs.cancel_canvas(jobs[0].id, whole=True, by="me", reason="enough")
    assert (again.cancelled, again.stopping) == ((), ())
    child = new_job(root_id=jobs[0].id, parent_id=jobs[0].id)
    assert stores.jobs.submit([child]).jobs[0].state is JobState.CANCELLED
    assert stores.jobs.submit([child]).entries == ()
    assert "cancelled with its canvas by me: enough" in (stores.job(child.id).reason or "")
    assert claim.lease_id is not None
    stores.finish(claim.granted[0], claim.lease_id, JobEvent.CANCEL)


def test_cancelling_a_group_ends_its_members_and_what_waits_for_them_alone(stores: Stores) -> None:
    before, behind, aside = new_job(root_id=ROOT), new_job(root_id=ROOT, needs=("m",)), new_job(root_id=ROOT)
    members = [new_job(root_id=ROOT, group_id=GROUP, needs=(before.id,)) for _ in range(2)]
    behind = new_job(root_id=ROOT, needs=tuple(member.id for member in members))
    stores.jobs.submit([before, *members, behind, aside])
    outcome = stores.jobs.cancel_canvas(GROUP, whole=False, by="me", reason="x")

    assert set(outcome.cancelled) == {member.id for member in members}
    assert states(stores, [before, aside]) == [JobState.QUEUED, JobState.QUEUED]
    assert states(stores, [*members, behind]) == [JobState.CANCELLED] * 3
    assert [job.id for job in stores.jobs.list_jobs(JobFilter(group_id=GROUP))] == [m.id for m in reversed(members)]
    assert stores.jobs.submit([new_job(group_id=GROUP, parent_id=before.id)]).jobs[0].state is JobState.CANCELLED
    with pytest.raises(UnknownJob):
        stores.jobs.cancel_canvas("nobody", whole=False, by="me", reason="x")
    with pytest.raises(UnknownJob):
        stores.jobs.cancel_canvas("nobody", whole=True, by="me", reason="x")


def test_what_a_job_calls_belongs_to_its_canvas_whatever_root_celery_names(stores: Stores) -> None:
    """Members of a group that is called from outside have no root in common, and the chord's body names one of them."""
    member = new_job(root_id=GROUP, group_id=GROUP)
    body = new_job(root_id=GROUP, needs=(member.id,))
    alone = new_job()
    stores.jobs.submit([member, body, alone])
    stores.jobs.submit([called(body, root_id=member.id, parent_id=member.id)])
    stores.jobs.submit([child := new_job(root_id=member.id, parent_id=body.id)])
    stores.jobs.submit([grandchild := new_job(root_id=member.id, parent_id=child.id)])
    stores.jobs.submit([spawned := new_job(root_id=alone.id, parent_id=alone.id)])

    assert {stores.job(job.id).root_id for job in (member, body, child, grandchild)} == {GROUP}
    assert (stores.job(alone.id).root_id, stores.job(spawned.id).root_id) == (None, alone.id)
    found = stores.jobs.list_jobs(JobFilter(root_id=alone.id))
    assert [job.id for job in found] == [spawned.id, alone.id]
    whole = stores.jobs.cancel_canvas(alone.id, whole=True, by="me", reason="x")
    assert set(whole.cancelled) == {alone.id, spawned.id}


def test_the_leader_ends_what_nobody_told_that_its_need_had_failed(stores: Stores) -> None:
    """Whoever ends a job tells what waits for it in the same transaction; a hand in the database does not."""
    epoch = stores.lead()
    jobs = chain_of(3)
    stores.jobs.submit(jobs)
    assert stores.admission.end_forgotten(limit=10, epoch=epoch) == 0
    hidden, seq = "99999999-9999-4999-8999-999999999999", stores.job(jobs[1].id).seq
    rename_need(stores, seq, hidden)
    stores.jobs.request_cancel(jobs[0].id, by="me", reason="x")
    assert stores.job(jobs[1].id).state is JobState.BLOCKED
    rename_need(stores, seq, jobs[0].id)

    assert stores.admission.end_forgotten(limit=10, epoch=epoch) == 2
    assert states(stores, jobs) == [JobState.CANCELLED] * 3
    assert stores.admission.end_forgotten(limit=10, epoch=epoch) == 0


def rename_need(stores: Stores, seq: int, needs_id: str) -> None:
    """Have a blocked job wait for something else."""
    statement = tables.needs.update().where(tables.needs.c.job_seq == seq).values(needs_id=needs_id)
    stores.database.transaction(lambda connection: connection.execute(statement))


def test_canvases_that_were_cancelled_long_ago_are_forgotten(stores: Stores) -> None:
    epoch = stores.lead()
    job = new_job(root_id=ROOT)
    stores.jobs.submit([job])
    stores.jobs.cancel_canvas(ROOT, whole=True, by="me", reason="x")
    stores.admission.prune(older_than=timedelta(days=1), limit=10, epoch=epoch)
    assert stores.count("cancelled_canvases") == 1
    stores.admission.prune(older_than=timedelta(seconds=-1), limit=10, epoch=epoch)

    assert (stores.count("cancelled_canvases"), stores.count("jobs")) == (0, 0)
