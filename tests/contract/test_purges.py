"""Ended jobs that a person has deleted, on SQLite and on MariaDB."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from orchestrator.domain.job import FailureClass, JobEvent, JobState
from orchestrator.errors import UnknownJob
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.job_control import SqlJobControl
from orchestrator.storage.purges import SqlJobPurge
from orchestrator.testing.history import verify
from tests.contract.conftest import Stores
from tests.support.waiting import wait_for

WEEK = timedelta(days=7)


@pytest.fixture
def purges(stores: Stores) -> SqlJobPurge:
    stores.register("a", 1)
    return SqlJobPurge(stores.database)


def ended(stores: Stores, *, days: int, event: JobEvent = JobEvent.SUCCEED) -> str:
    """Run a job to an end that is said to have been so long ago."""
    job, lease = stores.start("a-0")
    stores.finish(job, lease, event, failure_class=FailureClass.LOST if event is JobEvent.BURY else None)
    stores.commit(releases=(lease,))
    at = text("UPDATE orchestrator_jobs SET finished_at = :at WHERE seq = :seq")
    finished = stores.job(job.id).finished_at
    assert finished is not None
    with stores.database.engine.begin() as connection:
        before = (finished - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S.%f")
        connection.execute(at, {"at": before, "seq": job.seq})
    return job.id


def test_jobs_that_ended_long_ago_are_deleted_the_oldest_first(stores: Stores, purges: SqlJobPurge) -> None:
    """With all that is theirs, in bounded steps; what ended later, and what has not ended, stays."""
    old = [ended(stores, days=days) for days in (8, 30, 9)]
    recent = ended(stores, days=6)
    waiting = stores.submit()
    assert purges.count_ended(WEEK) == 3

    assert purges.purge_ended(WEEK, limit=2, by="ada") == 2
    assert [job for job in old if stores.jobs.get(job) is not None] == [old[0]]
    assert purges.purge_ended(WEEK, limit=2, by="ada") == 1
    assert purges.purge_ended(WEEK, limit=2, by="ada") == purges.count_ended(WEEK) == 0
    assert stores.job(recent).state is JobState.SUCCEEDED
    assert stores.job(waiting.id).state in (JobState.PENDING, JobState.QUEUED)
    assert stores.count("attempts") == 1
    assert stores.count_events("jobs_purge") == 2, "who did it is told, and nothing of a pass that did nothing"
    report = SqlHistory(stores.database).read(verify)
    assert report.is_clean, str(report)


def test_what_somebody_waits_for_is_kept(stores: Stores, purges: SqlJobPurge) -> None:
    """A dead letter waits for a person until one has dismissed it; a member of a canvas waits for another job."""
    letter = ended(stores, days=30, event=JobEvent.BURY)
    needed = ended(stores, days=30)
    with stores.database.engine.begin() as connection:
        blocked = stores.submit().seq
        values = {"seq": blocked, "id": needed}
        connection.execute(text("INSERT INTO orchestrator_needs (job_seq, needs_id) VALUES (:seq, :id)"), values)
    assert purges.count_ended(WEEK) == purges.purge_ended(WEEK, limit=9, by="ada") == 0

    with stores.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM orchestrator_needs"))
        connection.execute(text("DELETE FROM orchestrator_dead_letters"))
    assert purges.purge_ended(WEEK, limit=9, by="ada") == 2
    assert [stores.jobs.get(job) for job in (letter, needed)] == [None, None]


def test_a_job_that_is_tried_again_is_not_deleted(stores: Stores, purges: SqlJobPurge) -> None:
    gone, failed = (ended(stores, days=days, event=JobEvent.FAIL) for days in (30, 20))
    control = SqlJobControl(stores.database)
    assert control.retry(failed, by="ada").changed

    assert purges.purge_ended(WEEK, limit=9, by="ada") == 1
    assert stores.job(failed).state is JobState.PENDING
    with pytest.raises(UnknownJob):
        control.retry(gone, by="ada")


def test_a_job_that_is_being_tried_again_is_not_deleted(stores: Stores, purges: SqlJobPurge) -> None:
    """The purge waits for whoever changes the job, and looks again."""
    failed = ended(stores, days=30, event=JobEvent.FAIL)
    revive = text("UPDATE orchestrator_jobs SET state = 'pending', finished_at = NULL WHERE id = :id")
    waits = text("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
    with ThreadPoolExecutor(1) as pool, stores.database.engine.connect() as connection:
        connection.execute(revive, {"id": failed})
        purging = pool.submit(purges.purge_ended, WEEK, limit=9, by="ada")
        if stores.database.dialect == "mysql":  # SQLite's writers wait for each other as a whole
            wait_for(lambda: int(connection.execute(waits).one()[1]), within_seconds=10, describe="the purge to wait")
        connection.commit()
        assert purging.result(20) == 0
    assert stores.job(failed).state is JobState.PENDING
