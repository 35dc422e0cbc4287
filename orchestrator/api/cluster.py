"""Endpoints about hosts, GPUs, queues and the installation itself."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

import orchestrator
from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.metrics import exposition
from orchestrator.api.schemas import Seen, gpu_document, node_document
from orchestrator.config import masked_url
from orchestrator.domain.access import Role
from orchestrator.errors import OrchestratorError
from orchestrator.runtime import Runtime
from orchestrator.services.lead import host_and_pid

routes = APIRouter(tags=["cluster"])
health_routes = APIRouter(tags=["health"])


@routes.get("/nodes", responses=answers.answers(answers.Nodes))
def nodes(given: Given, caller: Caller) -> Any:
    """List the hosts. Of other tenants' jobs a caller is told only that there are such."""
    seen = Seen(given.runtime.cluster.gpu_holders(), caller.tenant)
    return {"nodes": [node_document(node, seen) for node in given.runtime.cluster.nodes()]}


@routes.get("/gpus", responses=answers.answers(answers.Gpus))
def gpus(given: Given, caller: Caller) -> Any:
    """List the GPUs of all hosts. Of other tenants' jobs a caller is told only that there are such."""
    seen = Seen(given.runtime.cluster.gpu_holders(), caller.tenant)
    return {"gpus": [gpu_document(gpu, node, seen) for node in given.runtime.cluster.nodes() for gpu in node.gpus]}


@routes.get("/cluster", responses=answers.answers(answers.Cluster))
def cluster(given: Given, caller: Caller) -> Any:
    """Show what the installation is made of; where its servers are, operators only are told."""
    inside = caller.role.covers(Role.OPERATOR)
    counts = given.runtime.jobs.count_by_state(tenant=caller.tenant)
    term = given.runtime.leadership.current()
    host, pid = host_and_pid(term.holder) if term else (None, None)
    return {
        "version": orchestrator.__version__,
        "api_url": given.runtime.settings.client_url,
        "leader": term.holder if term else None,
        "leader_host": host,
        "leader_pid": pid,
        "leader_since": term.since.isoformat() if term and term.since else None,
        "epoch": term.epoch if term else None,
        "database": masked_url(given.runtime.settings.database) if inside else None,
        "redis": masked_url(given.runtime.settings.redis) if inside else None,
        "nodes": sum(1 for node in given.runtime.cluster.nodes() if node.live),
        "jobs": {state.value: count for state, count in counts.items()},
    }


@routes.get(
    "/metrics", response_class=PlainTextResponse, dependencies=[Depends(requires(Role.VIEWER, every_tenant=True))]
)
def metrics(given: Given) -> Response:
    """Expose metrics for Prometheus."""
    return Response(
        exposition(given.runtime, given.requests, given.ended, given.lease_requests), media_type=CONTENT_TYPE_LATEST
    )


@routes.get("/openapi.json")
def openapi(request: Request) -> Any:
    """Describe this API."""
    return request.app.openapi()


@health_routes.get("/healthz", responses=answers.answers(answers.Health))
async def healthz() -> Any:
    """The process answers, also while every thread is busy."""
    return {"status": "ok"}


@health_routes.get(
    "/readyz",
    responses={**answers.answers(answers.Readiness), 503: {"model": answers.Readiness, "description": "Not ready"}},
)
def readyz(given: Given, response: Response) -> Any:
    """Database and Redis answer, and a worker is there."""
    checks = {
        "database": _holds(lambda: given.runtime.cluster.queues() is not None),
        "redis": _holds(lambda: _publishes(given.runtime)),
        "worker": _holds(lambda: any(node.live for node in given.runtime.cluster.nodes())),
    }
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "not ready", "checks": checks}


def _publishes(runtime: Runtime) -> bool:
    runtime.wake.publish("ping")
    return True


def _holds(check: Any) -> bool:
    try:
        return bool(check())
    except OrchestratorError:
        return False
