"""What metrics count in the database, on SQLite and on MariaDB."""

from datetime import timedelta

import pytest

from orchestrator.dead_letter_ports import DeadLetterFilter
from orchestrator.domain.job import FailureClass, JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant
from orchestrator.domain.pool import Leave, PoolChange
from orchestrator.lease_ports import Holder
from orchestrator.metric_ports import Total
from orchestrator.ports import LossPolicy
from orchestrator.scheduling.pools import Decision
from orchestrator.storage.adhoc import SqlAdHocLeases
from orchestrator.storage.cluster import DEGRADED_BOUND
from orchestrator.storage.dead_letters import SqlDeadLetterStore
from orchestrator.storage.pools import SqlPoolStore
from orchestrator.storage.totals import SqlTallies
from tests.contract.conftest import TTL, Stores
from tests.contract.test_ledger import SHORT, wait_for_expiry
from tests.contract.test_pools import epoch, join, start

POLICY = LossPolicy(max_lost=2, delay=timedelta(0), grace=timedelta(0))


@pytest.fixture
def tallies(stores: Stores) -> SqlTallies:
    stores.register("a", 4)
    return SqlTallies(stores.database)


def expire(stores: Stores, leader: int) -> None:
    """Have a lease of a running job expire."""
    _, lease = stores.start("a-0", ttl=SHORT)
    wait_for_expiry(stores, lease)
    assert stores.admission.expire_leases([(lease, 0)], policy=POLICY, epoch=leader) == 1


def test_expiries_are_counted_for_ever(stores: Stores, tallies: SqlTallies) -> None:
    """The history forgets them; a count that falls would look like a new one to whoever asks for an increase."""
    assert tallies.totals() == {Total.LEASES_EXPIRED: {"": 0}}
    leader = stores.lead()
    for _ in range(2):
        expire(stores, leader)
    assert tallies.totals()[Total.LEASES_EXPIRED] == {"": 2}

    stores.admission.prune(older_than=timedelta(seconds=-60), limit=100, epoch=leader)
    assert stores.count_events("lease_expired") == 0
    assert tallies.totals()[Total.LEASES_EXPIRED] == {"": 2}
    expire(stores, leader)
    assert tallies.totals()[Total.LEASES_EXPIRED] == {"": 3}


def test_lost_and_retried_attempts_are_counted_by_host(stores: Stores, tallies: SqlTallies) -> None:
    """Those that count against their job: what waited behind another in its line was not lost."""
    stores.register("b", 1)
    leader = stores.lead()
    expire(stores, leader)
    job, lease = stores.start("a-1", max_attempts=3)
    stores.finish(job, lease, JobEvent.RETRY, delay_seconds=0.0)
    submitted = stores.submit(resources=Resources(1))
    outcome = stores.claim(submitted.seq, "b-0", node="b")
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.BURY, node="b", failure_class=FailureClass.LOST)
    stores.running_together(3, "a-2")
    stores.register("a", 4, pid=2)  # its worker was started again, and has lost what ran

    totals = tallies.totals()
    assert totals[Total.ATTEMPTS_LOST] == {"a": 2, "b": 1}
    assert totals[Total.ATTEMPTS_RETRIED] == {"a": 1}


def test_what_a_superseded_holder_writes_is_counted(stores: Stores, tallies: SqlTallies) -> None:
    """A repeat of an end that took effect is none."""
    leader = stores.lead()
    job, lease = stores.start("a-0", ttl=SHORT)
    wait_for_expiry(stores, lease)
    stores.admission.expire_leases([(lease, 0)], policy=POLICY, epoch=leader)
    assert Total.WRITES_REFUSED not in tallies.totals()

    assert stores.finish(job, lease, JobEvent.SUCCEED).stale
    assert tallies.totals()[Total.WRITES_REFUSED] == {"a": 1}
    other, held = stores.start("a-1")
    for _ in range(2):
        assert not stores.finish(other, held, JobEvent.SUCCEED).stale
    assert tallies.totals()[Total.WRITES_REFUSED] == {"a": 1}


def test_runners_that_leave_unordered_are_counted_by_pool(stores: Stores, tallies: SqlTallies) -> None:
    stores.register("a", 4, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    pools = SqlPoolStore(stores.database)
    leases = [join(stores, pools, start(pools, most=2), gpu) for gpu in ("a-0", "a-1")]
    idle = Decision(pools.standing("chat").pool, leave=((leases[0], Leave.DRAIN),))
    assert pools.apply(idle, epoch=epoch(stores))
    assert tallies.totals()[Total.POOL_EVICTIONS] == {"chat": 1}

    pools.change("chat", PoolChange(leave=Leave.NOW), by="ada")
    ordered = Decision(pools.standing("chat").pool, leave=tuple((lease, Leave.NOW) for lease in leases))
    assert pools.apply(ordered, epoch=epoch(stores))
    assert tallies.totals()[Total.POOL_EVICTIONS] == {"chat": 1}


def test_leases_are_told_by_who_holds_them_and_what(stores: Stores, tallies: SqlTallies) -> None:
    """With how old the oldest is, and how long one has waited for its renewal."""
    stores.register("a", 4, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    pools = SqlPoolStore(stores.database)
    join(stores, pools, start(pools), "a-0")
    _, old = stores.start("a-1")
    stores.start("a-2")
    stores.start()
    share = stores.submit(resources=Resources(1, 100))
    assert stores.claim(share.seq, "a-3", mib=100).lease_id is not None
    holder = Holder("mine", "default", "me", "hash", None)
    share_of_3 = LeaseGrant(("a-3",), LeaseMode.SHARED, 100)
    assert SqlAdHocLeases(stores.database).grant("a", share_of_3, holder, ttl=TTL) is not None
    with stores.database.engine.begin() as connection:
        earlier = "granted_at = '2000-01-01 00:00:00.000000', heartbeat_at = '2001-01-01 00:00:00.000000'"
        connection.exec_driver_sql(f"UPDATE orchestrator_leases SET {earlier} WHERE id = {old}")

    found = {(one.kind, one.mode): one for one in tallies.active_leases()}
    assert {key: one.count for key, one in found.items()} == {
        ("job", "exclusive"): 2,
        ("job", "none"): 1,
        ("job", "shared"): 1,
        ("pool", "exclusive"): 1,
        ("adhoc", "shared"): 1,
    }
    year = timedelta(days=366).total_seconds()
    assert found["job", "exclusive"].oldest_seconds - found["job", "exclusive"].silent_seconds == pytest.approx(year)
    assert 0 <= found["pool", "exclusive"].silent_seconds < year
    stores.commit(releases=(old,))
    assert {(one.kind, one.mode): one.count for one in tallies.active_leases()}["job", "exclusive"] == 1


def test_dead_letters_are_those_that_wait_for_a_person(stores: Stores, tallies: SqlTallies) -> None:
    """A purged one stays a job of that state; nobody has to look at it any more."""
    job, lease = stores.start("a-0")
    stores.finish(job, lease, JobEvent.BURY, failure_class=FailureClass.LOST)
    assert tallies.dead_letters() == {"gpu": 1}

    SqlDeadLetterStore(stores.database).purge_all(DeadLetterFilter(limit=9), by="ada")
    assert tallies.dead_letters() == {}
    assert stores.job(job.id).state.value == "dead_letter"


def test_a_host_is_degraded_for_a_while_after_its_last_trouble(stores: Stores, tallies: SqlTallies) -> None:
    """Its worker can say so only when the database answers again."""

    def is_degraded(trouble_seconds: float | None) -> bool:
        stores.cluster.heartbeat("a", (), look_ahead=0, trouble_seconds=trouble_seconds)
        return stores.cluster.nodes()[0].degraded

    assert not is_degraded(None)
    assert is_degraded(5.0)
    assert is_degraded(None), "the trouble is still recent"
    assert not is_degraded(DEGRADED_BOUND + 1)
