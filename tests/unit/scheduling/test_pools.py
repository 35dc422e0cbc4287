"""How many runners a pool gets, when they leave, and what becomes of failures: decided without any I/O."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.job import JobState
from orchestrator.domain.pool import (
    Leave,
    Pool,
    PoolChange,
    PoolLoad,
    PoolRequest,
    PoolRunner,
    PoolStanding,
    PoolState,
    changed,
    new_pool,
    restarted,
)
from orchestrator.pool_errors import InvalidPool
from orchestrator.scheduling.pools import FAILED_AFTER, LONGEST_PAUSE, WAKING, Decision, Demand, reconcile, spares

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDLE = 600.0


def pool(**fields: Any) -> Pool:
    """Return a pool, with these fields of its spec or its own."""
    wanted = {name: fields.pop(name) for name in list(fields) if name in ("least", "most", "pinned", "idle_seconds")}
    spec = new_pool(PoolRequest(name="chat", gpus=1, **wanted))
    made = Pool(
        name="chat",
        spec=spec,
        generation=1,
        wanted=spec.least,
        leave=None,
        asleep=False,
        state=PoolState.STARTING,
        reason=None,
        failures=0,
        retry_at=None,
        raised_at=NOW - timedelta(hours=1),
        loaded_in_seconds=10.0,
        changed_by="test",
        created_at=NOW - timedelta(hours=2),
        version=1,
    )
    return replace(made, **fields)


def runner(lease_id: int, **fields: Any) -> PoolRunner:
    """Return a runner that is ready for an hour and has just been used."""
    made = PoolRunner(lease_id, 1, "chat", "a", NOW - timedelta(hours=1), NOW, 0, 5, 1.0, None)
    return replace(made, **fields)


def load(job_id: str, state: JobState | None = JobState.PENDING, **fields: Any) -> PoolLoad:
    """Return a load of the first generation."""
    return replace(PoolLoad(job_id, 1, NOW - timedelta(seconds=2), state), **fields)


def decide(
    one: Pool, runners: tuple[PoolRunner, ...] = (), loads: tuple[PoolLoad, ...] = (), demand: Demand | None = None
) -> Decision:
    """Reconcile."""
    return reconcile(PoolStanding(one, runners, loads), demand or Demand(), NOW, idle_seconds=IDLE)


def test_as_many_are_started_as_are_missing() -> None:
    assert decide(pool(least=3), (runner(1),), (load("x"),)).start == 1
    assert decide(pool(least=1), (runner(1),)).start == 0
    assert decide(pool(least=1), (runner(1),)).pool.state is PoolState.READY


def test_what_waits_longer_than_a_load_takes_gets_more_runners() -> None:
    """Ten jobs of a second each and one runner: nine would be done by the time at which another is ready."""
    one = pool(least=1, most=5)
    assert decide(one, (runner(1, running=1),), demand=Demand(10, 3.0)).start == 0
    assert decide(one, (runner(1, running=1),), demand=Demand(30, 3.0)).start == 2
    assert decide(one, (runner(1, running=1),), demand=Demand(3000, 3.0)).start == 4
    unknown = runner(1, running=1, run_seconds=None)
    assert decide(one, (unknown,), demand=Demand(1, 0.1)).start == 0
    assert decide(one, (unknown,), demand=Demand(1, 2.0)).start == 1


def test_a_pool_without_a_runner_starts_one_for_who_waits() -> None:
    one = pool(least=0, most=2, wanted=0)
    assert decide(one).pool.state is PoolState.READY
    assert decide(one, demand=Demand(1, 0.2)).start == 0
    assert decide(one, demand=Demand(1, 1.5)).start == 1


def test_idle_runners_leave_the_least_used_first_and_never_below_the_least() -> None:
    used = [NOW - timedelta(seconds=seconds) for seconds in (700, 900, 800, 10)]
    runners = tuple(runner(number, used_at=at) for number, at in enumerate(used, 1))
    decision = decide(pool(least=1, most=4, wanted=4), runners)
    assert decision.leave == ((2, Leave.DRAIN), (3, Leave.DRAIN), (1, Leave.DRAIN))
    assert decision.pool.wanted == 1
    assert decide(pool(least=2, most=4, wanted=4), runners).leave == ((2, Leave.DRAIN), (3, Leave.DRAIN))
    busy = tuple(replace(one, running=1) for one in runners)
    assert decide(pool(least=1, most=4, wanted=4), busy).leave == ()
    assert decide(pool(least=1, most=4, wanted=4, pinned=True), runners).leave == ()


def test_runners_that_others_need_leave_unless_they_are_busy_or_the_pool_needs_them() -> None:
    used = [NOW - timedelta(seconds=seconds) for seconds in (5, 4, 3)]
    runners = tuple(runner(number, used_at=at) for number, at in enumerate(used, 1))
    asked = Demand(give_up=frozenset({2, 3, 7}))
    assert decide(pool(least=0, most=4, wanted=3), runners, demand=asked).leave == ((2, Leave.DRAIN), (3, Leave.DRAIN))
    assert decide(pool(least=2, most=4, wanted=3), runners, demand=asked).leave == ((2, Leave.DRAIN),)
    assert decide(pool(least=0, most=4, wanted=3, pinned=True), runners, demand=asked).leave == ()
    busy = tuple(replace(one, running=1) for one in runners)
    assert decide(pool(least=0, most=4, wanted=3), busy, demand=asked).leave == ()
    assert decide(pool(least=0, most=4, wanted=3), runners, demand=replace(asked, jobs=1, seconds=0.1)).leave == ()


def test_a_pool_spares_who_is_idle_for_a_moment_and_keeps_its_least() -> None:
    def spared(one: Pool, runners: tuple[PoolRunner, ...], demand: Demand | None = None) -> tuple[int, list[int]]:
        standing, asked = PoolStanding(one, runners), demand or Demand()
        decision = reconcile(standing, asked, NOW, idle_seconds=IDLE)
        found = spares(standing, decision, asked, NOW, idle_seconds=IDLE)
        return found.count, [one.lease_id for one in found.runners]

    quiet = NOW - timedelta(seconds=5)
    runners = (
        runner(1, used_at=quiet),
        runner(2),
        runner(3, used_at=quiet, running=1),
        runner(4, used_at=NOW - timedelta(hours=1)),
    )
    grown = pool(least=1, most=4, wanted=4)
    assert spared(grown, runners) == (2, [1]), "one is just used, one busy, and one leaves anyway"
    assert spared(pool(least=4, most=4, wanted=4), runners) == (0, [1, 4])
    for kept in (replace(grown, asleep=True), replace(grown, leave=Leave.DRAIN), pool(least=0, most=4, pinned=True)):
        assert spared(kept, runners) == (0, [])
    assert spared(grown, runners, Demand(jobs=1)) == (0, [])
    leaving = tuple(replace(one, leave=Leave.DRAIN) for one in runners[:1])
    assert spared(pool(least=0, most=4), leaving) == (0, [])


def test_failures_are_told_and_pause_the_next_try_longer_and_longer() -> None:
    one = pool(least=1)
    for number in range(1, 12):
        failed = load(f"x{number}", JobState.FAILED, reason="no weights")
        decision = decide(one, loads=(failed,))
        assert (decision.start, decision.forget_loads) == (0, (failed.job_id,))
        one = decision.pool
        assert one.retry_at is not None
        assert one.retry_at - NOW == min(LONGEST_PAUSE, timedelta(seconds=2**number))
        assert one.state is (PoolState.FAILED if number >= FAILED_AFTER else PoolState.STARTING)
        assert one.reason == "it could not be loaded: no weights"
        assert decide(one).start == 0
        assert decide(replace(one, retry_at=NOW)).start == 1
    came = runner(1, ready_at=NOW - timedelta(minutes=2))
    healed = decide(replace(one, retry_at=NOW - timedelta(minutes=3)), (came,)).pool
    assert (healed.failures, healed.reason, healed.state) == (0, None, PoolState.READY)


def test_a_runner_that_ends_soon_counts_as_a_failure_and_one_that_was_told_to_leave_does_not() -> None:
    ended = runner(1, ready_at=NOW - timedelta(seconds=5), ended_at=NOW)
    decision = decide(pool(least=1), (ended,))
    assert (decision.start, decision.pool.failures, decision.forget_runners) == (0, 1, (1,))
    old = replace(ended, ready_at=NOW - timedelta(hours=2))
    assert decide(pool(least=1), (old,)).start == 1
    told = replace(ended, leave=Leave.DRAIN)
    assert decide(pool(least=1), (told,)).pool.failures == 0


def test_a_load_without_a_job_and_one_without_a_runner_are_given_up_in_time() -> None:
    fresh, late = load("x", None), load("y", None, created_at=NOW - timedelta(minutes=1))
    assert decide(pool(least=1), loads=(fresh,)).forget_loads == ()
    assert decide(pool(least=1), loads=(late,)).forget_loads == ("y",)
    joining = load("z", JobState.SUCCEEDED, finished_at=NOW)
    assert decide(pool(least=1), loads=(joining,)).start == 0
    lost = replace(joining, finished_at=NOW - timedelta(minutes=1))
    assert decide(pool(least=1), loads=(lost,)).pool.reason == "its runner was lost before it was ready"


def test_a_swap_replaces_runners_one_by_one() -> None:
    """The next one leaves when its forerunner's successor is ready; loads of the old model are called off."""
    one = changed(pool(least=2), PoolChange(model="other"), now=NOW)
    assert one.generation == 2
    first = decide(one, (runner(1), runner(2)), (load("old"),))
    assert (first.start, first.leave, first.cancel) == (0, ((1, Leave.DRAIN),), ("old",))
    leaving = (runner(1, leave=Leave.DRAIN), runner(2))
    assert (decide(one, leaving).start, decide(one, leaving).leave) == (0, ())
    gone = (runner(1, leave=Leave.DRAIN, ended_at=NOW), runner(2))
    assert (decide(one, gone).start, decide(one, gone).leave) == (1, ())
    loading = (load("new", JobState.RUNNING, generation=2),)
    assert decide(one, (runner(2),), loading).leave == ()
    came = (runner(2), runner(3, generation=2))
    assert decide(one, came).leave == ((2, Leave.DRAIN),)


def test_a_pool_that_is_to_leave_ends_its_loads_and_runners_and_stops() -> None:
    one = changed(pool(least=1), PoolChange(leave=Leave.DRAIN), now=NOW)
    decision = decide(one, (runner(1),), (load("x"),))
    assert (decision.cancel, decision.leave) == (("x",), ((1, Leave.DRAIN),))
    assert decision.pool.state is PoolState.DRAINING
    urgent = replace(one, leave=Leave.NOW)
    assert decide(urgent, (runner(1, leave=Leave.DRAIN),)).leave == ((1, Leave.NOW),)
    assert decide(one).pool.state is PoolState.STOPPED
    again = restarted(replace(one, state=PoolState.STOPPED), one.spec, now=NOW)
    assert (decide(again).start, again.generation) == (1, 1)


@settings(max_examples=200)
@given(st.data())
def test_whatever_happens_a_pool_stays_within_its_bounds_and_comes_to_rest(data: st.DataObject) -> None:
    """Random deaths, failures, demands and orders; what is decided is carried out a pass later.

    There are never more runners and loads than the most, nobody with work is asked to leave but by an order, and once
    nothing happens any more, the pool has its least within a few passes.
    """
    least = data.draw(st.integers(0, 3))
    one, runners, loads = pool(least=least, most=4, idle_seconds=30.0), list[PoolRunner](), list[PoolLoad]()
    now, numbers = NOW, iter(range(1, 10_000))

    def step(demand: Demand, survives: bool) -> None:
        nonlocal one, runners, loads, now
        now += timedelta(seconds=data.draw(st.sampled_from((1, 20, 400))) if survives else 31)
        standing = PoolStanding(one, tuple(runners), tuple(loads))
        decision = reconcile(standing, demand, now, idle_seconds=IDLE)
        one = decision.pool
        for lease_id, _leave in decision.leave:
            (told,) = [each for each in runners if each.lease_id == lease_id]
            assert not told.running or told.generation != one.generation or one.leave is not None
        leaving = dict(decision.leave)
        runners = [
            replace(each, leave=leaving.get(each.lease_id, each.leave), ended_at=now)
            if each.leave is not None and not each.running
            else replace(each, leave=leaving.get(each.lease_id, each.leave))
            for each in runners
            if each.lease_id not in decision.forget_runners
        ]
        gone = (*decision.forget_loads, *decision.cancel)
        loads = [each for each in loads if each.job_id not in gone]
        loads += [PoolLoad(f"x{next(numbers)}", one.generation, now, JobState.PENDING) for _ in range(decision.start)]
        alive = [each for each in runners if each.ended_at is None]
        assert len(alive) + len(loads) <= one.spec.most

    def come_up() -> None:
        nonlocal loads
        for each in loads:
            if each.state is JobState.PENDING:
                runners.append(
                    runner(next(numbers), generation=each.generation, ready_at=now, used_at=now, jobs_done=0)
                )
        loads = []

    for _ in range(data.draw(st.integers(0, 12))):
        match data.draw(st.sampled_from(("come", "fail", "die", "swap", "work", "nothing"))):
            case "come":
                come_up()
            case "fail":
                loads[:] = [replace(each, state=JobState.FAILED, reason="no") for each in loads]
            case "die" if runners:
                runners[0] = replace(runners[0], ended_at=now)
            case "swap":
                one = changed(one, PoolChange(model=f"m{next(numbers)}"), now=now)
            case "work":
                runners[:] = [replace(each, running=data.draw(st.integers(0, 2)), used_at=now) for each in runners]
            case _:
                pass
        jobs = data.draw(st.integers(0, 50))
        give_up = frozenset(data.draw(st.lists(st.sampled_from([one.lease_id for one in runners] or [0]), max_size=2)))
        step(Demand(jobs, 5.0 if jobs else 0.0, give_up), survives=True)
    runners[:] = [replace(each, running=0) for each in runners]
    for _ in range(40):
        come_up()
        step(Demand(), survives=False)
    serving = [each for each in runners if each.ended_at is None and each.leave is None]
    assert len(serving) == least
    assert {each.generation for each in serving} <= {one.generation}
    assert one.state is PoolState.READY


def test_a_pool_sleeps_until_jobs_wait_for_it() -> None:
    """Its runners stay, however long they do nothing; then they wake up, and that is why it is not ready."""
    long_ago = NOW - timedelta(days=1)
    quiet = tuple(runner(lease_id, asleep=True, used_at=long_ago) for lease_id in (1, 2))
    sleeping = pool(asleep=True, least=1, most=2, wanted=2, state=PoolState.ASLEEP)
    assert decide(sleeping, quiet) == Decision(sleeping)
    half = decide(sleeping, (quiet[0], runner(2)))
    assert (half.pool.state, half.leave) == (PoolState.READY, ())

    woken = decide(sleeping, quiet, demand=Demand(1, 5.0)).pool
    assert (woken.asleep, woken.state, woken.reason) == (False, PoolState.STARTING, WAKING)
    up = decide(replace(woken, version=2), (replace(quiet[0], asleep=False), replace(quiet[1], asleep=False))).pool
    assert (up.state, up.reason) == (PoolState.READY, None)


def test_only_pools_whose_runners_share_gpus_can_sleep() -> None:
    """What a runner with a whole GPU frees, nobody else could be granted; an order for runners wakes them."""
    with pytest.raises(InvalidPool, match="share of a GPU"):
        changed(pool(), PoolChange(asleep=True), now=NOW)
    spec = new_pool(PoolRequest(name="chat", gpu_memory_mib=4096, most=2))
    asleep = changed(pool(spec=spec), PoolChange(asleep=True), now=NOW)
    assert asleep.asleep
    assert changed(asleep, PoolChange(pinned=True), now=NOW).asleep
    assert not changed(asleep, PoolChange(asleep=False), now=NOW).asleep
    assert not changed(asleep, PoolChange(wanted=2), now=NOW).asleep
