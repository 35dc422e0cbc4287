"""Endpoints of what operators set for the whole installation while it runs."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.api.versions import version_of
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.policy import LONGEST_SECONDS, Policy
from orchestrator.services.job_control import tell_placers

routes = APIRouter(prefix="/policy", tags=["control"])


class PolicyBody(BaseModel):
    """Values to change."""

    model_config = ConfigDict(extra="forbid", strict=True)

    safe_mode: bool = Field(default=False, description="No job starts; what runs goes on.")
    pool_idle_seconds: Annotated[float, Field(ge=0, le=LONGEST_SECONDS)] = Field(
        default=600.0, description="A pool that nobody used for so long gives its GPUs back."
    )
    max_gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Of each GPU's memory, that is lent out in shares."
    )


_CHANGED: Final[dict[int | str, dict[str, Any]]] = {**answers.answers(answers.Policy), **problems.responses(412)}


@routes.get("", responses=answers.answers(answers.Policy))
def show(given: Given, response: Response) -> Any:
    """Show the values in force; their ETag is their version."""
    return _answer(given.runtime.policy.get(), response)


@routes.post("", responses=_CHANGED)
@routes.patch("", responses=_CHANGED)
def change(
    given: Given,
    caller: Annotated[Principal, Depends(requires(Role.OPERATOR))],
    body: PolicyBody,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=64)] = None,
) -> Any:
    """Change values, and leave the others; with If-Match only if nobody else has since. PATCH and POST do the same."""
    changes = body.model_dump(exclude_unset=True)
    policy = given.runtime.policy.change(changes, by=caller.name, version=version_of(if_match))
    tell_placers(given.runtime)
    return _answer(policy, response)


def _answer(policy: Policy, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = f'"{policy.version}"'
    return {
        "safe_mode": policy.values.safe_mode,
        "pool_idle_seconds": policy.values.pool_idle_seconds,
        "max_gpu_memory_fraction": policy.values.max_gpu_memory_fraction,
        "version": policy.version,
        "changed_by": policy.changed_by,
        "changed_at": policy.changed_at.isoformat() if policy.changed_at and policy.version else None,
    }
