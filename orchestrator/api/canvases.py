"""Endpoints about whole canvases."""

from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.api.dependencies import Given
from orchestrator.domain.request import LONGEST_TASK_ID

CanvasId = Annotated[str, Field(min_length=1, max_length=LONGEST_TASK_ID)]


class CancelBody(BaseModel):
    """Which jobs to cancel: those of a canvas, or of one group of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tree: CanvasId | None = Field(default=None, description="A canvas: its root, any job of it, or its group.")
    group: CanvasId | None = Field(default=None, description="A group: its members, and what waits for them.")
    reason: Annotated[str, Field(max_length=256)] = "asked for"

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.tree is None) == (self.group is None):
            raise PydanticCustomError("one_filter", "give tree or group, one of them")
        return self


routes = APIRouter(prefix="/jobs", tags=["jobs"])


@routes.post("/cancel")
def cancel(given: Given, body: CancelBody) -> Any:
    """Cancel a canvas or a group as a whole, what it has not called yet included. Repeating it changes nothing.

    ``cancelled`` do not start any more; ``stopping`` run, and their workers were asked to end them.
    """
    whole = body.tree is not None
    name = body.tree or body.group or ""
    outcome = given.cancels.cancel_canvas(name, whole=whole, by="api", reason=body.reason)
    return {
        "tree" if whole else "group": outcome.canvas_id,
        "cancelled": list(outcome.cancelled),
        "stopping": list(outcome.stopping),
    }
