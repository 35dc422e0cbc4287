"""Endpoints that change what may be leased of GPUs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.api.schemas import Seen, gpu_document
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.cluster import GpuAction

routes = APIRouter(prefix="/gpus", tags=["gpus"])

Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Uuid = Annotated[str, Path(max_length=64, description="The GPU's uuid.")]


@routes.post("/{uuid}/quarantine", responses=answers.answers(answers.Gpu))
def quarantine(given: Given, caller: Operator, uuid: Uuid) -> Any:
    """Lease a GPU to nobody until it is released; what runs there goes on."""
    return _order(given, caller, uuid, GpuAction.QUARANTINE)


@routes.post("/{uuid}/release", responses=answers.answers(answers.Gpu))
def release(given: Given, caller: Operator, uuid: Uuid) -> Any:
    """End a quarantine, whoever began it: the GPU is healthy with the next good reading."""
    return _order(given, caller, uuid, GpuAction.RELEASE)


@routes.post("/{uuid}/reset", responses=answers.answers(answers.Gpu))
def reset(given: Given, caller: Operator, uuid: Uuid) -> Any:
    """End a quarantine and forget the GPU's strikes."""
    return _order(given, caller, uuid, GpuAction.RESET)


def _order(given: Given, caller: Principal, uuid: str, action: GpuAction) -> dict[str, Any]:
    given.runtime.cluster.order_gpu(uuid, action, by=caller.name)
    cluster = given.runtime.cluster
    seen = Seen(cluster.gpu_holders(), caller.tenant)
    found = ((gpu, node) for node in cluster.nodes() for gpu in node.gpus if gpu.gpu.uuid == uuid)
    ((record, node),) = found
    return gpu_document(record, node, seen)
