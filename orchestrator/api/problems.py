"""Errors as problem documents (RFC 9457): a stable type, what was wrong, and every fault of the request."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from orchestrator.body_errors import TooSlow
from orchestrator.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    OrchestratorError,
    PayloadTooLarge,
    QueueNotFound,
    RateLimited,
    StaleVersion,
    Unauthenticated,
    Unavailable,
    UnknownDeadLetter,
    UnknownGpu,
    UnknownJob,
    UnknownLease,
    UnknownNode,
    UnknownSweep,
    UnknownToken,
    UnsatisfiableRequest,
)
from orchestrator.pool_errors import UnknownPool

TYPE: Final = "urn:gpu-orchestrator:problem:"
MEDIA_TYPE: Final = "application/problem+json"
SCHEMA: Final = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": f"{TYPE}CODE; docs/api.md has the codes"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "faults": {"type": "array", "items": {"type": "string"}},
        "error_id": {"type": "string", "description": "Of a 500: the log has it under this"},
    },
}

#: The most specific class that matches decides.
_STATUS: Final = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (UnknownJob, 404),
    (UnknownDeadLetter, 404),
    (QueueNotFound, 404),
    (StaleVersion, 412),
    (UnknownNode, 404),
    (UnknownSweep, 404),
    (UnknownGpu, 404),
    (UnknownLease, 404),
    (UnknownToken, 404),
    (UnknownPool, 404),
    (PayloadTooLarge, 413),
    (TooSlow, 408),
    (UnsatisfiableRequest, 422),
    (InvalidRequest, 422),
    (Conflict, 409),
    (RateLimited, 429),
    (Unavailable, 503),
    (OrchestratorError, 500),
)


def problem(status: int, code: str, detail: str, *, retry_after_seconds: int = 1, **more: Any) -> JSONResponse:
    """Return a problem document."""
    body = {"type": TYPE + code, "title": code.replace("-", " "), "status": status, "detail": detail} | more
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers["Retry-After"] = str(retry_after_seconds)
    if status in (408, 413):  # the rest of the body is not read, so nothing else can come over this connection
        headers["Connection"] = "close"
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def of(error: OrchestratorError) -> JSONResponse:
    """Return the problem document of an error."""
    more: dict[str, Any] = {}
    if faults := list(getattr(error, "faults", ())):
        more["faults"] = faults
    if isinstance(error, RateLimited):
        more["retry_after_seconds"] = error.retry_after_seconds
    return problem(status_of(error), error.code, str(error), **more)


def unexpected(number: str) -> JSONResponse:
    """Return the problem document of a defect: nothing of it but the number under which the log has it."""
    return problem(500, "internal-error", f"an unexpected error; the log has it under {number}", error_id=number)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes the problems of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Have every error of the app answered with a problem document."""
    app.add_exception_handler(OrchestratorError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)


def status_of(error: OrchestratorError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OrchestratorError)
    return of(error)


async def _malformed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'][1:]) or 'body'}: {fault['msg']}" for fault in error.errors()
    ]
    return problem(422, "malformed-request", "; ".join(faults), faults=faults)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {400: "malformed-request", 404: "no-such-path", 405: "method-not-allowed"}.get(
        error.status_code, "http-error"
    )
    answer = problem(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_allowed(request))
    return answer


def _allowed(request: Request) -> list[str]:
    """Return every method of the path; the router names those of one endpoint alone."""
    path = getattr(request.scope.get("route"), "path", None)
    contexts = iter_route_contexts(request.app.routes)
    return sorted({method for each in contexts if each.path == path for method in each.methods or ()})
