"""Dead letters: what ends as one, and that only a person takes a job out, once, with all its attempts."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.dead_letter_ports import DeadLetterFilter
from orchestrator.domain.job import FailureClass, JobEvent, JobState
from orchestrator.errors import NotLeading, UnknownDeadLetter
from orchestrator.storage.dead_letters import SqlDeadLetterStore
from orchestrator.storage.history import SqlHistory
from orchestrator.testing.history import verify
from tests.contract.conftest import Stores


@pytest.fixture
def letters(stores: Stores) -> SqlDeadLetterStore:
    stores.register("a", 1)
    return SqlDeadLetterStore(stores.database)


def bury(stores: Stores, failure: FailureClass = FailureClass.LOST, error: str = "its runner was lost") -> str:
    job, lease = stores.start("a-0")
    stores.finish(job, lease, JobEvent.BURY, failure_class=failure, error=error)
    stores.commit(releases=(lease,))
    return job.id


def assert_clean(stores: Stores) -> None:
    report = SqlHistory(stores.database).read(verify)
    assert report.is_clean, str(report)


def test_a_buried_job_is_listed_with_its_class_and_reason(stores: Stores, letters: SqlDeadLetterStore) -> None:
    lost, expired = bury(stores), bury(stores, FailureClass.LEASE_EXPIRED)
    found = letters.list_letters(DeadLetterFilter())

    assert [letter.job_id for letter in found] == [expired, lost]
    assert (found[1].failure_class, found[1].reason, found[1].queue) == (
        FailureClass.LOST,
        "its runner was lost",
        "gpu",
    )
    assert letters.list_letters(DeadLetterFilter(failure_class=FailureClass.LOST)) == [letters.get(lost)]
    assert letters.list_letters(DeadLetterFilter(queue="preloads")) == []
    assert letters.list_letters(DeadLetterFilter(before_seq=found[0].seq)) == [letters.get(lost)]


def test_a_revived_job_has_all_its_attempts_and_a_clean_history(stores: Stores, letters: SqlDeadLetterStore) -> None:
    job = bury(stores)
    assert letters.revive(job, by="me").changed
    assert not letters.revive(job, by="me").changed, "repeating it changes nothing"
    revived = stores.job(job)
    assert (revived.state, revived.lost_count, revived.failure_class) == (JobState.PENDING, 0, None)
    assert stores.kinds(job).count("revive") == 1
    assert stores.jobs.history(job)[-1].data == {"by": "me"}
    assert letters.list_letters(DeadLetterFilter()) == []

    stores.admission.admit([(revived.seq, None)], epoch=stores.lead())
    outcome = stores.claim(revived.seq, "a-0")
    (claimed,) = outcome.granted
    assert (claimed.attempt, claimed.forgiven, claimed.lost_count) == (2, 1, 0)
    assert outcome.lease_id is not None
    stores.finish(claimed, outcome.lease_id, JobEvent.BURY, failure_class=FailureClass.LOST)

    assert letters.get(job).failure_class is FailureClass.LOST, "it can become one again"
    assert letters.revive(job, by="me").changed
    assert_clean(stores)


def test_a_deadline_that_passed_does_not_end_a_revived_job(stores: Stores, letters: SqlDeadLetterStore) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    kept = stores.submit(deadline=later)
    assert letters.bury(kept.id, by="a", reason="no such task")
    letters.revive(kept.id, by="me")

    assert stores.job(kept.id).deadline is not None
    with stores.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orchestrator_jobs SET deadline = '2001-01-01 00:00:00'")
    stores.admission.admit([(kept.seq, None)], epoch=stores.lead())
    assert letters.bury(kept.id, by="a", reason="no such task")
    letters.revive(kept.id, by="me")

    assert stores.job(kept.id).deadline is None


def test_only_a_queued_job_is_buried_and_it_leaves_the_line(stores: Stores, letters: SqlDeadLetterStore) -> None:
    queued, held = stores.submit(), stores.submit(run_at=datetime.now(UTC) + timedelta(hours=1))

    assert letters.bury(queued.id, by="a", reason="the worker's app has no task 'x'")
    assert not letters.bury(queued.id, by="a", reason="again")
    assert not letters.bury(held.id, by="a", reason="not queued")
    assert not letters.bury("nobody", by="a", reason="no job")
    assert stores.job(queued.id).state is JobState.DEAD_LETTER
    assert (letters.get(queued.id).failure_class, letters.get(queued.id).reason) == (
        FailureClass.POISON,
        "the worker's app has no task 'x'",
    )
    assert stores.count("ready") == 0
    assert_clean(stores)


def test_a_purged_letter_cannot_be_revived(stores: Stores, letters: SqlDeadLetterStore) -> None:
    job = bury(stores)
    letters.purge(job, by="me")

    assert stores.job(job).state is JobState.DEAD_LETTER
    for refused in (
        lambda: letters.revive(job, by="me"),
        lambda: letters.purge(job, by="me"),
        lambda: letters.get(job),
    ):
        with pytest.raises(UnknownDeadLetter):
            refused()
    assert_clean(stores)


def test_what_was_copied_is_noted_under_the_leaders_epoch(stores: Stores, letters: SqlDeadLetterStore) -> None:
    bury(stores)
    (letter,) = letters.uncopied(limit=9)
    epoch = stores.lead()
    with pytest.raises(NotLeading):
        letters.note_copied([letter.seq], epoch=epoch - 1)
    assert letters.uncopied(limit=9) == [letter]
    letters.note_copied([letter.seq], epoch=epoch)

    assert letters.uncopied(limit=9) == []


def test_pruning_takes_the_letter_with_its_job(stores: Stores, letters: SqlDeadLetterStore) -> None:
    bury(stores)
    epoch = stores.lead()

    assert stores.admission.prune(older_than=timedelta(seconds=-5), limit=9, epoch=epoch) >= 1
    assert stores.count("dead_letters") == 0
