"""Conditions on GPUs and host, as the database keeps them."""

from datetime import UTC, datetime

import pytest

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import JobEvent, JobState, LeaseMode, Resources
from orchestrator.domain.lease import Claim, LeaseGrant, LedgerBatch, Refusal
from orchestrator.domain.wants import Alternative, Wants, wants_from
from orchestrator.errors import IdempotencyConflict
from orchestrator.ports import NodeRecord
from tests.contract.conftest import TTL, Stores, new_job

WANTS = Wants(models=("H100",), labels=(("zone", "a"),), cpus=4, host_memory_mib=512, alternatives=(Alternative(2),))
ASKED = Resources(1, wants=WANTS)


def test_a_job_with_conditions_waits_for_a_pass_that_knows_the_hosts(stores: Stores) -> None:
    """A shared stream would give it to whoever comes first."""
    submitted = stores.submit(resources=ASKED)

    assert submitted.state is JobState.PENDING
    assert stores.job(submitted.id).resources == ASKED
    assert [candidate.resources for candidate in stores.admission.snapshot(limit=9).candidates] == [ASKED]


def test_conditions_reach_the_worker_and_stay_with_a_retry(stores: Stores) -> None:
    stores.register("a", 1)
    submitted = stores.submit(resources=ASKED, max_attempts=2)
    (entry,) = stores.admission.admit([(submitted.seq, "a")], epoch=stores.lead())
    claim = Claim(1, (submitted.seq,), ASKED, grant=LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None))
    (outcome,) = stores.commit(claims=(claim,)).claims
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.GIVE_BACK)

    assert wants_from(entry.headers["orchestrator"]["wants"]) == WANTS
    assert outcome.granted[0].resources == ASKED
    assert [candidate.resources for candidate in stores.admission.snapshot(limit=9).candidates] == [ASKED]


def test_what_a_claim_was_made_for_must_be_what_the_job_asks_for(stores: Stores) -> None:
    """An entry that somebody changed gets nobody a GPU of another kind."""
    stores.register("a", 1)
    submitted = stores.submit(resources=ASKED)
    stores.admission.admit([(submitted.seq, "a")], epoch=stores.lead())
    grant = LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None)
    forged = Claim(1, (submitted.seq,), Resources(1), grant=grant)
    (outcome,) = stores.ledger.commit("a", LedgerBatch(claims=(forged,)), ttl=TTL).claims

    assert outcome.granted == ()
    assert outcome.refused == ((submitted.seq, Refusal.SUPERSEDED),)


def test_cpus_and_memory_are_taken_with_the_lease_and_given_back_with_it(stores: Stores) -> None:
    now = datetime.now(UTC)
    stores.cluster.register_node(
        NodeRecord(
            *("a", "boot", "a", 1, NodeState.UP, ("gpu",), 2, 0, now, True, ()),
            labels={"zone": "a"},
            cpus=16,
            memory_mib=4096,
        )
    )
    resources = Resources(0, wants=Wants(cpus=4, host_memory_mib=512))
    submitted = stores.submit(resources=resources)
    stores.admission.admit([(submitted.seq, "a")], epoch=stores.lead())
    claim = Claim(1, (submitted.seq,), resources, grant=LeaseGrant((), LeaseMode.EXCLUSIVE, None, 4, 512))
    (outcome,) = stores.commit(claims=(claim,)).claims
    assert outcome.lease_id is not None
    stores.submit()  # or there is nothing to look at
    (during,) = stores.admission.snapshot(limit=1).hosts
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    stores.commit(releases=(outcome.lease_id,))
    (after,) = stores.admission.snapshot(limit=1).hosts

    assert during.labels == (("zone", "a"),)
    assert (during.cpus, during.cpus_taken, during.memory_mib, during.memory_taken_mib) == (16, 4, 4096, 512)
    assert (after.cpus_taken, after.memory_taken_mib) == (0, 0)


def test_a_key_names_the_same_conditions(stores: Stores) -> None:
    stores.submit(resources=ASKED, idempotency_key="k")
    again = stores.jobs.submit([new_job(resources=ASKED, idempotency_key="k")]).jobs[0]
    assert not again.created
    with pytest.raises(IdempotencyConflict):
        stores.submit(resources=Resources(1), idempotency_key="k")


def test_jobs_with_different_conditions_are_counted_apart(stores: Stores) -> None:
    stores.register("a", 1)
    stores.submit()
    stores.submit()
    special = [stores.submit(resources=ASKED).seq for _ in range(3)]
    stores.admission.admit([(seq, "a") for seq in special], epoch=stores.lead())
    stores.submit(resources=ASKED)  # or there is nothing to look at

    admitted = stores.admission.snapshot(limit=9).admitted
    assert sorted((view.count, view.resources == ASKED) for view in admitted) == [(2, False), (3, True)]
