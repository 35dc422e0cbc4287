"""Errors as problem documents (RFC 9457): a stable type, what was wrong, and every fault of the request."""

import logging
import uuid
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from orchestrator.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    OrchestratorError,
    PayloadTooLarge,
    Unauthenticated,
    Unavailable,
    UnknownDeadLetter,
    UnknownJob,
    UnknownNode,
    UnknownSweep,
    UnsatisfiableRequest,
)

logger = logging.getLogger(__name__)

TYPE: Final = "urn:gpu-orchestrator:problem:"
MEDIA_TYPE: Final = "application/problem+json"

#: The most specific class that matches decides.
_STATUS: Final = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (UnknownJob, 404),
    (UnknownDeadLetter, 404),
    (UnknownNode, 404),
    (UnknownSweep, 404),
    (PayloadTooLarge, 413),
    (UnsatisfiableRequest, 422),
    (InvalidRequest, 422),
    (Conflict, 409),
    (Unavailable, 503),
    (OrchestratorError, 500),
)


def problem(status: int, code: str, detail: str, **more: Any) -> JSONResponse:
    """Return a problem document."""
    body = {"type": TYPE + code, "title": code.replace("-", " "), "status": status, "detail": detail} | more
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes the problems of these statuses."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "description": f"{TYPE}CODE"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "faults": {"type": "array", "items": {"type": "string"}},
        },
    }
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have every error of the app answered with a problem document."""
    app.add_exception_handler(OrchestratorError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def status_of(error: OrchestratorError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OrchestratorError)
    faults = list(getattr(error, "faults", ()))
    return problem(status_of(error), error.code, str(error), **({"faults": faults} if faults else {}))


async def _malformed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'][1:]) or 'body'}: {fault['msg']}" for fault in error.errors()
    ]
    return problem(422, "malformed-request", "; ".join(faults), faults=faults)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {400: "malformed-request", 404: "no-such-path", 405: "method-not-allowed"}.get(
        error.status_code, "http-error"
    )
    return problem(error.status_code, code, str(error.detail))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    number = uuid.uuid4().hex
    logger.error("%s %s failed (%s)", request.method, request.url.path, number, exc_info=error)
    return problem(500, "internal-error", f"an unexpected error; the log has it under {number}", error_id=number)
