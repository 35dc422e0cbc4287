"""Submits of which a part exists already: all or nothing, and once for each id and key."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.domain.job import Resources
from orchestrator.errors import IdempotencyConflict
from tests.contract.conftest import Stores, new_job


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


def test_racing_submits_of_one_key_make_one_job(stores: Stores) -> None:
    """Whoever is faster stores it; everybody is told the same id."""
    with ThreadPoolExecutor(4) as pool:  # each takes a connection of its own
        for number in range(5):
            key = f"run-{number}"
            answers = list(pool.map(lambda _, k=key: stores.submit(idempotency_key=k), range(4)))
            assert len({answer.id for answer in answers}) == 1
            assert sum(answer.created for answer in answers) == 1

    assert sum(stores.jobs.count_by_state().values()) == 5
