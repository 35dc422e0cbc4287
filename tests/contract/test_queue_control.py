"""Orders about queues and the whole installation: what must not start is not claimed, from the order's return on."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.job import JobEvent, JobState
from orchestrator.errors import InvalidPolicy, QueueNotFound, StaleVersion
from orchestrator.scheduling.plan import Policy, WaitReason, plan
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.queue_control import SqlPolicyStore, SqlQueueControl
from orchestrator.testing.history import verify
from tests.contract.conftest import Stores


@pytest.fixture
def queues(stores: Stores) -> SqlQueueControl:
    stores.register("a", 4)
    return SqlQueueControl(stores.database)


@pytest.fixture
def policy(stores: Stores) -> SqlPolicyStore:
    stores.register("a", 4)
    return SqlPolicyStore(stores.database)


def pause(stores: Stores, *, on: bool) -> int:
    return SqlQueueControl(stores.database).set_paused("gpu", paused=on, by="me")[1]


def safe_mode(stores: Stores, *, on: bool) -> int:
    SqlPolicyStore(stores.database).change({"safe_mode": on}, by="me", version=None)
    return -1


def refusals(stores: Stores) -> set[WaitReason]:
    made = plan(stores.admission.snapshot(limit=100), datetime.now(UTC), Policy())
    return {refusal.reason for refusal in made.refusals}


@pytest.mark.parametrize(
    ("order", "reason"), [(pause, WaitReason.QUEUE_PAUSED), (safe_mode, WaitReason.SAFE_MODE)], ids=["pause", "safe"]
)
def test_nothing_starts_while_it_must_not_and_what_runs_goes_on(
    stores: Stores, order: Callable[..., int], reason: WaitReason
) -> None:
    stores.register("a", 4)
    running, lease = stores.start("a-0")
    on_its_way = stores.submit()

    assert order(stores, on=True) in (1, -1)
    assert stores.job(on_its_way.id).state is JobState.PENDING
    assert order(stores, on=True) in (0, -1), "repeating it changes nothing"
    assert stores.submit().state is JobState.PENDING, "submits are taken"
    assert refusals(stores) == {reason}

    # A plan made before the order admits one after it: the claim refuses it, and the sweep takes it back.
    epoch = stores.lead()
    assert stores.admission.admit([(on_its_way.seq, "a")], epoch=epoch) != ()
    outcome = stores.claim(on_its_way.seq, "a-1")
    assert (outcome.granted, outcome.lease_id) == ((), None)
    stores.admission.lose_nodes(silent_for=timedelta(seconds=60), epoch=epoch)
    assert stores.job(on_its_way.id).state is JobState.PENDING

    assert not stores.finish(running, lease, JobEvent.SUCCEED).stale
    order(stores, on=False)
    stores.admission.admit([(on_its_way.seq, "a")], epoch=epoch)
    assert stores.claim(on_its_way.seq, "a-1").lease_id is not None
    report = SqlHistory(stores.database).read(verify)
    assert report.is_clean, str(report)


def test_a_queue_runs_at_most_so_many_whoever_admits(stores: Stores, queues: SqlQueueControl) -> None:
    queues.set_limits("gpu", {"most_running": 2}, by="me", version=None)
    jobs = [stores.submit() for _ in range(4)]
    assert {job.state for job in jobs} == {JobState.PENDING}, "a submit cannot count what others admit"
    assert plan(stores.ledger.host_snapshot("a", limit=10), datetime.now(UTC), Policy()).admissions == ()

    made = plan(stores.admission.snapshot(limit=10), datetime.now(UTC), Policy())
    assert [admission.seq for admission in made.admissions] == [jobs[0].seq, jobs[1].seq]
    assert {refusal.reason for refusal in made.refusals} == {WaitReason.QUEUE_FULL}
    epoch = stores.lead()
    stores.admission.admit([(admission.seq, admission.node) for admission in made.admissions], epoch=epoch)
    assert plan(stores.admission.snapshot(limit=10), datetime.now(UTC), Policy()).admissions == ()

    outcome = stores.claim(jobs[0].seq, "a-0")
    assert outcome.lease_id is not None
    assert plan(stores.admission.snapshot(limit=10), datetime.now(UTC), Policy()).admissions == (), (
        "one runs, one is near"
    )
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    made = plan(stores.admission.snapshot(limit=10), datetime.now(UTC), Policy())
    assert [admission.seq for admission in made.admissions] == [jobs[2].seq]


def test_jobs_that_bring_no_time_limit_have_their_queues(stores: Stores, queues: SqlQueueControl) -> None:
    queues.set_limits("gpu", {"time_limit_seconds": 60.0}, by="me", version=None)
    own, none = stores.submit(time_limit_seconds=5.0), stores.submit()
    soft = stores.submit(soft_time_limit_seconds=90.0)

    assert [stores.job(job.id).time_limit_seconds for job in (own, none, soft)] == [5.0, 60.0, None]


def test_limits_are_changed_by_who_has_seen_them(stores: Stores, queues: SqlQueueControl) -> None:
    first = queues.get("gpu")
    second = queues.set_limits("gpu", {"most_running": 3}, by="me", version=first.version)
    assert (second.version, second.limits.most_running) == (first.version + 1, 3)
    assert queues.set_limits("gpu", {"most_running": 3}, by="me", version=None) == second

    with pytest.raises(StaleVersion):
        queues.set_limits("gpu", {"most_running": 4}, by="me", version=first.version)
    with pytest.raises(InvalidPolicy) as caught:
        queues.set_limits("gpu", {"most_running": -1, "time_limit_seconds": 0, "color": 1}, by="me", version=None)
    assert len(caught.value.faults) == 3
    for refused in (lambda: queues.get("none"), lambda: queues.set_paused("none", paused=True, by="me")):
        with pytest.raises(QueueNotFound):
            refused()
    assert stores.count_events("queue_set") == 1


def test_the_policy_has_defaults_versions_and_a_history(stores: Stores, policy: SqlPolicyStore) -> None:
    assert (policy.get().version, policy.get().values.safe_mode) == (0, False)
    changed = policy.change({"pool_idle_seconds": 5.0}, by="me", version=0)
    assert (changed.version, changed.values.pool_idle_seconds, changed.changed_by) == (1, 5.0, "me")
    assert policy.change({"pool_idle_seconds": 5.0}, by="you", version=None) == changed

    with pytest.raises(StaleVersion):
        policy.change({"safe_mode": True}, by="me", version=0)
    with pytest.raises(InvalidPolicy):
        policy.change({"safe_mode": 1, "pool_idle_seconds": True}, by="me", version=None)
    assert policy.get() == changed
    assert stores.count_events("policy_set") == 1
