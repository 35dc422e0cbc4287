"""The FastAPI application."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import orchestrator
from orchestrator.api import cluster, control, jobs, nodes, problems, usage
from orchestrator.api.dependencies import Services
from orchestrator.api.guard import guard, is_loopback
from orchestrator.errors import InvalidSettings, PayloadTooLarge
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)

#: What a request may carry around its payload.
OVERHEAD_BYTES: Final = 64 << 10


def create_app(runtime: Runtime, *, token: str | None) -> FastAPI:
    """Return the application.

    Args:
        runtime: The outside world.
        token: The bearer token that every endpoint but the health checks asks for.

    Raises:
        InvalidSettings: If there is no token and the address is not a loopback one, or the token is empty.
    """
    if token is None and not is_loopback(runtime.settings.api_host):
        raise InvalidSettings(["api_token: needed to bind an address that is not a loopback one"])
    if token is not None and not token.strip():
        raise InvalidSettings(["api_token: must not be empty"])  # an empty one would let everybody in
    app = FastAPI(
        title="gpu-orchestrator", version=orchestrator.__version__, openapi_url=None
    )  # cluster.openapi tells it, to who has the token
    problems.install(app)
    app.add_middleware(_BodyLimit, limit=runtime.settings.max_payload_bytes + OVERHEAD_BYTES)
    guarded: dict[str, Any] = {
        "dependencies": [Depends(guard(token))],
        "responses": problems.responses(401, 403, 404, 413, 422, 503),
    }
    app.state.services = Services.over(runtime)
    app.include_router(cluster.health_routes)
    app.include_router(jobs.routes, **guarded)
    app.include_router(cluster.routes, **guarded)
    app.include_router(nodes.routes, **guarded)
    app.include_router(control.routes, **guarded)
    app.include_router(usage.routes, **guarded)

    _watch(app)
    return app


def _watch(app: FastAPI) -> None:
    """Mark every answer for browsers and caches, and count it."""
    requests = app.state.services.requests

    @app.middleware("http")
    async def watch(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        begun, status = time.monotonic(), 500
        requests.begin()
        try:
            response = await answer(request)
            status = response.status_code
        finally:
            requests.end(request.method, _route(request), status, time.monotonic() - begun)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response


def _route(request: Request) -> str:
    """Return the path as it is declared: with the ids in them, paths would be without number."""
    return str(getattr(request.scope.get("route"), "path", "none"))


class _BodyLimit:
    """Refuses a body that is too large before it is read or parsed."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        declared = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise PayloadTooLarge(seen, self._limit)
            return message

        async def unless_refused(message: Message) -> None:
            # FastAPI turns whatever reading a body raises into an answer of its own; ours takes its place.
            if seen <= self._limit:
                await send(message)

        if declared <= self._limit:
            await self._app(scope, counted, unless_refused)
        if max(declared, seen) > self._limit:
            error = PayloadTooLarge(max(declared, seen), self._limit)
            await problems.problem(413, error.code, str(error))(scope, receive, send)
