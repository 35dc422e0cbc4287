"""Endpoints that take hosts out of service, and back."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.domain.access import Principal, Role
from orchestrator.services.drain import set_drain

routes = APIRouter(prefix="/nodes", tags=["cluster"])

Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
NodeName = Annotated[str, Path(max_length=64, description="The host's name.")]


@routes.post("/{name}/drain", responses=answers.answers(answers.Drain))
def drain(given: Given, caller: Operator, name: NodeName) -> Any:
    """Have a host take nothing new and let what runs end. Repeating it changes nothing."""
    return _set(given, name, drain=True, by=caller.name)


@routes.post("/{name}/undrain", responses=answers.answers(answers.Drain))
def undrain(given: Given, caller: Operator, name: NodeName) -> Any:
    """Have a host take jobs again. Repeating it changes nothing."""
    return _set(given, name, drain=False, by=caller.name)


def _set(given: Given, name: str, *, drain: bool, by: str) -> dict[str, Any]:
    outcome = set_drain(given.runtime, name, drain=drain, by=by)
    return {
        "name": name,
        "state": outcome.state.value,
        "drain": drain,
        "changed": outcome.changed,
        "withdrawn": outcome.withdrawn,
    }
