"""Endpoints about whole canvases."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.job import Job
from orchestrator.domain.request import LONGEST_TASK_ID
from orchestrator.domain.request_checks import UNSEEN
from orchestrator.errors import UnknownJob
from orchestrator.ports import JobFilter
from orchestrator.runtime import Runtime

CanvasId = Annotated[str, Field(min_length=1, max_length=LONGEST_TASK_ID)]


#: What ``CancelBody`` asks of its fields together, for its description.
_ONE_FILTER: Final[dict[str, Any]] = {
    "oneOf": [
        {"required": ["tree"], "properties": {"tree": {"type": "string"}, "group": {"type": "null"}}},
        {"required": ["group"], "properties": {"group": {"type": "string"}, "tree": {"type": "null"}}},
    ]
}


class CancelBody(BaseModel):
    """Which jobs to cancel: those of a canvas, or of one group of it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_ONE_FILTER)

    tree: CanvasId | None = Field(default=None, description="A canvas: its root, any job of it, or its group.")
    group: CanvasId | None = Field(default=None, description="A group: its members, and what waits for them.")
    reason: Annotated[str, Field(max_length=256)] = "asked for"

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.tree is None) == (self.group is None):
            raise PydanticCustomError("one_filter", "give tree or group, one of them")
        if UNSEEN.search(self.reason):
            raise PydanticCustomError("unseen", "reason: must not contain control characters")
        return self


routes = APIRouter(prefix="/jobs", tags=["jobs"])


@routes.post("/cancel", responses=answers.answers(answers.CanvasCancelled))
def cancel(given: Given, caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))], body: CancelBody) -> Any:
    """Cancel a canvas or a group as a whole, what it has not called yet included. Repeating it changes nothing.

    ``cancelled`` do not start any more; ``stopping`` run, and their workers were asked to end them.
    """
    whole = body.tree is not None
    name = body.tree or body.group or ""
    _refuse_hidden(given.runtime, caller, name, whole=whole)
    outcome = given.cancels.cancel_canvas(name, whole=whole, by=caller.name, reason=body.reason)
    return {
        "tree" if whole else "group": outcome.canvas_id,
        "cancelled": list(outcome.cancelled),
        "stopping": list(outcome.stopping),
    }


def _refuse_hidden(runtime: Runtime, caller: Principal, name: str, *, whole: bool) -> None:
    """Answer for a canvas of another tenant as for one that never was.

    It is of the tenant of the job that it is named by, else of its latest job: who may only submit over HTTP cannot
    put a job into somebody else's.
    """
    if caller.tenant is None:
        return
    job = runtime.jobs.get(name) if whole else None
    members = [] if job else [*_latest(runtime, group_id=name), *(_latest(runtime, root_id=name) if whole else ())]
    if not all(caller.sees(one.tenant) for one in [*([job] if job else []), *members]):
        raise UnknownJob(name)


def _latest(runtime: Runtime, *, group_id: str | None = None, root_id: str | None = None) -> Sequence[Job]:
    return runtime.jobs.list_jobs(JobFilter(group_id=group_id, root_id=root_id, limit=1))
