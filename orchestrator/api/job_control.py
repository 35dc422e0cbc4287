"""Orders about jobs that do not run: priority, hold, release, retry; one job each, or many in one request."""

from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given, Services
from orchestrator.api.guard import requires
from orchestrator.api.jobs import visible_job
from orchestrator.api.schemas import JobId, job_document
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.request import LONGEST_TASK_ID
from orchestrator.errors import Conflict, UnknownJob
from orchestrator.services.job_control import JobOrder, Order, give

#: Jobs of one request.
MOST_IDS: Final = 1000
routes = APIRouter(prefix="/jobs", tags=["jobs"])

Submitter = Annotated[Principal, Depends(requires(Role.SUBMITTER))]
Priority = Annotated[int, Field(ge=0, le=9, description="9 starts first.")]
CHANGED: Final = {**answers.answers(answers.JobChanged), **problems.responses(409)}


class PriorityBody(BaseModel):
    """Another priority for a job."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Priority


#: What ``OrdersBody`` asks of its fields together, for its description.
_WITH_ITS_PRIORITY: Final[dict[str, Any]] = {
    "oneOf": [
        {
            "required": ["priority"],
            "properties": {"order": {"const": Order.PRIORITY.value}, "priority": {"type": "integer"}},
        },
        {
            "properties": {
                "order": {"enum": [order.value for order in Order if order is not Order.PRIORITY]},
                "priority": {"type": "null"},
            }
        },
    ]
}


class OrdersBody(BaseModel):
    """One order for many jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_WITH_ITS_PRIORITY)

    order: Annotated[Order, Field(strict=False)]
    ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=LONGEST_TASK_ID)]], Field(min_length=1)] = Field(
        max_length=MOST_IDS, description=f"1 to {MOST_IDS} jobs."
    )
    priority: Priority | None = Field(default=None, description="With the order `priority` alone.")

    @model_validator(mode="after")
    def _has_its_priority(self) -> Self:
        if (self.order is Order.PRIORITY) != (self.priority is not None):
            raise PydanticCustomError("priority", "give a priority with the order priority, and with no other")
        return self


@routes.post("/orders", responses=answers.answers(answers.Orders))
def orders(given: Given, caller: Submitter, body: OrdersBody) -> Any:
    """Give one order to many jobs; each is carried out on its own, and says what became of it."""
    order = JobOrder(body.order, body.priority)
    return {"results": [_one_of_many(given, caller, job_id, order) for job_id in dict.fromkeys(body.ids)]}


@routes.post("/{job_id}/priority", responses=CHANGED)
def priority(given: Given, caller: Submitter, job_id: JobId, body: PriorityBody) -> Any:
    """Give a job that waits another priority. Repeating it changes nothing."""
    return _one(given, caller, job_id, JobOrder(Order.PRIORITY, body.priority))


@routes.post("/{job_id}/hold", responses=CHANGED)
def hold(given: Given, caller: Submitter, job_id: JobId) -> Any:
    """Keep a job that has not started from starting, until it is released. Repeating it changes nothing."""
    return _one(given, caller, job_id, JobOrder(Order.HOLD))


@routes.post("/{job_id}/release", responses=CHANGED)
def release(given: Given, caller: Submitter, job_id: JobId) -> Any:
    """Let a held job take its place among the others. Repeating it changes nothing."""
    return _one(given, caller, job_id, JobOrder(Order.RELEASE))


@routes.post("/{job_id}/retry", responses=CHANGED)
def retry(given: Given, caller: Submitter, job_id: JobId) -> Any:
    """Have a job that failed, was cancelled or is a dead letter tried again, with all its attempts."""
    return _one(given, caller, job_id, JobOrder(Order.RETRY))


def _one(given: Services, caller: Principal, job_id: str, order: JobOrder) -> dict[str, Any]:
    visible_job(given.runtime, caller, job_id)
    change = give(given.runtime, order, job_id, by=caller.name)
    return job_document(change.job) | {"changed": change.changed}


def _one_of_many(given: Services, caller: Principal, job_id: str, order: JobOrder) -> dict[str, Any]:
    try:
        visible_job(given.runtime, caller, job_id)
        change = give(given.runtime, order, job_id, by=caller.name)
    except (UnknownJob, Conflict) as error:
        return {"id": job_id, "changed": False, "state": None, "problem": error.code, "detail": str(error)}
    return {
        "id": job_id,
        "changed": change.changed,
        "state": change.job.state.value,
        "problem": None,
        "detail": None,
    }
