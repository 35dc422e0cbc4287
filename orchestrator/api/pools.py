"""Endpoints of worker pools."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Response
from pydantic import AwareDatetime, BaseModel

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.pool_bodies import PoolBody, PoolsOrder, PreloadBody, ScaleBody, SwapBody
from orchestrator.api.versions import version_of
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.job import JobState
from orchestrator.domain.pool import (
    Leave,
    PoolChange,
    PoolRunner,
    PoolStanding,
    PoolState,
)
from orchestrator.domain.wants import wants_document
from orchestrator.pool_errors import UnknownPool
from orchestrator.runtime import Runtime
from orchestrator.services.pools import PoolService

routes = APIRouter(prefix="/pools", tags=["pools"])

Name = Annotated[str, Path(max_length=64, description="The pool's name.")]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
IfMatch = Annotated[str | None, Header(max_length=64)]


class Runner(BaseModel):
    """A runner that has the model."""

    lease: int
    node: str
    gpus: list[str]
    model: str
    ready_at: AwareDatetime
    used_at: AwareDatetime
    running: int
    jobs_done: int
    run_seconds: float | None
    leaving: Leave | None
    asleep: bool


class Load(BaseModel):
    """A job that makes a runner."""

    job_id: str
    state: JobState | None
    reason: str | None


class WorkerPool(BaseModel):
    """A worker pool."""

    name: str
    model: str
    task: str
    arguments: dict[str, Any]
    state: PoolState
    reason: str | None
    asleep: bool
    min: int
    max: int
    wanted: int
    ready: int
    gpus: int
    gpu_memory_mib: int | None
    wants: dict[str, Any]
    idle_seconds: float | None
    load_seconds: float
    loaded_in_seconds: float | None
    pinned: bool
    tenant: str | None
    priority: int
    failures: int
    retry_at: AwareDatetime | None
    changed_by: str
    created_at: AwareDatetime
    version: int
    runners: list[Runner]
    loads: list[Load]


class WorkerPools(BaseModel):
    """The pools."""

    pools: list[WorkerPool]


class RemovedPool(BaseModel):
    """A pool that is forgotten."""

    name: str


_ORDERS: Final = {
    "stop": PoolChange(leave=Leave.NOW),
    "drain": PoolChange(leave=Leave.DRAIN),
    "sleep": PoolChange(asleep=True),
    "wake": PoolChange(asleep=False),
}
_STARTED: Any = {
    200: {"model": WorkerPool, "description": "There was one of this name: it is the same, or starts again."},
    **answers.answers(WorkerPool, 201),
    **problems.responses(409),
}
#: Of an order that says what is to be, whatever was before: it needs no If-Match.
_ORDERED: Any = {**answers.answers(WorkerPool), **problems.responses(409)}
_CHANGED: Any = {**_ORDERED, **problems.responses(412)}


@routes.post("", status_code=201, responses=_STARTED)
def start(given: Given, caller: Operator, body: PoolBody, response: Response) -> Any:
    """Start a pool: a new one, or one that was stopped. Repeating it changes nothing; its name is its key."""
    standing, created = PoolService(given.runtime).start(body.to_request(), by=caller.name)
    if not created:
        response.status_code = 200
    return _answer(standing, response)


@routes.get("", responses=answers.answers(WorkerPools))
def list_pools(given: Given, caller: Caller) -> Any:
    """List the pools; a tenant's caller is told of those that run its jobs."""
    _now, found = given.runtime.pools.standings(tenant=caller.tenant)
    return {"pools": [pool_document(standing) for standing in found]}


@routes.post("/orders", responses=answers.answers(WorkerPools))
def order_all(given: Given, caller: Operator, body: PoolsOrder) -> Any:
    """Give every pool an order and return those that took it; the others are as if it had been given. Repeatable."""
    told = PoolService(given.runtime).change_all(_ORDERS[body.order], by=caller.name)
    return {"pools": [pool_document(standing) for standing in told]}


@routes.get("/{name}", responses=answers.answers(WorkerPool))
def show(given: Given, caller: Caller, name: Name, response: Response) -> Any:
    """Show a pool with its runners and loads; its ETag is the version of its orders."""
    return _answer(_seen(given.runtime, caller, name), response)


@routes.post("/{name}/scale", responses=_CHANGED)
def scale(
    given: Given, caller: Operator, name: Name, body: ScaleBody, response: Response, if_match: IfMatch = None
) -> Any:
    """Change how many runners there are; with If-Match only if nobody else has changed the pool since."""
    change = PoolChange(least=body.min, most=body.max, pinned=body.pinned, idle_seconds=body.idle_seconds)
    return _change(given.runtime, caller, name, change, response, if_match)


@routes.post("/{name}/preload", responses=_CHANGED)
def preload(
    given: Given, caller: Operator, name: Name, body: PreloadBody, response: Response, if_match: IfMatch = None
) -> Any:
    """Have runners load the model now, ahead of the jobs; those beyond min leave again when they have been idle."""
    runners = body.runners
    if runners is None:
        runners = given.runtime.pools.standing(name).pool.spec.most
    return _change(given.runtime, caller, name, PoolChange(wanted=runners), response, if_match)


@routes.post("/{name}/swap", responses=_CHANGED)
def swap(
    given: Given, caller: Operator, name: Name, body: SwapBody, response: Response, if_match: IfMatch = None
) -> Any:
    """Have the runners load another model, one after another; jobs that run end with the model that they began with."""
    change = PoolChange(model=body.model, arguments=body.arguments)
    return _change(given.runtime, caller, name, change, response, if_match)


@routes.post("/{name}/sleep", responses=_ORDERED)
def sleep(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Have the runners put their models to sleep and give their GPUs' memory back, until jobs wait. Repeatable."""
    return _change(given.runtime, caller, name, PoolChange(asleep=True), response, None)


@routes.post("/{name}/wake", responses=_ORDERED)
def wake(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Have the runners wake up, each as soon as its GPU has room again. Repeatable."""
    return _change(given.runtime, caller, name, PoolChange(asleep=False), response, None)


@routes.post("/{name}/drain", responses=_ORDERED)
def drain(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Have the runners leave when their jobs are done, and start no other. Repeating it changes nothing."""
    return _change(given.runtime, caller, name, PoolChange(leave=Leave.DRAIN), response, None)


@routes.post("/{name}/stop", responses=_ORDERED)
def stop(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Have the runners leave now; their jobs run again elsewhere, without having used an attempt. Repeatable."""
    return _change(given.runtime, caller, name, PoolChange(leave=Leave.NOW), response, None)


@routes.delete("/{name}", responses={**answers.answers(RemovedPool), **problems.responses(409)})
def remove(given: Given, caller: Operator, name: Name) -> Any:
    """Forget a pool that has stopped."""
    given.runtime.pools.remove(name, by=caller.name)
    return {"name": name}


def pool_document(standing: PoolStanding) -> dict[str, Any]:
    """Return a pool as people and programs read it."""
    pool, spec = standing.pool, standing.pool.spec
    runners = [runner for runner in standing.runners if runner.ended_at is None]
    return {
        "name": pool.name,
        "model": spec.model,
        "task": spec.task,
        "arguments": dict(spec.arguments),
        "state": pool.state.value,
        "reason": pool.reason,
        "asleep": pool.asleep,
        "min": spec.least,
        "max": spec.most,
        "wanted": pool.wanted,
        "ready": sum(runner.leave is None and not runner.asleep for runner in runners),
        "gpus": spec.resources.gpus,
        "gpu_memory_mib": spec.resources.gpu_memory_mib,
        "wants": wants_document(spec.resources.wants),
        "idle_seconds": spec.idle_seconds,
        "load_seconds": spec.load_limit_seconds,
        "loaded_in_seconds": pool.loaded_in_seconds,
        "pinned": spec.pinned,
        "tenant": spec.tenant,
        "priority": spec.priority,
        "failures": pool.failures,
        "retry_at": pool.retry_at.isoformat() if pool.retry_at else None,
        "changed_by": pool.changed_by,
        "created_at": pool.created_at.isoformat(),
        "version": pool.version,
        "runners": [_runner_document(runner) for runner in runners],
        "loads": [
            {"job_id": load.job_id, "state": load.state.value if load.state else None, "reason": load.reason}
            for load in standing.loads
        ],
    }


def _runner_document(runner: PoolRunner) -> dict[str, Any]:
    return {
        "lease": runner.lease_id,
        "node": runner.node,
        "gpus": list(runner.gpus),
        "model": runner.model,
        "ready_at": runner.ready_at.isoformat(),
        "used_at": runner.used_at.isoformat(),
        "running": runner.running,
        "jobs_done": runner.jobs_done,
        "run_seconds": runner.run_seconds,
        "leaving": runner.leave.value if runner.leave else None,
        "asleep": runner.asleep,
    }


def _change(
    runtime: Runtime, caller: Principal, name: str, change: PoolChange, response: Response, if_match: str | None
) -> dict[str, Any]:
    service = PoolService(runtime)
    return _answer(service.change(name, change, by=caller.name, version=version_of(if_match)), response)


def _seen(runtime: Runtime, caller: Principal, name: str) -> PoolStanding:
    try:
        standing = runtime.pools.standing(name)
    except UnknownPool:
        if caller.tenant is not None:
            raise UnknownPool(name) from None  # the names that there are, are other tenants' too
        raise
    if standing.pool.spec.tenant is not None and not caller.sees(standing.pool.spec.tenant):
        raise UnknownPool(name)
    return standing


def _answer(standing: PoolStanding, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = f'"{standing.pool.version}"'
    return pool_document(standing)
