"""Endpoints of queues: what they hold, pausing them, their limits."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.versions import version_of
from orchestrator.control_ports import QueueOrders
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.policy import LONGEST_SECONDS, MOST_RUNNING
from orchestrator.runtime import Runtime
from orchestrator.services.job_control import tell_placers

routes = APIRouter(prefix="/queues", tags=["queues"])

Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Name = Annotated[str, Path(max_length=64, description="The queue's name.")]


class LimitsBody(BaseModel):
    """Limits to change; null lifts one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    most_running: Annotated[int, Field(ge=0, le=MOST_RUNNING)] | None = Field(
        default=None, description="Jobs at once, on all hosts together."
    )
    time_limit: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] | None = Field(
        default=None, description="Seconds, of jobs that bring no time limit."
    )


@routes.get("", responses=answers.answers(answers.Queues))
def queues(given: Given, caller: Caller) -> Any:
    """List the queues and how many jobs of each state they hold."""
    return {"queues": [queue_document(given.runtime, caller, queue) for queue in given.runtime.queues.list_queues()]}


@routes.get("/{name}", responses=answers.answers(answers.Queue))
def show(given: Given, caller: Caller, name: Name, response: Response) -> Any:
    """Show a queue; its ETag is the version of its orders."""
    return _answer(given.runtime, caller, given.runtime.queues.get(name), response)


@routes.post("/{name}/pause", responses=answers.answers(answers.PausedQueue))
def pause(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Have no job of a queue start from now on; what runs goes on, and submits are taken. Repeatable."""
    queue, withdrawn = given.runtime.queues.set_paused(name, paused=True, by=caller.name)
    return _answer(given.runtime, caller, queue, response) | {"withdrawn": withdrawn}


@routes.post("/{name}/resume", responses=answers.answers(answers.PausedQueue))
def resume(given: Given, caller: Operator, name: Name, response: Response) -> Any:
    """Let the jobs of a paused queue start again. Repeating it changes nothing."""
    queue, withdrawn = given.runtime.queues.set_paused(name, paused=False, by=caller.name)
    tell_placers(given.runtime)
    return _answer(given.runtime, caller, queue, response) | {"withdrawn": withdrawn}


@routes.patch("/{name}", responses={**answers.answers(answers.Queue), **problems.responses(412)})
def change(
    given: Given,
    caller: Operator,
    name: Name,
    body: LimitsBody,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=64)] = None,
) -> Any:
    """Change limits of a queue; with If-Match only if nobody else has since. What runs already goes on."""
    changes = body.model_dump(exclude_unset=True)
    if "time_limit" in changes:
        changes["time_limit_seconds"] = changes.pop("time_limit")
    queue = given.runtime.queues.set_limits(name, changes, by=caller.name, version=version_of(if_match))
    tell_placers(given.runtime)
    return _answer(given.runtime, caller, queue, response)


def queue_document(runtime: Runtime, caller: Principal, queue: QueueOrders) -> dict[str, Any]:
    """Return a queue with how many jobs of each state the caller has in it."""
    counts = runtime.jobs.count_by_state(queue.name, tenant=caller.tenant)
    return {
        "name": queue.name,
        "paused": queue.paused,
        "paused_by": queue.paused_by,
        "most_running": queue.limits.most_running,
        "time_limit": queue.limits.time_limit_seconds,
        "version": queue.version,
        "jobs": {state.value: count for state, count in counts.items() if count},
    }


def _answer(runtime: Runtime, caller: Principal, queue: QueueOrders, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = f'"{queue.version}"'
    return queue_document(runtime, caller, queue)
