"""``Client`` and ``AsyncClient``: the HTTP API from Python, as the command line uses it."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx

from orchestrator import body_errors, errors, pool_errors
from orchestrator.client_calls import Calls, stream_path
from orchestrator.errors import ApiUnavailable, InvalidRequest, OrchestratorError
from orchestrator.held_lease import HeldLease
from orchestrator.server_events import SILENCE_SECONDS, Place, ServerEvent

_HttpT = TypeVar("_HttpT", httpx.Client, httpx.AsyncClient)

LONG_POLL: Final = 15.0
#: A heartbeat of a lease is given up after so long: it must not take the rest of the lease's life.
RENEWAL_SECONDS: Final = 3.0
#: Between two attempts of a patient client.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 2.0

#: Every error that the API can name; what it calls otherwise is told by its status.
_BY_CODE: Final = {
    kind.code: kind
    for kind in (vars(errors) | vars(pool_errors) | vars(body_errors)).values()
    if isinstance(kind, type) and issubclass(kind, OrchestratorError) and "code" in vars(kind)
}


class RemoteError(OrchestratorError):
    """The API answered with a problem; ``kind`` is the error it was there, ``document`` the problem itself."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.document = document
        self.code = str(document.get("type", "")).rpartition(":")[2] or "error"
        self.kind: type[OrchestratorError] = _BY_CODE.get(self.code, _kind_of(int(document.get("status", 500))))

    def __str__(self) -> str:
        return str(self.document.get("detail") or self.document.get("title") or "the API failed without saying why")


class Client(Calls[dict[str, Any], list[dict[str, Any]]]):
    """A connection to the API; usable as a context manager, from one thread at a time."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout_seconds: float = 30.0, patience_seconds: float = 0.0
    ) -> None:
        """Make it; nothing is sent until it is used.

        Args:
            url: Where the API is.
            token: Its bearer token.
            timeout_seconds: How long one request may take.
            patience_seconds: So long reads and cancels are tried again while the API or what it needs is away. A submit
                is sent once: whether a lost one took effect only its key can tell.

        Raises:
            InvalidRequest: If the URL is malformed, or the token cannot be sent.
        """
        self._wire, self._token = _Wire(url, token, timeout_seconds), token
        self.url, self.patience_seconds = self._wire.url, patience_seconds
        self._http = self._wire.opened(httpx.Client, timeout_seconds)

    def lease(self, *, key: str | None = None, **wanted: Any) -> HeldLease:
        """Lease GPUs without a job, for a ``with`` block: a thread renews the lease while it runs.

        Args:
            key: Idempotency key: a lease that was granted under it before and lives is this one; its old token is void.
            wanted: The options of ``POST /leases``, such as ``gpus=2`` or ``wait_seconds=30``.

        Raises:
            RemoteError: Of kind ``NoGpuFree``, or ``InvalidRequest``.
        """
        asked_at = time.monotonic()
        document = self.grant_lease(wanted, key=key)
        if time.monotonic() - asked_at > document["renew_seconds"]:  # it was waited for; trust begins anew
            asked_at = time.monotonic()
            self.renew_lease(document["token"])
        return HeldLease(Client(self.url, self._token, timeout_seconds=RENEWAL_SECONDS), document, asked_at)

    def follow(self, job_id: str, *, tail: int | None = None, attempt: int | None = None) -> Iterator[str]:
        """Yield a job's output as it comes, until the job has ended.

        Args:
            job_id: The job.
            tail: Begin with the last so many lines; None: with the first one.
            attempt: Yield what this attempt prints, until it has ended; None: what all of them do.
        """
        after = None
        while True:
            page = self.logs(job_id, after=after, wait_seconds=LONG_POLL, tail=tail, attempt=attempt)
            yield from (chunk["text"] for chunk in page["chunks"])
            after = page["next"]
            tail = tail if after is None else None
            if page["ended"]:
                return

    def watch(self, job_id: str | None = None, *, after: str | None = None) -> Iterator[ServerEvent]:
        """Yield what happens to a job until its end, or to everything for ever, as it happens.

        Args:
            job_id: The job; without one all that the token sees, from now on.
            after: The ``id`` of the event to go on behind.

        A stream that ends is opened again where it was, as long as the client is patient.
        """
        place, patience = Place(job_id, after), _Patience(self.patience_seconds)
        while not place.has_ended:
            try:
                options: dict[str, Any] = {"headers": place.begin(), "timeout": self._wire.stream_timeout}
                with self._http.stream("GET", stream_path(job_id), **options) as response:
                    if not response.is_success:
                        response.read()
                        self._wire.answer(response)
                    for line in response.iter_lines():
                        yield from place.take(line)
            except httpx.HTTPError as error:
                pause = patience.pause_after(self._wire.unanswered(error))
            except RemoteError as error:
                pause = patience.pause_after(error)
            else:
                pause = FIRST_PAUSE
            if place.heard:
                patience = _Patience(self.patience_seconds)
            if not place.has_ended:
                time.sleep(pause)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _document(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> dict[str, Any]:
        return self._wire.document(self._request(method, path, repeatable, options))

    def _list(
        self, method: str, path: str, *, of: str | None = None, repeatable: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        return self._wire.items(self._request(method, path, repeatable, options), of)

    def _request(self, method: str, path: str, repeatable: bool, options: Mapping[str, Any]) -> Any:
        patience = _Patience(self.patience_seconds if repeatable or method == "GET" else 0.0)
        while True:
            request = _written(self._http, method, path, options)
            try:
                try:
                    response = self._http.send(request)
                except httpx.HTTPError as error:
                    raise self._wire.unanswered(error) from error
                return self._wire.answer(response)
            except (ApiUnavailable, RemoteError) as error:
                time.sleep(patience.pause_after(error))


class AsyncClient(Calls[Awaitable[dict[str, Any]], Awaitable[list[dict[str, Any]]]]):
    """The same for programs with an event loop: each method returns what to await; many may be under way at once."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout_seconds: float = 30.0, patience_seconds: float = 0.0
    ) -> None:
        """Make it; the arguments are those of ``Client``."""
        self._wire = _Wire(url, token, timeout_seconds)
        self.url, self.patience_seconds = self._wire.url, patience_seconds
        self._http = self._wire.opened(httpx.AsyncClient, timeout_seconds)

    async def follow(self, job_id: str, *, tail: int | None = None, attempt: int | None = None) -> AsyncIterator[str]:
        """Yield a job's output as it comes, until the job has ended; the arguments are those of ``Client.follow``."""
        after = None
        while True:
            page = await self.logs(job_id, after=after, wait_seconds=LONG_POLL, tail=tail, attempt=attempt)
            for chunk in page["chunks"]:
                yield chunk["text"]
            after = page["next"]
            tail = tail if after is None else None
            if page["ended"]:
                return

    async def watch(self, job_id: str | None = None, *, after: str | None = None) -> AsyncIterator[ServerEvent]:
        """Yield what happens to a job until its end, or to everything for ever; see ``Client.watch``."""
        place, patience = Place(job_id, after), _Patience(self.patience_seconds)
        while not place.has_ended:
            try:
                options: dict[str, Any] = {"headers": place.begin(), "timeout": self._wire.stream_timeout}
                async with self._http.stream("GET", stream_path(job_id), **options) as response:
                    if not response.is_success:
                        await response.aread()
                        self._wire.answer(response)
                    async for line in response.aiter_lines():
                        for event in place.take(line):
                            yield event
            except httpx.HTTPError as error:
                pause = patience.pause_after(self._wire.unanswered(error))
            except RemoteError as error:
                pause = patience.pause_after(error)
            else:
                pause = FIRST_PAUSE
            if place.heard:
                patience = _Patience(self.patience_seconds)
            if not place.has_ended:
                await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _document(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> dict[str, Any]:
        return self._wire.document(await self._request(method, path, repeatable, options))

    async def _list(
        self, method: str, path: str, *, of: str | None = None, repeatable: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        return self._wire.items(await self._request(method, path, repeatable, options), of)

    async def _request(self, method: str, path: str, repeatable: bool, options: Mapping[str, Any]) -> Any:
        patience = _Patience(self.patience_seconds if repeatable or method == "GET" else 0.0)
        while True:
            request = _written(self._http, method, path, options)
            try:
                try:
                    response = await self._http.send(request)
                except httpx.HTTPError as error:
                    raise self._wire.unanswered(error) from error
                return self._wire.answer(response)
            except (ApiUnavailable, RemoteError) as error:
                await asyncio.sleep(patience.pause_after(error))


class _Wire:
    """Where the API is, what every request to it carries, and how its answers are read."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.stream_timeout = httpx.Timeout(timeout_seconds, read=SILENCE_SECONDS)
        if token and not token.isprintable():
            raise InvalidRequest("the API's token must be one line of printable characters")
        self._headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        if context := os.environ.get("TRACEPARENT"):  # as other tools take it over
            self._headers[b"traceparent"] = context.encode("ascii", "replace")

    def opened(self, kind: type[_HttpT], timeout_seconds: float) -> _HttpT:
        """Return a client of httpx's."""
        try:
            return kind(base_url=self.url, headers=self._headers, timeout=timeout_seconds, trust_env=False)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{self.url!r} is not the URL of an API: {error}") from error

    def unanswered(self, error: httpx.HTTPError) -> ApiUnavailable:
        """Return what to raise of a request that got no answer."""
        hint = "start a stack with 'orch up', or say where one is with ORCHESTRATOR_API_URL"
        return ApiUnavailable(f"the API at {self.url} does not answer ({error}); {hint}")

    def answer(self, response: httpx.Response) -> Any:
        """Return what a response says, or raise the problem that it tells of."""
        try:
            answer = response.json()
        except json.JSONDecodeError as error:
            raise self._stranger() from error
        if response.is_success:
            return answer
        raise RemoteError(answer if isinstance(answer, dict) else {"status": response.status_code})

    def document(self, answer: Any) -> dict[str, Any]:
        """Return an answer that has to be a document."""
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def items(self, answer: Any, of: str | None) -> list[dict[str, Any]]:
        """Return an answer that has to be a list, or to have one under ``of``."""
        found = answer if of is None else self.document(answer).get(of)
        if not isinstance(found, list):
            raise self._stranger()
        return found

    def _stranger(self) -> ApiUnavailable:
        return ApiUnavailable(f"{self.url} does not answer as gpu-orchestrator's API does")


class _Patience:
    """How long to go on with one request."""

    def __init__(self, seconds: float) -> None:
        self._deadline, self._pause = time.monotonic() + seconds, FIRST_PAUSE

    def pause_after(self, error: ApiUnavailable | RemoteError) -> float:
        """Return after how many seconds to try again, or raise the error."""
        pause = self._pause
        if not _may_pass(error) or time.monotonic() + pause > self._deadline:
            raise error
        self._pause = min(LONGEST_PAUSE, 2 * pause)
        return pause


def _written(
    http: httpx.Client | httpx.AsyncClient, method: str, path: str, options: Mapping[str, Any]
) -> httpx.Request:
    try:
        return http.build_request(method, path, **options)
    except (TypeError, ValueError) as error:  # such as bytes of a command line that are not UTF-8
        raise InvalidRequest(f"the request cannot be written as JSON in UTF-8: {error}") from error


def _may_pass(error: ApiUnavailable | RemoteError) -> bool:
    return isinstance(error, ApiUnavailable) or error.document.get("status") in (429, 503)


def _kind_of(status: int) -> type[OrchestratorError]:
    if status == 409:
        return errors.Conflict
    return errors.Unavailable if status >= 500 else InvalidRequest
