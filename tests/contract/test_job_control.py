"""Orders about jobs: what is held does not start, priorities change, what ended is tried again."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.dead_letter_ports import DeadLetterFilter
from orchestrator.domain.job import FailureClass, JobEvent, JobState
from orchestrator.errors import IllegalTransition, NotRetriable, UnknownJob
from orchestrator.storage.dead_letters import SqlDeadLetterStore
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.job_control import SqlJobControl
from orchestrator.testing.history import verify
from tests.contract.conftest import Stores


@pytest.fixture
def control(stores: Stores) -> SqlJobControl:
    stores.register("a", 1)
    return SqlJobControl(stores.database)


def candidates(stores: Stores) -> list[int]:
    return [candidate.seq for candidate in stores.admission.snapshot(limit=100).candidates]


def assert_clean(stores: Stores) -> None:
    report = SqlHistory(stores.database).read(verify)
    assert report.is_clean, str(report)


def test_a_held_job_is_not_claimed_or_admitted_until_it_is_released(stores: Stores, control: SqlJobControl) -> None:
    job = stores.submit()
    assert job.state is JobState.QUEUED

    held = control.hold(job.id, by="me")
    assert held.changed
    assert (held.job.state, held.job.held_by) == (JobState.PENDING, "me")
    assert not control.hold(job.id, by="you").changed, "it is held by the first who said so"
    assert stores.claim(job.seq, "a-0").granted == ()
    assert candidates(stores) == []
    assert stores.admission.admit([(job.seq, None)], epoch=stores.lead()) == (), "of a plan made before the hold"
    assert stores.submit().state is JobState.QUEUED, "nobody waits behind a held job"

    assert control.unhold(job.id, by="you").changed
    assert not control.unhold(job.id, by="you").changed
    assert candidates(stores) == [job.seq]
    assert stores.kinds(job.id) == ["submit", "admit", "withdraw", "hold", "unhold"]
    assert stores.jobs.history(job.id)[-1].data == {"by": "you"}
    assert_clean(stores)


def test_a_job_held_before_its_time_is_held_when_its_time_comes(stores: Stores, control: SqlJobControl) -> None:
    job = stores.submit(run_at=datetime.now(UTC) - timedelta(seconds=1))
    control.hold(job.id, by="me")
    stores.admission.release_due(limit=10, epoch=stores.lead())

    assert stores.job(job.id).state is JobState.PENDING
    assert candidates(stores) == []
    control.unhold(job.id, by="me")
    assert candidates(stores) == [job.seq]
    assert_clean(stores)


def test_another_priority_moves_a_waiting_job(stores: Stores, control: SqlJobControl) -> None:
    first, second, third = (control.hold(stores.submit().id, by="me").job for _ in range(3))
    assert control.set_priority(third.id, 9, by="me").job.priority == 9
    assert not control.set_priority(third.id, 9, by="me").changed
    assert candidates(stores) == [], "a held job stays held"
    for job in (first, second, third):
        control.unhold(job.id, by="me")

    control.set_priority(first.id, 0, by="me")
    assert candidates(stores) == [third.seq, second.seq, first.seq]
    change = [event for event in stores.jobs.history(first.id) if event.kind == "set_priority"]
    assert [event.data for event in change] == [{"by": "me", "was": 5, "priority": 0}]


def test_what_runs_takes_no_order(stores: Stores, control: SqlJobControl) -> None:
    job, _ = stores.start("a-0")

    for order in (control.hold, control.unhold, control.retry, lambda one, by: control.set_priority(one, 1, by=by)):
        with pytest.raises(IllegalTransition):
            order(job.id, by="me")
    with pytest.raises(UnknownJob):
        control.hold("nobody", by="me")


@pytest.mark.parametrize("event", [JobEvent.FAIL, JobEvent.CANCEL, JobEvent.BURY])
def test_a_job_that_ended_badly_has_all_its_attempts_again(
    stores: Stores, control: SqlJobControl, event: JobEvent
) -> None:
    job, lease = stores.start("a-0")
    failure = None if event is JobEvent.CANCEL else FailureClass.EXIT
    stores.finish(job, lease, event, failure_class=failure)
    stores.commit(releases=(lease,))

    again = control.retry(job.id, by="me").job
    assert (again.state, again.failure_class, again.finished_at) == (JobState.PENDING, None, None)
    assert SqlDeadLetterStore(stores.database).list_letters(DeadLetterFilter()) == []
    with pytest.raises(IllegalTransition):
        control.retry(job.id, by="me")
    stores.admission.admit([(again.seq, None)], epoch=stores.lead())
    outcome = stores.claim(again.seq, "a-0")
    assert outcome.lease_id is not None
    assert (outcome.granted[0].attempt, outcome.granted[0].forgiven) == (2, 1)
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    with pytest.raises(IllegalTransition):
        control.retry(job.id, by="me")
    assert_clean(stores)


def test_a_dismissed_dead_letter_stays_one(stores: Stores, control: SqlJobControl) -> None:
    letters, job = SqlDeadLetterStore(stores.database), stores.submit()
    letters.bury(job.id, by="a", reason="no such task")
    letters.purge(job.id, by="me")

    with pytest.raises(NotRetriable, match="dismissed"):
        control.retry(job.id, by="me")
    assert_clean(stores)


def test_a_member_that_its_canvas_never_called_is_not_tried_again(stores: Stores, control: SqlJobControl) -> None:
    """It lacks what the job before it would have handed it."""
    before = stores.submit()
    member = stores.submit(needs=(before.id,), parent_id=before.id, root_id=before.id)
    for order in (control.hold, control.unhold):
        with pytest.raises(IllegalTransition, match="blocked"):
            order(member.id, by="me")
    stores.jobs.request_cancel(before.id, by="me", reason="")
    assert stores.job(member.id).state is JobState.CANCELLED

    with pytest.raises(NotRetriable, match="canvas"):
        control.retry(member.id, by="me")
    assert control.retry(before.id, by="me").changed
    assert_clean(stores)
