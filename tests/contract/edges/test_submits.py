"""Submits: all or nothing, once for each id and key, and never ahead of what waits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.job import JobState, Resources
from orchestrator.errors import IdempotencyConflict, UnknownQueue
from tests.contract.edges.conftest import Stores, new_job


def test_jobs_come_back_in_the_order_given_with_entries_for_those_admitted(stores: Stores) -> None:
    """As many as the queue's window are admitted; the rest wait, and so does whatever comes after them."""
    jobs = [new_job(priority=number % 10) for number in range(20)]

    outcome = stores.jobs.submit(jobs)

    assert [job.id for job in outcome.jobs] == [job.id for job in jobs]
    assert [job.seq for job in outcome.jobs] == sorted(job.seq for job in outcome.jobs)
    assert [job.state for job in outcome.jobs] == [JobState.QUEUED] * 16 + [JobState.PENDING] * 4
    assert [entry.job_id for entry in outcome.entries] == [job.id for job in jobs[:16]]
    assert stores.jobs.submit([new_job(priority=9)]).jobs[0].state is JobState.PENDING


def test_a_job_with_a_start_time_is_scheduled(stores: Stores) -> None:
    """It is not admitted, whatever room there is."""
    outcome = stores.jobs.submit([new_job(run_at=datetime.now(UTC) + timedelta(hours=1))])

    assert (outcome.jobs[0].state, outcome.entries) == (JobState.SCHEDULED, ())


def test_an_unknown_queue_refuses_the_whole_submit(stores: Stores) -> None:
    """The error names the queue and those that exist; nothing is stored."""
    with pytest.raises(UnknownQueue) as refused:
        stores.jobs.submit([new_job(), new_job(queue="GPU")])

    assert (refused.value.queue, refused.value.known) == ("GPU", ("gpu",))
    assert sum(stores.jobs.count_by_state().values()) == 0


def test_the_same_id_or_key_again_returns_the_job_that_exists(stores: Stores) -> None:
    """Repeats are answered, and new jobs beside them are stored, in one call."""
    first = new_job(idempotency_key="nightly")
    (stored,) = stores.jobs.submit([first]).jobs
    fresh = new_job()

    outcome = stores.jobs.submit([replace(first, id=new_job().id), fresh, first])

    assert [(job.id, job.created) for job in outcome.jobs] == [(first.id, False), (fresh.id, True), (first.id, False)]
    assert outcome.jobs[0].seq == stored.seq
    assert [entry.job_id for entry in outcome.entries] == [fresh.id]


def test_a_key_twice_in_one_submit_makes_one_job(stores: Stores) -> None:
    """The second of them is answered with the first."""
    twins = [new_job(idempotency_key="nightly"), new_job(idempotency_key="nightly")]

    outcome = stores.jobs.submit(twins)

    assert [(job.id, job.created) for job in outcome.jobs] == [(twins[0].id, True), (twins[0].id, False)]
    assert sum(stores.jobs.count_by_state().values()) == 1


def test_a_key_with_another_request_stores_nothing_of_the_submit(stores: Stores) -> None:
    """All or nothing: the jobs beside the refused one are not stored either."""
    stores.jobs.submit([new_job(idempotency_key="nightly")])

    with pytest.raises(IdempotencyConflict):
        stores.jobs.submit([new_job(), new_job(idempotency_key="nightly", payload={"args": [2]}), new_job()])

    assert sum(stores.jobs.count_by_state().values()) == 1


@pytest.mark.parametrize("other", ["Nightly", "nightly ", "nïghtly"])
def test_keys_are_compared_exactly(stores: Stores, other: str) -> None:
    """Keys that differ in case, trailing blanks or accents name different jobs."""
    stores.jobs.submit([new_job(idempotency_key="nightly")])

    assert stores.jobs.submit([new_job(idempotency_key=other, resources=Resources(2))]).jobs[0].created


def test_a_key_belongs_to_its_tenant(stores: Stores) -> None:
    """Another tenant may use the same key for something else."""
    stores.jobs.submit([new_job(idempotency_key="nightly")])

    assert stores.jobs.submit([new_job(tenant="other", idempotency_key="nightly", priority=1)]).jobs[0].created


def test_racing_submits_of_one_key_make_one_job(stores: Stores, open_stores: Callable[[], Stores]) -> None:
    """Whoever is faster stores it; everybody is told the same id."""
    racers = [open_stores() for _ in range(4)]

    with ThreadPoolExecutor(len(racers)) as pool:
        for number in range(5):
            key = f"run-{number}"
            answers = list(pool.map(lambda s, k=key: s.jobs.submit([new_job(idempotency_key=k)]).jobs[0], racers))
            assert len({answer.id for answer in answers}) == 1
            assert sum(answer.created for answer in answers) == 1

    assert sum(stores.jobs.count_by_state().values()) == 5
