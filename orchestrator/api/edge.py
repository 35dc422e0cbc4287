"""Where every request comes in and every answer goes out, before and after the application itself.

In this order: a request gets its id, its caller is identified, counted, and refused if its role is too low, the body is
read within bounds, the application answers, and the answer gets the headers that all have. A change is written to the
audit before it is made and once more when it was answered, so that nothing is done without a line about it.
"""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.access_ports import AccessStore
from orchestrator.api import problems
from orchestrator.api.bodies import Gone, has_body, read_body
from orchestrator.api.doors import Doors
from orchestrator.api.guard import OPEN_PATHS, SAFE_METHODS, Callers
from orchestrator.api.metrics import Requests
from orchestrator.api.rates import Rates
from orchestrator.config import Settings
from orchestrator.domain.access import AuditEntry, Principal
from orchestrator.errors import OrchestratorError, Unavailable
from orchestrator.observe import logs

logger = logging.getLogger(__name__)

#: What a request may carry around its payload.
OVERHEAD_BYTES: Final = 64 << 10
REQUEST_ID: Final = "X-Request-Id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: For browsers: show nothing of it in a page, run nothing of it, keep nothing of it, tell nobody where it was read.
HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The token of a lease, in a path.
_SECRET: Final = re.compile(r"^/leases/lease_[^/]*")
#: Changes without a line, because what they change tells of them: a job's row and history who submitted it, and a line
#: more for each would double what a submit writes; a lease's row when its holder last renewed it, every few seconds.
SELF_RECORDING: Final = frozenset({"/jobs/submit", "/leases/{token}/heartbeat"})


class Edge:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        callers: Callers,
        doors: Doors,
        rates: Rates,
        access: AccessStore,
        requests: Requests,
    ) -> None:
        self._app = app
        self._settings, self._callers, self._rates = settings, callers, rates
        self._doors, self._access, self._requests = doors, access, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nobody is identified there, so nobody is let in
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(headers)
        answer = _Answer(send, request_id)
        begun = time.monotonic()
        self._requests.begin()
        try:
            await self._serve(scope, headers, receive, answer)
        finally:
            self._requests.end(scope["method"], _route(scope), answer.status or 500, time.monotonic() - begun)
        await self._note_end(scope, answer.status or 500)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer") -> None:
        try:
            if scope["path"] not in OPEN_PATHS:
                scope["state"]["caller"] = caller = await self._callers.identify(headers)
                self._count(caller)
                if has_body(headers):
                    self._doors.refuse_unread(scope, caller)
            limit = self._settings.max_payload_bytes + OVERHEAD_BYTES
            body = await read_body(headers, receive, limit_bytes=limit, seconds=self._settings.api_body_seconds)
            await self._app(scope, body, answer)
        except Gone:
            answer.status = 499  # as others call it: nobody was there to be answered
        except OrchestratorError as error:
            await problems.of(error)(scope, receive, answer)
        except Exception:
            number = uuid.uuid4().hex
            path = _SECRET.sub("/leases/…", scope["path"])
            logger.exception("%s %s failed (%s)", scope["method"], path, number, extra=_about(scope))
            if answer.status is not None:
                raise  # too late for an answer; the connection is closed
            await problems.unexpected(number)(scope, receive, answer)

    def _count(self, caller: Principal) -> None:
        if caller.token_id is not None:
            allowed = caller.requests_per_minute or self._settings.api_requests_per_minute
            self._rates.take(caller.token_id, allowed)

    async def _note_end(self, scope: Scope, status: int) -> None:
        """Write how a change was answered; one that was refused for its caller's role has this line alone."""
        entry: AuditEntry | None = scope["state"].get("audited")
        if entry is None and status == 403 and scope["method"] not in SAFE_METHODS:
            entry = entry_for(scope)
        if entry is None:
            return
        try:
            await run_sync(self._access.note, replace(entry, outcome=str(status)))
        except Unavailable as error:
            words = "the audit has no line that says %d to request %s: %s"
            logger.warning(words, status, entry.request_id, error, extra=_about(scope))


def audit_through(access: AccessStore) -> Callable[[Request], Awaitable[None]]:
    """Return the dependency that writes a change to the audit before it is made."""

    async def note_begin(request: Request) -> None:
        scope = request.scope
        if request.method in SAFE_METHODS or _route(scope) in SELF_RECORDING:
            return
        entry = entry_for(scope)
        if entry is not None:
            await run_sync(access.note, entry)
            scope["state"]["audited"] = entry

    return note_begin


def entry_for(scope: Mapping[str, Any]) -> AuditEntry | None:
    """Return the line that says a request is being served; None if nobody knows whose it is."""
    caller: Principal | None = scope["state"].get("caller")
    if caller is None:
        return None
    return AuditEntry(
        request_id=scope["state"]["request_id"],
        actor=caller.name,
        role=caller.role,
        tenant=caller.tenant,
        action=f"{scope['method']} {_route(scope)}",
        target=_SECRET.sub("/leases/…", _printable(scope["path"])),
        outcome="begun",
    )


class _Answer:
    """Gives an answer the headers that all have, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers[REQUEST_ID] = self._request_id
        await self._send(message)


def _request_id(headers: Headers) -> str:
    """Return the caller's own id of the request if it is fit for logs, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Mapping[str, Any]) -> str:
    """Return the path as it is declared: with the ids in them, paths would be without number."""
    return str(getattr(scope.get("route"), "path", "none"))


def _about(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``extra`` of a log call about a request: the job that its path names."""
    return logs.about(job_id=scope.get("path_params", {}).get("job_id"))


def _printable(path: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in path)
