"""Taking a host out of service and back."""

from datetime import timedelta

import pytest

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import JobEvent, JobState
from orchestrator.domain.lease import Refusal
from orchestrator.errors import UnknownNode
from tests.contract.conftest import Stores


def state(stores: Stores, node: str = "a") -> NodeState:
    return next(record.state for record in stores.cluster.nodes() if record.name == node)


def beat(stores: Stores, *, settled: bool = False) -> NodeState:
    return stores.cluster.heartbeat("a", (), look_ahead=0, settled=settled)


def test_a_host_drains_until_it_holds_nothing(stores: Stores) -> None:
    """Draining while it holds a lease, or has not said that it knows; then drained; and up again when taken back."""
    stores.register("a", 1)
    job, lease = stores.start("a-0")

    assert stores.cluster.set_drain("a", drain=True, by="me").changed
    assert not stores.cluster.set_drain("a", drain=True, by="me").changed
    assert beat(stores, settled=True) is NodeState.DRAINING
    stores.finish(job, lease, JobEvent.SUCCEED)
    stores.commit(releases=(lease,))
    assert beat(stores) is NodeState.DRAINING
    assert beat(stores, settled=True) is NodeState.DRAINED
    assert state(stores) is NodeState.DRAINED
    assert stores.cluster.set_drain("a", drain=False, by="me").changed
    assert beat(stores) is NodeState.UP
    assert stores.count_events("node_drain") == stores.count_events("node_undrain") == 1


def test_what_was_placed_on_it_and_not_started_goes_elsewhere(stores: Stores) -> None:
    """Placed jobs wait again; running ones, and those that any host may take, stay."""
    stores.register("a", 1)
    running, _ = stores.start("a-0")
    placed, free = stores.submit(), stores.submit()
    stores.commit("a", withdrawals=(placed.seq, free.seq))
    stores.ledger.admit([(placed.seq, "a")])

    outcome = stores.cluster.set_drain("a", drain=True, by="me")

    assert (outcome.state, outcome.withdrawn) == (NodeState.DRAINING, 1)
    assert stores.job(placed.id).state is JobState.PENDING
    assert stores.job(running.id).state is JobState.RUNNING
    assert stores.claim(placed.seq, "a-0").granted == ()


def test_once_a_drain_is_committed_no_claim_takes_a_job(stores: Stores) -> None:
    """Whatever its worker knows of it: the job may already have come to it, and a runner be free under a live lease."""
    stores.register("a", 2)
    running, lease = stores.start("a-0")
    came, follows = stores.submit(), stores.submit()
    stores.cluster.set_drain("a", drain=True, by="me")

    assert stores.claim(came.seq, "a-1").refused == ((came.seq, Refusal.DRAINING),)
    assert stores.claim(follows.seq, lease=lease).refused == ((follows.seq, Refusal.DRAINING),)
    assert {stores.job(one.id).state for one in (came, follows)} == {JobState.QUEUED}
    stores.finish(running, lease, JobEvent.SUCCEED)

    stores.cluster.set_drain("a", drain=False, by="me")
    assert [job.seq for job in stores.claim(came.seq, "a-1").granted] == [came.seq]


def test_a_drain_outlives_the_worker_and_its_loss(stores: Stores) -> None:
    """Whatever becomes of the worker, the next one begins with draining, and no plan gives the host anything."""
    epoch = stores.lead()
    stores.register("a", 1)
    stores.cluster.set_drain("a", drain=True, by="me")

    stores.cluster.deregister_node("a", 1)
    assert state(stores) is NodeState.LOST
    stores.register("a", 1, pid=2)
    assert state(stores) is NodeState.DRAINING
    stores.admission.lose_nodes(silent_for=timedelta(seconds=-1), epoch=epoch)
    assert state(stores) is NodeState.LOST
    assert beat(stores) is NodeState.DRAINING
    assert [host.accepts for host in stores.admission.snapshot(limit=9).hosts] == [False]


def test_a_host_without_a_worker_can_be_drained_for_the_next_one(stores: Stores) -> None:
    stores.register("a", 1)
    stores.cluster.deregister_node("a", 1)

    assert stores.cluster.set_drain("a", drain=True, by="me").state is NodeState.LOST
    stores.register("a", 1, pid=2)
    assert [record.drain for record in stores.cluster.nodes()] == [True]
    assert state(stores) is NodeState.DRAINING


def test_an_unknown_host_is_refused(stores: Stores) -> None:
    with pytest.raises(UnknownNode, match="'b'"):
        stores.cluster.set_drain("b", drain=True, by="me")
