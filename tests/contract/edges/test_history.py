"""The history that the stores write is whole: the checker finds what it needs, and nothing else, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.history import HistoryView
from orchestrator.domain.job import FailureClass, JobEvent, JobState, Resources
from orchestrator.domain.lease import LogChunk
from orchestrator.ports import LossPolicy
from orchestrator.storage.history import SqlHistory
from orchestrator.testing.history import Expectations, Report, verify
from tests.contract.conftest import MEMORY_MIB, Stores
from tests.support.waiting import wait_for

SHORT = timedelta(seconds=0.2)
POLICY = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))


def check(stores: Stores, expected: Expectations | None = None) -> Report:
    return SqlHistory(stores.database).read(lambda view: verify(view, expected))


@pytest.fixture
def epoch(stores: Stores) -> int:
    stores.register("a", 3)
    stores.register("b", 1)
    return stores.lead()


def test_a_history_with_every_kind_of_end_is_clean(stores: Stores, epoch: int) -> None:
    ends = (JobEvent.SUCCEED, JobEvent.FAIL, JobEvent.RETRY, JobEvent.LOSE, JobEvent.CANCEL, JobEvent.BURY)
    now = datetime.now(UTC)
    asked, lease = stores.start("a-2")
    stores.jobs.request_cancel(asked.id, by="me", reason="x")
    stores.finish(asked, lease, JobEvent.RETRY)
    for event in (*ends, JobEvent.GIVE_BACK):
        job, lease = stores.start("a-0", "a-1")
        stores.commit(logs=(LogChunk(job.seq, job.attempt, lease, 0, "x"),))
        stores.finish(job, lease, event, failure_class=FailureClass.EXIT, started_at=now, ended_at=now)
        stores.commit(releases=(lease,))
    waiting = stores.submit(run_at=now - timedelta(seconds=1))
    wait_for(lambda: stores.admission.release_due(limit=9, epoch=epoch) == 0, within_seconds=5, describe="releases")
    report = check(stores)

    assert report.is_clean, str(report)
    assert report.checked["jobs"] == 9
    assert report.checked["leases"] == 8
    assert report.checked["gpus"] == 4
    assert report.checked["attempts"] == 7
    assert report.checked["leader_events"] >= 3, "the term, and what it released"
    assert stores.job(waiting.id).state is JobState.PENDING


def test_what_leases_shared_expired_and_were_taken_again_is_clean(stores: Stores, epoch: int) -> None:
    third = MEMORY_MIB // 3
    shared = [stores.claim(stores.submit(resources=Resources(1, third)).seq, "a-0", mib=third) for _ in range(3)]
    _, dead = stores.start("a-1", ttl=SHORT)
    seen = wait_for(
        lambda: stores.admission.expired_leases(limit=9, grace=timedelta(0)), within_seconds=5, describe="the end"
    )
    assert stores.admission.expire_leases(seen, policy=POLICY, epoch=epoch) == 1
    stores.commit(releases=tuple(claim.lease_id for claim in shared if claim.lease_id is not None))
    _, lease = stores.start("a-0", "a-1")
    stores.register("a", 3, pid=2)
    report = check(stores)

    assert lease > dead
    assert report.is_clean, str(report)


def test_the_holds_of_a_gpu_are_told_in_the_order_of_its_turns(stores: Stores, epoch: int) -> None:
    """Whatever order the leases were numbered in, and without a look at any clock."""
    first, lease = stores.start("a-0")
    stores.finish(first, lease, JobEvent.SUCCEED)
    stores.commit(releases=(lease,))
    _, second = stores.start("a-0")

    def holds(view: HistoryView) -> list[tuple[int, int, int | None, bool]]:
        return [(one.lease_id, one.taken_turn, one.freed_turn, one.is_marked) for one in view.holds("a-0")]

    assert SqlHistory(stores.database).read(holds) == [(lease, 1, 2, False), (second, 3, None, True)]


def test_a_gpu_refuses_a_token_smaller_than_one_that_held_it(stores: Stores, epoch: int) -> None:
    """A grant that was held up until a later one had come and gone is refused: its token would go backwards."""
    _, lease = stores.start("a-0")
    stores.commit(releases=(lease,))
    with stores.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orchestrator_gpus SET last_lease_id = 1000 WHERE uuid = 'a-0'")
    waiting = stores.submit()

    assert stores.claim(waiting.seq, "a-0").lease_id is None


def test_everything_is_read_when_it_does_not_fit_one_batch(
    stores: Stores, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.history.BATCH", 2)
    for _ in range(5):
        job, lease = stores.start("a-0")
        stores.finish(job, lease, JobEvent.SUCCEED)
        stores.commit(releases=(lease,))
    report = check(stores, Expectations(settled=True, overdue=timedelta(seconds=5)))

    assert report.is_clean, str(report)
    assert (report.checked["jobs"], report.checked["leases"]) == (5, 5)
    assert report.checked["events"] == 5 * len(["submit", "admit", "claim", "succeed"])


def test_the_view_is_of_one_instant(stores: Stores, epoch: int) -> None:
    """What is committed while it is read is not half there."""
    _, lease = stores.start("a-0")

    def read(view: HistoryView) -> Report:
        states = [job.job.state for job in view.jobs()]
        stores.commit(releases=(lease,))
        assert states == [JobState.RUNNING]
        return verify(view)

    report = SqlHistory(stores.database).read(read)
    assert report.is_clean, str(report)


def test_what_should_be_over_and_is_not_is_told(stores: Stores, epoch: int) -> None:
    stores.start("a-0", ttl=SHORT)
    lost = Expectations(settled=True, acknowledged=["0190-unknown"], overdue=timedelta(seconds=-60))
    report = check(stores, lost)

    assert set(report.counts) == {"settled", "acknowledged-job-exists", "no-overdue"}
