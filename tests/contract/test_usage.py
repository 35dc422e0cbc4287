"""What accounting reads, on both databases."""

from datetime import timedelta

import pytest

from orchestrator.domain.job import JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant, Measured
from orchestrator.domain.usage import HolderUse, UsageKey, fold_usage
from orchestrator.lease_ports import Holder
from orchestrator.storage.adhoc import SqlAdHocLeases
from orchestrator.storage.usage import SqlUsageStore
from tests.contract.conftest import TTL, Stores

DAY = timedelta(days=1)


def test_leases_with_what_ran_under_them(stores: Stores) -> None:
    """An exclusive one that ended, a share that is held, and a CPU job, which uses no GPU."""
    stores.register("a", 2)
    first, lease = stores.start("a-0", tenant="red")
    stores.finish(first, lease, JobEvent.SUCCEED, gpu_seconds=1.0, gpu_busy_seconds=0.5)
    stores.commit(releases=(lease,))
    shared = stores.submit(resources=Resources(1, 250), tenant="blue")
    held = stores.claim(shared.seq, "a-1", mib=250).lease_id
    cpu, cpu_lease = stores.start(tenant="red")
    stores.finish(cpu, cpu_lease, JobEvent.SUCCEED)
    usage = SqlUsageStore(stores.database)
    now = usage.now()
    done, live = usage.leases(since=now - DAY, until=now + DAY)

    assert (done.id, done.node, done.shares) == (lease, "a", (("a-0", 1.0),))
    assert done.ended_at is not None
    assert [(use.job_id, use.tenant, use.outcome, use.busy_gpu_seconds) for use in done.attempts] == [
        (first.id, "red", "succeed", 0.5)
    ]
    assert (live.id, live.shares, live.ended_at) == (held, (("a-1", 0.25),), None)
    assert [(use.tenant, use.outcome, use.ended_at) for use in live.attempts] == [("blue", None, None)]
    rows, total = fold_usage([done, live], by=UsageKey.TENANT, since=now - DAY, until=now + timedelta(seconds=100))
    assert rows[0].key == "blue"
    assert total.attempts == 2


def test_leases_without_a_job_name_their_holder(stores: Stores) -> None:
    stores.register("a", 1)
    holder = Holder("shell", "red", "ada", "hash", None)
    grant = LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None)
    lease = SqlAdHocLeases(stores.database).grant("a", grant, holder, ttl=timedelta(minutes=1))
    assert lease is not None
    (use,) = SqlUsageStore(stores.database).leases(since=lease.granted_at, until=lease.granted_at + timedelta(hours=1))
    assert (use.holder, use.attempts, use.shares) == (HolderUse(lease.id, "red", "ada"), (), (("a-0", 1.0),))


def test_how_busy_a_failed_attempt_was_is_kept_too(stores: Stores) -> None:
    stores.register("a", 1)
    job, lease = stores.start("a-0")
    stores.finish(job, lease, JobEvent.FAIL, gpu_busy_seconds=2.5)

    assert [attempt.gpu_busy_seconds for attempt in stores.jobs.attempts(job.id)] == [2.5]


def test_what_was_measured_of_an_attempt_stands_when_its_worker_is_lost(stores: Stores) -> None:
    """It is told with renewals, all of it each time; only of one's own live attempts, and not after their end."""
    stores.register("a", 2)
    job, lease = stores.start("a-0")
    other, other_lease = stores.start("a-1")

    def tell(seconds: float | None, peak: int | None, *, attempt: int = 1, of: int = lease) -> None:
        measured = [Measured(job.seq, attempt, of, seconds, peak), Measured(other.seq, 1, other_lease, 1.0, None)]
        stores.ledger.renew("a", [lease, other_lease], ttl=TTL, measured=measured)

    def told(job_id: str) -> list[tuple[float | None, int | None]]:
        return [(one.gpu_busy_seconds, one.peak_gpu_memory_mib) for one in stores.jobs.attempts(job_id)]

    for _repeat in range(2):
        tell(2.5, 300)
    tell(None, 400)
    tell(9.0, 900, attempt=2)
    tell(9.0, 900, of=other_lease)
    assert (told(job.id), told(other.id)) == ([(2.5, 400)], [(1.0, None)])

    stores.register("a", 2, pid=2)  # the worker was lost, and comes again
    tell(9.0, 900)
    assert [one.outcome for one in stores.jobs.attempts(job.id)] == ["lose"]
    assert told(job.id) == [(2.5, 400)]


def test_leases_outside_the_window_are_left_out(stores: Stores) -> None:
    stores.register("a", 1)
    stores.start("a-0")
    usage = SqlUsageStore(stores.database)
    now = usage.now()

    assert list(usage.leases(since=now - 2 * DAY, until=now - DAY)) == []
    assert len(list(usage.leases(since=now - DAY, until=now + DAY))) == 1


def test_pages_follow_each_other(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.register("a", 1)
    for _ in range(5):
        job, lease = stores.start("a-0")
        stores.finish(job, lease, JobEvent.SUCCEED)
        stores.commit(releases=(lease,))
    monkeypatch.setattr("orchestrator.storage.usage.BATCH", 2)
    usage = SqlUsageStore(stores.database)
    now = usage.now()

    assert len(list(usage.leases(since=now - DAY, until=now + DAY))) == 5
