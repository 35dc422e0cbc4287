"""The FastAPI application."""

from typing import Any, Final

from fastapi import Depends, FastAPI

import orchestrator
from orchestrator.api import (
    access,
    canvases,
    cluster,
    control,
    dlq,
    events,
    gpus,
    job_control,
    jobs,
    leases,
    nodes,
    policy,
    pools,
    problems,
    queues,
    tenants,
    tokens,
    usage,
)
from orchestrator.api.dependencies import Services
from orchestrator.api.doors import Doors
from orchestrator.api.edge import Edge, audit_through
from orchestrator.api.guard import Callers, authorise
from orchestrator.api.openapi import described
from orchestrator.api.rates import Rates
from orchestrator.api.repeated import refuse_repeated
from orchestrator.errors import InvalidSettings
from orchestrator.runtime import Runtime

#: In this order: of two paths that fit a request, the first is meant.
_GUARDED: Final[tuple[Any, ...]] = (
    canvases,
    job_control,
    jobs,
    events,
    cluster,
    nodes,
    queues,
    tenants,
    policy,
    control,
    usage,
    gpus,
    leases,
    pools,
    access,
    tokens,
    dlq,
)


def create_app(runtime: Runtime, *, token: str, of_home: bool = False) -> FastAPI:
    """Return the application.

    Args:
        runtime: The outside world.
        token: The installation's own bearer token, with every right.
        of_home: Nobody configured it: it serves programs and pages of this host, by a loopback name.

    Raises:
        InvalidSettings: If the token is empty.
    """
    if not token.strip():
        raise InvalidSettings(["api_token: must not be empty"])  # an empty one would let everybody in
    services = Services.over(runtime)
    app = FastAPI(
        title="gpu-orchestrator",
        version=orchestrator.__version__,
        openapi_url=None,  # cluster.openapi tells it, to who has a token
        dependencies=[Depends(authorise), Depends(refuse_repeated), Depends(audit_through(runtime.access))],
    )
    problems.install(app)
    guarded: dict[str, Any] = {"responses": problems.responses(400, 401, 403, 404, 408, 413, 422, 429, 503)}
    app.state.services = services
    app.include_router(cluster.health_routes)
    for module in _GUARDED:
        app.include_router(module.routes, **guarded)
    app.add_middleware(
        Edge,
        settings=runtime.settings,
        callers=Callers(token, services.tokens, of_home=of_home),
        doors=Doors(app.routes),
        rates=Rates(runtime.clock.monotonic),
        access=runtime.access,
        requests=services.requests,
    )
    app.openapi = described(app)  # type: ignore[method-assign]
    return app
