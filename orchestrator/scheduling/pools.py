"""How many runners a worker pool is to have now, and what is to be done for that.

A pool grows when what waits for it would take longer than a further runner takes to load, and shrinks when runners are
idle for long. Which of those that were idle for a moment leave as well, because others wait for their GPUs, is decided
for all pools together (``pool_pressure``). A swap replaces runners one by one, so that the others go
on serving; a model that does not load leaves them in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from orchestrator.domain.job import TERMINAL_STATES, JobState
from orchestrator.domain.pool import Leave, Pool, PoolLoad, PoolRunner, PoolStanding, PoolState

#: Failures in a row after which a pool is said to have failed.
FAILED_AFTER: Final = 5
LONGEST_PAUSE: Final = timedelta(minutes=5)
#: A runner that ends by itself so soon after it was ready counts as a failure to start.
SHORT_LIFE: Final = timedelta(seconds=60)
#: A load that has ended well is followed by its runner within so long, or its worker was lost.
JOIN_GRACE: Final = timedelta(seconds=10)
#: Who waits for a runner for so many seconds is waiting; less is only on its way.
PATIENCE: Final = 1.0
#: Why a pool is not ready that was asleep.
WAKING: Final = "its runners wake up as soon as their GPUs have room for them"
#: Until a load has been seen, it is taken for so long, in seconds.
USUAL_LOAD: Final = 10.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of one pool."""

    jobs: int = 0  # that wait for it
    seconds: float = 0.0  # that the oldest of them waits
    give_up: frozenset[int] = frozenset()  # leases of runners whose GPUs others wait for


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done for one pool."""

    pool: Pool  # as it is to be stored
    start: int = 0  # loads
    cancel: tuple[str, ...] = ()  # loads that are not wanted any more, by job id
    leave: tuple[tuple[int, Leave], ...] = ()  # runners that are to leave, by lease id
    forget_loads: tuple[str, ...] = ()  # they have been taken into account
    forget_runners: tuple[int, ...] = ()  # likewise, by lease id


@dataclass(frozen=True, slots=True)
class Spares:
    """What a pool could do without."""

    count: int  # so many of the runners
    runners: tuple[PoolRunner, ...]


def reconcile(standing: PoolStanding, demand: Demand, now: datetime, *, idle_seconds: float) -> Decision:
    """Decide what one pool needs.

    Args:
        standing: The pool, its runners and its loads.
        demand: What waits.
        now: The instant of the standing.
        idle_seconds: After which runners beyond the least leave, unless the pool says otherwise.
    """
    words = _failures(standing, now)
    pool = failed(standing.pool, words, now)
    there = [runner for runner in standing.runners if runner.ended_at is None]
    gone = tuple(runner.lease_id for runner in standing.runners if runner.ended_at is not None)
    done = tuple(load.job_id for load in standing.loads if _is_over(load, now))
    loads = [load for load in standing.loads if load.job_id not in done]
    decision = Decision(pool, forget_loads=done, forget_runners=gone)
    if pool.leave is not None:
        return _leaving(decision, pool.leave, there, loads)
    current = _current(standing)
    old = [runner for runner in there if runner.generation != pool.generation and runner.leave is None]
    fresh = [load for load in loads if load.generation == pool.generation]
    stale = [load.job_id for load in loads if load.generation != pool.generation]
    if not words and any(_has_lasted(runner, pool, now) for runner in current):
        pool = replace(pool, failures=0, reason=None, retry_at=None)
    leave, pool = _resized(pool, current, demand, now, idle_seconds)
    leaving = [runner for runner in there if runner.leave is not None and runner.generation != pool.generation]
    held = len(current) - len(leave) + len(fresh) + len(old) + len(leaving)
    waiting = [load.job_id for load in reversed(fresh) if load.state is not JobState.RUNNING]
    excess = waiting[: max(0, held - pool.wanted)]
    may_start = pool.retry_at is None or now >= pool.retry_at
    if old and not fresh and not leaving and held >= pool.wanted:
        leave = (*leave, min(old, key=_least_used).lease_id)
    return replace(
        decision,
        pool=_described(pool, current, len(old)),
        start=max(0, pool.wanted - held) if may_start else 0,
        cancel=(*stale, *excess),
        leave=tuple((lease_id, Leave.DRAIN) for lease_id in leave),
    )


def spares(standing: PoolStanding, decision: Decision, demand: Demand, now: datetime, *, idle_seconds: float) -> Spares:
    """Return the runners that can leave besides those that leave anyway: neither busy, nor just used, nor kept.

    Args:
        standing: The pool, its runners and its loads.
        decision: What was decided for it.
        demand: What waits for it: then it spares nobody.
        now: The instant of the standing.
        idle_seconds: As for ``reconcile``.
    """
    pool = standing.pool
    if pool.leave is not None or pool.asleep or pool.spec.pinned or demand.jobs:
        return Spares(0, ())
    leaving = {lease_id for lease_id, _leave in decision.leave}
    left = [runner for runner in _current(standing) if runner.lease_id not in leaving]
    quiet = min(_idle(pool, idle_seconds), PATIENCE)
    found = tuple(runner for runner in left if not runner.running and _quiet(runner, now) >= quiet)
    return Spares(max(0, len(left) - pool.spec.least), found)


def _current(standing: PoolStanding) -> list[PoolRunner]:
    """Return the runners that have what the pool is to have loaded, and stay."""
    generation = standing.pool.generation
    there = (runner for runner in standing.runners if runner.ended_at is None and runner.leave is None)
    return [runner for runner in there if runner.generation == generation]


def _idle(pool: Pool, usual: float) -> float:
    return pool.spec.idle_seconds if pool.spec.idle_seconds is not None else usual


def _quiet(runner: PoolRunner, now: datetime) -> float:
    """Return for how many seconds a runner has had no job."""
    return (now - max(runner.used_at, runner.ready_at)).total_seconds()


def _resized(
    pool: Pool, current: Sequence[PoolRunner], demand: Demand, now: datetime, idle_seconds: float
) -> tuple[tuple[int, ...], Pool]:
    """Return who leaves, and the pool with as many runners as it is to have; one that sleeps wakes for jobs."""
    if pool.asleep and not demand.jobs:
        return (), pool
    pool = replace(pool, asleep=False)
    idle = _idle(pool, idle_seconds)
    leave, pool = _shrink(pool, current, demand, now, idle)
    return leave, _grow(pool, [runner for runner in current if runner.lease_id not in leave], demand, now, idle)


def _described(pool: Pool, current: Sequence[PoolRunner], old: int) -> Pool:
    """Return the pool in the state that its runners make."""
    sleepers = sum(runner.asleep for runner in current)
    if pool.asleep and current and sleepers == len(current):
        return replace(pool, state=PoolState.ASLEEP)
    wakes = sleepers > 0 and not pool.asleep
    if wakes or pool.reason == WAKING:
        pool = replace(pool, reason=WAKING if wakes else None)
    return replace(pool, state=_state(pool, len(current) - sleepers + old))


def _leaving(decision: Decision, leave: Leave, there: Sequence[PoolRunner], loads: Sequence[PoolLoad]) -> Decision:
    over = not there and not loads
    state = PoolState.STOPPED if over else PoolState.DRAINING
    told = [runner for runner in there if runner.leave is None or (leave is Leave.NOW and runner.leave is not leave)]
    return replace(
        decision,
        pool=replace(decision.pool, state=state, wanted=0, reason=None),
        cancel=tuple(load.job_id for load in loads),
        leave=tuple((runner.lease_id, leave) for runner in told),
    )


def _grow(pool: Pool, current: Sequence[PoolRunner], demand: Demand, now: datetime, idle: float) -> Pool:
    least, most = pool.spec.least, pool.spec.most
    need = 0
    if demand.jobs and (demand.seconds >= PATIENCE or current):
        need = _enough(demand.jobs, current, pool.loaded_in_seconds or USUAL_LOAD, demand.seconds)
    wanted = min(most, max(least, pool.wanted, need))
    if wanted > pool.wanted:
        return replace(pool, wanted=wanted, raised_at=now if need > pool.wanted else pool.raised_at)
    unused = not demand.jobs and not pool.spec.pinned and now - pool.raised_at >= timedelta(seconds=idle)
    return replace(pool, wanted=max(least, min(wanted, len(current))) if unused else wanted)


def _enough(jobs: int, current: Sequence[PoolRunner], load_seconds: float, waited: float) -> int:
    """Return how many runners do what waits before a further one would be ready."""
    current = [runner for runner in current if not runner.asleep]
    known = [runner.run_seconds for runner in current if runner.run_seconds is not None]
    busy = sum(runner.running > 0 for runner in current)
    if not known:
        return len(current) + 1 if waited >= PATIENCE and busy == len(current) else len(current)
    work = jobs * sum(known) / len(known)
    if work / len(current) <= load_seconds:
        return len(current)
    return min(len(current) + jobs, math.ceil(work / load_seconds))


def _shrink(
    pool: Pool, current: Sequence[PoolRunner], demand: Demand, now: datetime, idle: float
) -> tuple[tuple[int, ...], Pool]:
    """Return who leaves, the least recently used first, and the pool without them."""
    over = max(0, len(current) - pool.spec.most)
    by_use = sorted(current, key=_least_used)
    leave = [runner.lease_id for runner in by_use[:over]]
    spare = len(current) - over - pool.spec.least
    if spare > 0 and not pool.spec.pinned and not demand.jobs:
        for runner in by_use[over:]:
            goes = _quiet(runner, now) >= idle or runner.lease_id in demand.give_up
            if spare > 0 and not runner.running and goes:
                leave.append(runner.lease_id)
                spare -= 1
    if not leave:
        return (), pool
    return tuple(leave), replace(pool, wanted=max(pool.spec.least, min(pool.wanted, len(current)) - len(leave)))


def _failures(standing: PoolStanding, now: datetime) -> list[str]:
    """Return why runners did not come up, or did not last."""
    generation = standing.pool.generation
    words = []
    for load in standing.loads:
        if load.generation != generation or not _is_over(load, now) or load.state is JobState.CANCELLED:
            continue
        if load.state is JobState.SUCCEEDED:
            words.append("its runner was lost before it was ready")
        else:
            words.append(f"it could not be loaded: {load.reason or 'its job is gone'}")
    for runner in standing.runners:
        if runner.ended_at is not None and runner.leave is None and runner.generation == generation:
            lived = runner.ended_at - runner.ready_at
            if lived < SHORT_LIFE:
                words.append(f"its runner on {runner.node} ended {lived.total_seconds():.0f} s after it was ready")
    return words


def failed(pool: Pool, words: Sequence[str], now: datetime) -> Pool:
    """Return a pool after failures, told in words: nothing is started for a while, longer each time."""
    if not words or pool.leave is not None:
        return pool
    failures = pool.failures + 1  # several at once have one cause
    pause = min(LONGEST_PAUSE, timedelta(seconds=2.0 ** min(failures, 16)))
    return replace(pool, failures=failures, reason=words[-1][:512], retry_at=now + pause)


def _has_lasted(runner: PoolRunner, pool: Pool, now: datetime) -> bool:
    """A runner that came up after the latest failure has been there for a while."""
    return pool.retry_at is not None and runner.ready_at > pool.retry_at and now - runner.ready_at >= SHORT_LIFE


def _is_over(load: PoolLoad, now: datetime) -> bool:
    if load.state is None:  # between its row and its job there is a moment
        return now - load.created_at > JOIN_GRACE
    if load.state is JobState.SUCCEEDED:
        return now - (load.finished_at or load.created_at) > JOIN_GRACE
    return load.state in TERMINAL_STATES


def _state(pool: Pool, serving: int) -> PoolState:
    if serving >= max(pool.spec.least, min(1, pool.wanted)):
        return PoolState.READY
    return PoolState.FAILED if pool.failures >= FAILED_AFTER else PoolState.STARTING


def _least_used(runner: PoolRunner) -> tuple[bool, datetime, int]:
    return (runner.running > 0, max(runner.used_at, runner.ready_at), runner.lease_id)
