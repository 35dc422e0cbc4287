"""Worker pools: what people order, and the sweep that has as many runners there as are to be."""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from orchestrator.domain.access import DEFAULT_TENANT
from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import Resources
from orchestrator.domain.pool import LOAD_QUEUE, Pool, PoolChange, PoolRequest, PoolStanding, new_pool
from orchestrator.domain.request import TaskRequest
from orchestrator.domain.request_wants import AlternativeRequest
from orchestrator.domain.wants import Alternative, Wants
from orchestrator.errors import Conflict, InvalidRequest, StreamUnavailable
from orchestrator.pool_errors import InvalidPool, UnknownPool
from orchestrator.runtime import Runtime
from orchestrator.scheduling.plan import Plan
from orchestrator.scheduling.pool_pressure import Pressing, Uses, pressing, reconcile_all, uses_of
from orchestrator.scheduling.pools import Decision, Demand, failed
from orchestrator.scheduling.snapshot import Candidate, Snapshot
from orchestrator.services.cancel import CancelService
from orchestrator.services.feasibility import KnownHosts
from orchestrator.services.job_control import tell_placers
from orchestrator.services.submit import SubmitService

logger = logging.getLogger(__name__)

#: Who looks after loads, in histories.
LEADER: Final = "leader"


class PoolService:
    """Takes orders about pools; safe to share between threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def start(self, request: PoolRequest, *, by: str) -> tuple[PoolStanding, bool]:
        """Create a pool, or start it again; say whether it was created.

        Raises:
            InvalidRequest: Of the kind that says what to change: ``InvalidPool``, ``UnknownTask``,
                ``UnsatisfiableRequest``.
            PoolExists: If it serves, and differs.
            StoreUnavailable: If the database does not answer.
        """
        spec = new_pool(request)
        hosts = KnownHosts(self._runtime.cluster.nodes, self._runtime.clock)
        hosts.require_known(spec.task)
        hosts.require_satisfiable(spec.resources)
        created = self._runtime.pools.start(request.name, spec, by=by)
        return self._told(request.name), created

    def change(self, name: str, change: PoolChange, *, by: str, version: int | None = None) -> PoolStanding:
        """Change a pool; raises what ``PoolStore.change`` does."""
        self._runtime.pools.change(name, change, by=by, version=version)
        return self._told(name)

    def change_all(self, change: PoolChange, *, by: str) -> list[PoolStanding]:
        """Change every pool that can be changed so; return those, also where it changed nothing.

        A pool that is stopped stays it, and one whose runners have no share of a GPU does not sleep.
        """
        told = []
        for standing in self._runtime.pools.standings()[1]:
            with suppress(Conflict, InvalidPool, UnknownPool):  # or it has been removed meanwhile
                self._runtime.pools.change(standing.pool.name, change, by=by)
                told.append(standing.pool.name)
        tell_placers(self._runtime)
        return [one for one in self._runtime.pools.standings()[1] if one.pool.name in told]

    def _told(self, name: str) -> PoolStanding:
        tell_placers(self._runtime)
        return self._runtime.pools.standing(name)


class PoolSweep:
    """Starts and drains runners so that each pool has as many as it is to have; a leader keeps one for its term."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._submits, self._cancels = runtime, SubmitService(runtime), CancelService(runtime)
        self._waiting: tuple[Candidate, ...] = ()
        self._pressing: Pressing | None = None
        self._uses: dict[int, Uses] = {}  # of each runner, by lease
        self._since: dict[str, float] = {}  # pool -> since when jobs wait for it, monotonic

    def note(self, snapshot: Snapshot, made: Plan | None) -> None:
        """Remember what a scheduling pass left waiting."""
        refused = {refusal.seq for refusal in made.refusals} if made is not None else set()
        left = (candidate for candidate in snapshot.candidates if candidate.seq in refused)
        self._waiting = tuple(one for one in left if (one.resources.wants or _NOTHING).model is not None)
        self._pressing = pressing(snapshot, made) if made is not None else None

    def run(self, epoch: int) -> int:
        """Look after every pool once; return how many runners were started or told to leave."""
        runtime = self._runtime
        now, standings = runtime.pools.standings()
        if not standings:
            return 0
        idle = runtime.policy.get().values.pool_idle_seconds
        runners = [runner for standing in standings for runner in standing.runners]
        self._uses = {runner.lease_id: uses_of(runner, self._uses.get(runner.lease_id), now) for runner in runners}
        demands = [self._demand(standing.pool) for standing in standings]
        decisions = reconcile_all(standings, demands, self._pressing, self._uses, now, idle_seconds=idle)
        did = 0
        for standing, decision in zip(standings, decisions, strict=True):
            if _is_something(decision, standing.pool) and runtime.pools.apply(decision, epoch=epoch):
                did += self._carry_out(decision, now, epoch)
        return did

    def _carry_out(self, decision: Decision, now: datetime, epoch: int) -> int:
        runtime, pool = self._runtime, decision.pool
        if decision.leave:
            self._tell_workers()
        for job_id in decision.cancel:  # each has a row, or its load would be over
            self._cancels.cancel(job_id, by=LEADER, reason=f"pool {pool.name} does not need it any more")
        if decision.start:
            requests = [load_request(pool, uuid7(now + timedelta(microseconds=n))) for n in range(decision.start)]
            ids = [request.id for request in requests if request.id is not None]
            runtime.pools.new_loads(pool, ids, epoch=epoch)
            try:
                self._submits.submit(requests)
            except InvalidRequest as error:
                logger.error("no runner of pool %s can be started: %s", pool.name, error)
                refused = Decision(failed(pool, [str(error)], now), forget_loads=tuple(ids))
                runtime.pools.apply(refused, epoch=epoch)
                return 0
            logger.info("pool %s gets %d more runners", pool.name, decision.start)
        return decision.start + len(decision.leave)

    def _tell_workers(self) -> None:
        try:
            self._runtime.wake.publish("leave")
        except StreamUnavailable as error:
            logger.info("runners hear that they are to leave with their next renewal: %s", error)

    def _demand(self, pool: Pool) -> Demand:
        jobs = sum(_is_for(candidate, pool) for candidate in self._waiting)
        now = self._runtime.clock.monotonic()
        if not jobs:
            self._since.pop(pool.name, None)
            return Demand()
        return Demand(jobs, now - self._since.setdefault(pool.name, now))


def load_request(pool: Pool, job_id: str) -> TaskRequest:
    """Return the request for one more runner of a pool."""
    spec = pool.spec
    return TaskRequest(
        id=job_id,
        task=spec.task,
        kwargs={"model": spec.model, **spec.arguments},
        name=f"pool:{pool.name}",
        queue=LOAD_QUEUE,
        pool=(pool.name, pool.generation),
        priority=spec.priority,
        time_limit_seconds=spec.load_limit_seconds,
        tenant=spec.tenant or DEFAULT_TENANT,
        submitted_by=f"pool:{pool.name}",
        **_asked(spec.resources),
    )


def _asked(resources: Resources) -> dict[str, Any]:
    wants = resources.wants or _NOTHING
    return {
        "gpus": resources.gpus,
        "gpu_memory_mib": resources.gpu_memory_mib,
        **_of_gpus(wants),
        "constraints": dict(wants.labels),
        "cpus": wants.cpus,
        "memory_mib": wants.host_memory_mib or None,
        "alternatives": tuple(
            AlternativeRequest(gpus=other.gpus, gpu_memory_mib=other.gpu_memory_mib, **_of_gpus(other))
            for other in wants.alternatives
        ),
    }


def _of_gpus(asked: Wants | Alternative) -> dict[str, Any]:
    return {
        "gpu_type": "|".join(asked.models) or None,
        "min_memory_mib": asked.min_memory_mib,
        "mig": asked.mig_profile,
    }


def _is_for(candidate: Candidate, pool: Pool) -> bool:
    wants = candidate.resources.wants or _NOTHING
    return wants.model in (pool.name, pool.spec.model) and pool.spec.tenant in (None, candidate.tenant)


def _is_something(decision: Decision, before: Pool) -> bool:
    return decision != Decision(before)


_NOTHING: Final = Wants()
