"""Endpoints that take hosts out of service, and back."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.api.dependencies import Given
from orchestrator.services.drain import set_drain

routes = APIRouter(prefix="/nodes", tags=["cluster"])

NodeName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


@routes.post("/{name}/drain")
def drain(given: Given, name: NodeName) -> Any:
    """Have a host take nothing new and let what runs end. Repeating it changes nothing."""
    return _set(given, name, drain=True)


@routes.post("/{name}/undrain")
def undrain(given: Given, name: NodeName) -> Any:
    """Have a host take jobs again. Repeating it changes nothing."""
    return _set(given, name, drain=False)


def _set(given: Given, name: str, *, drain: bool) -> dict[str, Any]:
    outcome = set_drain(given.runtime, name, drain=drain, by="api")
    return {
        "name": name,
        "state": outcome.state.value,
        "drain": drain,
        "changed": outcome.changed,
        "withdrawn": outcome.withdrawn,
    }
