"""Endpoints about hosts, GPUs, queues and the installation itself."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

import orchestrator
from orchestrator.api.metrics import exposition
from orchestrator.api.schemas import gpu_document, node_document
from orchestrator.config import masked_url
from orchestrator.errors import OrchestratorError
from orchestrator.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """Return the endpoints that need a token."""
    routes = APIRouter(tags=["cluster"])

    @routes.get("/nodes")
    def nodes() -> Any:
        """List the hosts."""
        return {"nodes": [node_document(node) for node in runtime.cluster.nodes()]}

    @routes.get("/gpus")
    def gpus() -> Any:
        """List the GPUs of all hosts."""
        return {"gpus": [gpu_document(gpu) for node in runtime.cluster.nodes() for gpu in node.gpus]}

    @routes.get("/queues")
    def queues() -> Any:
        """List the queues and how many jobs of each state they hold."""
        return {
            "queues": [
                {"name": name, "paused": paused}
                | {"jobs": {state.value: count for state, count in runtime.jobs.count_by_state(name).items() if count}}
                for name, paused in runtime.cluster.queues().items()
            ]
        }

    @routes.get("/cluster")
    def cluster() -> Any:
        """Show what the installation is made of."""
        term = runtime.leadership.current()
        return {
            "version": orchestrator.__version__,
            "api_url": runtime.settings.client_url,
            "leader": term.holder if term else None,
            "epoch": term.epoch if term else None,
            "database": masked_url(runtime.settings.database),
            "redis": masked_url(runtime.settings.redis),
            "nodes": sum(1 for node in runtime.cluster.nodes() if node.live),
            "jobs": {state.value: count for state, count in runtime.jobs.count_by_state().items()},
        }

    @routes.get("/metrics")
    def metrics() -> Response:
        """Expose metrics for Prometheus."""
        return Response(exposition(runtime), media_type=CONTENT_TYPE_LATEST)

    return routes


def health_router(runtime: Runtime) -> APIRouter:
    """Return the endpoints that are open to anybody, and tell nothing but health."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    def healthz() -> Any:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz(response: Response) -> Any:
        """Database and Redis answer, and a worker is there."""
        checks = {
            "database": _holds(lambda: runtime.cluster.queues() is not None),
            "redis": _holds(lambda: _publishes(runtime)),
            "worker": _holds(lambda: any(node.live for node in runtime.cluster.nodes())),
        }
        ready = all(checks.values())
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "not ready", "checks": checks}

    return routes


def _publishes(runtime: Runtime) -> bool:
    runtime.wake.publish("ping")
    return True


def _holds(check: Any) -> bool:
    try:
        return bool(check())
    except OrchestratorError:
        return False
