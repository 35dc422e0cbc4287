"""Conditions on GPUs and host, as the database keeps them."""

from datetime import UTC, datetime

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, GpuSample, NodeState
from orchestrator.domain.job import JobEvent, JobKind, JobState, LeaseMode, Resources
from orchestrator.domain.lease import Claim, LeaseGrant, LedgerBatch, Refusal
from orchestrator.domain.wants import Alternative, Wants, wants_from
from orchestrator.errors import IdempotencyConflict
from orchestrator.ports import NodeRecord
from orchestrator.scheduling.plan import Policy, WaitReason, plan
from orchestrator.worker.host import Host, Shape, WaitingJob
from orchestrator.worker.run_times import RunTimes
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


def test_an_attempt_tells_which_alternative_it_has_got(stores: Stores) -> None:
    """By the GPUs of its lease, whichever host it is on; jobs without alternatives have no choice to tell."""
    stores.register("a", 3)
    either = Wants(models=("H100",), alternatives=(Alternative(2, models=("Sim",)), Alternative(1, 400)))
    asked = Resources(1, wants=either)
    grants = (
        LeaseGrant(("a-0", "a-1"), LeaseMode.EXCLUSIVE, None),
        LeaseGrant(("a-2",), LeaseMode.SHARED, 400),
    )
    choices = []
    for key, grant in enumerate(grants, 1):
        submitted = stores.submit(resources=asked)
        stores.admission.admit([(submitted.seq, "a")], epoch=stores.lead())
        assert stores.commit(claims=(Claim(key, (submitted.seq,), asked, grant=grant),)).claims[0].granted
        choices += [attempt.choice for attempt in stores.jobs.attempts(submitted.id)]
    assert choices == [2, 3]
    plain = stores.submit(resources=Resources(1, 100))
    assert stores.claim(plain.seq, "a-2", mib=100).granted
    assert [attempt.choice for attempt in stores.jobs.attempts(plain.id)] == [None]


SPLIT = ("3g.40gb", "2g.20gb", "2g.20gb")


def split_card() -> tuple[Gpu, ...]:
    """Return the instances of one card that is split as far as it can be."""
    return tuple(
        Gpu(f"a-{n}", n, "NVIDIA H100 80GB HBM3", 20_000 * int(profile[0]), "1", profile, "card")
        for n, profile in enumerate(SPLIT)
    )


def test_a_split_card_serves_a_lease_for_each_instance_and_no_whole_gpu(stores: Stores) -> None:
    """F7: as the plan places, a worker chooses and the database grants; nobody else gets on one that is taken."""
    cards = split_card()
    records = tuple(GpuRecord(gpu, "a", GpuHealth.HEALTHY, 0, 0, None, None) for gpu in cards)
    now = datetime.now(UTC)
    stores.cluster.register_node(NodeRecord("a", "boot", "a", 1, NodeState.UP, ("gpu",), 2, 0, now, True, records))
    host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64))
    host.update_gpus(GpuSample(gpu, 0, GpuHealth.HEALTHY, (), None, None, None) for gpu in cards)
    asked = [*(Resources(1, wants=Wants(mig_profile=profile)) for profile in SPLIT), Resources(1), Resources(1, 100)]
    submitted = [stores.submit(resources=one, kind=JobKind.COMMAND) for one in asked]
    epoch = stores.lead()

    made = plan(stores.admission.snapshot(limit=9), now, Policy())
    reasons = {refusal.seq: refusal.reason for refusal in made.refusals}
    assert reasons == dict.fromkeys((job.seq for job in submitted[3:]), WaitReason.TOO_LARGE)
    stores.admission.admit([(admission.seq, admission.node) for admission in made.admissions], epoch=epoch)
    for job, resources in zip(submitted, asked, strict=True):  # those that get none come first
        shape = Shape(resources, "default", JobKind.COMMAND, "run", 5)
        host.add_waiting(WaitingJob(job.seq, job.id, shape, arrival=-job.seq))
    claims = [
        Claim(line.key, tuple(job.seq for job in jobs), line.shape.resources, grant=line.grant)
        for line, jobs in host.choose()
    ]
    outcomes = stores.commit(claims=tuple(claims)).claims

    assert sorted(seq for claim in claims for seq in claim.job_seqs) == [job.seq for job in submitted[:3]]
    leases = {outcome.lease_id for outcome in outcomes}
    assert None not in leases
    assert len(leases) == 3
    (node,) = stores.cluster.nodes()
    assert {record.exclusive_lease_id for record in node.gpus} == leases
    late = stores.submit(resources=asked[0])
    stores.admission.admit([(late.seq, "a")], epoch=epoch)
    taken = Claim(9, (late.seq,), asked[0], grant=LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None))
    assert stores.commit(claims=(taken,)).claims[0].refused == ((late.seq, Refusal.GPUS_TAKEN),)


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
