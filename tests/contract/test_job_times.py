"""The times of jobs that ended, in the order of their ends, each once."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text

from orchestrator.domain.job import JobEvent, JobState, Resources
from orchestrator.metric_ports import EndedJob, JobSize, Mark
from orchestrator.storage.job_times import SETTLE, SqlJobTimes
from tests.contract.conftest import Stores

HOUR = timedelta(hours=1)


def run(stores: Stores, queue: str = "gpu") -> int:
    """Run a job to its end and return its seq."""
    job, lease = stores.start(queue=queue)
    stores.finish(job, lease, JobEvent.SUCCEED)
    stores.commit(releases=(lease,))
    return job.seq


def date(stores: Stores, seq: int, ended_at: datetime, *, ran: float, waited: float) -> None:
    """Date a job's life, which takes longer than a test has."""
    started_at = ended_at - timedelta(seconds=ran)
    life = {"created": started_at - timedelta(seconds=waited), "started": started_at, "ended": ended_at}
    values = {name: at.strftime("%Y-%m-%d %H:%M:%S.%f") for name, at in life.items()}
    statement = "UPDATE orchestrator_jobs SET created_at = :created, started_at = :started, finished_at = :ended"
    with stores.database.engine.begin() as connection:
        connection.execute(text(f"{statement} WHERE seq = :seq"), values | {"seq": seq})


def pages(times: SqlJobTimes, after: Mark, limit: int) -> list[Sequence[EndedJob]]:
    """Return all pages after a place."""
    found = []
    while True:
        page, after = times.ended(after, limit=limit)
        if not page:
            return found
        found.append(page)


def test_each_end_is_told_once_in_order_whatever_the_page(stores: Stores) -> None:
    """Several of one instant, which a page may part, among them."""
    stores.register("a", 1)
    times = SqlJobTimes(stores.database)
    now = times.mark().at
    for number in range(5):
        date(stores, run(stores), now - HOUR + timedelta(seconds=number // 3), ran=number, waited=10 * number)

    for limit in (1, 2, 10):
        told = [job for page in pages(times, Mark(now - 2 * HOUR, 0), limit) for job in page]
        assert [(job.waited_seconds, job.ran_seconds) for job in told] == [(10.0 * n, float(n)) for n in range(5)]
        assert {(job.queue, job.state) for job in told} == {("gpu", JobState.SUCCEEDED)}


def test_what_ends_after_a_mark_is_told_once_it_has_settled(stores: Stores) -> None:
    """What has just ended may stand before something that is not committed yet."""
    stores.register("a", 1)
    times = SqlJobTimes(stores.database)
    before = times.mark()
    fresh = run(stores)
    assert times.ended(before, limit=10) == ((), before)

    date(stores, fresh, before.at - SETTLE * 2, ran=0.5, waited=0)
    (told,), mark = times.ended(Mark(before.at - HOUR, 0), limit=10)
    assert told.ran_seconds == 0.5
    assert mark == Mark(before.at - SETTLE * 2, fresh)


def test_a_job_that_never_started_has_no_times(stores: Stores) -> None:
    times = SqlJobTimes(stores.database)
    submitted = stores.submit()
    stores.jobs.request_cancel(submitted.id, by="test", reason="for the test")
    now = times.mark().at
    with stores.database.engine.begin() as connection:
        values = {"at": (now - HOUR).strftime("%Y-%m-%d %H:%M:%S.%f"), "seq": submitted.seq}
        connection.execute(text("UPDATE orchestrator_jobs SET finished_at = :at WHERE seq = :seq"), values)

    (told,), _ = times.ended(Mark(now - 2 * HOUR, 0), limit=10)
    assert told == EndedJob("gpu", "a.task", JobState.CANCELLED, None, None, JobSize.ONE)


def test_a_job_is_told_apart_by_what_it_asked_for(stores: Stores) -> None:
    asked = [Resources(0), Resources(1, 100), Resources(1), Resources(2)]
    times = SqlJobTimes(stores.database)
    now = times.mark().at
    for resources in asked:
        job = stores.submit(resources=resources)
        stores.jobs.request_cancel(job.id, by="test", reason="for the test")
        date(stores, job.seq, now - HOUR, ran=1.0, waited=1.0)

    told, _ = times.ended(Mark(now - 2 * HOUR, 0), limit=10)
    assert [job.size for job in told] == [JobSize.NONE, JobSize.SHARE, JobSize.ONE, JobSize.MANY]
