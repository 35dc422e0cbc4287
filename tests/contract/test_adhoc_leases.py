"""Leases without a job, on both databases."""

from datetime import timedelta

import pytest

from orchestrator.domain.adhoc import AdHocLease
from orchestrator.domain.cluster import GpuHealth, GpuSample
from orchestrator.domain.job import LeaseMode
from orchestrator.domain.lease import LeaseGrant
from orchestrator.errors import IdempotencyConflict, LeaseLost, UnknownLease
from orchestrator.lease_ports import Holder
from orchestrator.ports import LossPolicy
from orchestrator.storage.adhoc import SqlAdHocLeases
from orchestrator.storage.cluster import SqlClusterStore
from orchestrator.storage.lent_use import LentUsePolicy
from orchestrator.testing.history import Expectations
from tests.contract.conftest import Stores
from tests.contract.test_ledger import SHORT, held, wait_for_expiry
from tests.support.cluster import verify_database
from tests.support.waiting import wait_for

MINUTE = timedelta(minutes=1)
POLICY = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))


def whole(*gpus: str) -> LeaseGrant:
    return LeaseGrant(gpus, LeaseMode.EXCLUSIVE, None)


def grant(
    stores: Stores, *gpus: str, hashed: str = "t", key: str | None = None, ttl: timedelta = MINUTE
) -> AdHocLease | None:
    """Ask for GPUs of host a."""
    holder = Holder("shell", "red", "ada", hashed, key)
    return SqlAdHocLeases(stores.database).grant("a", whole(*gpus), holder, ttl=ttl)


def test_a_lease_takes_its_gpus_from_jobs_until_it_is_released(stores: Stores) -> None:
    """Nobody else is given them meanwhile, whatever becomes of the host's worker; afterwards a job has them."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 2)
    lease = grant(stores, "a-0", "a-1")
    assert lease is not None
    assert (lease.gpus, lease.state, lease.holder) == (("a-0", "a-1"), "active", "ada")
    job = stores.submit()
    assert stores.claim(job.seq, "a-0").lease_id is None
    assert grant(stores, "a-0", hashed="other") is None
    stores.register("a", 2, pid=99)
    assert leases.renew("t").state == "active", "the worker's life is not its holder's"

    ended = leases.release("t", by="ada")
    assert (ended.state, leases.release("t", by="ada").state) == ("released", "released")
    with pytest.raises(LeaseLost):
        leases.renew("t")
    assert stores.claim(job.seq, "a-0").lease_id is not None
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_the_host_is_told_what_waits_for_its_word_and_its_first_word_counts(stores: Stores) -> None:
    """A lease of several GPUs, and two shares of one; what is ready, refused or ended waits no longer."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 3)
    both = grant(stores, "a-0", "a-1")
    shares = [
        leases.grant(
            "a", LeaseGrant(("a-2",), LeaseMode.SHARED, 300), Holder("nb", "red", "ada", name, None), ttl=MINUTE
        )
        for name in ("s", "u")
    ]
    assert both is not None
    first, second = (share.id for share in shares if share is not None)
    waiting = lambda: {  # noqa: E731
        uuid: order.unready for uuid, order in stores.cluster.note_gpu_standings("a", {}).items()
    }
    assert waiting() == {"a-0": (both.id,), "a-1": (both.id,), "a-2": (first, second)}

    leases.confirm(both.id, None)
    leases.confirm(both.id, "too late")
    leases.confirm(first, "x" * 300)
    leases.confirm(first, None)
    leases.release("u", by="ada")
    assert waiting() == {"a-0": (), "a-1": (), "a-2": ()}
    ready, refused = leases.find("t"), leases.find("s")
    assert (ready.ready_at is not None, ready.refusal) == (True, None)
    assert (refused.ready_at, refused.refusal) == (None, "x" * 255)
    with pytest.raises(UnknownLease):
        leases.find("nobody")


def test_a_lease_whose_gpus_do_nothing_is_told_once_until_they_work(stores: Stores) -> None:
    """One GPU at work is enough; the host tells what it reads, and the database's clock counts."""
    leases = SqlAdHocLeases(stores.database)
    cluster = SqlClusterStore(stores.database, lent_use=LentUsePolicy(percent=5, warn_seconds=0.05))
    stores.register("a", 2)
    lease = grant(stores, "a-0", "a-1")
    assert lease is not None

    def told(*percents: int) -> int:
        cards = [card.gpu for node in cluster.nodes() for card in node.gpus]
        samples = [
            GpuSample(card, 0, GpuHealth.HEALTHY, (), percent, None, None)
            for card, percent in zip(cards, percents, strict=True)
        ]
        cluster.heartbeat("a", samples, look_ahead=0)
        return stores.count_events("lease_idle")

    assert told(0, 0) == 0, "it is not ready"
    leases.confirm(lease.id, None)
    wait_for(lambda: told(5, 0) == 1, within_seconds=20, describe="the event")
    assert (told(5, 0), leases.find("t").busy_at) == (1, None)
    assert told(0, 6) == 1
    busy_at = leases.find("t").busy_at
    assert busy_at is not None
    wait_for(lambda: told(0, 0) == 2, within_seconds=20, describe="the second event")
    assert leases.find("t").busy_at == busy_at
    leases.release("t", by="ada")
    told(0, 6)
    assert leases.find("t").busy_at == busy_at


def test_who_does_not_renew_loses_it(stores: Stores) -> None:
    """By the database's clock; the sweep frees the GPU then, and the token is worth nothing."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 1)
    epoch = stores.lead()
    lease = grant(stores, "a-0", ttl=SHORT)
    assert lease is not None
    wait_for_expiry(stores, lease.id)
    with pytest.raises(LeaseLost):
        leases.renew("t")
    assert stores.admission.expire_leases([(lease.id, 0)], policy=POLICY, epoch=epoch) == 1
    assert held(stores)["a-0"] == (None, 0)
    assert [one.state for one in leases.leases(active=False)] == ["expired"]
    assert leases.leases() == []
    for unknown in (lambda: leases.renew("x"), lambda: leases.release(None, lease_id=999, by="op")):
        with pytest.raises(UnknownLease):
            unknown()


def test_a_key_names_its_lease_as_long_as_that_lives(stores: Stores) -> None:
    """Who asks again has the same lease, under a new token alone, also where no other GPU is free."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 1)
    first = grant(stores, "a-0", hashed="lost", key="k")
    assert first is not None
    again = leases.again(Holder("shell", "red", "ada", "heard", "k"))

    assert again is not None
    assert (again.id, again.gpus) == (first.id, first.gpus)
    assert again.expires_at >= first.expires_at
    with pytest.raises(UnknownLease):
        leases.renew("lost")
    assert leases.renew("heard").id == first.id
    assert leases.again(Holder("shell", "blue", "ada", "x", "k")) is None, "a key is of one tenant"
    assert leases.again(Holder("shell", "red", "ada", "x", None)) is None
    assert [one.id for one in leases.leases(tenant="red")] == [first.id]
    assert leases.leases(tenant="blue") == []


def test_a_key_is_for_one_request_and_free_again_after_its_lease(stores: Stores) -> None:
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 1)

    def holder(hashed: str, digest: str) -> Holder:
        return Holder("shell", "red", "ada", hashed, "k", digest)

    first = leases.grant("a", whole("a-0"), holder("one", "d1"), ttl=MINUTE)
    with pytest.raises(IdempotencyConflict):
        leases.again(holder("two", "d2"))
    assert leases.renew("one").state == "active", "the conflict changed nothing"
    leases.release("one", by="ada")
    assert leases.again(holder("two", "d2")) is None
    second = leases.grant("a", whole("a-0"), holder("two", "d2"), ttl=MINUTE)
    assert first is not None
    assert second is not None
    assert second.id > first.id


def test_of_two_grants_under_one_key_at_once_there_is_one_lease(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one finds the key taken only when it writes its own."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 2)
    first = grant(stores, "a-0", hashed="one", key="k")
    looks = iter([None])  # what the first look sees: nothing yet
    earlier = SqlAdHocLeases._earlier
    monkeypatch.setattr(
        SqlAdHocLeases, "_earlier", lambda *given: None if next(looks, "seen") is None else earlier(*given)
    )

    second = leases.grant("a", whole("a-1"), Holder("shell", "red", "ada", "two", "k"), ttl=MINUTE)

    assert first is not None
    assert second is not None
    assert (second.id, second.gpus) == (first.id, ("a-0",))
    assert held(stores)["a-1"] == (None, 0)


def test_a_draining_host_grants_none_and_the_worker_is_told_what_is_lent(stores: Stores) -> None:
    stores.register("a", 2)
    shared = Holder("nb", "red", "ada", "s", None)
    assert SqlAdHocLeases(stores.database).grant("a", LeaseGrant(("a-0",), LeaseMode.SHARED, 300), shared, ttl=MINUTE)
    assert grant(stores, "a-1") is not None
    orders = stores.cluster.note_gpu_standings("a", {})
    assert {uuid: (order.lent, order.lent_mib) for uuid, order in orders.items()} == {
        "a-0": (False, 300), "a-1": (True, 0),
    }  # fmt: skip
    SqlAdHocLeases(stores.database).release("t", by="ada")
    stores.cluster.set_drain("a", drain=True, by="op")
    assert grant(stores, "a-1", hashed="late") is None


def test_a_token_is_good_for_a_caller_of_its_leases_tenant_alone(stores: Stores) -> None:
    """To another tenant it is as one that never was, and changes nothing."""
    leases = SqlAdHocLeases(stores.database)
    stores.register("a", 1)
    made = grant(stores, "a-0")

    for refused in (lambda: leases.renew("t", tenant="blue"), lambda: leases.release("t", tenant="blue", by="ben")):
        with pytest.raises(UnknownLease):
            refused()

    assert leases.leases() == [made]
    assert leases.renew("t", tenant="red").state == "active"
    assert leases.release("t", tenant="red", by="ada").state == "released"
