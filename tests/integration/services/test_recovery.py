"""The leader's sweeps on real databases: what a dead worker held runs again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState
from orchestrator.domain.job import Job, JobState, LeaseMode, Resources
from orchestrator.domain.lease import Claim, LeaseGrant, LedgerBatch
from orchestrator.domain.request import CommandRequest
from orchestrator.errors import UnknownQueue, UnsatisfiableRequest
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.services.lead import Leader
from orchestrator.services.refill import Refill
from orchestrator.services.submit import SubmitService
from orchestrator.services.why import explain
from orchestrator.storage.schema import upgrade
from tests.support.waiting import wait_for

TTL = 2.0


@pytest.fixture
def runtime(database_url: str, embedded_redis_url: str, tmp_path: Path) -> Iterator[Runtime]:
    upgrade(database_url)
    settings = Settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=embedded_redis_url,
        lease_ttl=TTL,
        lease_margin=0.5,
        expiry_grace=0.5,
        sweep_interval=0.2,
        lost_delay=0,
    )
    opened = open_runtime(settings)
    yield opened
    opened.close()


def register(runtime: Runtime, node: str, gpus: int) -> None:
    cards = tuple(
        GpuRecord(Gpu(f"{node}-{i}", i, "Sim", 1000, "1"), node, GpuHealth.HEALTHY, 0, 0, None, 0) for i in range(gpus)
    )
    now = runtime.clock.now()
    record = NodeRecord(node, "boot", f"celery@{node}", 1, NodeState.UP, ("gpu",), 2, 0, now, True, cards)
    runtime.cluster.register_node(record)


def stored(runtime: Runtime, job_id: str) -> Job:
    job = runtime.jobs.get(job_id)
    assert job is not None
    return job


def lead_until(leader: Leader, condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    def step() -> bool:
        leader.step()
        return condition()

    wait_for(step, within_seconds=seconds, describe=what)


def test_a_dead_workers_job_runs_again_and_a_living_ones_does_not(runtime: Runtime) -> None:
    """The lease that nobody renews ends, not too early; its GPU is free again and its job is admitted again."""
    register(runtime, "a", 2)
    service = SubmitService(runtime)
    dead, alive = service.submit([CommandRequest(argv=("true",), gpus=1) for _ in range(2)])
    leases = {}
    for job, gpu in ((dead, "a-0"), (alive, "a-1")):
        wait_for(lambda j=job: _is_admitted(runtime, j.id), within_seconds=5, describe="it is admitted")
        grant = LeaseGrant((gpu,), LeaseMode.EXCLUSIVE, None)
        batch = LedgerBatch(claims=(Claim(1, (job.seq,), Resources(1), grant=grant),))
        (outcome,) = runtime.ledger.commit("a", batch, ttl=runtime.settings.lease_ttl_delta).claims
        assert outcome.lease_id is not None
        leases[job.id] = outcome.lease_id
    claimed_at = time.monotonic()
    leader = Leader(runtime, "test")

    def dead_is_lost() -> bool:
        renewal = runtime.ledger.renew("a", [leases[alive.id]], ttl=runtime.settings.lease_ttl_delta)
        assert renewal.live
        return stored(runtime, dead.id).state is not JobState.RUNNING

    lead_until(leader, dead_is_lost, "the dead worker's job is taken back")

    assert time.monotonic() - claimed_at >= TTL + 0.5
    assert stored(runtime, alive.id).state is JobState.RUNNING
    lead_until(leader, lambda: _is_admitted(runtime, dead.id), "it is admitted again")
    assert stored(runtime, dead.id).lost_count == 1
    holders = {card.gpu.uuid: card.exclusive_lease_id for node in runtime.cluster.nodes() for card in node.gpus}
    assert holders == {"a-0": None, "a-1": leases[alive.id]}


def test_waiting_jobs_are_placed_where_they_fit(runtime: Runtime) -> None:
    """The leader places what a submit left waiting; a gang and small jobs end on the hosts that fit them."""
    register(runtime, "big", 4)
    register(runtime, "small", 1)
    service = SubmitService(runtime)
    jobs = service.submit([CommandRequest(argv=("true",), gpus=1) for _ in range(20)])  # more than the window
    waiting = [job for job in jobs if job.state is JobState.PENDING]
    assert waiting
    leader = Leader(runtime, "test")
    leader.step()
    reasons = explain(runtime, waiting[-1].id)

    assert reasons[0].code in {"gpus_busy", "behind"}
    assert all(reason.code != "no_leader" for reason in reasons)


def test_a_host_refills_itself_without_a_leader(runtime: Runtime) -> None:
    """A worker that has room takes what waits, in order, up to its limit, and the entries are its own."""
    register(runtime, "a", 4)
    service = SubmitService(runtime)
    service.submit([CommandRequest(argv=("true",), gpus=0) for _ in range(16)])  # fills the queue's window
    high = service.submit([CommandRequest(argv=("true",), gpus=1, priority=priority) for priority in (1, 9, 5)])
    assert all(job.state is JobState.PENDING for job in high)

    assert Refill(runtime, "a")(2) == 2

    states = [stored(runtime, job.id).state for job in high]
    assert states == [JobState.PENDING, JobState.QUEUED, JobState.QUEUED]
    assert runtime.publisher._client.xlen("stream:orchestrator:inference_jobs@a") == 2  # type: ignore[attr-defined]


def test_what_no_host_could_grant_is_refused_at_submit(runtime: Runtime) -> None:
    """Named with the host that comes closest; nothing is stored."""
    register(runtime, "a", 2)
    with pytest.raises(UnsatisfiableRequest, match="a, has 2"):
        SubmitService(runtime).submit([CommandRequest(argv=("true",), gpus=3)])
    with pytest.raises(UnknownQueue):
        SubmitService(runtime).submit([CommandRequest(argv=("true",), queue="nowhere")])
    assert sum(runtime.jobs.count_by_state().values()) == 0


def test_a_repeated_key_names_the_same_job(runtime: Runtime) -> None:
    """Submitting again after a lost answer is safe."""
    service = SubmitService(runtime)
    request = CommandRequest(argv=("true",), key="nightly")
    (first,) = service.submit([request])
    (second,) = service.submit([replace(request)])

    assert (second.id, second.created) == (first.id, False)


def _is_admitted(runtime: Runtime, job_id: str) -> bool:
    return stored(runtime, job_id).state is JobState.QUEUED
