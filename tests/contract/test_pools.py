"""Worker pools in both databases: orders, runners that join and leave, and who decides last."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.domain.job import JobEvent, JobState, LeaseMode, Resources
from orchestrator.domain.lease import (
    Claim,
    ClaimOutcome,
    Finish,
    LeaseGrant,
    LedgerBatch,
    PoolJoin,
    PoolMember,
    PoolResize,
    PoolUse,
    Refusal,
)
from orchestrator.domain.pool import Leave, Pool, PoolChange, PoolRequest, PoolState, new_pool
from orchestrator.domain.wants import Wants, wants_text
from orchestrator.errors import Conflict, NotLeading, StaleVersion
from orchestrator.pool_errors import InvalidPool, PoolExists, UnknownPool
from orchestrator.ports import Submitted
from orchestrator.scheduling.pools import Decision
from orchestrator.storage import seats
from orchestrator.storage.pools import SqlPoolStore
from orchestrator.storage.queue_control import SqlPolicyStore, SqlQueueControl
from orchestrator.testing.history import Expectations
from tests.contract.conftest import TTL, Stores, new_job
from tests.support.cluster import verify_database


@pytest.fixture
def pools(stores: Stores) -> SqlPoolStore:
    """The store of pools."""
    return SqlPoolStore(stores.database)


def start(pools: SqlPoolStore, name: str = "chat", **fields: Any) -> Pool:
    """Start a pool."""
    pools.start(name, new_pool(PoolRequest(**{"name": name, "gpus": 1, **fields})), by="ada")
    return pools.standing(name).pool


def epoch(stores: Stores) -> int:
    """Lead."""
    term = stores.leadership.campaign("leader", ttl=timedelta(seconds=60))
    assert term is not None
    return term.epoch


def join(stores: Stores, pools: SqlPoolStore, pool: Pool, gpu: str = "a-0", *, generation: int | None = None) -> int:
    """Load a model on a GPU of host a; return the lease, whether it joined or not."""
    generation = pool.generation if generation is None else generation
    wants = Wants(pool=pool.name, generation=generation)
    job = stores.submit(queue="preloads", resources=Resources(1, None, wants))
    pools.new_loads(pool, [job.id], epoch=epoch(stores))
    stores.admission.admit([(job.seq, "a")], epoch=epoch(stores))
    claim = Claim(1, (job.seq,), Resources(1, None, wants), LeaseGrant((gpu,), LeaseMode.EXCLUSIVE, None))
    outcome = stores.commit(claims=(claim,)).claims[0]
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    stores.commit(joins=(PoolJoin(outcome.lease_id, pool.name, generation, job.id, 12.5),))
    return outcome.lease_id


def test_a_pool_is_stored_with_all_that_it_is(stores: Stores, pools: SqlPoolStore) -> None:
    """And is the same pool when it is started again; one that differs is refused, with what differs."""
    asked = {"model": "llama:7b", "arguments": {"bits": 4}, "least": 2, "most": 5, "gpu_type": "H100", "tenant": "red"}
    made = start(pools, **asked, idle_seconds=30.0, pinned=True, priority=7)
    standing = pools.standing("chat")
    assert standing.pool == made
    assert (made.state, made.wanted, made.generation, made.changed_by) == (PoolState.STARTING, 2, 1, "ada")
    assert made.spec.resources == Resources(1, None, Wants(models=("H100",)))
    assert start(pools, **asked, idle_seconds=30.0, pinned=True, priority=7) == made
    with pytest.raises(PoolExists, match="differs: arguments, max"):
        start(pools, **{**asked, "most": 6, "arguments": {}})
    with pytest.raises(UnknownPool, match="there are: chat"):
        pools.standing("other")
    _now, found = pools.standings(tenant="blue")
    assert found == []
    assert [one.pool.name for one in pools.standings(tenant="red")[1]] == ["chat"]


def test_what_somebody_changes_raises_the_version(stores: Stores, pools: SqlPoolStore) -> None:
    """An order that was given for another version, or makes no sense, changes nothing."""
    start(pools, most=4)
    grown = pools.change("chat", PoolChange(least=2), by="bob", version=1)
    assert (grown.version, grown.spec.least, grown.wanted, grown.changed_by) == (2, 2, 2, "bob")
    with pytest.raises(StaleVersion):
        pools.change("chat", PoolChange(least=3), by="bob", version=1)
    with pytest.raises(InvalidPool, match="min: must be at most max, 4"):
        pools.change("chat", PoolChange(least=5), by="bob")
    with pytest.raises(InvalidPool, match="runners: must be at most 4"):
        pools.change("chat", PoolChange(wanted=5), by="bob")
    assert pools.change("chat", PoolChange(wanted=3), by="bob").wanted == 3
    assert pools.change("chat", PoolChange(model="other"), by="bob").generation == 2
    with pytest.raises(UnknownPool):
        pools.change("none", PoolChange(least=1), by="bob")
    kinds = [one.kind for one in stores_events(stores)]
    assert kinds == ["pool_start", *["pool_set"] * 3]


def test_a_stopped_pool_starts_again_or_is_forgotten(stores: Stores, pools: SqlPoolStore) -> None:
    start(pools)
    with pytest.raises(Conflict, match="stop it first"):
        pools.remove("chat", by="ada")
    leaving = pools.change("chat", PoolChange(leave=Leave.DRAIN), by="ada")
    assert (leaving.state, leaving.wanted) == (PoolState.DRAINING, 0)
    with pytest.raises(Conflict, match="start it first"):
        pools.change("chat", PoolChange(least=2), by="ada")
    stopped = Decision(replace(leaving, state=PoolState.STOPPED))
    assert pools.apply(stopped, epoch=epoch(stores))
    again = start(pools, model="other")
    assert (again.state, again.leave, again.generation, again.wanted) == (PoolState.STARTING, None, 2, 1)
    pools.change("chat", PoolChange(leave=Leave.NOW), by="ada")
    assert pools.apply(Decision(replace(pools.standing("chat").pool, state=PoolState.STOPPED)), epoch=epoch(stores))
    pools.remove("chat", by="ada")
    with pytest.raises(UnknownPool):
        pools.standing("chat")


def test_a_lease_joins_its_pool_once_its_model_is_loaded(stores: Stores, pools: SqlPoolStore) -> None:
    """It outlives the job, jobs run under it, and what its runner does is told; a repeat changes nothing."""
    stores.register("a", 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    pool = start(pools, model="llama", most=3)
    lease = join(stores, pools, pool)
    repeat = PoolJoin(lease, "chat", 1, "x", 1.0)
    assert stores.commit(joins=(repeat,)).members == (PoolMember(lease, "chat", "llama", None, 12.5),)

    wants = Wants(model="chat")
    seated, *jobs, waiting = [stores.submit(resources=Resources(1, None, wants)) for _ in range(3)]
    snapshot = stores.admission.snapshot(limit=10)
    (view,) = snapshot.models
    assert (view.pool, view.model, view.node, view.runners, view.load_seconds) == ("chat", "llama", "a", 1, 12.5)
    assert view.most == 3
    assert [candidate.seq for candidate in snapshot.candidates] == [waiting.seq]
    asked = Resources(1, None, wants)
    claim = Claim(1, tuple(job.seq for job in jobs), asked, lease_id=lease)
    seat = Claim(2, (seated.seq,), asked, lease_id=lease, seated=True)
    outcomes = {outcome.key: outcome for outcome in stores.commit(claims=(claim, seat)).claims}
    granted = [*outcomes[2].granted, *outcomes[1].granted]
    assert [job.id for job in granted] == [seated.id, *(job.id for job in jobs)]
    assert pools.standing("chat").runners[0].running == 2
    for job in granted:
        stores.finish(job, lease, JobEvent.SUCCEED)
    stores.commit(uses=(PoolUse(lease, 2, 0.25),))
    (runner,) = pools.standing("chat").runners
    assert (runner.running, runner.jobs_done, runner.run_seconds, runner.gpus) == (0, 2, 0.25, ("a-0",))
    assert pools.standing("chat").loads == ()
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_a_runner_that_comes_too_late_does_not_join(stores: Stores, pools: SqlPoolStore) -> None:
    """Its pool has another model by now, or is to leave, or the lease is over, or is another host's."""
    stores.register("a", 4, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    pool = start(pools, most=4)
    pools.change("chat", PoolChange(model="other"), by="ada")
    late = join(stores, pools, pool, "a-0")
    assert stores.commit(joins=(PoolJoin(late, "chat", 1, "x", 1.0),)).members == ()
    again = PoolJoin(late, "chat", 2, "x", 1.0)
    assert stores.commit("b", joins=(again,)).members == ()
    stores.commit(releases=(late,))
    assert stores.commit(joins=(again,)).members == ()
    pools.change("chat", PoolChange(leave=Leave.DRAIN), by="ada")
    lease = join(stores, pools, pool, "a-1", generation=2)
    assert stores.commit(joins=(PoolJoin(lease, "chat", 2, "x", 1.0),)).members == ()
    assert pools.standing("chat").runners == ()


def test_who_is_to_leave_hears_it_with_the_renewal_and_is_seen_to_have_left(
    stores: Stores, pools: SqlPoolStore
) -> None:
    stores.register("a", 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    pool = start(pools)
    lease = join(stores, pools, pool)
    assert stores.ledger.renew("a", [lease], ttl=TTL).leaving == ()
    pool = pools.standing("chat").pool
    assert pools.apply(Decision(pool, leave=((lease, Leave.DRAIN),)), epoch=epoch(stores))
    assert stores.ledger.renew("a", [lease], ttl=TTL).leaving == ((lease, Leave.DRAIN),)
    asked = stores.submit(resources=Resources(1, None, Wants(model="chat")))
    assert asked.created
    assert stores.admission.snapshot(limit=10).models == (), "it takes no further job"
    stores.commit(releases=(lease,))
    (runner,) = pools.standing("chat").runners
    assert (runner.leave, runner.ended_at is not None) == (Leave.DRAIN, True)
    assert pools.apply(Decision(pool, forget_runners=(lease,)), epoch=epoch(stores))
    assert pools.standing("chat").runners == ()


def test_a_decision_yields_to_a_person_and_to_the_next_leader(stores: Stores, pools: SqlPoolStore) -> None:
    """What was decided from an older version, or in an older term, is not stored."""
    pool = start(pools)
    term = epoch(stores)
    pools.change("chat", PoolChange(most=3), by="ada")
    assert not pools.apply(Decision(replace(pool, wanted=1, state=PoolState.READY)), epoch=term)
    assert pools.standing("chat").pool.state is PoolState.STARTING
    with pytest.raises(NotLeading):
        pools.apply(Decision(pools.standing("chat").pool), epoch=term - 1)


def stores_events(stores: Stores) -> list[Any]:
    """Return the pools' part of the history."""
    query = "SELECT kind FROM orchestrator_events WHERE kind IN ('pool_start', 'pool_set') ORDER BY seq"
    return list(stores.database.read(lambda connection: connection.exec_driver_sql(query).all()))


def test_a_submit_sends_a_job_to_the_runner_with_its_model_and_no_more_than_it_takes(
    stores: Stores, pools: SqlPoolStore
) -> None:
    """Whatever else waits in the queue; but not while the queue is paused, nor for whom the pool does not serve."""
    stores.register("a", 2, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    join(stores, pools, start(pools, model="llama", tenant="red"))
    for _ in range(3):
        stores.submit(resources=Resources(2), tenant="red")  # the first ones are admitted, the others wait
    wanted = Resources(1, None, Wants(model="chat"))
    outcome = stores.jobs.submit([new_job(resources=wanted, tenant="red") for _ in range(3)])
    assert [job.state for job in outcome.jobs] == [JobState.RUNNING, JobState.QUEUED, JobState.PENDING]
    assert [entry.node for entry in outcome.entries] == ["a", "a"]
    other = stores.jobs.submit([new_job(resources=wanted, tenant="blue")])
    assert (other.jobs[0].state, other.entries) == (JobState.PENDING, ())

    claim = Claim(1, (outcome.jobs[1].seq,), wanted, lease_id=pools.standing("chat").runners[0].lease_id)
    assert stores.commit(claims=(claim,)).claims[0].granted[0].id == outcome.jobs[1].id
    SqlQueueControl(stores.database).set_paused("gpu", paused=True, by="me")
    assert stores.jobs.submit([new_job(resources=wanted, tenant="red")]).jobs[0].state is JobState.PENDING


def seat(stores: Stores, lease: int, node: str = "a", seq: int | None = None) -> tuple[Submitted, ClaimOutcome]:
    """Submit a job for the idle runner's model, if no ``seq`` is given, and have it confirmed as its worker does."""
    wanted = Resources(1, None, Wants(model="chat"))
    job = stores.submit(resources=wanted) if seq is None else Submitted("", seq, False, JobState.RUNNING)
    claim = Claim(1, (job.seq,), wanted, lease_id=lease, seated=True)
    return job, stores.ledger.commit(node, LedgerBatch(claims=(claim,)), ttl=TTL).claims[0]


def test_a_submit_grants_a_job_to_the_idle_runner_with_its_model(stores: Stores, pools: SqlPoolStore) -> None:
    """Its worker has only to ask; what another lease, host or time has it refused is refused."""
    for node in ("a", "b"):
        stores.register(node, 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    lease = join(stores, pools, start(pools))
    job, outcome = seat(stores, lease)
    assert job.state is JobState.RUNNING
    (granted,) = outcome.granted
    assert (granted.id, granted.attempt, outcome.lease_id, outcome.refused) == (job.id, 1, lease, ())
    assert [event.kind for event in stores.jobs.history(job.id)] == ["submit", "admit", "claim"]
    (attempt,) = stores.jobs.attempts(job.id)
    assert (attempt.node, attempt.lease_id, attempt.gpus) == ("a", lease, ("a-0",))

    assert seat(stores, lease + 1, seq=job.seq)[1].refused == ((job.seq, Refusal.RUNNING),)
    assert seat(stores, lease, "b", seq=job.seq)[1].refused == ((job.seq, Refusal.RUNNING),)
    stores.finish(granted, lease, JobEvent.SUCCEED)
    assert seat(stores, lease, seq=job.seq)[1].refused == ((job.seq, Refusal.ENDED),)
    again, outcome = seat(stores, lease)
    stores.commit(releases=(lease,))
    assert seat(stores, lease, seq=again.seq)[1].granted == ()
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_a_job_whose_entry_was_lost_is_named_with_the_renewal_and_can_be_given_back(
    stores: Stores, pools: SqlPoolStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while: an entry takes its time."""
    stores.register("a", 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    lease = join(stores, pools, start(pools))
    job = stores.submit(resources=Resources(1, None, Wants(model="chat")))
    assert stores.ledger.renew("a", [lease], ttl=TTL).open == ()
    monkeypatch.setattr(seats, "DELIVERY_BOUND", timedelta(0))
    assert stores.ledger.renew("a", [lease], ttl=TTL).open == ((job.seq, 1, lease),)

    assert stores.commit(finishes=(Finish(job.seq, 1, lease, JobEvent.GIVE_BACK),)).stale == ()
    found = stores.jobs.get(job.id)
    assert found is not None
    assert (found.state, found.attempt) == (JobState.PENDING, 0)
    assert stores.ledger.renew("a", [lease], ttl=TTL).open == ()
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_a_pause_that_came_first_keeps_a_submit_from_granting(stores: Stores, pools: SqlPoolStore) -> None:
    """The submit read the queue before the pause and writes after it; so it is with safe mode and a lease that ends."""
    stores.register("a", 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    lease = join(stores, pools, start(pools))
    job = stores.submit(resources=Resources(1))
    row = {"seq": job.seq, "node": "a", "state": "queued", "kind": "task", "tenant": "default"}
    row |= {"wants": wants_text(Wants(model="chat"))}
    SqlPolicyStore(stores.database).change({"safe_mode": False}, by="me", version=None)
    for closed, opened in (
        ("UPDATE orchestrator_queues SET paused = 1", "UPDATE orchestrator_queues SET paused = 0"),
        ("UPDATE orchestrator_policy SET safe_mode = 1", "UPDATE orchestrator_policy SET safe_mode = 0"),
    ):
        execute(stores, closed)  # and not by an order, which takes back what is on its way
        assert taken(stores, row) == "queued", closed
        execute(stores, opened)
    assert taken(stores, row) == "running"
    assert taken(stores, row) == "queued", "it runs already"
    other = stores.submit(resources=Resources(1))
    stores.commit(releases=(lease,))
    assert taken(stores, row | {"seq": other.seq}) == "queued"


def execute(stores: Stores, statement: str) -> None:
    """Change something behind everybody's back."""
    stores.database.transaction(lambda connection: connection.exec_driver_sql(statement))


def taken(stores: Stores, row: dict[str, Any]) -> str:
    """Look for a seat for a job; return its state."""
    row = dict(row)
    stores.database.transaction(lambda connection: seats.take_seats(stores.database, connection, [row]))
    return str(row["state"])


def test_a_runner_that_sleeps_has_a_small_share_and_gets_its_own_back_when_there_is_room(
    stores: Stores, pools: SqlPoolStore
) -> None:
    """Each time under another lease, so that the history needs to know of no lease that changes its size."""
    stores.register("a", 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    lease, grant = shared(stores, pools, 700)
    pools.change("chat", PoolChange(asleep=True), by="ada")
    assert stores.ledger.renew("a", [lease], ttl=TTL).asleep == {lease}
    job, outcome = seat(stores, lease)
    assert (job.state, outcome.granted) == (JobState.PENDING, ())
    assert stores.admission.snapshot(limit=1).models[0].asleep == 1

    asleep = resized(stores, lease, replace(grant, memory_mib=50), asleep=True)
    assert asleep is not None
    assert not stores.ledger.renew("a", [lease], ttl=TTL).live
    (runner,) = pools.standing("chat").runners
    assert (runner.lease_id, runner.asleep, runner.ended_at, runner.memory_mib) == (asleep, True, None, 50)
    other = stores.submit(resources=Resources(1, 900))
    stores.admission.admit([(other.seq, "a")], epoch=epoch(stores))
    room = LeaseGrant(("a-0",), LeaseMode.SHARED, 900)
    (granted,) = stores.commit(claims=(Claim(1, (other.seq,), Resources(1, 900), room),)).claims
    assert granted.lease_id is not None, "what the runner has given back is there for others"
    pools.change("chat", PoolChange(asleep=False), by="ada")
    assert resized(stores, asleep, grant, asleep=False) is None
    assert stores.ledger.renew("a", [asleep], ttl=TTL).live == {asleep}, "it waits, and keeps what it has"

    stores.finish(granted.granted[0], granted.lease_id, JobEvent.SUCCEED)
    stores.commit(releases=(granted.lease_id,))
    awake = resized(stores, asleep, grant, asleep=False)
    assert awake is not None
    assert stores.admission.snapshot(limit=1).models[0].runners == 1
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_a_runner_with_a_job_does_not_fall_asleep(stores: Stores, pools: SqlPoolStore) -> None:
    """Nor one that is to leave, or another host's."""
    for node in ("a", "b"):
        stores.register(node, 1, queues=("gpu", "preloads"))
    stores.cluster.ensure_queues(["preloads"])
    lease, grant = shared(stores, pools, 700)
    small = replace(grant, memory_mib=50)
    assert resized(stores, lease, small, asleep=True, node="b") is None
    job = stores.submit(resources=Resources(1, None, Wants(model="chat")))
    assert job.state is JobState.RUNNING
    assert resized(stores, lease, small, asleep=True) is None
    assert stores.commit(finishes=(Finish(job.seq, 1, lease, JobEvent.SUCCEED),)).stale == ()
    leaving = Decision(pools.standing("chat").pool, leave=((lease, Leave.DRAIN),))
    assert pools.apply(leaving, epoch=epoch(stores))
    assert resized(stores, lease, small, asleep=True) is None
    assert resized(stores, lease + 100, small, asleep=True) is None


def shared(stores: Stores, pools: SqlPoolStore, mib: int) -> tuple[int, LeaseGrant]:
    """Start a pool whose runner has a share of the GPU a-0; return its lease."""
    pools.start("chat", new_pool(PoolRequest(name="chat", gpu_memory_mib=mib)), by="ada")
    pool = pools.standing("chat").pool
    asked = Resources(1, mib, Wants(pool="chat", generation=1))
    job = stores.submit(queue="preloads", resources=asked)
    pools.new_loads(pool, [job.id], epoch=epoch(stores))
    stores.admission.admit([(job.seq, "a")], epoch=epoch(stores))
    grant = LeaseGrant(("a-0",), LeaseMode.SHARED, mib)
    outcome = stores.commit(claims=(Claim(1, (job.seq,), asked, grant),)).claims[0]
    assert outcome.lease_id is not None
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    stores.commit(joins=(PoolJoin(outcome.lease_id, "chat", 1, job.id, 1.0),))
    return outcome.lease_id, grant


def resized(stores: Stores, lease: int, grant: LeaseGrant, *, asleep: bool, node: str = "a") -> int | None:
    """Have a runner's lease replaced; return the new one."""
    batch = LedgerBatch(resizes=(PoolResize(lease, grant, asleep),))
    ((old, new),) = stores.ledger.commit(node, batch, ttl=TTL).resized
    assert old == lease
    return new
