"""JobStore: what producers and people see."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from orchestrator.domain.job import FailureClass, JobEvent, JobState, Resources
from orchestrator.errors import IdempotencyConflict, UnknownJob, UnknownQueue
from orchestrator.ports import JobFilter
from tests.contract.conftest import Stores, new_job

WINDOW = 16


def test_a_submitted_job_is_stored_whole_and_its_entry_says_what_a_worker_needs(stores: Stores) -> None:
    new = new_job(resources=Resources(2), priority=7, name="mine")
    outcome = stores.jobs.submit([new])
    stored, (entry,) = stores.jobs.get(new.id), outcome.entries

    assert stored is not None
    assert (stored.name, stored.priority, stored.resources, stored.state) == ("mine", 7, Resources(2), JobState.QUEUED)
    assert stores.jobs.get_payload(new.id) == {"args": [1]}
    assert (entry.job_id, entry.seq, entry.node) == (new.id, stored.seq, None)
    assert entry.headers["orchestrator"]["gpus"] == 2
    assert "args" not in entry.headers
    assert stores.kinds(new.id) == ["submit", "admit"]


def test_only_as_many_jobs_as_the_window_are_admitted_and_nobody_overtakes_those_that_wait(stores: Stores) -> None:
    first = stores.jobs.submit([new_job() for _ in range(WINDOW + 4)])
    later = stores.submit(priority=9)

    assert [job.state for job in first.jobs] == [JobState.QUEUED] * WINDOW + [JobState.PENDING] * 4
    assert len(first.entries) == WINDOW
    assert later.state is JobState.PENDING
    assert all(before.seq < after.seq for before, after in pairwise(first.jobs))


def test_the_same_id_or_key_names_the_same_job(stores: Stores) -> None:
    new = new_job(idempotency_key="k")
    first = stores.jobs.submit([new]).jobs[0]
    by_id = stores.jobs.submit([new]).jobs[0]
    by_key = stores.submit(idempotency_key="k")

    assert first.created
    assert (by_id.id, by_id.created) == (by_key.id, by_key.created) == (first.id, False)
    assert stores.submit(idempotency_key="k", tenant="other").created
    with pytest.raises(IdempotencyConflict):
        stores.submit(idempotency_key="k", payload={"args": [2]})
    assert stores.jobs.count_by_state()[JobState.QUEUED] == 2


def test_an_unknown_queue_is_refused_and_nothing_is_stored(stores: Stores) -> None:
    with pytest.raises(UnknownQueue, match="there are: gpu"):
        stores.jobs.submit([new_job(), new_job(queue="nope")])
    assert sum(stores.jobs.count_by_state().values()) == 0


def test_a_job_for_later_waits_until_its_time(stores: Stores) -> None:
    epoch = stores.lead()
    later = stores.submit(run_at=datetime.now(UTC) + timedelta(hours=1))
    due = stores.submit(run_at=datetime.now(UTC) - timedelta(seconds=1))

    assert (later.state, due.state) == (JobState.SCHEDULED, JobState.SCHEDULED)
    assert stores.admission.release_due(limit=10, epoch=epoch) == 1
    states = {job.id: job.state for job in stores.jobs.list_jobs(JobFilter())}
    assert states == {later.id: JobState.SCHEDULED, due.id: JobState.PENDING}


def test_a_waiting_job_is_cancelled_for_good_and_a_running_one_is_marked(stores: Stores) -> None:
    stores.register("a", 1)
    waiting = stores.submit()
    assert stores.jobs.request_cancel(waiting.id, by="me", reason="why not").cancelled
    assert stores.jobs.request_cancel(waiting.id, by="me", reason="again").cancelled
    assert stores.claim(waiting.seq, "a-0").granted == ()
    running, lease = stores.start("a-0")
    outcome = stores.jobs.request_cancel(running.id, by="me", reason="x")

    assert (outcome.cancelled, outcome.stopping) == (False, True)
    assert stores.ledger.renew("a", [lease], ttl=timedelta(seconds=30)).cancel_requested == (running.seq,)
    assert stores.kinds(waiting.id) == ["submit", "admit", "cancel"]
    stores.finish(running, lease, JobEvent.CANCEL)
    assert not stores.jobs.request_cancel(running.id, by="me", reason="x").stopping
    with pytest.raises(UnknownJob):
        stores.jobs.request_cancel("nope", by="me", reason="x")


def test_jobs_are_listed_newest_first_by_page_and_filter(stores: Stores) -> None:
    ids = [stores.submit(name=f"n{number % 2}").id for number in range(6)]
    page = stores.jobs.list_jobs(JobFilter(limit=4))
    rest = stores.jobs.list_jobs(JobFilter(limit=4, before_seq=page[-1].seq))

    assert [job.id for job in [*page, *rest]] == ids[::-1]
    assert [job.id for job in stores.jobs.list_jobs(JobFilter(name="n1"))] == ids[1::2][::-1]
    assert stores.jobs.list_jobs(JobFilter(states=frozenset({JobState.RUNNING}))) == []


def test_after_which_failures_a_job_is_tried_again_is_kept(stores: Stores) -> None:
    """With the job, and told with each claim."""
    stores.register("a", 1)
    job, _ = stores.start("a-0", retry_on={FailureClass.OOM: 2}, max_attempts=3)
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert stored.retry_on == job.retry_on == {FailureClass.OOM: 2}
