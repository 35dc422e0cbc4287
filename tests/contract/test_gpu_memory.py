"""What is kept of a GPU's memory, and what a claim makes of it, on both databases."""

from dataclasses import replace

import pytest

from orchestrator.domain.cluster import GpuHolder, GpuSample
from orchestrator.domain.gpu_memory import ForeignUse
from orchestrator.domain.job import JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import Claim, JobNote, LeaseGrant, Refusal
from orchestrator.errors import InvalidPolicy
from orchestrator.storage.queue_control import SqlPolicyStore
from tests.contract.conftest import MEMORY_MIB, Stores

MOST = MEMORY_MIB // 2
STRANGER = ForeignUse(MOST, ("pid 77 (alice): 499 MiB", "pid 78: 1 MiB"), clean=False)


def tell(stores: Stores, foreign: ForeignUse) -> None:
    """Send a heartbeat of host ``a`` whose one GPU has this foreign use."""
    (record,) = stores.cluster.nodes()[0].gpus
    sample = GpuSample(record.gpu, foreign.used_mib, record.health, (), None, None, None)
    stores.cluster.heartbeat("a", [replace(sample, foreign=foreign)], look_ahead=0)


@pytest.fixture
def one_gpu(stores: Stores) -> Stores:
    stores.register("a", 1)
    stores.cluster.ensure_queues(["gpu"])
    return stores


def test_foreign_use_is_remembered_with_who_it_is(one_gpu: Stores) -> None:
    tell(one_gpu, STRANGER)
    (record,) = one_gpu.cluster.nodes()[0].gpus
    assert record.foreign == STRANGER
    (host,) = one_gpu.admission.snapshot(limit=1).hosts
    assert [(card.foreign_mib, card.clean) for card in host.gpus] == [(MOST, False)]

    tell(one_gpu, ForeignUse())
    assert one_gpu.cluster.nodes()[0].gpus[0].foreign == ForeignUse()


def test_how_gpus_are_joined_is_remembered_until_it_is_told_otherwise(stores: Stores) -> None:
    stores.register("a", 2)
    (node,) = stores.cluster.nodes()
    joined = [replace(gpu.gpu, numa=1, links=("a-1",)) for gpu in node.gpus]
    cards = tuple(replace(record, gpu=gpu) for record, gpu in zip(node.gpus, joined, strict=True))
    stores.cluster.register_node(replace(node, gpus=cards))
    assert [record.gpu for record in stores.cluster.nodes()[0].gpus] == joined
    (host,) = stores.admission.snapshot(limit=1).hosts
    assert [(card.numa, card.links) for card in host.gpus] == [(1, ("a-1",))] * 2

    stores.cluster.register_node(node)
    assert [record.gpu for record in stores.cluster.nodes()[0].gpus] == [record.gpu for record in node.gpus]


def test_a_gpu_whose_memory_shrinks_below_what_is_reserved_keeps_that(one_gpu: Stores) -> None:
    """It has its new size once it is registered when nobody has more of it."""
    job = one_gpu.submit(resources=Resources(1, MOST))
    lease = one_gpu.claim(job.seq, "a-0", mib=MOST).lease_id
    assert lease is not None
    (node,) = one_gpu.cluster.nodes()
    shrunk = replace(node, gpus=(replace(node.gpus[0], gpu=replace(node.gpus[0].gpu, memory_mib=MOST // 2)),))

    def sizes() -> tuple[int, int]:
        one_gpu.cluster.register_node(shrunk)
        (record,) = one_gpu.cluster.nodes()[0].gpus
        return record.gpu.memory_mib, record.reserved_mib

    assert sizes() == (MOST, MOST)
    one_gpu.commit(releases=(lease,))
    assert sizes() == (MOST // 2, 0)


def test_no_claim_gets_what_is_used_without_a_lease(one_gpu: Stores) -> None:
    """Reserved and foreign memory never exceed the card together, and no lease gets the whole of a GPU in use."""
    tell(one_gpu, STRANGER)
    whole = one_gpu.submit(resources=Resources(1)).seq
    large, fits, more = (one_gpu.submit(resources=Resources(1, mib)).seq for mib in (MOST + 1, MOST - 10, 11))

    assert one_gpu.claim(whole, "a-0").refused == ((whole, Refusal.GPUS_TAKEN),)
    assert one_gpu.claim(large, "a-0", mib=MOST + 1).refused == ((large, Refusal.GPUS_TAKEN),)
    assert one_gpu.claim(fits, "a-0", mib=MOST - 10).granted
    assert one_gpu.claim(more, "a-0", mib=11).refused == ((more, Refusal.GPUS_TAKEN),)
    tell(one_gpu, ForeignUse())
    assert one_gpu.claim(more, "a-0", mib=11).granted


def test_the_peak_of_an_attempt_is_kept_however_it_ends(one_gpu: Stores) -> None:
    for event in (JobEvent.SUCCEED, JobEvent.FAIL):
        job, lease = one_gpu.start("a-0")
        one_gpu.finish(job, lease, event, peak_gpu_memory_mib=321, peak_memory_mib=5)
        one_gpu.commit(releases=(lease,))
        (attempt,) = one_gpu.jobs.attempts(job.id)
        assert (attempt.peak_gpu_memory_mib, attempt.peak_memory_mib) == (321, 5)


def test_a_note_is_history_only_under_the_jobs_own_lease(one_gpu: Stores) -> None:
    job, lease = one_gpu.start("a-0")
    notes = [JobNote(job.seq, job.attempt, token, "vram_warned", {"used_mib": 5}) for token in (lease, lease + 1)]
    one_gpu.commit(notes=tuple(notes))

    told = [event for event in one_gpu.jobs.history(job.id) if event.kind == "vram_warned"]
    assert [(event.lease_id, event.data, event.node) for event in told] == [(lease, {"used_mib": 5}, "a")]


def test_who_has_a_gpu_is_told_by_its_leases(stores: Stores) -> None:
    """The job that runs before those that wait behind it; shares side by side; nobody once the lease is released."""
    stores.register("a", 2)
    seqs = tuple(stores.submit(tenant="ann").seq for _ in range(2))
    claim = Claim(1, seqs, Resources(1), grant=LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None))
    (line,) = stores.commit(claims=(claim,)).claims
    shares = [stores.submit(resources=Resources(1, mib), tenant="ben").seq for mib in (100, 200)]
    leases = [stores.claim(seq, "a-1", mib=mib).lease_id for seq, mib in zip(shares, (100, 200), strict=True)]

    found = stores.cluster.gpu_holders()
    assert line.lease_id is not None
    assert found["a-0"] == [GpuHolder(line.lease_id, None, tuple(job.id for job in line.granted), "ann")]
    assert [(one.lease_id, one.memory_mib, one.tenant) for one in found["a-1"]] == [
        (leases[0], 100, "ben"),
        (leases[1], 200, "ben"),
    ]
    first, second = line.granted
    stores.finish(first, line.lease_id, JobEvent.SUCCEED)
    assert stores.cluster.gpu_holders()["a-0"] == [GpuHolder(line.lease_id, None, (second.id,), "ann")]
    stores.finish(second, line.lease_id, JobEvent.SUCCEED)
    stores.commit(releases=(line.lease_id,))
    assert "a-0" not in stores.cluster.gpu_holders()


def test_the_policy_keeps_a_part_of_every_gpu_from_shares(one_gpu: Stores) -> None:
    """Plans, workers and claims keep to it; what is leased as a whole is all of it."""
    policy = SqlPolicyStore(one_gpu.database)
    policy.change({"max_gpu_memory_fraction": 0.75}, by="me", version=None)
    (record,) = one_gpu.cluster.nodes()[0].gpus
    (host,) = one_gpu.admission.snapshot(limit=1).hosts
    kept = MEMORY_MIB // 4
    assert (record.headroom_mib, host.gpus[0].headroom_mib) == (kept, kept)
    (standing,) = one_gpu.cluster.gpu_standings("a").values()
    assert standing.order.headroom_mib == kept

    large, small, rest = (MEMORY_MIB * 8 // 10, MEMORY_MIB // 2, MEMORY_MIB // 4)
    for mib, granted in ((large, False), (small, True), (rest + 1, False), (rest, True), (1, False)):
        job = one_gpu.submit(resources=Resources(1, mib))
        assert (one_gpu.claim(job.seq, "a-0", mib=mib).lease_id is not None) is granted, mib
    with pytest.raises(InvalidPolicy):
        policy.change({"max_gpu_memory_fraction": 0}, by="me", version=None)
    policy.change({"max_gpu_memory_fraction": 1.0}, by="me", version=None)
    assert one_gpu.cluster.nodes()[0].gpus[0].headroom_mib == 0


def test_the_policy_does_not_touch_whole_gpus(one_gpu: Stores) -> None:
    SqlPolicyStore(one_gpu.database).change({"max_gpu_memory_fraction": 0.1}, by="me", version=None)
    assert one_gpu.claim(one_gpu.submit().seq, "a-0").lease_id is not None
