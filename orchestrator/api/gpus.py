"""Endpoints that change what may be leased of GPUs."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.api.dependencies import Given
from orchestrator.api.schemas import gpu_document
from orchestrator.domain.cluster import GpuAction

routes = APIRouter(prefix="/gpus", tags=["gpus"])

Uuid = Annotated[str, Path(max_length=64, description="The GPU's uuid.")]


@routes.post("/{uuid}/quarantine")
def quarantine(given: Given, uuid: Uuid) -> Any:
    """Lease a GPU to nobody until it is released; what runs there goes on."""
    return _order(given, uuid, GpuAction.QUARANTINE)


@routes.post("/{uuid}/release")
def release(given: Given, uuid: Uuid) -> Any:
    """End a quarantine, whoever began it: the GPU is healthy with the next good reading."""
    return _order(given, uuid, GpuAction.RELEASE)


@routes.post("/{uuid}/reset")
def reset(given: Given, uuid: Uuid) -> Any:
    """End a quarantine and forget the GPU's strikes."""
    return _order(given, uuid, GpuAction.RESET)


def _order(given: Given, uuid: str, action: GpuAction) -> dict[str, Any]:
    given.runtime.cluster.order_gpu(uuid, action, by="api")
    (record,) = (gpu for node in given.runtime.cluster.nodes() for gpu in node.gpus if gpu.gpu.uuid == uuid)
    return gpu_document(record)
